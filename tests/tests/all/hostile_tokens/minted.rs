//! What a real Keycloak mints: every kind of token that a person or a neighbour can get there and try here.

use std::time::Duration;

use kdbt_broker::identity::Reason as R;
use kdbt_e2e::keycloak::Keycloak;
use kdbt_e2e::keycloak::tokens::Tokens;
use kdbt_e2e::postgres::unique;

use super::{Row, World, check, now, row};

/// Tokens that were minted before the broker started, so that it knows their keys whatever other tests rotate.
pub(super) struct Minted {
    issuer: String,
    /// A client of this run, whose tokens live for a second.
    short_lived: String,
    person: Tokens,
    gone: [Tokens; 3],
    expired: Tokens,
    neighbour: Tokens,
    lightweight: Tokens,
    bound: Tokens,
    pipeline: Tokens,
    broker_itself: Tokens,
    other_realm: String,
}

impl Minted {
    pub(super) async fn by(keycloak: &Keycloak) -> anyhow::Result<Self> {
        let admin = keycloak.admin().await?;
        let short_lived = format!("short{}", unique());
        admin.copy_client("kdbt-test", &short_lived).await?;
        admin
            .set_client_attribute(&short_lived, "access.token.lifespan", "1")
            .await?;
        let mut gone = Vec::new();
        for _ in 0..3 {
            let name = format!("gone{}", unique());
            admin.create_user(&name, &["/data/engineers"]).await?;
            gone.push((keycloak.password_grant("kdbt-test", &name).await?, name));
        }
        let [logged_out, disabled, deleted] = <[_; 3]>::try_from(gone).expect("three of them");
        admin.log_out(&logged_out.1).await?;
        admin.set_enabled(&disabled.1, false).await?;
        admin.delete_user(&deleted.1).await?;
        Ok(Self {
            issuer: keycloak.issuer(),
            person: keycloak.password_grant("kdbt-test", "ada").await?,
            gone: [logged_out.0, disabled.0, deleted.0],
            expired: keycloak.password_grant(&short_lived, "ada").await?,
            short_lived,
            neighbour: keycloak.password_grant("other-app", "ada").await?,
            lightweight: keycloak.password_grant("kdbt-light", "ada").await?,
            bound: keycloak.dpop_bound("ada").await?,
            pipeline: keycloak.client_credentials("kdbt-ci", keycloak.ci_secret()).await?,
            broker_itself: keycloak
                .client_credentials("kdbt-broker", keycloak.broker_secret())
                .await?,
            other_realm: admin.token().to_owned(),
        })
    }

    /// Its realm as an issuer of the broker's configuration.
    pub(super) fn configured(&self) -> String {
        format!(
            "  - issuer: {}\n    audiences: [kdbt-broker]\n    authorized_parties: [kdbt-cli, kdbt-test, {}]\n    \
             service_clients: [kdbt-ci]\n    provides: [realm_roles]\n",
            self.issuer, self.short_lived
        )
    }
}

fn sends(rule: &'static str, name: &'static str, token: &str) -> Row {
    let token = token.to_owned();
    row(rule, name).text(move |_| token.clone())
}

fn taken(name: &'static str, token: &str) -> Row {
    sends("Keycloak", name, token)
        .request(|r| r.get("/v1/targets"))
        .statuses(&[200])
}

#[tokio::test]
async fn of_all_that_keycloak_mints_only_access_tokens_of_listed_clients_are_taken() {
    let world = World::shared().await;
    let Some(minted) = &world.minted else {
        return;
    };
    let [logged_out, disabled, deleted] = &minted.gone;
    let exp = minted.expired.claims().unwrap()["exp"].as_i64().unwrap();
    // Keycloak's clock and ours are one here: what the broker allows clocks to differ has to pass.
    let wait = u64::try_from(exp + 11 - now()).unwrap_or_default();
    tokio::time::sleep(Duration::from_secs(wait)).await;
    let rows = vec![
        taken("a person's access token is taken", &minted.person.access_token),
        taken("a pipeline's access token is taken", &minted.pipeline.access_token),
        // Keycloak tells nobody that these have changed; what stands against it is a short life (S15).
        taken(
            "a token outlives its session until it expires",
            &logged_out.access_token,
        ),
        taken(
            "a token outlives its person's lock until it expires",
            &disabled.access_token,
        ),
        taken("a token outlives its person until it expires", &deleted.access_token),
        sends("R12", "an expired token is refused", &minted.expired.access_token).refused(R::Expired),
        sends(
            "R3",
            "a refresh token is refused",
            minted.person.refresh_token.as_ref().unwrap(),
        )
        .refused(R::AlgorithmNotAllowed),
        sends(
            "R15",
            "an ID token is refused",
            minted.person.id_token.as_ref().unwrap(),
        )
        .refused(R::NotAnAccessToken),
        sends(
            "R17",
            "a neighbour's token with our audience is refused",
            &minted.neighbour.access_token,
        )
        .refused(R::UnauthorizedParty),
        sends(
            "R11",
            "a lightweight token is named as such",
            &minted.lightweight.access_token,
        )
        .refused(R::LightweightToken),
        sends("R19", "a bound token is no plain one", &minted.bound.access_token).refused(R::BoundToken),
        sends("R1", "a bound token as DPoP is refused", &minted.bound.access_token)
            .request(|r| r.authorization(|token| format!("DPoP {token}")))
            .refused(R::DpopScheme),
        sends(
            "R11",
            "the broker's own account is for another audience",
            &minted.broker_itself.access_token,
        )
        .refused(R::WrongAudience),
        sends("R10", "a token of another realm is refused", &minted.other_realm).refused(R::UnknownIssuer),
    ];
    check(rows).await;
}
