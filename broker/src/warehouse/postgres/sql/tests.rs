use std::collections::BTreeSet;

use kdbt_api::credential::{Iterations, ScramVerifier};
use kdbt_api::lease::LeaseId;
use proptest::prelude::*;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Token, Tokenizer};

use super::super::plan;
use super::*;
use crate::grant::{Access, Owner, Personal, Profile, Session};
use crate::lease::SubjectHash;
use crate::warehouse::{Credential, NewUser};

fn user(access: Access) -> NewUser {
    NewUser {
        lease: LeaseId::new(uuid::Uuid::from_u128(0x0190_23b4_c0de_7abc_8def_0123_4567_89ab)),
        subject: SubjectHash::of("https://sso.acme.example", "ada"),
        username: "kdbt_ada_0".parse().unwrap(),
        credential: Credential::Verifier(ScramVerifier::derive(b"pencil", &[7; 16], Iterations::One)),
        database: "analytics".parse().unwrap(),
        access,
        session: Session {
            connection_limit: 16,
            statement_timeout: Some("15m".parse().unwrap()),
            lock_timeout: None,
            idle_in_transaction_session_timeout: None,
            read_only: false,
            query_tag: None,
        },
        profile: Profile {
            threads: 4,
            schema: "marts".parse().unwrap(),
            search_path: vec!["marts".parse().unwrap(), "Staging".parse().unwrap()],
            keepalives_idle: None,
            connect_timeout: None,
            retries: None,
            warehouse: None,
        },
        ends_at: Timestamp::from_unix(1_788_300_000),
        max_ends_at: Timestamp::from_unix(1_788_307_200),
        deadline: tokio::time::Instant::now(),
    }
}

fn act_as() -> Access {
    Access::ActAs(Owner::Role("dbt_finance".parse().unwrap()))
}

fn read() -> Access {
    Access::Read(BTreeSet::from([
        "grp_marts_ro".parse().unwrap(),
        "grp_raw_ro".parse().unwrap(),
    ]))
}

fn target() -> Target {
    Target {
        oid: 16_400,
        name: "kdbt_ada_0".to_owned(),
        comment: "kdbt/1 acme-prod lse_…".to_owned(),
    }
}

/// How many statements a server would see: the tokenizer knows strings, the semicolons outside of them count.
fn statements(text: &str) -> usize {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize().unwrap();
    1 + tokens.iter().filter(|token| **token == Token::SemiColon).count()
}

fn text(access: Access, era: Era) -> String {
    let steps = plan::create_user(&user(access), &"acme-prod".parse().unwrap(), era);
    let text = message(&steps, era);
    assert_eq!(statements(&text), steps.len());
    text
}

#[test]
fn a_lease_that_acts_as_an_owner_gets_it_and_the_right_to_connect() {
    insta::assert_snapshot!(text(act_as(), Era::From16));
}

#[test]
fn before_16_a_lease_that_acts_as_an_owner_connects_as_everyone_does() {
    insta::assert_snapshot!(text(act_as(), Era::Before16));
}

#[test]
fn a_reader_inherits_its_groups_and_can_act_as_none() {
    insta::assert_snapshot!(text(read(), Era::From16));
}

#[test]
fn every_ending_statement_compares_the_oid_before_and_after_and_only_the_drop_locks_the_name() {
    let act = Step::NoLogin {
        role: target().name.clone(),
    };
    let [out, drop, asleep] = [
        plan::guarded(&target(), [act]),
        plan::drop_role(&target()),
        plan::terminate_as(&target(), 4711),
    ]
    .map(|steps| message(&steps, Era::From16));
    insta::assert_snapshot!(format!("{out}\n\n{drop}\n\n{asleep}"));
}

#[test]
fn what_is_owned_is_handed_over_and_the_rest_dropped_in_one_message() {
    let role = target().name;
    let act = [
        Step::SchemaOwner {
            schema: "made".into(),
            owner: "dbt_finance".into(),
        },
        Step::ReassignOwned {
            from: role.clone(),
            to: "dbt_finance".into(),
        },
        Step::DropOwned { by: role.clone() },
        Step::DropRole { role },
    ];
    insta::assert_snapshot!(message(&act, Era::From16));
}

#[test]
fn what_was_handed_on_is_revoked_by_the_one_who_did() {
    let act = [
        Step::SetLocalRole {
            role: "kdbt_mal_0".into(),
        },
        Step::RevokeAll {
            on: "TABLE marts.fruit".into(),
            from: target().name,
        },
    ];
    insta::assert_snapshot!(message(&plan::guarded(&target(), act), Era::From16));
}

