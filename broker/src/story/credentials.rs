//! What an order may bring for its user, and what it gets if it brings nothing.

use kdbt_api::credential::{Iterations, PrivateKey, ScramVerifier};
use kdbt_api::lease::{Connection, ExplainRequest, OrderRequest, SecretView};
use kdbt_api::problem::ProblemCode;

use super::world::{World, order, person};
use crate::service::{IssueOrder, Service as _};
use crate::store::{LeaseFilter, Page};

fn brings(change: impl FnOnce(&mut OrderRequest)) -> IssueOrder {
    let mut order = order();
    change(&mut order.request);
    order
}

async fn refused_with_nothing_booked(world: World, order: IssueOrder) {
    world.sweep().await.unwrap();
    let error = world.broker().issue(&person("ada", &["dev"]), order).await.unwrap_err();
    assert_eq!(error.problem.code, ProblemCode::WrongCredential.as_str(), "{error:?}");
    let page = Page { after: None, limit: 9 };
    let leases = world
        .broker()
        .store
        .leases(&LeaseFilter::default(), page)
        .await
        .unwrap();
    assert!(leases.leases.is_empty(), "{leases:?}");
    assert!(world.roles().is_empty());
}

#[tokio::test]
async fn a_verifier_for_snowflake_is_refused_before_anything_is_booked() {
    let verifier = ScramVerifier::derive(b"secret", &[7; 16], Iterations::One);
    let order = brings(|request| request.verifier = Some(verifier));
    refused_with_nothing_booked(World::on_snowflake(), order).await;
}

#[tokio::test]
async fn a_public_key_for_postgres_is_refused_before_anything_is_booked() {
    let (_, public) = PrivateKey::generate().unwrap();
    let order = brings(|request| request.public_key = Some(public));
    refused_with_nothing_booked(World::new(), order).await;
}

#[tokio::test]
async fn a_reason_that_an_order_may_not_have_is_not_explained_as_if_it_might() {
    let (world, ada) = (World::new(), person("ada", &["dev"]));
    world.sweep().await.unwrap();
    for (characters, refused) in [(500, false), (501, true)] {
        let order = brings(|request| request.reason = Some("ä".repeat(characters)));
        let asked = ExplainRequest {
            target: order.request.target.clone(),
            ttl: None,
            rules: Vec::new(),
            reason: order.request.reason.clone(),
        };
        let explained = world.broker().explain(&ada, asked).await;
        let issued = world.broker().issue(&ada, order).await;
        let codes = [explained.err(), issued.err()].map(|error| error.map(|error| error.problem.code));
        let code = refused.then(|| ProblemCode::InvalidOrder.as_str().to_owned());
        assert_eq!(codes, [code.clone(), code], "{characters}");
    }
}

#[tokio::test]
async fn whoever_brings_no_key_gets_one_as_a_private_key_and_who_brings_one_gets_none() {
    let world = World::on_snowflake();
    world.sweep().await.unwrap();
    let ada = person("ada", &["dev"]);
    let view = world.broker().issue(&ada, order()).await.unwrap().view;
    let Some(SecretView::PrivateKey(_)) = view.secret else {
        panic!("no key")
    };
    let Connection::Snowflake(connection) = view.connection else {
        panic!("{:?}", view.connection)
    };
    assert_eq!(
        (connection.user.as_str(), connection.role.as_str()),
        ("KDBT_ADA_0", "RAW_READER")
    );
    assert_eq!(
        (connection.schema.as_str(), connection.warehouse.unwrap().as_str()),
        ("MAIN", "W")
    );

    let (_, public) = PrivateKey::generate().unwrap();
    let own = brings(|request| request.public_key = Some(public));
    assert!(world.broker().issue(&ada, own).await.unwrap().view.secret.is_none());
}
