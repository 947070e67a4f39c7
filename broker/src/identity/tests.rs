//! Tokens against the whole authenticator: a real signature, a real key set over HTTP, a clock that stands still.

mod keys;
mod realm;

use serde_json::json;

use self::realm::{NOW, Realm, TestKey, b64};
use super::*;

/// Sends each variant of the good claims and expects the same refusal.
async fn each_is_refused(realm: &Realm, name: &str, values: impl IntoIterator<Item = Value>, reason: Reason) {
    for value in values {
        let sent = realm.send_claims(&realm.claims_with(name, value.clone())).await;
        assert_eq!(sent.err(), Some(reason), "{name}: {value}");
    }
}

async fn each_is_accepted(realm: &Realm, name: &str, values: impl IntoIterator<Item = Value>) {
    for value in values {
        let sent = realm.send_claims(&realm.claims_with(name, value.clone())).await;
        assert_eq!(sent.err(), None, "{name}: {value}");
    }
}

async fn without_it_is_refused(realm: &Realm, name: &str, reason: Reason) {
    assert_eq!(
        realm.send_claims(&realm.claims_with(name, None)).await.err(),
        Some(reason),
        "without {name}"
    );
}

#[tokio::test]
async fn a_token_of_a_person_becomes_an_identity() {
    let realm =
        Realm::with(|config| config.provides = Provides::from_kinds(["realm_roles", "claims.acr"]).unwrap()).await;
    let identity = realm.send_claims(&realm.claims()).await.unwrap();
    assert_eq!(*identity.issuer, *realm.issuer);
    assert_eq!(identity.subject.as_str(), "0b2cf7c1-ada");
    assert_eq!(identity.display_name, "ada");
    assert_eq!(identity.azp, "kdbt-cli");
    assert_eq!(identity.session.as_deref(), Some("pT5YzXrWq2mJ8sVbKd1nLc0h"));
    assert_eq!(identity.kind, Kind::Person);
    assert_eq!(identity.token_id.as_deref(), Some("onrtac:3f1e7c1e-0d5c-4f3e"));
    assert_eq!(identity.issued_at, Timestamp::from_unix(NOW));
    assert_eq!(identity.expires_at, Timestamp::from_unix(NOW + 300));
    assert_eq!(identity.claims.values["realm_access"]["roles"][0], "analyst");
    assert!(identity.claims.provides.realm_roles && !identity.claims.provides.groups);
    assert!(identity.claims.provides.claims.contains("acr"));
}

#[tokio::test]
async fn a_token_of_a_service_client_without_a_session_is_that_of_a_workload() {
    let realm = Realm::new().await;
    let mut claims = realm.claims_with("sid", None);
    claims["azp"] = json!("kdbt-ci");
    let identity = realm.send_claims(&claims).await.unwrap();
    assert_eq!((identity.kind, identity.session), (Kind::Service, None));
}

// R17
#[tokio::test]
async fn a_login_through_a_service_client_is_no_workload() {
    let realm = Realm::new().await;
    each_is_refused(&realm, "azp", [json!("kdbt-ci")], Reason::UnauthorizedParty).await;
}

#[tokio::test]
async fn a_key_of_every_allowed_algorithm_verifies() {
    let realm = Realm::new().await;
    for algorithm in Algorithm::ALL {
        let key = TestKey::new(algorithm.as_str(), *algorithm);
        realm.server.publish(realm::CERTS, &[&key]);
        realm.clock.advance(std::time::Duration::from_secs(11));
        let sent = realm.send(&key.sign(&key.header(), &realm.claims())).await;
        assert_eq!(sent.err(), None, "{algorithm}");
    }
}

