//! What goes wrong around a Snowflake account, seen on the real broker: each is refused at its place or told by its
//! name, and no lease is lost over it.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use kdbt_api::credential::PrivateKey;
use kdbt_e2e::lake::{Lake, LakeOptions, login_token};
use kdbt_e2e::snowflake::account::Account;
use serde_json::{Value, json};

/// A key in the form of the fixtures: `key_a`, `rsa_1024`, `ec_p256`.
fn fixture(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/snowflake");
    fs::read_to_string(format!("{folder}/{name}.p8")).unwrap()
}

/// `serve` refuses to start, and says so at this place of its configuration; the rest of what it says.
async fn refusal_at(lake: &Lake, line: usize, column: usize) -> String {
    let finished = lake.finished(&["serve"]).await.unwrap();
    assert_eq!(finished.code, 2, "{}", finished.stderr);
    let place = format!("broker.yaml:{line}:{column}");
    assert!(finished.stderr.contains(&place), "{place}: {}", finished.stderr);
    finished.stderr
}

/// The line of the configuration that has this text, and the column behind it, both from 1.
fn place_behind(config: &str, text: &str) -> (usize, usize) {
    let at = config.find(text).unwrap() + text.len();
    let before = &config[..at];
    (before.matches('\n').count() + 1, at - before.rfind('\n').unwrap())
}

