//! R3 to R8: what a token's header may say, which keys verify, and what a signature is.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use kdbt_broker::identity::Reason as R;
use kdbt_e2e::issuer::{Key, Seal};
use serde_json::{Value, json};

use super::{Row, World, check, row};

/// Keys that the issuer publishes beside its own, some of them so that nobody may use them.
pub(super) struct OddKeys {
    pub(super) pss: Key,
    es256: Key,
    es384: Key,
    ed: Key,
    /// Published without `alg`, so for both of RSA's.
    any_rsa: Key,
    any_pss: Key,
    encryption: Key,
    signing_only: Key,
    private: Key,
    wrong_curve: Key,
    verify_only: Key,
    /// The other issuer's, under a key id of ours.
    pub(super) of_the_other: Key,
}

impl OddKeys {
    pub(super) fn new() -> Self {
        let ec = || Key::generate(Algorithm::ES256);
        Self {
            pss: Key::generate(Algorithm::PS256),
            es256: ec(),
            es384: Key::generate(Algorithm::ES384),
            ed: Key::generate(Algorithm::EdDSA),
            any_rsa: Key::generate(Algorithm::RS256),
            any_pss: Key::generate(Algorithm::PS256),
            encryption: ec(),
            signing_only: ec(),
            private: ec(),
            wrong_curve: ec(),
            verify_only: ec(),
            of_the_other: Key::generate(Algorithm::RS256),
        }
    }

    pub(super) fn published(&self) -> Vec<Value> {
        let with = |key: &Key, name: &str, value: Value| {
            let mut jwk = key.jwk();
            jwk[name] = value;
            jwk
        };
        let without_alg = |key: &Key| {
            let mut jwk = key.jwk();
            jwk.as_object_mut().unwrap().remove("alg");
            jwk
        };
        vec![
            self.pss.jwk(),
            self.es256.jwk(),
            self.es384.jwk(),
            self.ed.jwk(),
            without_alg(&self.any_rsa),
            without_alg(&self.any_pss),
            with(&self.encryption, "use", json!("enc")),
            with(&self.signing_only, "key_ops", json!(["sign"])),
            with(&self.private, "d", json!("AAAA")),
            with(&self.wrong_curve, "crv", json!("P-384")),
            with(&self.verify_only, "key_ops", json!(["verify"])),
            json!({ "kty": "oct", "kid": "mac", "alg": "HS256", "k": "c2VjcmV0" }),
            json!({ "kty": "AKP", "kid": "future", "alg": "ML-DSA-65", "pub": "AAAA" }),
            json!({ "kty": "RSA", "kid": "weak", "alg": "RS256", "e": "AQAB", "n": "w".repeat(171) }),
            // Another key of the same id: both are tried.
            Key::generate(Algorithm::ES256).with_kid(self.es256.kid()).jwk(),
        ]
    }
}

/// The token with an edited payload, under the signature that it had.
fn with_payload(token: &str, from: &str, to: &str) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let payload = String::from_utf8(URL_SAFE_NO_PAD.decode(&parts[1]).unwrap()).unwrap();
    let edited = payload.replacen(from, to, 1);
    assert_ne!(edited, payload, "nothing is changed");
    parts[1] = URL_SAFE_NO_PAD.encode(edited);
    parts.join(".")
}

fn by(rule: &'static str, name: &'static str, key: fn(&World) -> &Key) -> Row {
    row(rule, name).token_in(move |world, token| token.signed_by(key(world)))
}

