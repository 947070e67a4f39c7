//! What went wrong in other brokers of credentials, tried on this one. `docs/security.md` has the whole list; here are the
//! cases that no other test holds.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use kdbt_e2e::impostor::{Impostor, Tls, Wants};
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::process::Finished;
use kdbt_e2e::stack::{DATABASE, Stack};
use rustix::process::Signal;
use serde_json::json;

use super::{Caller, Lease, exists, gone, options, own_stack, shared, within};

/// The native expiry of a user, in seconds since 1970; an endless one is none.
async fn native_expiry(stack: &Stack, user: &str) -> Option<i64> {
    let sql = format!(
        "SELECT CASE WHEN isfinite(rolvaliduntil) THEN extract(epoch FROM rolvaliduntil)::bigint::text END \
         FROM pg_roles WHERE rolname = '{user}'"
    );
    let rows = stack.rows(&sql).await.unwrap();
    rows.first()?.first()?.parse().ok()
}

/// CVE-2020-12757, CVE-2020-25816: a default of the server's, or a cap that was not kept.
#[tokio::test]
async fn the_server_holds_the_very_end_that_the_answer_names() {
    for version in PgVersion::ALL {
        let stack = shared(version).await;
        let ada = Caller::person(stack, "ada");
        for ttl in ["20s", "7m", "1h"].map(Some).into_iter().chain([None]) {
            let mut order = json!({ "target": "team" });
            if let Some(ttl) = ttl {
                order["ttl"] = json!(ttl);
            }
            let answer = ada.lease(&order).await.expect(201).json();
            let lease = Lease::of(&answer);
            let expiry = native_expiry(stack, &lease.user).await;
            assert_eq!(expiry, Some(lease.ends_at.as_second()), "{ttl:?}");
            let time = |name: &str| -> jiff::Timestamp { answer["lease"][name].as_str().unwrap().parse().unwrap() };
            assert!(time("ends_at") <= time("max_ends_at"), "{answer}");
            let longest = time("max_ends_at").duration_since(time("issued_at"));
            assert!(longest <= jiff::SignedDuration::from_hours(1), "{answer}");
            ada.revoke(&lease.id).await.expect(200);
        }
    }
}

/// CVE-2021-32923: a renewal in the last moment made tokens that never expired.
#[tokio::test]
async fn no_renewal_makes_a_lease_endless_or_wakes_one_that_has_ended() {
    let stack = shared(PgVersion::Pg18).await;
    let ada = Caller::person(stack, "ada");
    for none in ["0s", "-1s", "0"] {
        let answer = ada.lease(&json!({ "target": "team", "ttl": none })).await;
        assert!((400..500).contains(&answer.status.as_u16()), "{none}: {answer:?}");
    }
    let lease = Lease::take(&ada, "team", "4s").await;
    let path = format!("/v1/leases/{}/renew", lease.id);
    for none in ["0s", "-1s", "1000000h", "9999999999999999999s"] {
        let answer = ada.post(&path, &json!({ "ttl": none })).await;
        assert!((400..500).contains(&answer.status.as_u16()), "{none}: {answer:?}");
    }
    assert_eq!(native_expiry(stack, &lease.user).await, Some(lease.ends_at.as_second()));
    // Again and again up to its end and beyond; what was refused once is never granted again.
    let refused = AtomicBool::new(false);
    let endless = format!(
        "SELECT count(*)::text FROM pg_roles WHERE rolname = '{}' AND COALESCE(rolvaliduntil, 'infinity') = 'infinity'",
        lease.user
    );
    within(Duration::from_secs(20), "it is over", async || {
        let answer = ada.post(&path, &json!({ "ttl": "1s" })).await;
        match answer.status.as_u16() {
            200 if !refused.load(Relaxed) => assert_eq!(stack.rows(&endless).await.unwrap(), [["0"]]),
            409 => refused.store(true, Relaxed),
            _ => panic!("{answer:?}"),
        }
        refused.load(Relaxed) && !exists(stack, &lease.user).await
    })
    .await;
    ada.post(&path, &json!({ "ttl": "1h" })).await.expect(409);
}