/// As the client sees it: 503 with this code, and not a word of what only operators may know.
fn assert_unavailable((status, problem): &(u16, Value), code: &str) {
    assert_eq!((*status, &problem["code"]), (503, &json!(code)), "{problem}");
    let text = problem.to_string();
    for secret in [
        "KDBT_", "GRANT", "OWNER", "SHOW", "SYSTEM$", "3901", "3904", "00300", "00200",
    ] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spelling_of_an_account_is_the_same_account_in_tokens() {
    let started = [
        ("myorg-myacct", "MYORG-MYACCT"),
        ("MyOrg-MyAcct", "MYORG-MYACCT"),
        ("myorg-my_acct", "MYORG-MY_ACCT"),
        ("myorg-myacct.privatelink", "MYORG-MYACCT"),
        ("xy12345", "XY12345"),
        ("xy12345.us-east-1", "XY12345"),
        ("xy12345.east-us-2.azure", "XY12345"),
        ("xy12345.eu-central-1.privatelink", "XY12345"),
        ("xy12345.cn-north-1", "XY12345"),
        ("conn1-a1b2c3.global", "CONN1"),
    ]
    .map(async |(account, name)| {
        let options = LakeOptions {
            account: account.to_owned(),
            name: name.to_owned(),
            key: Some(fixture("key_a")),
            ..LakeOptions::default()
        };
        let mut lake = Lake::ready(&options).await.unwrap();
        lake.broker
            .start()
            .await
            .unwrap_or_else(|error| panic!("{account}: {error:#}"));
        assert_eq!(lake.simulator.login_failures(), [], "{account}");
        let (_, issued) = lake.order(&json!({})).await.unwrap();
        assert_eq!(
            issued["connection"]["account"], account,
            "dbt gets it as it was written"
        );
    });
    join_all(started).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_odd_account_is_refused_at_start_with_its_place_and_what_to_write() {
    let lake = Lake::bare(&LakeOptions::default()).await.unwrap();
    let good = fs::read_to_string(lake.broker.config_file()).unwrap();
    let (line, column) = place_behind(&good, "account: ");
    let long = "a".repeat(300);
    for odd in [
        "",
        " ",
        &long,
        "my org",
        "my\\\"org",
        "my'org",
        "myorg-myacct ",
        "-myorg",
        "myorg..eu-central-1",
        "myorg-myacct.snowflakecomputing.com",
        "https://myorg-myacct.snowflakecomputing.com",
        "HTTPS://MYORG-MYACCT.SNOWFLAKECOMPUTING.COM/console",
        "xy12345.cn-north-1.snowflakecomputing.cn",
        "app.snowflake.com",
        "https://app.snowflake.com/myorg/myacct/#/homepage",
        "myorg-myacct:443",
        "konto-größe",
    ] {
        let config = good.replacen("account: myorg-myacct", &format!("account: \"{odd}\""), 1);
        fs::write(lake.broker.config_file(), config).unwrap();
        let said = refusal_at(&lake, line, column).await;
        assert!(said.contains("it looks like `myorg-myacct`"), "{odd}: {said}");
    }
    assert!(lake.simulator.transcript().is_empty() && lake.simulator.login_failures().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_key_that_snowflake_would_not_take_is_refused_at_start_with_the_way_to_a_right_one() {
    let lake = Lake::bare(&LakeOptions::default()).await.unwrap();
    let config = fs::read_to_string(lake.broker.config_file()).unwrap();
    let (line, column) = place_behind(&config, "private_key: ");
    let file = lake.broker.config_file().with_file_name("sf.p8");
    let armoured = |name: &str| fixture("key_a").replace("PRIVATE KEY", name);
    for (key, says) in [
        (fixture("rsa_1024"), "fewer than 2048 bits: make a new one by `openssl"),
        (fixture("ec_p256"), "no RSA key"),
        (
            armoured("ENCRYPTED PRIVATE KEY"),
            "decrypt it by `openssl pkcs8 -in OLD",
        ),
        (
            armoured("RSA PRIVATE KEY"),
            "convert it by `openssl pkcs8 -topk8 -nocrypt",
        ),
        (armoured("PUBLIC KEY"), "begins with `-----BEGIN PRIVATE KEY-----`"),
        (armoured("OPENSSH PRIVATE KEY"), "must be PKCS#8"),
        (fixture("key_a")[..400].to_owned(), "must be PKCS#8"),
        ("hunter2".into(), "must be PKCS#8"),
        (String::new(), "must be PKCS#8"),
    ] {
        fs::write(&file, &key).unwrap();
        let said = refusal_at(&lake, line, column).await;
        let body = key.lines().nth(1).unwrap_or("hunter2");
        assert!(said.contains(says) && !said.contains(body), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_with_a_key_that_snowflake_would_not_take_is_refused_and_sends_nothing() {
    let lake = Lake::start().await.unwrap();
    let before = lake.simulator.transcript().len();
    let rsa_1024 = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCiExs3A80kpnjoD5JmI0LPchYKT86KVvUJPM8qdWXLzPFkKJRc0qDZkdjRIVeluYHnJnQ2IkpGbtMLWqYOUCAjgVip+3AX3KD8jZMydcDlT8/hdB38VXIggjrx4bsmg2YnjzZDUWyBd6QvxBxpM3OkFQpIoxDAKJvMm4mxRFrtnQIDAQAB";
    let ec = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==";
    for (key, says) in [
        (rsa_1024, "RSA"),
        (ec, "no RSA public key"),
        ("no key", "base64"),
        ("", "RSA"),
        ("' OR 1 = 1; DROP USER ADMIN --", "base64"),
    ] {
        let (status, problem) = lake.order(&json!({"public_key": key})).await.unwrap();
        assert_eq!(status, 422, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    assert_eq!(lake.simulator.transcript().len(), before);
    assert!(lake.lease_users().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_missing_or_not_the_brokers_is_named_with_its_grant_to_operators_alone() {
    let lake = Lake::start().await.unwrap();
    let handed_over: fn(&mut Account) = |account| account.hand_over("KDBT_ENT_OWNER", "SECURITYADMIN");
    let dropped: fn(&mut Account) = |account| account.forget_role("KDBT_ENT_OWNER");
    for (trouble, code) in [(handed_over, "003001"), (dropped, "002003")] {
        lake.simulator.change(trouble);
        assert_unavailable(&lake.order(&json!({})).await.unwrap(), "warehouse-down");
        let grant = "GRANT OWNERSHIP ON ROLE \"KDBT_ENT_OWNER\" TO ROLE \"KDBT_BROKER\" COPY CURRENT GRANTS";
        lake.until_log_says(&format!("grant a role: {code}")).await.unwrap();
        lake.until_log_says(grant).await.unwrap();
        lake.until("no user is left half-made", async |lake| lake.lease_users().is_empty())
            .await
            .unwrap();

        let doctor = lake.finished(&["doctor", "lake"]).await.unwrap().expect(1).unwrap();
        let (_, cure) = doctor.stdout.split_once("KDBT_BROKER does not own it\n").unwrap();
        assert!(cure.contains(grant), "{}", doctor.stdout);
        lake.as_dba(&format!("USE ROLE SECURITYADMIN; {cure}")).unwrap();
        let lease = lake.lease().await.unwrap();
        assert_eq!(lake.give_back(&lease).await.unwrap(), 200);
    }
    lake.simulator
        .change(|account| account.withdraw("KDBT_BROKER", "CREATE USER"));
    assert_unavailable(&lake.order(&json!({})).await.unwrap(), "warehouse-down");
    lake.until_log_says("GRANT CREATE USER ON ACCOUNT TO ROLE \"KDBT_BROKER\"")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_is_handed_away_during_its_lease_is_ended_as_soon_as_it_is_given_back() {
    let lake = Lake::start().await.unwrap();
    let lease = lake.lease().await.unwrap();
    lake.as_dba(
        "USE ROLE KDBT_BROKER; GRANT OWNERSHIP ON USER \"KDBT_ADA_0\" TO ROLE SECURITYADMIN COPY CURRENT GRANTS",
    )
    .unwrap();
    assert_eq!(
        lake.give_back(&lease).await.unwrap(),
        202,
        "it is there, and it is not called ended"
    );
    let cure = "GRANT OWNERSHIP ON USER \"KDBT_ADA_0\" TO ROLE \"KDBT_BROKER\" COPY CURRENT GRANTS";
    lake.until_log_says(cure).await.unwrap();
    assert_eq!(lake.lease_users(), ["KDBT_ADA_0"]);
    let id = lease["id"].as_str().unwrap();
    let (_, shown) = lake
        .call("ada", "GET", &format!("leases/{id}"), &Value::Null)
        .await
        .unwrap();
    assert_eq!(shown["state"], "ending", "{shown}");

    lake.as_dba(&format!("USE ROLE SECURITYADMIN; {cure}")).unwrap();
    lake.until("it is gone", async |lake| lake.lease_users().is_empty())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_is_renamed_during_its_lease_ends_with_it_all_the_same() {
    let lake = Lake::start().await.unwrap();
    let lease = lake.lease().await.unwrap();
    lake.as_dba("USE ROLE KDBT_BROKER; ALTER USER \"KDBT_ADA_0\" RENAME TO \"SOMEBODY\"")
        .unwrap();
    assert_eq!(lake.give_back(&lease).await.unwrap(), 200);
    assert!(
        !lake
            .simulator
            .look(Account::user_names)
            .contains(&"SOMEBODY".to_owned())
    );
    assert!(lake.broker.log().unwrap().contains("the user of a lease was renamed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_off_is_told_with_its_way_and_nothing_is_issued_by_it() {
    let tried = [3_000, -3_000, 29_500, -29_500, 239_500, -239_500].map(async |ahead: i64| {
        let mut lake = Lake::ready(&LakeOptions::default()).await.unwrap();
        lake.simulator.set_ahead(ahead);
        lake.broker.spawn().unwrap();
        let far = ahead.abs() > 5_000;
        let way = if ahead < 0 {
            "s behind the broker's"
        } else {
            "s ahead of the broker's"
        };
        lake.until(&format!("{ahead} ms are judged"), async |lake| {
            match lake.server().await {
                Some((issuing, detail)) => issuing != far && (!far || detail.contains(way)),
                None => false,
            }
        })
        .await
        .unwrap();
        let ordered = lake.order(&json!({})).await.unwrap();
        if far {
            assert_unavailable(&ordered, "issuing-stopped");
        } else {
            assert_eq!(ordered.0, 201, "{ahead}: {ordered:?}");
        }
        // The account takes tokens that are a minute old, and none from the future.
        let refused = !lake.simulator.login_failures().is_empty();
        assert_eq!(refused, !(-1_000..=60_000).contains(&ahead), "{ahead}");
        let log = lake.broker.log().unwrap();
        assert_eq!(
            log.contains("its tokens allow for that"),
            refused && far,
            "{ahead}: {log}"
        );
    });
    join_all(tried).await;

    let lake = Lake::start().await.unwrap();
    let (status, _) = lake.order(&json!({"ttl": "2s"})).await.unwrap();
    assert_eq!(status, 201);
    lake.simulator.set_ahead(240_000);
    lake.until("a lease ends whatever the clocks do", async |lake| {
        lake.lease_users().is_empty()
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_policy_that_keeps_the_broker_out_is_called_that_and_forgotten_when_it_lets_it_in() {
    let lake = Lake::start().await.unwrap();
    lake.as_dba(
        "USE ROLE SECURITYADMIN; CREATE NETWORK POLICY OFFICE ALLOWED_IP_LIST = ('203.0.113.7'); \
         CREATE NETWORK POLICY ALL_OF_US ALLOWED_IP_LIST = ('203.0.113.7', '127.0.0.1'); \
         ALTER USER KDBT_SVC SET NETWORK_POLICY = OFFICE",
    )
    .unwrap();
    assert_unavailable(&lake.order(&json!({})).await.unwrap(), "warehouse-down");
    let query = "SHOW PARAMETERS LIKE 'NETWORK_POLICY' IN USER \"KDBT_SVC\"";
    for text in ["390422", "a network policy keeps the broker's address out", query] {
        lake.until_log_says(text).await.unwrap();
    }
    let doctor = lake.finished(&["doctor", "lake"]).await.unwrap().expect(1).unwrap();
    assert!(doctor.stdout.contains(query), "{}", doctor.stdout);

    lake.as_dba("USE ROLE SECURITYADMIN; ALTER USER KDBT_SVC SET NETWORK_POLICY = ALL_OF_US")
        .unwrap();
    lake.until("leases are issued again", async |lake| {
        lake.order(&json!({})).await.unwrap().0 == 201
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_down_for_an_hour_loses_nothing_and_is_named_meanwhile() {
    let mut lake = Lake::start().await.unwrap();
    let expires = lake.lease().await.unwrap();
    let given_back = lake.lease().await.unwrap();
    lake.simulator.is_down(true);
    // An hour and a half passes everywhere.
    lake.broker.set_clock_ahead(90 * 60_000).unwrap();
    lake.simulator.set_ahead(90 * 60_000);
    lake.identity.played().set_clock_offset(90 * 60);
    lake.until("it says how long it has not seen the account", async |lake| {
        matches!(lake.server().await, Some((false, detail)) if detail.starts_with("the last full sweep is 54"))
    })
    .await
    .unwrap();
    assert_unavailable(&lake.order(&json!({})).await.unwrap(), "issuing-stopped");
    assert_eq!(lake.give_back(&given_back).await.unwrap(), 202);

    // Somebody restarts the broker, too.
    lake.broker.kill().await.unwrap();
    lake.broker.spawn().unwrap();
    lake.until("it says that it has not seen the account yet", async |lake| {
        lake.server().await == Some((false, "no sweep has finished since the broker started".to_owned()))
    })
    .await
    .unwrap();
    assert_unavailable(&lake.order(&json!({})).await.unwrap(), "issuing-stopped");
    assert_eq!(lake.lease_users(), ["KDBT_ADA_0", "KDBT_ADA_1"]);

    lake.simulator.is_down(false);
    lake.until("both leases have ended", async |lake| lake.lease_users().is_empty())
        .await
        .unwrap();
    for lease in [expires, given_back] {
        let path = format!("leases/{}", lease["id"].as_str().unwrap());
        lake.until("the store knows it", async |lake| {
            lake.call("ada", "GET", &path, &Value::Null).await.unwrap().1["state"] == "ended"
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_logins_come_one_at_a_time_with_pauses_and_are_told_once() {
    let mut lake = Lake::ready(&LakeOptions::default()).await.unwrap();
    let right = lake
        .simulator
        .look(|account| account.user("KDBT_SVC").unwrap().keys["RSA_PUBLIC_KEY"].spki.clone());
    let wrong = PrivateKey::generate().unwrap().1.to_snowflake();
    let set_key = |lake: &Lake, key: &str| {
        let set = format!("USE ROLE SECURITYADMIN; ALTER USER KDBT_SVC SET RSA_PUBLIC_KEY = '{key}'");
        lake.as_dba(&set).unwrap();
    };
    let refused = |lake: &Lake| lake.simulator.login_failures().len();
    set_key(&lake, &wrong);
    lake.broker.spawn().unwrap();
    lake.until("a fresh token was refused too", async |lake| refused(lake) >= 2)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(refused(&lake), 2, "the next try comes after five seconds");
    let told = |lake: &Lake| {
        lake.broker
            .log()
            .unwrap()
            .matches("SYSTEM$GET_LOGIN_FAILURE_DETAILS")
            .count()
    };
    lake.until("the third is refused", async |lake| refused(lake) == 3)
        .await
        .unwrap();
    assert_eq!(told(&lake), 1, "{}", lake.broker.log_tail(20));
    set_key(&lake, &right);
    // The next try would come half a minute later; a broker that is started again knows of no refusal.
    lake.broker.kill().await.unwrap();
    lake.broker.start().await.unwrap();

    set_key(&lake, &wrong);
    let before = refused(&lake);
    let orders = join_all((0..4).map(|_| lake.order(&Value::Null))).await;
    for order in orders {
        assert_unavailable(&order.unwrap(), "warehouse-down");
    }
    let burst = refused(&lake) - before;
    assert!(burst <= 5, "what was under way, and one with a fresh token: {burst}");
    for _ in 0..3 {
        assert_unavailable(&lake.order(&Value::Null).await.unwrap(), "warehouse-down");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(refused(&lake) - before <= burst + 1, "{}", refused(&lake) - before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_hard_expiry_and_a_session_policy_a_lease_dies_by_the_hour_without_any_broker() {
    let options = LakeOptions {
        more: "    hard_expiry: true\n    session_policy: security.policies.kdbt\n".to_owned(),
        ..LakeOptions::default()
    };
    let mut lake = Lake::ready(&options).await.unwrap();
    lake.broker.start().await.unwrap();
    assert_unavailable(&lake.order(&json!({})).await.unwrap(), "warehouse-down");
    lake.until_log_says("set a user's session policy: 002003")
        .await
        .unwrap();
    lake.until("no user is left half-made", async |lake| lake.lease_users().is_empty())
        .await
        .unwrap();
    lake.as_dba("CREATE SESSION POLICY \"SECURITY\".\"POLICIES\".\"KDBT\"")
        .unwrap();

    let before = lake.simulator.transcript().len();
    let (status, issued) = lake.order(&json!({})).await.unwrap();
    assert_eq!(status, 201, "{issued}");
    let user = issued["connection"]["user"].as_str().unwrap();
    let said = lake
        .simulator
        .transcript()
        .split_off(before)
        .into_iter()
        .map(|said| said.text);
    let said: Vec<String> = said.skip_while(|text| !text.starts_with("CREATE USER")).collect();
    let steps = [
        "CREATE USER",
        "SET SESSION POLICY",
        "ADD KEY PAIR",
        "ROTATE KEY PAIR",
        "GRANT ROLE",
    ];
    assert_eq!(said.len(), steps.len(), "{said:?}");
    assert!(
        said.iter().zip(steps).all(|(said, step)| said.contains(step)),
        "{said:?}"
    );
    lake.simulator.look(|account| {
        let user = account.user(user).unwrap();
        assert_eq!(user.session_policy.as_deref(), Some("SECURITY.POLICIES.KDBT"));
        assert!(!user.keys.contains_key("RSA_PUBLIC_KEY"), "a key that never expires");
    });

    lake.broker.kill().await.unwrap();
    let key = issued["secret"]["private_key"].as_str().unwrap();
    let log_in = |minutes: i64| {
        lake.simulator.set_ahead(minutes * 60_000);
        let token = login_token(&lake.simulator, user, key).unwrap();
        lake.simulator.log_in(&token)
    };
    // The lease can be renewed for two hours in all.
    assert_eq!(log_in(115), Ok(user.to_owned()));
    assert_eq!(log_in(125), Err("394304"));
    lake.broker.spawn().unwrap();
    lake.until("it ends like any other", async |lake| lake.lease_users().is_empty())
        .await
        .unwrap();
    let doctor = lake.finished(&["doctor", "lake"]).await.unwrap();
    assert!(
        doctor.stdout.contains("never tried on a live account"),
        "{}",
        doctor.stdout
    );
}