#[tokio::test]
async fn a_header_names_an_allowed_algorithm_and_a_key_and_nothing_that_changes_its_reading() {
    let mut rows: Vec<Row> = vec![
        by("R3", "PS256 is taken", |w| &w.odd.pss),
        by("R3", "ES256 is taken", |w| &w.odd.es256),
        by("R3", "ES384 is taken", |w| &w.odd.es384),
        by("R3", "EdDSA is taken", |w| &w.odd.ed),
        row("R3", "an issuer's shorter list holds: RS256 is refused there")
            .strict()
            .token_in(|w, t| t.signed_by(&w.strict.played().active_key(Algorithm::RS256)))
            .refused(R::AlgorithmNotAllowed),
        row("R3", "a MAC with the public key in PEM is refused")
            .token_in(|w, t| {
                let pem = w.issuer().active_key(Algorithm::RS256).public_pem();
                t.header("alg", "HS256").sealed(Seal::Hs256(pem.into_bytes()))
            })
            .refused(R::AlgorithmNotAllowed),
        row("R3", "a MAC with the modulus is refused")
            .token_in(|w, t| {
                let n = w.issuer().active_key(Algorithm::RS256).jwk()["n"].to_string();
                t.header("alg", "HS256").sealed(Seal::Hs256(n.into_bytes()))
            })
            .refused(R::AlgorithmNotAllowed),
        row("R3", "a MAC that calls itself RS256 is a bad signature")
            .token_in(|w, t| {
                let pem = w.issuer().active_key(Algorithm::RS256).public_pem();
                t.sealed(Seal::Hs256(pem.into_bytes()))
            })
            .refused(R::BadSignature),
        row("R3", "a MAC key that the issuer publishes is no key")
            .token(|t| {
                t.header("alg", "HS256")
                    .header("kid", "mac")
                    .sealed(Seal::Hs256(b"secret".to_vec()))
            })
            .refused(R::AlgorithmNotAllowed),
        row("R3", "an algorithm that stands twice is refused")
            .token(|t| t.repeated_header("alg", "none"))
            .refused(R::MalformedHeader),
        row("R3", "an algorithm that is missing is refused")
            .token(|t| t.without_header("alg"))
            .refused(R::AlgorithmNotAllowed),
        row("R4", "a key id that is missing is refused")
            .token(|t| t.without_header("kid"))
            .refused(R::InvalidKeyId),
        row("R4", "a key id of 300 bytes is refused")
            .token(|t| t.header("kid", "k".repeat(300)))
            .refused(R::InvalidKeyId),
        row("R4", "a key id of 256 bytes is only unknown")
            .token(|t| t.header("kid", "k".repeat(256)))
            .refused(R::UnknownKey),
        row("R4", "a key id in another case is another one")
            .token_in(|w, t| {
                t.header(
                    "kid",
                    w.issuer().active_key(Algorithm::RS256).kid().to_ascii_uppercase(),
                )
            })
            .refused(R::UnknownKey),
        row("R4", "an attacker's key in the header is refused")
            .token(|t| {
                let own = Key::generate(Algorithm::RS256);
                t.signed_by(&own).header("jwk", own.jwk())
            })
            .refused(R::KeyInHeader),
        row("R4", "the right key in the header is refused too")
            .token_in(|w, t| t.header("jwk", w.issuer().active_key(Algorithm::RS256).jwk()))
            .refused(R::KeyInHeader),
        row("R5", "a thumbprint is no key and may stand there").token(|t| t.header("x5t#S256", "AAAA")),
        row("R5", "a member that nobody knows may stand there").token(|t| t.header("org.acme.trace", "x")),
        row("R6", "a header without a type is taken").token(|t| t.without_header("typ")),
        row("R6", "where at+jwt is promised, JWT is refused")
            .strict()
            .token(|t| t.header("typ", "JWT"))
            .refused(R::HeaderType),
        row("R6", "where at+jwt is promised, no type is refused")
            .strict()
            .token(|t| t.without_header("typ"))
            .refused(R::HeaderType),
        row("R6", "where at+jwt is promised, it is taken in its long form")
            .strict()
            .token(|t| t.header("typ", "application/AT+JWT")),
        row("R9", "a header that is a list is refused")
            .token(|t| t.header_bytes(b"[]"))
            .refused(R::MalformedHeader),
        row("R9", "a header that is not UTF-8 is refused")
            .token(|t| t.header_bytes(b"{\"alg\":\"\xff\"}"))
            .refused(R::MalformedHeader),
        row("R9", "a header behind a byte order mark is refused")
            .token(|t| t.header_bytes("\u{feff}{\"alg\":\"RS256\"}"))
            .refused(R::MalformedHeader),
    ];
    for alg in [
        json!("none"),
        json!("None"),
        json!("NONE"),
        json!(""),
        json!("HS256"),
        json!("HS384"),
        json!("HS512"),
        json!("RS1"),
        json!("RS384"),
        json!("RS512"),
        json!("PS512"),
        json!("ES512"),
        json!("ES256K"),
        json!("rs256"),
        json!("RS256 "),
        json!("RSA-OAEP"),
        json!("dir"),
        json!(null),
        json!(["RS256"]),
        json!({"RS256": 1}),
        json!(256),
    ] {
        rows.push(
            row("R3", "an algorithm that is not on the list is refused, whoever signed")
                .token(move |t| t.header("alg", alg.clone()))
                .refused(R::AlgorithmNotAllowed),
        );
    }
    rows.push(
        row("R3", "a token that nobody signed is refused")
            .token(|t| t.header("alg", "none").sealed(Seal::Bytes(vec![0])))
            .refused(R::AlgorithmNotAllowed),
    );
    for kid in [json!(""), json!(1), json!(null), json!(["k"])] {
        rows.push(
            row("R4", "a key id that cannot be is refused")
                .token(move |t| t.header("kid", kid.clone()))
                .refused(R::InvalidKeyId),
        );
    }
    for kid in [
        "../../../../dev/null",
        "' OR 1=1 --",
        "\u{0}",
        "http://127.0.0.1:1/keys",
        "*",
        "k;ls",
        "future",
        "weak",
    ] {
        rows.push(
            row("R4", "a key id that the issuer does not list opens nothing")
                .token(move |t| t.header("kid", kid))
                .refused(R::UnknownKey),
        );
    }
    for (name, value) in [
        ("jku", json!("http://127.0.0.1:1/")),
        ("x5u", json!("http://127.0.0.1:1/")),
        ("x5c", json!(["MIIB"])),
        ("jwk", json!(null)),
        ("jku", json!("")),
    ] {
        rows.push(
            row("R4", "a header that names its own key is refused")
                .token(move |t| t.header(name, value.clone()))
                .refused(R::KeyInHeader),
        );
    }
    for value in [json!(["b64"]), json!([]), json!(null), json!(["exp"]), json!("exp")] {
        rows.push(
            row("R5", "a demand for an extension is refused, even an empty one")
                .token(move |t| t.header("crit", value.clone()))
                .refused(R::CriticalHeader),
        );
    }
    for (name, value) in [
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("zip", json!("DEF")),
        ("enc", json!("A256GCM")),
        ("cty", json!("JWT")),
        ("cty", json!(null)),
    ] {
        rows.push(
            row("R5", "a member that changes the coding is refused")
                .token(move |t| t.header(name, value.clone()))
                .refused(R::UnsupportedHeader),
        );
    }
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"] {
        rows.push(row("R6", "a type of access tokens is taken in any case").token(move |t| t.header("typ", typ)));
    }
    for typ in [
        json!("dpop+jwt"),
        json!("logout+jwt"),
        json!("secevent+jwt"),
        json!("JWT "),
        json!(""),
        json!(null),
        json!(1),
        json!("application/jwt"),
        json!("id+jwt"),
        json!(["JWT"]),
    ] {
        rows.push(
            row("R6", "another type is refused")
                .token(move |t| t.header("typ", typ.clone()))
                .refused(R::HeaderType),
        );
    }
    check(rows).await;
}