#[test]
fn a_personal_role_is_marked_and_gets_its_groups() {
    let comment = plan::own_comment(&"acme-prod".parse().unwrap(), &SubjectHash::of("https://sso", "ada"));
    let mut steps = plan::create_owner("kdbt__own_ada", comment);
    let personal = Personal {
        slug: "ada".parse().unwrap(),
        schemas: vec![],
        create_schemas: true,
        groups: BTreeSet::from(["grp_marts_ro".parse().unwrap()]),
    };
    let now = ["kdbt__temp_other", "grp_of_yesterday"].map(str::to_owned);
    let database = "analytics".parse().unwrap();
    steps.extend(plan::reconcile_owner(
        "kdbt__own_ada",
        &personal,
        &database,
        &now.into(),
    ));
    insta::assert_snapshot!(message(&steps, Era::From16));
}

#[test]
fn the_checks_and_the_oids_close_the_message_of_a_batch() {
    let one = user(read());
    let steps = plan::create_users([&one].into_iter(), &"acme-prod".parse().unwrap(), Era::From16);
    let text = message(&steps[steps.len() - 3..], Era::From16);
    assert_eq!(statements(&text), 3);
    insta::assert_snapshot!(text);
}

#[test]
fn a_database_of_any_length_has_roles_that_the_server_does_not_cut() {
    let long = "d".repeat(63).parse().unwrap();
    let other = format!("{}e", "d".repeat(62)).parse().unwrap();
    let roles = plan::DatabaseRoles::of(&long);
    assert!(
        [&roles.connect, &roles.temp, &roles.create]
            .iter()
            .all(|name| name.len() <= 63)
    );
    assert_ne!(roles.connect, plan::DatabaseRoles::of(&other).connect);
    assert_eq!(
        plan::DatabaseRoles::of(&"dwh".parse().unwrap()).connect,
        "kdbt__connect_dwh"
    );
}

proptest! {
    /// Read by another's lexer: one token, which means the text.
    #[test]
    fn any_text_is_one_identifier_and_one_string(name in "[^\0]{1,40}") {
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, &ident(&name)).tokenize().unwrap();
        prop_assert_eq!(tokens.len(), 1);
        prop_assert!(matches!(&tokens[0], Token::Word(word) if word.quote_style == Some('"') && word.value == name));
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, literal(&name).trim_start()).tokenize().unwrap();
        prop_assert_eq!(tokens.len(), 1);
        let same = matches!(&tokens[0], Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) if *text == name);
        prop_assert!(same, "{:?}", tokens);
    }

    /// A name from the catalog may be anything: no step becomes two.
    #[test]
    fn no_name_makes_one_statement_two(name in "[^\0]{1,40}", gid in "[^\0]{0,40}") {
        let target = Target { oid: 1, name: name.clone(), comment: gid.clone() };
        let (any, two) = (|| name.clone(), || vec![name.clone(), gid.clone()]);
        let user = Step::CreateUser {
            name: any(), inherit: true, connection_limit: 1, verifier: gid.clone(), until: Timestamp::from_unix(0),
        };
        let steps = plan::guarded(&target, [
            user,
            Step::CreateDurable { name: any() },
            Step::Set { role: any(), name: "role", value: gid.clone() },
            Step::SearchPath { role: any(), schemas: two() },
            Step::Grant { roles: two(), to: any(), usage: Use::Act },
            Step::Revoke { role: any(), from: gid.clone() },
            Step::RevokeGrantedBy { role: any(), from: gid.clone(), grantor: any() },
            Step::NoRoadToLogin { users: two() },
            Step::NoRowPolicy { users: two() },
            Step::Oids { users: two() },
            Step::NoLogin { role: any() },
            Step::ValidUntil { role: any(), until: Timestamp::from_unix(0) },
            Step::SetRole { role: any() },
            Step::SetLocalRole { role: any() },
            Step::RevokeAll { on: "SCHEMA marts".to_owned(), from: any() },
            Step::RollbackPrepared { gid: gid.clone() },
            Step::CreateSchema { name: any(), owner: gid.clone() },
            Step::SchemaOwner { schema: any(), owner: gid.clone() },
            Step::ReassignOwned { from: any(), to: gid.clone() },
            Step::DropOwned { by: any() },
            Step::DropRole { role: any() },
        ]);
        for era in [Era::Before16, Era::From16] {
            prop_assert_eq!(statements(&message(&steps, era)), steps.len());
        }
    }
}
