//! The bearer parser, the header and the claims of a token, through the real authenticator and real signatures.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use jsonwebtoken::Algorithm;
use kdbt_api::Timestamp;
use kdbt_broker::clock::ManualClock;
use kdbt_broker::identity::{AuthError, Authenticator, AuthorizationHeader, Identity, IssuerConfig};
use kdbt_e2e::fuzz::{Target, repeats};
use kdbt_e2e::identity::IdentityProvider;
use kdbt_e2e::issuer::{Key, TokenForge};
use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{bytes, hold};

/// In every token, and in no answer.
const CANARY: &str = "canary-3f9a6c1e5b";

/// A broker's authenticator and the issuer that it believes.
struct Door {
    runtime: Runtime,
    authenticator: Authenticator,
    honest: TokenForge,
    key: Key,
    issuer: String,
    _provider: IdentityProvider,
}

impl Door {
    /// One for all targets. Its clock stands still, so that the honest token never expires.
    fn shared() -> &'static Self {
        static DOOR: OnceLock<Door> = OnceLock::new();
        DOOR.get_or_init(Self::open)
    }

    fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let provider = IdentityProvider::play().unwrap();
        let issuer = provider.issuer();
        // The fastest to sign with.
        let key = provider.played().add_key(Algorithm::ES256);
        let config = IssuerConfig {
            audiences: vec!["kdbt-broker".into()],
            authorized_parties: vec!["kdbt-cli".into()],
            service_clients: vec!["kdbt-ci".into()],
            ..IssuerConfig::new(issuer.clone())
        };
        let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
        let clock = ManualClock::at(Timestamp::from_unix(now.try_into().unwrap()));
        let _guard = runtime.enter();
        let authenticator =
            Authenticator::new(vec![config], clock, &TaskTracker::new(), &CancellationToken::new()).unwrap();
        let forge = provider.played().forge("ada").signed_by(&key);
        let honest = forge.claim("preferred_username", CANARY).claim("name", "Ada");
        let door = Self {
            runtime,
            authenticator,
            honest,
            key,
            issuer,
            _provider: provider,
        };
        door.knock(&door.honest.token()).expect("an honest token");
        door
    }

    fn knock(&self, token: &str) -> Result<Identity, AuthError> {
        self.present(&[format!("Bearer {token}").as_bytes()], None)
    }

    fn present(&self, values: &[&[u8]], query: Option<&str>) -> Result<Identity, AuthError> {
        let header = AuthorizationHeader::of_request(values.iter().copied(), query);
        self.runtime.block_on(self.authenticator.authenticate(header))
    }
}

fn said(answer: &Result<Identity, AuthError>, secret: &[u8]) -> Result<String, String> {
    match answer {
        Ok(identity) => Ok(format!("{:?}", identity.kind)),
        Err(error) => {
            let told = format!("{error} {error:?}");
            hold(!repeats(&told, secret, 12), "an error repeats a part of the token")?;
            Ok(format!("{:?}", error.reason))
        }
    }
}

/// The members of an object as another reader sees them, which must not be another object.
fn members(text: &[u8]) -> Result<Map<String, Value>, String> {
    let object: Map<String, Value> = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
    let text = str::from_utf8(text).map_err(|_| "not UTF-8")?;
    let yaml = serde_saphyr::from_str::<Value>(text)
        .err()
        .map(|error| error.to_string());
    hold(
        !yaml.is_some_and(|error| error.contains("duplicate")),
        "a name stands twice",
    )?;
    Ok(object)
}

#[test]
fn no_header_but_the_honest_one_opens_the_door() {
    let door = Door::shared();
    let token = door.honest.token();
    let check = |input: &[u8]| {
        let mut lines = input.split(|byte| *byte == b'\n');
        let query = lines.next().and_then(|line| str::from_utf8(line).ok());
        let values: Vec<&[u8]> = lines.collect();
        let answer = door.present(&values, query.filter(|query| !query.is_empty()));
        if answer.is_ok() {
            let [value] = values.as_slice() else {
                return Err("several headers are taken".to_owned());
            };
            let value = str::from_utf8(value).map_err(|_| "a header is taken that is no text")?;
            let (scheme, rest) = value.trim().split_once(' ').ok_or("one word is taken")?;
            hold(scheme.eq_ignore_ascii_case("bearer"), "another scheme is taken")?;
            hold(rest.trim() == token, "another text than the honest token is taken")?;
        }
        said(&answer, token.as_bytes())
    };
    Target {
        name: "bearer",
        seeds: bytes([
            format!("\nBearer {token}"),
            format!("a=b&c=d\nbearer   {token} "),
            format!("access_token=x\nBearer {token}"),
            format!("\nBearer {token}\nBearer {token}"),
            format!("\nDPoP {token}"),
            "\nBasic YWRhOnB3".to_owned(),
            "\nBearer a.b.c.d.e".to_owned(),
        ]),
        words: &[
            "Bearer ",
            "DPoP ",
            "access_token=",
            ".",
            "=",
            ",",
            "e30",
            "AA",
            "%5F",
            "\n",
        ],
        short: 4_000,
        check: &check,
    }
    .run();
}