// R1
#[tokio::test]
async fn a_request_without_a_token_is_refused_without_an_error_in_the_challenge() {
    let realm = Realm::new().await;
    let error = realm
        .authenticator
        .authenticate(AuthorizationHeader::of_request([], None))
        .await
        .unwrap_err();
    assert_eq!((error.status(), error.reason), (401, Reason::MissingToken));
    assert_eq!(error.www_authenticate().as_deref(), Some(r#"Bearer realm="kdbt""#));
}

// R2
#[tokio::test]
async fn a_token_above_the_configured_length_is_refused() {
    let realm = Realm::new().await;
    let token = realm.token(&realm.claims());
    let strict = realm.authenticator.clone().with_max_token_bytes(token.len() - 1);
    assert_eq!(realm::send(&strict, &token).await.err(), Some(Reason::TokenTooLong));
    let fits = realm.authenticator.clone().with_max_token_bytes(token.len());
    assert!(realm::send(&fits, &token).await.is_ok());
}

// R3
#[tokio::test]
async fn an_algorithm_that_is_none_a_mac_or_unknown_is_refused() {
    let realm = Realm::new().await;
    for algorithm in [
        "none", "None", "NONE", "HS256", "HS512", "RS1", "RS512", "es256", "ES256 ", "ES256K", "",
    ] {
        let sent = realm.send_header(&json!({ "alg": algorithm, "kid": "k1" })).await;
        assert_eq!(sent.err(), Some(Reason::AlgorithmNotAllowed), "{algorithm:?}");
    }
    for header in [
        json!({ "kid": "k1" }),
        json!({ "alg": null, "kid": "k1" }),
        json!({ "alg": ["ES256"], "kid": "k1" }),
    ] {
        assert_eq!(
            realm.send_header(&header).await.err(),
            Some(Reason::AlgorithmNotAllowed),
            "{header}"
        );
    }
}

// R3, R8: CVE-2015-9235, CVE-2016-10555
#[tokio::test]
async fn a_mac_made_with_the_public_key_is_refused() {
    let realm = Realm::new().await;
    let key = TestKey::new("rsa", Algorithm::Rs256);
    realm.server.publish(realm::CERTS, &[&realm.key, &key]);
    let modulus = key.jwk()["n"].as_str().unwrap().to_owned();
    for algorithm in ["HS256", "RS256"] {
        let header = json!({ "alg": algorithm, "typ": "JWT", "kid": "rsa" }).to_string();
        let signed = format!("{}.{}", b64(header), b64(realm.claims().to_string()));
        for secret in [modulus.as_bytes(), key.jwk().to_string().as_bytes()] {
            let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
            let token = format!("{signed}.{}", b64(aws_lc_rs::hmac::sign(&secret, signed.as_bytes())));
            assert!(realm.send(&token).await.is_err(), "{algorithm}");
        }
    }
}

// R3
#[tokio::test]
async fn an_algorithm_that_this_issuer_may_not_use_is_refused() {
    let realm = Realm::with(|config| config.algorithms = vec![Algorithm::Rs256]).await;
    assert_eq!(
        realm.send_claims(&realm.claims()).await.err(),
        Some(Reason::AlgorithmNotAllowed)
    );
}

// R4
#[tokio::test]
async fn a_token_that_names_no_key_is_refused() {
    let realm = Realm::new().await;
    for header in [
        json!({ "alg": "ES256" }),
        json!({ "alg": "ES256", "kid": "" }),
        json!({ "alg": "ES256", "kid": 1 }),
        json!({ "alg": "ES256", "kid": null }),
        json!({ "alg": "ES256", "kid": "k".repeat(257) }),
    ] {
        assert_eq!(
            realm.send_header(&header).await.err(),
            Some(Reason::InvalidKeyId),
            "{header}"
        );
    }
}

// R4: CVE-2018-0114
#[tokio::test]
async fn a_header_that_brings_its_own_key_is_refused_and_nothing_is_fetched_for_it() {
    let realm = Realm::new().await;
    let own = TestKey::new("k1", Algorithm::Es256);
    for (name, value) in [
        ("jwk", own.jwk()),
        ("jku", json!(format!("{}/evil", realm.server.url))),
        ("x5u", json!(format!("{}/evil", realm.server.url))),
        ("x5c", json!(["MIIB"])),
    ] {
        let mut header = own.header();
        header[name] = value;
        assert_eq!(
            realm.send(&own.sign(&header, &realm.claims())).await.err(),
            Some(Reason::KeyInHeader),
            "{name}"
        );
    }
    assert_eq!(realm.server.asked("/evil"), 0);
}

// R5
#[tokio::test]
async fn a_header_that_changes_how_the_token_is_read_is_refused() {
    let realm = Realm::new().await;
    for (name, value, reason) in [
        ("crit", json!(["b64"]), Reason::CriticalHeader),
        ("crit", json!([]), Reason::CriticalHeader),
        ("crit", json!(null), Reason::CriticalHeader),
        ("b64", json!(false), Reason::UnsupportedHeader),
        ("b64", json!(true), Reason::UnsupportedHeader),
        ("zip", json!("DEF"), Reason::UnsupportedHeader),
        ("enc", json!("A256GCM"), Reason::UnsupportedHeader),
        ("cty", json!("JWT"), Reason::UnsupportedHeader),
    ] {
        let mut header = realm.key.header();
        header[name] = value;
        assert_eq!(realm.send_header(&header).await.err(), Some(reason), "{header}");
    }
}

// R6
#[tokio::test]
async fn the_header_type_is_that_of_an_access_token_in_any_case_or_absent() {
    let realm = Realm::new().await;
    for kind in [
        "JWT",
        "jwt",
        "at+jwt",
        "AT+JWT",
        "application/at+jwt",
        "Application/AT+JWT",
    ] {
        let sent = realm
            .send_header(&json!({ "alg": "ES256", "kid": "k1", "typ": kind }))
            .await;
        assert_eq!(sent.err(), None, "{kind}");
    }
    assert!(realm.send_header(&json!({ "alg": "ES256", "kid": "k1" })).await.is_ok());
    for kind in [
        json!("dpop+jwt"),
        json!("logout+jwt"),
        json!("secevent+jwt"),
        json!("JWT "),
        json!(""),
        json!(null),
        json!(1),
    ] {
        let sent = realm
            .send_header(&json!({ "alg": "ES256", "kid": "k1", "typ": kind }))
            .await;
        assert_eq!(sent.err(), Some(Reason::HeaderType), "{kind}");
    }
}

// R6
#[tokio::test]
async fn only_an_at_jwt_is_accepted_where_the_issuer_promises_it() {
    let realm = Realm::with(|config| config.require_at_jwt = true).await;
    assert_eq!(realm.send_claims(&realm.claims()).await.err(), Some(Reason::HeaderType));
    assert!(
        realm
            .send_header(&json!({ "alg": "ES256", "kid": "k1", "typ": "at+jwt" }))
            .await
            .is_ok()
    );
}

// R7
#[tokio::test]
async fn a_key_is_not_used_with_an_algorithm_it_is_not_for() {
    let realm = Realm::new().await;
    let mut header = realm.key.header();
    for algorithm in ["RS256", "ES384", "EdDSA"] {
        header["alg"] = json!(algorithm);
        assert_eq!(
            realm.send_header(&header).await.err(),
            Some(Reason::KeyMismatch),
            "{algorithm}"
        );
    }
    let rsa = TestKey::new("rsa", Algorithm::Rs256);
    realm.server.publish(realm::CERTS, &[&rsa]);
    realm.clock.advance(std::time::Duration::from_secs(11));
    let other = TestKey::new("rsa", Algorithm::Ps256);
    let sent = realm.send(&other.sign(&other.header(), &realm.claims())).await;
    assert_eq!(
        sent.err(),
        Some(Reason::KeyMismatch),
        "a key with alg RS256 under PS256"
    );
}

// R8: CVE-2022-21449
#[tokio::test]
async fn a_signature_of_zeros_cut_short_or_by_another_key_is_refused() {
    let realm = Realm::new().await;
    let token = realm.token(&realm.claims());
    let signed = token.rsplit_once('.').unwrap().0;
    for length in [64, 63, 32, 1, 65] {
        let sent = realm.send(&format!("{signed}.{}", b64(vec![0; length]))).await;
        assert_eq!(sent.err(), Some(Reason::BadSignature), "{length} zeros");
    }
    let other = TestKey::new("k1", Algorithm::Es256);
    let sent = realm.send(&other.sign(&other.header(), &realm.claims())).await;
    assert_eq!(sent.err(), Some(Reason::BadSignature));
}

// R8, R2
#[tokio::test]
async fn a_token_with_any_byte_changed_is_refused() {
    let realm = Realm::new().await;
    let token = realm.token(&realm.claims());
    assert!(realm.send(&token).await.is_ok());
    for position in 0..token.len() {
        for changed in [1, 2, 0x20, 0x80]
            .map(|bit| token.as_bytes()[position] ^ bit)
            .into_iter()
            .chain(*b".A=")
        {
            let mut bytes = [b"Bearer ", token.as_bytes()].concat();
            if bytes[7 + position] == changed {
                continue;
            }
            bytes[7 + position] = changed;
            let header = AuthorizationHeader::of_request([bytes.as_slice()], None);
            assert!(
                realm.authenticator.authenticate(header).await.is_err(),
                "byte {position} as {changed}"
            );
        }
    }
}

// R9
#[tokio::test]
async fn a_header_or_payload_that_is_not_a_strict_object_is_refused() {
    let realm = Realm::new().await;
    let header = realm.key.header().to_string();
    let claims = realm.claims().to_string();
    let twice = claims.replacen('{', r#"{"sub":"someone-else","#, 1);
    let nested = claims.replacen('{', r#"{"x":{"y":[{"z":1,"z":2}]},"#, 1);
    let deep = claims.replacen('{', &format!(r#"{{"x":{}{},"#, "[".repeat(500), "]".repeat(500)), 1);
    let surrogate = claims.replacen('{', r#"{"x":"\ud800","#, 1);
    let mark = format!("\u{feff}{claims}");
    let trailing = format!("{claims}{{}}");
    for payload in [
        &twice, &nested, &deep, &surrogate, &mark, &trailing, "[]", "null", "\"x\"", "{",
    ] {
        let sent = realm
            .send(&realm.key.sign_bytes(header.as_bytes(), payload.as_bytes()))
            .await;
        assert_eq!(sent.err(), Some(Reason::MalformedPayload), "{payload}");
    }
    let twice = header.replacen('{', r#"{"alg":"none","#, 1);
    for header in [twice.as_bytes(), b"[]", b"{", b"\xff"] {
        let sent = realm.send(&realm.key.sign_bytes(header, claims.as_bytes())).await;
        assert_eq!(sent.err(), Some(Reason::MalformedHeader), "{}", header.escape_ascii());
    }
}

// R10
#[tokio::test]
async fn an_issuer_that_is_not_byte_equal_to_the_configured_one_is_refused() {
    let realm = Realm::new().await;
    let issuer = &realm.issuer;
    let variants = [
        format!("{issuer}/"),
        issuer.replace("data", "DATA"),
        issuer.replace("data", "other"),
        issuer.replace("http:", "https:"),
        issuer.replace("127.0.0.1", "localhost"),
        format!(" {issuer}"),
        String::new(),
    ];
    each_is_refused(&realm, "iss", variants.map(Value::from), Reason::UnknownIssuer).await;
    let mistyped = [json!([issuer]), json!(null), json!(1), json!({ "iss": issuer })];
    each_is_refused(&realm, "iss", mistyped, Reason::InvalidIssuer).await;
    without_it_is_refused(&realm, "iss", Reason::InvalidIssuer).await;
}

// R11: CVE-2020-26160
#[tokio::test]
async fn an_audience_without_one_of_ours_is_refused() {
    let realm = Realm::new().await;
    each_is_accepted(
        &realm,
        "aud",
        [
            json!("kdbt-broker"),
            json!(["kdbt-broker"]),
            json!(["account", "kdbt-broker"]),
        ],
    )
    .await;
    let others = [
        json!("account"),
        json!(["account", "kdbt-cli"]),
        json!("kdbt-cli"),
        json!("kdbt-broker-dev"),
        json!("my-kdbt-broker"),
        json!("KDBT-BROKER"),
        json!("kdbt-broker account"),
        json!("kdbt-broke"),
        json!(""),
    ];
    each_is_refused(&realm, "aud", others, Reason::WrongAudience).await;
    let malformed = [
        json!(null),
        json!(1),
        json!({ "kdbt-broker": true }),
        json!([]),
        json!(["kdbt-broker", 1]),
        json!([["kdbt-broker"]]),
        json!([null, "kdbt-broker"]),
    ];
    each_is_refused(&realm, "aud", malformed, Reason::InvalidAudience).await;
    without_it_is_refused(&realm, "aud", Reason::MissingAudience).await;
}

// R11, R18, S17
#[tokio::test]
async fn a_lightweight_token_is_named_as_such() {
    let realm = Realm::new().await;
    let mut claims = realm.claims();
    for name in [
        "aud",
        "sub",
        "realm_access",
        "resource_access",
        "groups",
        "preferred_username",
        "name",
    ] {
        claims.as_object_mut().unwrap().remove(name);
    }
    assert_eq!(realm.send_claims(&claims).await.err(), Some(Reason::LightweightToken));
}

// R12
#[tokio::test]
async fn a_token_is_refused_from_ten_seconds_after_its_expiry() {
    let realm = Realm::new().await;
    let expiring = |at: i64| {
        let mut claims = realm.claims_with("exp", json!(NOW + at));
        claims["iat"] = json!(NOW - 60);
        realm.token(&claims)
    };
    assert!(realm.send(&expiring(-9)).await.is_ok());
    for at in [-10, -11, -59] {
        assert_eq!(realm.send(&expiring(at)).await.err(), Some(Reason::Expired), "{at}");
    }
    let mistyped = [
        json!((NOW + 300).to_string()),
        json!(null),
        json!(-1),
        json!(1e300),
        json!([NOW + 300]),
        json!(true),
    ];
    each_is_refused(&realm, "exp", mistyped, Reason::InvalidExpiry).await;
    without_it_is_refused(&realm, "exp", Reason::InvalidExpiry).await;
    each_is_accepted(&realm, "exp", [json!(1_800_000_300.5)]).await;
}

// R13
#[tokio::test]
async fn a_token_is_refused_before_its_start() {
    let realm = Realm::new().await;
    each_is_accepted(&realm, "nbf", [json!(NOW), json!(0), json!(NOW + 10)]).await;
    each_is_refused(
        &realm,
        "nbf",
        [json!(NOW + 11), json!(NOW + 86_400)],
        Reason::NotYetValid,
    )
    .await;
    each_is_refused(
        &realm,
        "nbf",
        [json!(NOW.to_string()), json!(null), json!([NOW])],
        Reason::InvalidNotBefore,
    )
    .await;
}

// R14
#[tokio::test]
async fn a_token_says_when_it_was_issued_and_that_is_neither_ahead_nor_long_ago() {
    let realm = Realm::with(|config| config.max_token_age = std::time::Duration::from_mins(2)).await;
    each_is_accepted(
        &realm,
        "iat",
        [json!(NOW), json!(NOW + 10), json!(NOW - 120), json!(1_799_999_999.25)],
    )
    .await;
    each_is_refused(
        &realm,
        "iat",
        [json!(NOW + 11), json!(NOW + 200)],
        Reason::IssuedInFuture,
    )
    .await;
    each_is_refused(&realm, "iat", [json!(NOW - 121), json!(0)], Reason::TokenTooOld).await;
    each_is_refused(
        &realm,
        "iat",
        [json!(NOW.to_string()), json!(null), json!({})],
        Reason::InvalidIssuedAt,
    )
    .await;
    without_it_is_refused(&realm, "iat", Reason::InvalidIssuedAt).await;
}

// R14
#[tokio::test]
async fn a_token_that_lives_longer_than_the_limit_or_ends_before_it_begins_is_refused() {
    let realm = Realm::new().await;
    each_is_accepted(&realm, "exp", [json!(NOW + 3600)]).await;
    each_is_refused(
        &realm,
        "exp",
        [json!(NOW + 3601), json!(253_402_300_799_i64)],
        Reason::LifetimeTooLong,
    )
    .await;
    each_is_refused(&realm, "exp", [json!(NOW), json!(NOW - 5)], Reason::InvalidExpiry).await;
}

// R15
#[tokio::test]
async fn a_payload_type_other_than_bearer_is_refused() {
    let realm = Realm::new().await;
    let others = ["ID", "Refresh", "Offline", "Logout", "bearer", "BEARER", "Bearer ", ""];
    each_is_refused(&realm, "typ", others.map(Value::from), Reason::NotAnAccessToken).await;
    each_is_refused(
        &realm,
        "typ",
        [json!(null), json!(["Bearer"])],
        Reason::NotAnAccessToken,
    )
    .await;
    without_it_is_refused(&realm, "typ", Reason::NotAnAccessToken).await;
}

// R16
#[tokio::test]
async fn claims_of_other_tokens_are_refused_even_if_null() {
    let realm = Realm::new().await;
    for name in [
        "nonce",
        "at_hash",
        "c_hash",
        "s_hash",
        "events",
        "sub_id",
        "request_body_sha256",
    ] {
        each_is_refused(
            &realm,
            name,
            [json!("x"), json!({}), json!(null)],
            Reason::ForeignClaims,
        )
        .await;
    }
}

// R17
#[tokio::test]
async fn a_token_that_another_client_of_the_realm_got_is_refused() {
    let realm = Realm::new().await;
    let others = [
        json!("other-app"),
        json!("KDBT-CLI"),
        json!("kdbt-cli "),
        json!(""),
        json!(null),
        json!(["kdbt-cli"]),
    ];
    each_is_refused(&realm, "azp", others, Reason::UnauthorizedParty).await;
    without_it_is_refused(&realm, "azp", Reason::UnauthorizedParty).await;
}

// R18
#[tokio::test]
async fn a_subject_is_a_bounded_text_without_control_characters() {
    let realm = Realm::new().await;
    each_is_accepted(
        &realm,
        "sub",
        [json!("f:8c1d:ada"), json!("王伟"), json!("s".repeat(255))],
    )
    .await;
    let others = [
        json!(""),
        json!("s".repeat(256)),
        json!("a\nb"),
        json!("a\u{0}"),
        json!(1),
        json!(null),
        json!(["a"]),
    ];
    each_is_refused(&realm, "sub", others, Reason::InvalidSubject).await;
    without_it_is_refused(&realm, "sub", Reason::InvalidSubject).await;
}

// R19
#[tokio::test]
async fn a_bound_token_is_never_taken_as_a_plain_one() {
    let realm = Realm::new().await;
    let bindings = [
        json!({ "jkt": "x" }),
        json!({ "x5t#S256": "x" }),
        json!({}),
        json!(null),
    ];
    each_is_refused(&realm, "cnf", bindings, Reason::BoundToken).await;
    each_is_refused(&realm, "typ", [json!("DPoP")], Reason::BoundToken).await;
}

// R20
#[tokio::test]
async fn a_token_of_an_impersonated_session_is_refused() {
    let realm = Realm::new().await;
    each_is_refused(
        &realm,
        "act",
        [json!({ "sub": "admin" }), json!({}), json!(null)],
        Reason::DelegatedToken,
    )
    .await;
}

// R21
#[tokio::test]
async fn what_a_step_up_reads_is_of_the_right_kind() {
    let realm = Realm::new().await;
    each_is_refused(
        &realm,
        "auth_time",
        [json!("1"), json!(null), json!(-1)],
        Reason::InvalidClaim,
    )
    .await;
    each_is_refused(&realm, "acr", [json!(1), json!(null)], Reason::InvalidClaim).await;
    for name in ["sid", "jti"] {
        let broken = [
            json!(""),
            json!(1),
            json!(null),
            json!(["s"]),
            json!("a\tb"),
            json!("s".repeat(256)),
        ];
        each_is_refused(&realm, name, broken, Reason::InvalidClaim).await;
    }
    for name in ["auth_time", "acr", "jti", "sid", "scope"] {
        assert!(
            realm.send_claims(&realm.claims_with(name, None)).await.is_ok(),
            "without {name}"
        );
    }
}

// R22
#[tokio::test]
async fn the_required_scope_is_a_word_of_the_scope_claim() {
    let realm = Realm::with(|config| config.required_scope = Some("kdbt".to_owned())).await;
    each_is_accepted(&realm, "scope", [json!("kdbt"), json!("openid kdbt email")]).await;
    let others = [
        json!(""),
        json!("openid"),
        json!("kdbt-admin"),
        json!("notkdbt"),
        json!("KDBT"),
        json!("kdbt,openid"),
    ];
    each_is_refused(&realm, "scope", others, Reason::MissingScope).await;
    without_it_is_refused(&realm, "scope", Reason::MissingScope).await;
    each_is_refused(&realm, "scope", [json!(["kdbt"]), json!(null)], Reason::InvalidClaim).await;
}

// R23
#[tokio::test]
async fn a_broken_role_claim_refuses_the_request_whatever_the_others_say() {
    let realm = Realm::new().await;
    let broken = [
        json!("admin"),
        json!({ "0": "admin" }),
        json!([["admin"]]),
        json!([1]),
        json!([null]),
        json!(null),
    ];
    each_is_refused(&realm, "groups", broken.clone(), Reason::InvalidRoles).await;
    let access = broken.clone().map(|roles| json!({ "roles": roles }));
    each_is_refused(&realm, "realm_access", access.clone(), Reason::InvalidRoles).await;
    each_is_refused(
        &realm,
        "resource_access",
        access.map(|client| json!({ "other": client })),
        Reason::InvalidRoles,
    )
    .await;
    for name in ["realm_access", "resource_access"] {
        each_is_refused(
            &realm,
            name,
            [json!([]), json!("admin"), json!(null)],
            Reason::InvalidRoles,
        )
        .await;
        assert!(realm.send_claims(&realm.claims_with(name, json!({}))).await.is_ok());
        assert!(realm.send_claims(&realm.claims_with(name, None)).await.is_ok());
    }
    assert_eq!(AuthError::from(Reason::InvalidRoles).status(), 403);
}

// R23
#[tokio::test]
async fn more_than_a_thousand_roles_and_groups_are_refused() {
    let realm = Realm::new().await;
    let roles = |count: usize| json!(vec!["r"; count]);
    each_is_accepted(&realm, "groups", [roles(997)]).await;
    each_is_refused(&realm, "groups", [roles(998)], Reason::InvalidRoles).await;
}

#[tokio::test]
async fn a_display_name_loses_what_could_deceive_its_reader() {
    let realm = Realm::new().await;
    for (name, shown) in [
        (json!("a\u{202e}da\u{0}\n"), "ada".to_owned()),
        (json!("\u{feff}王伟\u{200b}"), "王伟".to_owned()),
        (json!("x".repeat(500)), "x".repeat(128)),
        (json!("\u{202e}"), "Ada Lovelace".to_owned()),
        (json!(5), "Ada Lovelace".to_owned()),
    ] {
        let identity = realm
            .send_claims(&realm.claims_with("preferred_username", name.clone()))
            .await
            .unwrap();
        assert_eq!(identity.display_name, shown, "{name}");
    }
    let mut claims = realm.claims_with("preferred_username", None);
    claims.as_object_mut().unwrap().remove("name");
    assert_eq!(realm.send_claims(&claims).await.unwrap().display_name, "0b2cf7c1-ada");
}

// R25
#[tokio::test]
async fn neither_an_error_nor_a_debug_text_holds_a_claim_or_a_byte_of_the_token() {
    let realm = Realm::new().await;
    let claims = realm.claims_with("sub", json!("canary\u{7}"));
    let token = realm.token(&claims);
    let header = AuthorizationHeader::of_request([format!("Bearer {token}").as_bytes()], None);
    let error = realm.authenticator.authenticate(header).await.unwrap_err();
    let challenge = error.www_authenticate().unwrap();
    let problem = serde_json::to_string(&error.problem()).unwrap();
    let good = realm.send_claims(&realm.claims()).await.unwrap();
    for text in [
        error.to_string(),
        format!("{error:?}"),
        challenge,
        problem,
        format!("{:?}", good.claims),
    ] {
        assert!(!text.contains("canary") && !text.contains("Lovelace"), "{text}");
        assert!(!token.split('.').any(|part| text.contains(part)), "{text}");
    }
    assert_eq!(error.issuer.as_deref(), Some(realm.issuer.as_str()));
}