/// CVE-2020-10660: who lost a role went on renewing what it had given.
#[tokio::test]
async fn a_token_that_has_lost_its_role_renews_nothing_and_the_lease_ends_at_its_time() {
    let stack = shared(PgVersion::Pg18).await;
    let with = |roles: &[&str]| {
        let forged = stack.identity.played().forge("ada").claim("sub", "sub-demoted");
        let forged = forged.claim("preferred_username", "demoted");
        let token = forged.claim("realm_access", json!({ "roles": roles })).token();
        Caller::new(stack, token)
    };
    let (before, after) = (with(&["engineer"]), with(&["analyst"]));
    let lease = Lease::take(&before, "team", "4s").await;
    let path = format!("/v1/leases/{}/renew", lease.id);
    let refused = after.post(&path, &json!({ "ttl": "10m" })).await.expect(403).json();
    assert_eq!(refused["code"], "policy-denied");
    assert_eq!(native_expiry(stack, &lease.user).await, Some(lease.ends_at.as_second()));
    gone(stack, &lease.user, Duration::from_secs(15)).await;
    let late = jiff::Timestamp::now().duration_since(lease.ends_at).as_secs_f32();
    assert!((-0.1..6.0).contains(&late), "gone {late} s after its end");
}

/// CVE-2020-7220, CVE-2019-18616, GHSA-vv66-6rp4-wr4f and CVE-2020-10660 again: what was taken from the policy was kept alive
/// by leases that nobody could end any more, or that went on renewing.
#[tokio::test]
async fn a_lease_whose_target_rule_and_grants_are_gone_is_not_renewed_and_ends_in_time() {
    let mut stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let long = Lease::take(&ada, "team", "10m").await;
    let short = Lease::take(&ada, "team", "6s").await;
    let file = stack.broker.policies().join("shop.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let marts = text.split_once("  - id: analyst-read").unwrap().1;
    let rest = format!(
        "kdbt: 1\ntargets:\n  marts: {{ server: dwh, engine: postgres, database: analytics, tier: dev }}\n\
         grants:\n  marts-read: {{ postgres: {{ member_of: [grp_marts_ro] }} }}\n\
         rules:\n  - id: analyst-read{marts}"
    );
    fs::write(&file, rest.split("\ntests:").next().unwrap()).unwrap();
    stack.broker.signal(Signal::HUP).unwrap();
    within(Duration::from_secs(5), "the target is gone", async || {
        ada.lease(&json!({ "target": "team" })).await.status == 403
    })
    .await;
    let path = format!("/v1/leases/{}/renew", long.id);
    ada.post(&path, &json!({ "ttl": "30m" })).await.expect(403);
    assert_eq!(native_expiry(&stack, &long.user).await, Some(long.ends_at.as_second()));
    gone(&stack, &short.user, Duration::from_secs(20)).await;
    // Neither does a broker that never knew the target forget it.
    stack.broker.stop().await.unwrap();
    stack.broker.start().await.unwrap();
    let ada = Caller::person(&stack, "ada");
    assert!(exists(&stack, &long.user).await);
    ada.revoke(&long.id).await.expect(200);
    assert!(!exists(&stack, &long.user).await);
}

/// CVE-2021-43998, CVE-2022-40186, CVE-2025-6013: people with one name in another spelling shared what they had.
#[tokio::test]
async fn people_who_share_a_name_share_neither_user_nor_schema_nor_leases() {
    let stack = shared(PgVersion::Pg18).await;
    let issuer = stack.identity.played();
    let first = Caller::person(stack, "ada");
    let mine = Lease::take(&first, "dev", "10m").await;
    let roles = |user: &str| format!("SELECT string_agg(rolconfig::text, '') FROM pg_roles WHERE rolname = '{user}'");
    let own = stack.rows(&roles(&mine.user)).await.unwrap();
    for (n, (name, subject)) in [("ada", "subject-of-another"), ("ADA", "AD A"), ("ada", "ada\u{300}")]
        .into_iter()
        .enumerate()
    {
        let token = issuer
            .forge("ada")
            .claim("preferred_username", name)
            .claim("sub", subject)
            .token();
        let other = Caller::new(stack, token);
        let theirs = Lease::take(&other, "dev", "10m").await;
        assert_ne!(theirs.user, mine.user);
        assert_ne!(stack.rows(&roles(&theirs.user)).await.unwrap(), own, "{n}");
        other.get(&format!("/v1/leases/{}", mine.id)).await.expect(404);
        other.revoke(&mine.id).await.expect(404);
        let listed = other.get("/v1/leases").await.expect(200);
        assert!(!listed.text.contains(&mine.id) && listed.text.contains(&theirs.id));
        other.revoke(&theirs.id).await.expect(200);
    }
    assert!(exists(stack, &mine.user).await);
    first.revoke(&mine.id).await.expect(200);
}

/// A database, a group and schemas whose names need quotes.
const ODD: &str = r#"kdbt: 1
targets:
  odd: { server: dwh, engine: postgres, database: Order, tier: dev }
grants:
  odd-read:
    postgres: { member_of: [User$G] }
rules:
  - id: odd-own
    why: Every name that a policy can say stands here in capitals or is a keyword.
    when: { realm_roles: [engineer] }
    targets: [odd]
    grants: [odd-read]
    own_schema: { name: "Table_{{username}}", also: [Select] }
    ttl: { min: 1s, default: 10m, max: 1h }
"#;

/// CVE-2026-39946: names that need quotes were made and could not be dropped, or became statements.
#[tokio::test]
async fn names_in_capitals_and_of_keywords_work_from_grant_to_drop() {
    let policies = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(options(PgVersion::Pg18).broker.policies.join("shop.yaml")).unwrap();
    let rule = "  - id: team-build\n";
    let keyword = text
        .replacen(
            "create_as: { postgres: dbt_analytics }",
            "create_as: { postgres: Select$1 }",
            1,
        )
        .replace(rule, &format!("{rule}    rank: 1\n"));
    fs::write(
        policies.path().join("shop.yaml"),
        keyword.split("\ntests:").next().unwrap(),
    )
    .unwrap();
    fs::write(policies.path().join("odd.yaml"), ODD).unwrap();
    for version in PgVersion::ALL {
        let mut options = options(version);
        options.broker.policies = policies.path().to_owned();
        let stack = Stack::prepare(&options, |_| {}).await.unwrap();
        stack.postgres.create_database("Order").await.unwrap();
        let mut stack = stack.bootstrapped(|_| {}).await.unwrap();
        let sql = "CREATE SCHEMA \"Order\" AUTHORIZATION \"Select$1\"";
        stack.postgres.execute(DATABASE, sql).await.unwrap();
        let sql = "CREATE TABLE public.\"Case\" (i int); GRANT SELECT ON public.\"Case\" TO \"User$G\"";
        stack.postgres.execute("Order", sql).await.unwrap();
        stack.broker.start().await.unwrap();
        let ada = Caller::person(&stack, "ada");
        let lease = Lease::take(&ada, "team", "10m").await;
        let session = lease.connect(&stack).await.unwrap();
        session
            .batch_execute("CREATE TABLE \"Order\".\"Table; DROP\" (i int)")
            .await
            .unwrap();
        ada.revoke(&lease.id).await.expect(200);
        assert!(!exists(&stack, &lease.user).await);
        let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'Table; DROP'";
        assert_eq!(stack.rows(owner).await.unwrap(), [["Select$1"]]);

        let make = "CREATE TABLE \"Table_ada\".\"Group\" (i int); CREATE TABLE \"Table_ada_Select\".\"Group\" (i int)";
        let find = "SELECT FROM \"Table_ada\".\"Group\", \"Table_ada_Select\".\"Group\", public.\"Case\"";
        for sql in [make, find] {
            let lease = Lease::take(&ada, "odd", "10m").await;
            let session = stack.postgres.connect_as("Order", &lease.user, &lease.password).await;
            let session = session.unwrap();
            // Of its own, so that the end has something to clean up in that database.
            let own = "SET ROLE NONE; SELECT lo_create(0); RESET ROLE";
            session.batch_execute(own).await.unwrap();
            session.batch_execute(sql).await.unwrap();
            ada.revoke(&lease.id).await.expect(200);
            assert!(!exists(&stack, &lease.user).await);
        }
    }
}

/// What still blocks a user's drop keeps nothing else of it: the rung of memberships is not undone by the later ones.
#[tokio::test]
async fn a_user_in_quarantine_has_no_membership_left_and_is_named_with_what_blocks_it() {
    for version in PgVersion::ALL {
        let stack = own(version).await;
        let ada = Caller::person(&stack, "ada");
        let lease = Lease::take(&ada, "team", "10m").await;
        let session = lease.connect(&stack).await.unwrap();
        let members = format!(
            "SELECT count(*)::text FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = '{}'",
            lease.user
        );
        assert_ne!(stack.rows(&members).await.unwrap(), [["0"]]);
        let grant = format!(
            "CREATE TABLE public.strange (i int); GRANT SELECT ON public.strange TO {}",
            lease.user
        );
        stack.postgres.execute(DATABASE, &grant).await.unwrap();
        let view = ada.revoke(&lease.id).await.expect(202).json();
        assert_eq!(view["state"], "quarantined", "{view}");
        assert_eq!(stack.rows(&members).await.unwrap(), [["0"]], "{version:?}");
        assert!(session.batch_execute("SELECT 1").await.is_err());
        assert!(stack.broker.log().unwrap().contains("strange"));
    }
}

async fn own(version: PgVersion) -> Stack {
    Stack::start(&options(version), |_| {}).await.unwrap()
}

/// CVE-2020-13223 and CVE-2021-27400: a warehouse that cannot be reached was told with its password, and one with the
/// certificate of somebody else was given it.
#[tokio::test]
async fn a_warehouse_that_cannot_be_trusted_gets_no_password_and_no_text_holds_it() {
    let stack = own(PgVersion::Pg15).await;
    let Some(ca) = stack.postgres.ca_file() else {
        panic!("the system's PostgreSQL has TLS");
    };
    let port = stack.postgres.port().to_string();
    let file = stack.broker.config_file();
    let plain = fs::read_to_string(&file).unwrap();
    let secured = plain.replace("    insecure_transport: true\n", "");
    assert_ne!(secured, plain);
    let trusting = secured.replace(
        "host: 127.0.0.1,",
        &format!("host: 127.0.0.1, ca_file: {},", ca.display()),
    );
    let doctor = async |text: &str| {
        fs::write(&file, text).unwrap();
        let said = Finished::of(stack.broker.command(&["doctor"]).unwrap()).await.unwrap();
        assert!(!format!("{said:?}").contains(stack.broker.password()), "{said:?}");
        said
    };
    let attempts = async || {
        let log = stack.postgres.log().unwrap();
        log.matches("password authentication failed").count()
    };
    doctor(&trusting).await.expect(0).unwrap();
    let before = attempts().await;
    for (text, what) in [
        (secured.as_str(), "ca_file"),
        (
            &trusting.replace(&format!("port: {port}"), "port: 1"),
            "cannot be reached",
        ),
        (&trusting.replace("user: kdbt__login_1", "user: nobody_at_all"), "28P01"),
    ] {
        let said = doctor(text).await;
        assert_ne!(said.code, 0, "{what}: {said:?}");
        assert!((said.stdout.clone() + &said.stderr).contains(what), "{what}: {said:?}");
        // Only a server that can be trusted and reached is shown a password.
        assert_eq!(attempts().await > before, what == "28P01", "{what}");
    }
    // Who stands at its address must have a certificate for that very host, by that very authority.
    let impostor = Impostor::start().unwrap();
    impostor.certify(&stack.postgres).unwrap();
    let misled = trusting.replace(
        &format!("port: {port}, user"),
        &format!("port: {}, user", impostor.port()),
    );
    assert_ne!(misled, trusting);
    for (tls, what) in [
        (Tls::Refused, "server does not support TLS"),
        (Tls::Unvouched, "UnknownIssuer"),
        (Tls::Elsewhere, "not valid for name"),
    ] {
        impostor.play(tls, Wants::Cleartext);
        let said = doctor(&misled).await;
        assert_ne!(said.code, 0, "{tls:?}: {said:?}");
        assert!((said.stdout.clone() + &said.stderr).contains(what), "{tls:?}: {said:?}");
        let heard = impostor.heard();
        assert!(heard.connections > 0 && heard.answers.is_empty(), "{tls:?}: {heard:?}");
    }
    // Nothing else kept it silent.
    impostor.play(Tls::Stolen, Wants::Cleartext);
    doctor(&misled).await;
    assert!(impostor.heard().holds(stack.broker.password()));
    fs::write(&file, &plain).unwrap();
}
