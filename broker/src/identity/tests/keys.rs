//! Where keys come from: discovery, rotation, floods, outages, and documents that are not what they should be.

use std::time::Duration;

use serde_json::json;

use super::super::*;
use super::realm::{CERTS, DISCOVERY, Page, Realm, Server, TestKey, config, send};
use crate::clock::ManualClock;

/// A little more than the shortest time between two fetches.
const A_WHILE: Duration = Duration::from_secs(11);

#[tokio::test]
async fn requests_that_come_before_the_keys_wait_for_one_fetch() {
    let realm = Realm::new().await;
    let token = realm.token(&realm.claims());
    let sent = futures_util::future::join_all((0..50).map(|_| realm.send(&token))).await;
    assert!(sent.iter().all(Result::is_ok));
    assert_eq!((realm.server.asked(DISCOVERY), realm.server.asked(CERTS)), (1, 1));
}

#[tokio::test]
async fn keys_are_there_before_anybody_asks() {
    let realm = Realm::new().await;
    assert_eq!(
        realm.authenticator.ready().waiting_for.as_slice(),
        [Arc::from(realm.issuer.as_str())]
    );
    let ready = async {
        while !realm.authenticator.ready().is_ready() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ready)
        .await
        .expect("keys without a request");
}

#[tokio::test]
async fn a_new_key_is_known_at_its_first_token_and_one_taken_back_stops_working() {
    let realm = Realm::new().await;
    let old = realm.token(&realm.claims());
    assert!(realm.send(&old).await.is_ok());

    let new = TestKey::new("k2", Algorithm::Rs256);
    realm.server.publish(CERTS, &[&realm.key, &new]);
    realm.clock.advance(A_WHILE);
    assert!(realm.send(&new.sign(&new.header(), &realm.claims())).await.is_ok());
    assert!(realm.send(&old).await.is_ok(), "a passive key still verifies");

    let newest = TestKey::new("k3", Algorithm::EdDsa);
    realm.server.publish(CERTS, &[&newest]);
    realm.clock.advance(A_WHILE);
    assert!(
        realm
            .send(&newest.sign(&newest.header(), &realm.claims()))
            .await
            .is_ok()
    );
    assert_eq!(
        realm.send(&old).await.err(),
        Some(Reason::UnknownKey),
        "sets are replaced, never merged"
    );
}

#[tokio::test]
async fn a_flood_of_unknown_keys_causes_at_most_one_fetch_more() {
    let realm = Realm::new().await;
    assert!(realm.send_claims(&realm.claims()).await.is_ok());
    realm.clock.advance(A_WHILE);
    for n in 0..10_000 {
        let header = json!({ "alg": "ES256", "kid": format!("random-{n}") });
        let token = format!(
            "{}.{}.AAAA",
            super::b64(header.to_string()),
            super::b64(realm.claims().to_string())
        );
        assert_eq!(realm.send(&token).await.err(), Some(Reason::UnknownKey));
    }
    assert_eq!(realm.server.asked(CERTS), 2);
}

