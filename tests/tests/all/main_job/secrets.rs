//! No secret and no token stays anywhere but with its holder.

use std::fs;

use kdbt_e2e::broker::BrokerOptions;
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::stack::{Stack, StackOptions};
use serde_json::json;

use super::{Caller, Lease, options};

#[tokio::test]
async fn neither_log_nor_store_nor_the_servers_log_holds_a_secret_or_a_token() {
    for version in PgVersion::ALL {
        let usual = options(version);
        let stack = StackOptions {
            // All that the server can tell of statements.
            postgres: usual.postgres.clone().set("log_statement", "all"),
            broker: BrokerOptions {
                log: "trace".to_owned(),
                ..usual.broker.clone()
            },
            ..usual
        };
        let mut stack = Stack::start(&stack, |_| {}).await.unwrap();
        let ada = Caller::person(&stack, "ada");
        let lease = Lease::take(&ada, "team", "10m").await;
        let yaml = ada.fragment(&json!({ "target": "dev" })).await.expect(201).text;
        let second = yaml.lines().find_map(|line| line.trim().strip_prefix("password: "));
        let second = second.unwrap().trim_matches('"').to_owned();
        let broken = stack.identity.played().forge("ada").claim("exp", 1).token();
        Caller::new(&stack, broken.clone())
            .lease(&json!({ "target": "team" }))
            .await
            .expect(401);
        ada.post(&format!("/v1/leases/{}/renew", lease.id), &json!({}))
            .await
            .expect(200);
        ada.revoke(&lease.id).await.expect(200);
        stack.broker.stop().await.unwrap();

        let mut places = vec![
            ("the broker's log", stack.broker.log().unwrap()),
            ("the server's log", stack.postgres.log().unwrap()),
        ];
        let folder = stack.broker.store_file().parent().unwrap().to_owned();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("kdbt.db") {
                let bytes = fs::read(entry.path()).unwrap();
                places.push(("the store", String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        let password = stack.broker.password().to_owned();
        // A token's last part alone would do to rebuild it from what is public.
        let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
        let secrets = [
            ("a password", lease.password.clone()),
            ("a password in a fragment", second),
            ("a token", signature(&ada.token)),
            ("a refused token", signature(&broken)),
            ("the broker's password", password),
        ];
        assert!(places[0].1.contains(&lease.id), "the log tells of the lease");
        for (place, text) in &places {
            for (what, secret) in &secrets {
                assert!(secret.len() >= 24, "{what} is too short to look for");
                // The bootstrap's own statement is the DBA's, who sends a verifier where it matters.
                let bootstrap = *place == "the server's log" && *what == "the broker's password";
                assert!(bootstrap || !text.contains(secret.as_str()), "{place} holds {what}");
            }
        }
    }
}