#[tokio::test]
async fn only_a_key_for_signatures_of_this_algorithm_verifies_and_only_the_whole_signature() {
    let zeros = |length| {
        row("R8", "a signature of zeros is refused")
            .base(|w, t| t.signed_by(&w.odd.es256))
            .token(move |t| t.sealed(Seal::Bytes(vec![0; length])))
            .refused(R::BadSignature)
    };
    let cut = |name, edit: fn(String) -> String| row("R8", name).text(edit);
    let rows = vec![
        by("R7", "an RSA key without an algorithm verifies RS256", |w| {
            &w.odd.any_rsa
        }),
        by("R7", "an RSA key without an algorithm verifies PS256", |w| {
            &w.odd.any_pss
        }),
        by("R7", "a key whose operations hold verify is taken", |w| {
            &w.odd.verify_only
        }),
        by("R7", "one of two keys with the same id is enough", |w| &w.odd.es256),
        by("R7", "an encryption key verifies nothing", |w| &w.odd.encryption).refused(R::UnknownKey),
        by("R7", "a key that is for signing only verifies nothing", |w| {
            &w.odd.signing_only
        })
        .refused(R::UnknownKey),
        by("R7", "a key whose private half is published verifies nothing", |w| {
            &w.odd.private
        })
        .refused(R::UnknownKey),
        by("R7", "a key of another curve than it says verifies nothing", |w| {
            &w.odd.wrong_curve
        })
        .refused(R::UnknownKey),
        row("R7", "a key for RS256 verifies no PS256")
            .token(|t| t.header("alg", "PS256"))
            .refused(R::KeyMismatch),
        row("R7", "a key for PS256 verifies no RS256")
            .base(|w, t| t.signed_by(&w.odd.pss))
            .token(|t| t.header("alg", "RS256"))
            .refused(R::KeyMismatch),
        row("R7", "an RSA key verifies no ES256")
            .token(|t| t.header("alg", "ES256"))
            .refused(R::KeyMismatch),
        row("R7", "a key of P-256 verifies no ES384")
            .base(|w, t| t.signed_by(&w.odd.es256))
            .token(|t| t.header("alg", "ES384"))
            .refused(R::KeyMismatch),
        row("R7", "a published secret verifies no MAC that calls itself RS256")
            .token(|t| {
                t.header("alg", "RS256")
                    .header("kid", "mac")
                    .sealed(Seal::Hs256(b"secret".to_vec()))
            })
            .refused(R::UnknownKey),
        row("R7", "an Edwards key verifies no ES256")
            .base(|w, t| t.signed_by(&w.odd.ed))
            .token(|t| t.header("alg", "ES256"))
            .refused(R::KeyMismatch),
        row("R8", "an attacker's key under a known id is refused")
            .token_in(|w, t| {
                t.signed_by(&Key::generate(Algorithm::RS256).with_kid(w.issuer().active_key(Algorithm::RS256).kid()))
            })
            .refused(R::BadSignature),
        row("R8", "another issuer's key of the same id is refused")
            .token_in(|w, t| {
                t.signed_by(
                    &w.odd
                        .of_the_other
                        .with_kid(w.issuer().active_key(Algorithm::RS256).kid()),
                )
            })
            .refused(R::BadSignature),
        row("R8", "another issuer's key under its own id is unknown here")
            .token_in(|w, t| t.signed_by(&w.strict.played().active_key(Algorithm::RS256)))
            .refused(R::UnknownKey),
        row("R8", "a signature over another person's payload is refused")
            .text(|t| with_payload(&t, "\"sub-", "\"sub-of-another-"))
            .refused(R::BadSignature),
        row("R8", "a signature over a payload with more roles is refused")
            .text(|t| with_payload(&t, "\"engineer\"", "\"engineer\",\"admin\""))
            .refused(R::BadSignature),
        row(
            "R8",
            "a signature over another payload is not what refuses an empty one",
        )
        .text(|t| {
            let mut parts: Vec<&str> = t.split('.').collect();
            parts[1] = "e30";
            parts.join(".")
        })
        .refused(R::InvalidIssuer),
        zeros(64),
        zeros(63),
        zeros(32),
        zeros(65),
        zeros(96),
        zeros(1),
        row("R8", "a signature of zeros is refused for RSA")
            .token(|t| t.sealed(Seal::Bytes(vec![0; 256])))
            .refused(R::BadSignature),
        row("R8", "a signature of ones is refused for RSA")
            .token(|t| t.sealed(Seal::Bytes(vec![255; 256])))
            .refused(R::BadSignature),
        row("R8", "an Edwards signature of zeros is refused")
            .base(|w, t| t.signed_by(&w.odd.ed))
            .token(|t| t.sealed(Seal::Bytes(vec![0; 64])))
            .refused(R::BadSignature),
        cut("a signature that is cut is refused", |t| t[..t.len() - 6].to_owned()).refused(R::BadSignature),
        cut("a signature that is longer is refused", |t| {
            let signed = t.rsplit_once('.').unwrap();
            format!("{}.AAAA{}", signed.0, signed.1)
        })
        .refused(R::BadSignature),
        row("R8", "a token of an issuer whose keys were never had waits for nobody")
            .claim("iss", super::DEAD_ISSUER)
            .refused(R::KeysUnavailable),
    ];
    check(rows).await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_costs_the_issuer_a_call_in_ten_seconds() {
    let world = World::shared().await;
    let (before, started) = (world.issuer().keys_fetches(), std::time::Instant::now());
    let rows = (0..60).map(|n| {
        row("R4", "one of many unknown keys")
            .token(move |t| t.header("kid", format!("flood-{n}")))
            .refused(R::UnknownKey)
    });
    check(rows.collect()).await;
    let allowed = 2 + started.elapsed().as_secs() / 10;
    let fetches = world.issuer().keys_fetches() - before;
    assert!(fetches <= allowed, "{fetches} calls, allowed were {allowed}");
}