#[tokio::test]
async fn a_hundred_unknown_keys_and_an_issuer_that_hangs_hold_up_nobody_with_a_known_one() {
    let realm = Realm::new().await;
    let honest = realm.token(&realm.claims());
    assert!(realm.send(&honest).await.is_ok());
    realm.server.set(CERTS, Page::Silence);
    realm.clock.advance(A_WHILE);
    let key = TestKey::new("nobody's", Algorithm::Es256);
    let begun = std::time::Instant::now();
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..100 {
        let mut header = key.header();
        header["kid"] = json!(format!("random-{n}"));
        let (authenticator, token) = (realm.authenticator.clone(), key.sign(&header, &realm.claims()));
        flood.spawn(async move { send(&authenticator, &token).await.err() });
    }
    // Those that have no place to wait are refused at once, and say nothing about the key.
    for _ in 0..36 {
        assert_eq!(flood.join_next().await.unwrap().unwrap(), Some(Reason::KeysUnavailable));
    }
    assert!(realm.send(&honest).await.is_ok());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(flood.len(), 64, "the others wait for the issuer");
    // And not for as long as that may take.
    while let Some(refused) = flood.join_next().await {
        assert_eq!(refused.unwrap(), Some(Reason::KeysUnavailable));
    }
    assert!(begun.elapsed() < Duration::from_millis(4500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_new_key_that_the_issuer_could_not_be_asked_for_is_asked_for_again_and_not_called_unknown() {
    let realm = Realm::new().await;
    assert!(realm.send_claims(&realm.claims()).await.is_ok());
    let new = TestKey::new("k2", Algorithm::Es256);
    let token = new.sign(&new.header(), &realm.claims());
    realm.server.remove(CERTS);
    realm.clock.advance(A_WHILE);
    assert_eq!(realm.send(&token).await.err(), Some(Reason::KeysUnavailable));
    realm.server.publish(CERTS, &[&realm.key, &new]);
    realm.clock.advance(A_WHILE);
    assert!(realm.send(&token).await.is_ok());
}

#[tokio::test]
async fn a_key_that_was_just_missed_is_not_asked_for_again_but_another_one_is() {
    let realm = Realm::new().await;
    let unknown = |id: &str| {
        let key = TestKey::new(id, Algorithm::Es256);
        key.sign(&key.header(), &realm.claims())
    };
    assert!(realm.send_claims(&realm.claims()).await.is_ok());
    for (id, fetches) in [("gone", 2), ("gone", 2), ("other", 3), ("gone", 4)] {
        realm.clock.advance(A_WHILE);
        assert_eq!(realm.send(&unknown(id)).await.err(), Some(Reason::UnknownKey));
        assert_eq!(realm.server.asked(CERTS), fetches, "{id}");
    }
}

#[tokio::test]
async fn keys_outlive_an_outage_of_the_issuer_for_an_hour_and_no_longer() {
    let realm = Realm::new().await;
    assert!(realm.send_claims(&realm.claims()).await.is_ok());
    realm.server.remove(CERTS);

    realm.clock.advance(Duration::from_secs(3599));
    assert!(realm.send_claims(&realm.claims()).await.is_ok());
    realm.clock.advance(Duration::from_secs(1));
    assert_eq!(
        realm.send_claims(&realm.claims()).await.err(),
        Some(Reason::KeysUnavailable)
    );
    assert!(!realm.authenticator.ready().is_ready());

    realm.server.publish(CERTS, &[&realm.key]);
    realm.clock.advance(A_WHILE);
    assert!(realm.send_claims(&realm.claims()).await.is_ok());
    assert!(realm.authenticator.ready().is_ready());
}

// S17: unknown issuers
#[tokio::test]
async fn a_token_of_an_issuer_that_is_not_configured_causes_no_network_call() {
    let realm = Realm::new().await;
    assert!(realm.send_claims(&realm.claims()).await.is_ok());
    realm.clock.advance(A_WHILE);
    let other = Server::start(&TaskTracker::new()).await;
    let claims = realm.claims_with("iss", json!(format!("{}/realms/data", other.url)));
    assert_eq!(realm.send_claims(&claims).await.err(), Some(Reason::UnknownIssuer));
    assert_eq!((other.asked(DISCOVERY), realm.server.asked(CERTS)), (0, 1));
}

// R8
#[tokio::test]
async fn a_key_of_one_realm_does_not_verify_tokens_of_another_though_their_ids_are_equal() {
    let (one, two) = (Realm::new().await, Realm::new().await);
    let stop = CancellationToken::new();
    let configs = vec![config(&one.issuer), config(&two.issuer)];
    let both = Authenticator::new(configs, Arc::clone(&one.clock) as _, &TaskTracker::new(), &stop).unwrap();
    assert!(send(&both, &one.token(&one.claims())).await.is_ok());
    assert!(send(&both, &two.token(&two.claims())).await.is_ok());
    assert_eq!(
        send(&both, &two.token(&one.claims())).await.err(),
        Some(Reason::BadSignature)
    );
}

#[tokio::test]
async fn an_issuer_that_is_dead_stops_neither_the_others_nor_readiness_unless_it_is_required() {
    for required in [false, true] {
        let realm = Realm::new().await;
        let mut dead = config("http://127.0.0.1:9/realms/dead");
        dead.required = required;
        let stop = CancellationToken::new();
        let configs = vec![dead, config(&realm.issuer)];
        let both = Authenticator::new(configs, Arc::clone(&realm.clock) as _, &TaskTracker::new(), &stop).unwrap();
        assert!(send(&both, &realm.token(&realm.claims())).await.is_ok());
        let claims = realm.claims_with("iss", json!("http://127.0.0.1:9/realms/dead"));
        assert_eq!(
            send(&both, &realm.token(&claims)).await.err(),
            Some(Reason::KeysUnavailable)
        );
        assert_eq!(both.ready().is_ready(), !required);
        let [dead, alive] = &both.issuers()[..] else {
            panic!("two issuers")
        };
        assert!(dead.last_error.is_some() && dead.last_success.is_none() && dead.keys == 0);
        assert!(alive.last_error.is_none() && alive.last_success.is_some() && alive.keys == 1);
    }
}

/// What the health of a realm says once a token was refused because its keys cannot be had.
async fn complaint(realm: &Realm) -> String {
    assert_eq!(
        realm.send_claims(&realm.claims()).await.err(),
        Some(Reason::KeysUnavailable)
    );
    let (_, text) = realm.authenticator.issuers()[0].last_error.clone().expect("an error");
    text
}

/// A realm whose server is changed before anybody asks it.
async fn broken(change: impl FnOnce(&Server)) -> Realm {
    let server = Server::start(&TaskTracker::new()).await;
    let realm = Realm::behind(server, |_| {});
    change(&realm.server); // The task that fetches has not run yet: nothing was awaited since it was spawned.
    realm
}

#[tokio::test]
async fn metadata_of_another_issuer_are_refused_and_both_names_are_in_the_log() {
    let realm = broken(|server| {
        let keys = format!("{}{CERTS}", server.url);
        server.set(
            DISCOVERY,
            Page::Json(json!({ "issuer": "http://localhost:8080/realms/data", "jwks_uri": keys })),
        );
    })
    .await;
    let text = complaint(&realm).await;
    assert!(
        text.contains("http://localhost:8080/realms/data") && text.contains(&realm.issuer),
        "{text}"
    );
    assert!(text.contains("hostname"), "{text}");
}

// S22
#[tokio::test]
async fn keys_on_an_origin_that_nobody_vouched_for_are_not_fetched() {
    let other = Server::start(&TaskTracker::new()).await;
    let realm = broken(|server| {
        let metadata =
            json!({ "issuer": format!("{}/realms/data", server.url), "jwks_uri": format!("{}/keys", other.url) });
        server.set(DISCOVERY, Page::Json(metadata));
    })
    .await;
    let text = complaint(&realm).await;
    assert!(text.contains("another origin"), "{text}");
    assert_eq!(other.asked("/keys"), 0);
}

// S22
#[tokio::test]
async fn keys_may_stand_on_the_origin_of_a_configured_discovery_url_or_anywhere_if_configured() {
    let inside = Server::start(&TaskTracker::new()).await;
    let key = TestKey::new("k1", Algorithm::Es256);
    let public = "https://sso.example/realms/data";
    inside.publish("/certs", &[&key]);
    inside.set(
        "/metadata",
        Page::Json(json!({ "issuer": public, "jwks_uri": format!("{}/certs", inside.url) })),
    );
    for discovered in [true, false] {
        let mut config = config(public);
        let url = |path: &str| Some(format!("{}{path}", inside.url).parse().unwrap());
        config.discovery_url = discovered.then(|| url("/metadata")).flatten();
        config.jwks_uri = (!discovered).then(|| url("/certs")).flatten();
        let realm = Realm::new().await;
        let stop = CancellationToken::new();
        let clock = Arc::clone(&realm.clock) as SharedClock;
        let authenticator = Authenticator::new(vec![config], clock, &TaskTracker::new(), &stop).unwrap();
        let claims = realm.claims_with("iss", json!(public));
        assert!(
            send(&authenticator, &key.sign(&key.header(), &claims)).await.is_ok(),
            "{discovered}"
        );
    }
}

// S22
#[tokio::test]
async fn keys_that_metadata_put_behind_plain_http_or_a_password_are_not_fetched() {
    for (keys, part) in [
        ("http://sso.example/certs", "is not https"),
        ("https://user:hunter2@sso.example/certs", "no valid `jwks_uri`"),
        ("certs", "no valid `jwks_uri`"),
    ] {
        let server = Server::start(&TaskTracker::new()).await;
        let issuer = if keys.starts_with("https") {
            "https://sso.example/r"
        } else {
            "http://sso.example/r"
        };
        server.set("/metadata", Page::Json(json!({ "issuer": issuer, "jwks_uri": keys })));
        let mut config = config(issuer);
        config.discovery_url = format!("{}/metadata", server.url).parse().ok();
        let fetcher = Fetcher::new(Arc::new(Issuer::new(config).unwrap())).unwrap();
        let text = fetcher.keys().await.unwrap_err().to_string();
        assert!(text.contains(part) && !text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::start(&TaskTracker::new()).await;
    let to = format!("{}/keys", other.url);
    let realm = broken(|server| server.set(CERTS, Page::Redirect(to))).await;
    let text = complaint(&realm).await;
    assert!(text.contains("302"), "{text}");
    assert_eq!(other.asked("/keys"), 0);
}

#[tokio::test]
async fn a_document_that_is_too_long_broken_or_no_key_set_is_refused() {
    let key = TestKey::new("k1", Algorithm::Es256).jwk();
    let long = [
        br#"{"keys":[],"x":""#.to_vec(),
        vec![b'x'; 256 * 1024],
        br#""}"#.to_vec(),
    ]
    .concat();
    for (page, part) in [
        (Page::Bytes(long), "more than 262144 bytes"),
        (Page::Bytes(b"<html>".to_vec()), "not one JSON value"),
        (Page::Bytes(br#"{"keys":[],"keys":[]}"#.to_vec()), "a name stands twice"),
        (Page::Json(json!({})), "no list `keys`"),
        (Page::Json(json!({ "keys": {} })), "no list `keys`"),
        (Page::Json(json!([key])), "not a JSON object"),
        (
            Page::Json(json!({ "keys": vec![key.clone(); 101] })),
            "more than 100 keys",
        ),
    ] {
        let text = complaint(&broken(|server| server.set(CERTS, page)).await).await;
        assert!(text.contains(part), "{text}");
    }
    let text = complaint(&broken(|server| server.remove(DISCOVERY)).await).await;
    assert!(text.contains("404"), "{text}");
    for metadata in ["{}", "[]", "no"] {
        let realm = broken(|server| server.set(DISCOVERY, Page::Bytes(metadata.into()))).await;
        let text = complaint(&realm).await;
        assert!(text.contains("metadata"), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let realm = broken(|server| server.set(CERTS, Page::Silence)).await;
    let issuer = Arc::clone(&realm.authenticator.issuers[0].issuer);
    let impatient = Fetcher::with_timeout(issuer, Duration::from_millis(100)).unwrap();
    let text = impatient.keys().await.unwrap_err().to_string();
    assert!(text.contains("cannot be reached"), "{text}");
}

#[tokio::test]
async fn a_set_without_a_usable_key_replaces_the_old_one_and_is_complained_of() {
    let realm = Realm::new().await;
    let token = realm.token(&realm.claims());
    assert!(realm.send(&token).await.is_ok());
    realm.server.set(CERTS, Page::Json(json!({ "keys": [] })));
    realm.clock.advance(A_WHILE);
    let other = TestKey::new("k2", Algorithm::Es256);
    assert_eq!(
        realm.send(&other.sign(&other.header(), &realm.claims())).await.err(),
        Some(Reason::UnknownKey)
    );
    assert_eq!(realm.send(&token).await.err(), Some(Reason::UnknownKey));
    assert!(!realm.authenticator.ready().is_ready());
    assert!(realm.authenticator.issuers()[0].last_error.is_some());
}

#[tokio::test]
async fn a_private_ca_is_trusted_if_configured_and_only_then() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for trusted in [true, false] {
        let server = Server::start_tls(&TaskTracker::new(), &certificate);
        let realm = Realm::behind(server, |config| config.ca_pem = trusted.then(|| certificate.cert.pem()));
        if trusted {
            assert_eq!(realm.send_claims(&realm.claims()).await.err(), None);
        } else {
            let text = complaint(&realm).await;
            assert!(text.contains("cannot be reached"), "{text}");
        }
    }
}

#[tokio::test]
async fn fetching_ends_with_the_broker() {
    let server = Server::start(&TaskTracker::new()).await;
    server.set(DISCOVERY, Page::Silence);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let clock = ManualClock::at(Timestamp::from_unix(super::NOW));
    let _authenticator = Authenticator::new(
        vec![config(&format!("{}/realms/data", server.url))],
        clock,
        &tasks,
        &stop,
    )
    .unwrap();
    tokio::task::yield_now().await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn an_issuer_that_cannot_be_used_as_configured_is_refused_with_the_cure() {
    let good = || config("https://sso.example/realms/data");
    let changed = |change: fn(&mut IssuerConfig)| {
        let mut config = good();
        change(&mut config);
        vec![config]
    };
    for (configs, part) in [
        (vec![config("http://sso.example/realms/data")], "is not https"),
        (
            changed(|c| c.jwks_uri = "http://keycloak:8080/certs".parse().ok()),
            "is not https",
        ),
        (
            changed(|c| c.discovery_url = "file:///etc/passwd".parse().ok()),
            "is not https",
        ),
        (
            changed(|c| c.jwks_uri = "https://user:hunter2@sso.example/certs".parse().ok()),
            "a user or a password",
        ),
        (
            vec![config("https://user@sso.example/realms/data")],
            "a user or a password",
        ),
        (vec![config("sso.example/realms/data")], "absolute URL"),
        (vec![config("https://sso.example/realms/data?x=1")], "absolute URL"),
        (changed(|c| c.audiences.clear()), "`audiences`"),
        (changed(|c| c.audiences.push(String::new())), "`audiences`"),
        (
            changed(|c| {
                c.authorized_parties.clear();
                c.service_clients.clear();
            }),
            "`authorized_parties`",
        ),
        (changed(|c| c.algorithms.clear()), "`algorithms`"),
        (
            changed(|c| c.ca_pem = Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into())),
            "`ca_file`",
        ),
        (vec![good(), good()], "twice"),
    ] {
        let clock = ManualClock::at(Timestamp::from_unix(super::NOW));
        let outcome = Authenticator::new(configs, clock, &TaskTracker::new(), &CancellationToken::new());
        let error = outcome.err().expect(part).to_string();
        assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn the_doctor_sees_an_issuer_as_the_broker_would() {
    let examine = async |change: fn(&mut IssuerConfig), page: Option<Page>| {
        let server = Server::start(&TaskTracker::new()).await;
        server.publish(CERTS, &[&TestKey::new("k1", Algorithm::Es256)]);
        server.set(
            DISCOVERY,
            Page::Json(json!({
                "issuer": format!("{}/realms/data", server.url), "jwks_uri": format!("{}{CERTS}", server.url),
            })),
        );
        if let Some(page) = page {
            server.set(DISCOVERY, page);
        }
        let mut config = config(&format!("{}/realms/data", server.url));
        change(&mut config);
        doctor::examine_issuer(&config).await
    };
    assert_eq!(examine(|_| {}, None).await, []);
    let elsewhere = || Some(Page::Json(json!({ "issuer": "https://sso.example/realms/data" })));
    for (found, code, serious, part) in [
        (
            examine(|_| {}, elsewhere()).await,
            "issuer-keys",
            true,
            "`https://sso.example/realms/data`, configured is",
        ),
        (
            examine(|config| config.required = false, elsewhere()).await,
            "issuer-keys",
            false,
            "configured is",
        ),
        (
            examine(
                |config| config.algorithms = vec![Algorithm::Rs256, Algorithm::EdDsa],
                None,
            )
            .await,
            "issuer-algorithms",
            true,
            "RS256, EdDSA",
        ),
        (
            examine(|config| config.issuer = "sso.example".to_owned(), None).await,
            "issuer",
            true,
            "absolute URL",
        ),
    ] {
        let [flaw] = &found[..] else { panic!("{found:?}") };
        assert_eq!((flaw.code, flaw.serious), (code, serious), "{flaw:?}");
        assert!(flaw.what.contains(part), "{flaw:?}");
    }
}