#[test]
fn a_token_header_that_is_taken_names_our_key_and_brings_none() {
    let door = Door::shared();
    let check = |input: &[u8]| {
        let answer = door.knock(&door.honest.clone().header_bytes(input).token());
        if answer.is_ok() {
            let header = members(input)?;
            hold(header.get("alg") == Some(&Value::from("ES256")), "another algorithm")?;
            hold(header.get("kid") == Some(&Value::from(door.key.kid())), "another key")?;
            for name in ["crit", "jku", "jwk", "x5u", "x5c", "b64", "zip", "enc", "cty"] {
                hold(!header.contains_key(name), name)?;
            }
            let again = door.honest.clone().header_bytes(Value::from(header).to_string());
            hold(door.knock(&again.token()).is_ok(), "it is refused when written plainly")?;
        }
        said(&answer, CANARY.as_bytes())
    };
    let kid = door.key.kid();
    Target {
        name: "token header",
        seeds: bytes([
            format!(r#"{{"alg":"ES256","typ":"JWT","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{kid}","x":[{{"y":null}}]}}"#),
            format!(r#"{{"alg":"none","kid":"{kid}","jwk":{{"kty":"EC"}},"crit":["exp"]}}"#),
            format!(r#"{{"alg":"HS256","kid":"{kid}","jku":"http://127.0.0.1:1/","{CANARY}":1}}"#),
        ]),
        words: &[
            r#""alg":"ES256","#,
            r#""kid":"","#,
            r#""typ":"JWT","#,
            r#""crit":[],"#,
            r#""jwk":{},"#,
            r#""jku":"","#,
            r#""b64":false,"#,
            r#""zip":"DEF","#,
            r#""cty":"JWT","#,
            "none",
            "RS256",
            r"\u0061",
            "[",
            "{",
            "}",
            "]",
        ],
        short: 4_000,
        check: &check,
    }
    .run();
}

#[test]
fn a_payload_that_is_taken_is_a_living_access_token_of_a_listed_client_for_us() {
    let door = Door::shared();
    let honest = door.honest.payload();
    let now = honest["iat"].as_i64().unwrap();
    let check = |input: &[u8]| {
        let answer = door.knock(&door.honest.clone().payload_bytes(input).token());
        if let Ok(identity) = &answer {
            let claims = members(input)?;
            let is = |name: &str, value: &str| claims.get(name) == Some(&Value::from(value));
            hold(
                is("iss", &door.issuer) && *identity.issuer == *door.issuer,
                "another issuer",
            )?;
            let audiences: BTreeSet<&str> = match &claims["aud"] {
                Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
                one => one.as_str().into_iter().collect(),
            };
            hold(audiences.contains("kdbt-broker"), "another audience")?;
            hold(is("typ", "Bearer"), "no access token")?;
            hold(is("sub", identity.subject.as_str()), "another subject")?;
            hold(is("azp", &identity.azp), "another party")?;
            hold(
                is("azp", "kdbt-cli") || is("azp", "kdbt-ci"),
                "a party that is not listed",
            )?;
            let time = |name: &str| claims[name].as_f64().unwrap_or(f64::NAN);
            #[expect(clippy::cast_precision_loss, reason = "seconds of this century")]
            let now = now as f64;
            hold(
                time("exp") > now - 60.0 && time("exp") - time("iat") <= 3601.0,
                "its times",
            )?;
            for name in ["cnf", "act", "nonce", "at_hash", "events"] {
                hold(!claims.contains_key(name), name)?;
            }
            let steers = |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
            let name = &identity.display_name;
            hold(
                !name.contains(steers) && name.chars().count() <= 128,
                "a name that steers",
            )?;
            hold(
                identity.claims.values == claims,
                "other claims than another reader sees",
            )?;
            let again = door.honest.clone().payload_bytes(Value::from(claims).to_string());
            let again = door
                .knock(&again.token())
                .map_err(|error| format!("written plainly: {error:?}"))?;
            hold(
                again.subject == identity.subject,
                "another subject when written plainly",
            )?;
            // Who it is and which token: these are for logs.
            let shown = [Some(name), identity.token_id.as_ref(), identity.session.as_ref()];
            let mut shown = shown.into_iter().flatten().map(String::as_str);
            let shown = shown.any(|text| text.contains(CANARY)) || identity.subject.as_str().contains(CANARY);
            hold(shown || !format!("{identity:?}").contains(CANARY), "a claim in Debug")?;
        }
        said(&answer, CANARY.as_bytes())
    };
    let with = |name: &str, value: Value| {
        let mut payload = honest.clone();
        payload[name] = value;
        payload.to_string()
    };
    Target {
        name: "claims",
        seeds: bytes([
            honest.to_string(),
            with("aud", serde_json::json!("kdbt-broker")),
            with("azp", "kdbt-ci".into()),
            with("groups", serde_json::json!(["/data/engineers", CANARY])),
            with(
                "resource_access",
                serde_json::json!({ "kdbt-broker": { "roles": ["admin"] } }),
            ),
            with("exp", (now + 60).into()),
            with("nbf", 0.into()),
            with("scope", "openid profile".into()),
        ]),
        words: &[
            r#""typ":"Bearer","#,
            r#""typ":"ID","#,
            r#""aud":["#,
            r#""aud":"kdbt-broker","#,
            r#""azp":"kdbt-ci","#,
            r#""sub":"","#,
            r#""exp":9999999999,"#,
            r#""iat":0,"#,
            r#""nbf":1e999,"#,
            r#""cnf":{},"#,
            r#""act":null,"#,
            r#""nonce":"","#,
            r#""sid":"","#,
            r#""groups":["/"],"#,
            r#""realm_access":{"roles":[]},"#,
            r"\ud800",
            r"\u0000",
            "[",
            "{",
            "}",
            "]",
            "1.5",
            "-0",
            "null",
            "true",
        ],
        short: 4_000,
        check: &check,
    }
    .run();
}
