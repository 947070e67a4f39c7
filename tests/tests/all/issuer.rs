//! The in-process identity provider keeps to Keycloak's ways; where it did not, the other tests would prove nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use kdbt_e2e::issuer::{Fault, Issuer, Realm, Seal};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::Url;

const REALM: &str = include_str!("issuer/realm.json");
const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters-0123456789";
const CALLBACK: &str = "http://127.0.0.1:49152/callback";
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The issuer with a clock that only the test moves, and a client to talk to it.
struct Fixture {
    issuer: Issuer,
    now: Arc<AtomicI64>,
    http: Client,
}

impl Fixture {
    fn new() -> Self {
        Self::with(&Realm::parse(REALM).unwrap())
    }

    fn with(realm: &Realm) -> Self {
        let now = Arc::new(AtomicI64::new(1_900_000_000));
        let clock = now.clone();
        let issuer = Issuer::start_on(realm, Box::new(move || clock.load(Ordering::SeqCst))).unwrap();
        let http = Client::builder()
            .timeout(Duration::from_secs(20))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self { issuer, now, http }
    }

    fn pass(&self, seconds: i64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    fn oidc(&self, path: &str) -> String {
        format!("{}/protocol/openid-connect/{path}", self.issuer.url())
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let response = self.http.post(self.oidc(path)).form(form).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn token(&self, form: &[(&str, &str)]) -> (StatusCode, Value) {
        self.post("token", form).await
    }

    async fn get(&self, url: &str) -> Value {
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    fn authorization_url(&self, edit: impl Fn(&str) -> Option<String>) -> Url {
        let mut url = Url::parse(&self.oidc("auth")).unwrap();
        let honest = [
            ("response_type", "code"),
            ("client_id", "kdbt-cli"),
            ("redirect_uri", CALLBACK),
            ("scope", "openid"),
            ("state", "the-state"),
            ("nonce", "the-nonce"),
            ("code_challenge", &challenge()),
            ("code_challenge_method", "S256"),
        ];
        for (name, value) in honest {
            let value = edit(name).unwrap_or_else(|| value.to_owned());
            if !value.is_empty() {
                url.query_pairs_mut().append_pair(name, &value);
            }
        }
        url
    }

    /// A code for ada, fresh from the login page.
    async fn code(&self) -> String {
        let callback = self
            .issuer
            .authorize("ada", &self.authorization_url(|_| None))
            .await
            .unwrap();
        query(&callback, "code")
    }

    async fn redeem(&self, code: &str, verifier: &str) -> (StatusCode, Value) {
        self.token(&[
            ("grant_type", "authorization_code"),
            ("client_id", "kdbt-cli"),
            ("code", code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", verifier),
        ])
        .await
    }

    async fn refresh(&self, token: &str) -> (StatusCode, Value) {
        self.token(&[
            ("grant_type", "refresh_token"),
            ("client_id", "kdbt-cli"),
            ("refresh_token", token),
        ])
        .await
    }

    async fn start_device(&self) -> Value {
        let form = [
            ("client_id", "kdbt-cli"),
            ("code_challenge", &challenge()),
            ("code_challenge_method", "S256"),
        ];
        let (status, answer) = self.post("auth/device", &form).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    async fn poll(&self, device_code: &Value) -> Value {
        let device_code = device_code.as_str().unwrap();
        let form = [
            ("grant_type", DEVICE_GRANT),
            ("client_id", "kdbt-cli"),
            ("device_code", device_code),
            ("code_verifier", VERIFIER),
        ];
        self.token(&form).await.1
    }

    /// The claims, after jsonwebtoken has verified signature, issuer and audience with the published key.
    async fn verified(&self, token: &str, audience: &str) -> Value {
        let keys: JwkSet = serde_json::from_value(self.get(&self.oidc("certs")).await).unwrap();
        let header = jsonwebtoken::decode_header(token).unwrap();
        let jwk = keys.find(header.kid.as_ref().unwrap()).expect("the key is published");
        let mut rules = Validation::new(header.alg);
        rules.set_issuer(&[self.issuer.url()]);
        rules.set_audience(&[audience]);
        rules.validate_exp = false; // The test's clock is not the system's.
        jsonwebtoken::decode(token, &DecodingKey::from_jwk(jwk).unwrap(), &rules)
            .unwrap()
            .claims
    }
}

fn challenge() -> String {
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        VERIFIER.as_bytes(),
    ))
}

fn query(url: &Url, name: &str) -> String {
    let found = url.query_pairs().find(|(member, _)| member == name);
    found.unwrap_or_else(|| panic!("no {name} in {url}")).1.into_owned()
}

fn names(claims: &Value) -> Vec<&str> {
    claims.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_login_with_code_and_pkce_gives_tokens_that_verify() {
    let idp = Fixture::new();
    let callback = idp
        .issuer
        .authorize("ada", &idp.authorization_url(|_| None))
        .await
        .unwrap();
    assert!(callback.as_str().starts_with("http://127.0.0.1:49152/callback?"));
    assert_eq!(query(&callback, "state"), "the-state");
    assert_eq!(query(&callback, "iss"), idp.issuer.url());

    let (status, answer) = idp.redeem(&query(&callback, "code"), VERIFIER).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let access = idp
        .verified(answer["access_token"].as_str().unwrap(), "kdbt-broker")
        .await;
    assert_eq!(access["sid"], query(&callback, "session_state").as_str());
    assert!(access["jti"].as_str().unwrap().starts_with("onrtac:"));
    let id = idp.verified(answer["id_token"].as_str().unwrap(), "kdbt-cli").await;
    assert_eq!((&id["typ"], &id["nonce"]), (&json!("ID"), &json!("the-nonce")));
}

#[tokio::test]
async fn an_access_token_has_the_claims_of_keycloak_and_no_others() {
    let idp = Fixture::new();
    let claims = idp.verified(&idp.issuer.token_for("ada"), "kdbt-broker").await;
    let expected = [
        "acr",
        "aud",
        "auth_time",
        "azp",
        "email",
        "email_verified",
        "exp",
        "family_name",
        "given_name",
        "groups",
        "iat",
        "iss",
        "jti",
        "name",
        "preferred_username",
        "resource_access",
        "scope",
        "sid",
        "sub",
        "typ",
    ];
    assert_eq!(
        names(&claims),
        expected,
        "no realm_access: the client's scope holds no realm role"
    );
    assert_eq!(claims["aud"], "kdbt-broker", "one audience is a plain string");
    assert_eq!(claims["azp"], "kdbt-cli");
    assert_eq!(claims["typ"], "Bearer");
    assert_eq!(claims["groups"], json!(["/data/analysts"]));
    assert_eq!(
        claims["resource_access"],
        json!({ "kdbt-broker": { "roles": ["analyst"] } })
    );
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
    assert_eq!(claims["sid"].as_str().unwrap().len(), 24);
}

#[tokio::test]
async fn a_client_with_full_scope_gets_every_role_and_the_audience_without_any_mapper() {
    let idp = Fixture::new();
    let claims = idp
        .verified(&idp.issuer.tokens_of("ada", "other-app").access, "kdbt-broker")
        .await;
    assert_eq!(claims["azp"], "other-app");
    assert_eq!(claims["realm_access"], json!({ "roles": ["admin"] }));
    assert_eq!(claims.get("groups"), None);
}

#[tokio::test]
async fn a_lightweight_token_says_nothing_about_the_person() {
    let idp = Fixture::new();
    let forge = idp.issuer.open(&idp.issuer.tokens_of("ada", "kdbt-light").access);
    assert_eq!(
        names(&forge.payload()),
        ["azp", "exp", "iat", "iss", "jti", "scope", "sid", "typ"]
    );
}

#[tokio::test]
async fn mappers_and_origins_decide_what_else_a_token_says() {
    let mappers = json!([
        { "name": "groups", "protocolMapper": "oidc-group-membership-mapper",
          "config": { "claim.name": "teams", "full.path": "false", "access.token.claim": "true" } },
        { "name": "unit", "protocolMapper": "oidc-usermodel-attribute-mapper",
          "config": { "user.attribute": "unit", "claim.name": "unit", "access.token.claim": "true" } },
        { "name": "stage", "protocolMapper": "oidc-hardcoded-claim-mapper",
          "config": { "claim.name": "stage", "claim.value": "test", "access.token.claim": "true" } },
        { "name": "absent", "protocolMapper": "oidc-hardcoded-claim-mapper",
          "config": { "claim.name": "absent", "claim.value": "x", "id.token.claim": "true" } },
        { "name": "second audience", "protocolMapper": "oidc-audience-mapper",
          "config": { "included.custom.audience": "elsewhere", "access.token.claim": "true" } },
    ]);
    let mut file: Value = serde_json::from_str(REALM).unwrap();
    file["clients"][1]["protocolMappers"] = mappers;
    file["clients"][1]["webOrigins"] = json!(["https://app.example"]);
    file["roles"]["client"]["other-app"] = json!([{ "name": "own" }]);
    file["users"][0]["clientRoles"] = json!({ "other-app": ["own"] });
    file["users"][0]["attributes"] = json!({ "unit": ["north", "south"] });
    let idp = Fixture::with(&Realm::parse(&file.to_string()).unwrap());
    let form = [
        ("grant_type", "password"),
        ("client_id", "other-app"),
        ("username", "ada"),
        ("password", "ada-password"),
    ];
    let (_, answer) = idp.token(&form).await;
    let claims = idp
        .verified(answer["access_token"].as_str().unwrap(), "elsewhere")
        .await;
    assert_eq!(claims["resource_access"]["other-app"]["roles"], json!(["own"]));
    assert_eq!(
        claims["aud"],
        json!(["elsewhere", "kdbt-broker"]),
        "the asking client is no audience by its own roles"
    );
    assert_eq!(claims["teams"], json!(["analysts"]));
    assert_eq!(claims["unit"], "north");
    assert_eq!(claims["stage"], "test");
    assert_eq!(claims["allowed-origins"], json!(["https://app.example"]));
    assert_eq!(
        (claims.get("absent"), claims.get("groups"), answer.get("id_token")),
        (None, None, None)
    );
}

#[tokio::test]
async fn a_client_without_the_setting_gets_no_token_by_password() {
    let idp = Fixture::new();
    let form = [
        ("grant_type", "password"),
        ("client_id", "kdbt-cli"),
        ("username", "ada"),
        ("password", "ada-password"),
    ];
    assert_eq!(idp.token(&form).await.1["error"], "unauthorized_client");
}

#[tokio::test]
async fn a_played_browser_calls_the_clients_listener() {
    let idp = Fixture::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let callback = format!("http://{}/callback", listener.local_addr().unwrap());
    let url = idp.authorization_url(|name| (name == "redirect_uri").then(|| callback.clone()));
    let listen = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = socket.read(&mut request).await.unwrap();
        socket
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nDone")
            .await
            .unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    };
    let (signed_in, request) = tokio::join!(idp.issuer.sign_in("ada", &url), listen);
    let called = signed_in.unwrap();
    assert!(
        request.starts_with(&format!("GET /callback?{} HTTP/1.1", called.query().unwrap())),
        "{request}"
    );
}

#[tokio::test]
async fn a_code_works_once_and_its_second_use_ends_the_session() {
    let idp = Fixture::new();
    let code = idp.code().await;
    let (_, first) = idp.redeem(&code, VERIFIER).await;
    let (status, second) = idp.redeem(&code, VERIFIER).await;
    assert_eq!(
        (status, &second["error"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_grant"))
    );
    let (_, refreshed) = idp.refresh(first["refresh_token"].as_str().unwrap()).await;
    assert_eq!(refreshed["error"], "invalid_grant");
}

#[tokio::test]
async fn a_wrong_a_missing_and_a_late_proof_of_a_code_are_refused() {
    let idp = Fixture::new();
    let (_, wrong) = idp.redeem(&idp.code().await, &VERIFIER.replace('a', "b")).await;
    assert_eq!(wrong["error_description"], "PKCE verification failed: Code mismatch");

    let code = idp.code().await;
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", "kdbt-cli"),
        ("code", &code),
        ("redirect_uri", CALLBACK),
    ];
    assert_eq!(
        idp.token(&form).await.1["error_description"],
        "PKCE code verifier not specified"
    );

    let code = idp.code().await;
    idp.pass(61);
    assert_eq!(
        idp.redeem(&code, VERIFIER).await.1["error_description"],
        "Code is expired"
    );
}

#[tokio::test]
async fn a_login_without_pkce_goes_back_with_an_error() {
    let idp = Fixture::new();
    let plain = |name: &str| name.starts_with("code_challenge").then(String::new);
    let callback = idp
        .issuer
        .authorize("ada", &idp.authorization_url(plain))
        .await
        .unwrap();
    assert_eq!(query(&callback, "error"), "invalid_request");
    assert_eq!(query(&callback, "state"), "the-state");
}

#[tokio::test]
async fn an_unregistered_address_is_never_redirected_to() {
    let idp = Fixture::new();
    for address in [
        "http://127.0.0.1:1/other",
        "http://evil.example/callback",
        "https://127.0.0.1/callback",
        "http://[::1]/callback",
    ] {
        let url = idp.authorization_url(|name| (name == "redirect_uri").then(|| address.to_owned()));
        let answer = idp.http.get(url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{address}");
    }
}

#[tokio::test]
async fn only_a_loopback_address_may_choose_its_port() {
    let mut file: Value = serde_json::from_str(REALM).unwrap();
    file["clients"][0]["redirectUris"] = json!(["http://app.example/callback"]);
    let idp = Fixture::with(&Realm::parse(&file.to_string()).unwrap());
    for (address, expected) in [("", StatusCode::OK), (":8080", StatusCode::BAD_REQUEST)] {
        let address = format!("http://app.example{address}/callback");
        let url = idp.authorization_url(|name| (name == "redirect_uri").then(|| address.clone()));
        assert_eq!(idp.http.get(url).send().await.unwrap().status(), expected, "{address}");
    }
}

#[tokio::test]
async fn a_disabled_person_cannot_log_in() {
    let idp = Fixture::new();
    let refused = idp
        .issuer
        .authorize("off", &idp.authorization_url(|_| None))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("Account is disabled"), "{refused}");
}

#[tokio::test]
async fn a_device_waits_until_it_is_approved() {
    let idp = Fixture::new();
    let device = idp.start_device().await;
    assert_eq!(device["interval"], 5);
    assert_eq!(idp.poll(&device["device_code"]).await["error"], "authorization_pending");
    assert_eq!(idp.poll(&device["device_code"]).await["error"], "slow_down");
    idp.issuer
        .approve_device("ada", device["user_code"].as_str().unwrap())
        .await
        .unwrap();
    idp.pass(5);
    let answer = idp.poll(&device["device_code"]).await;
    let claims = idp
        .verified(answer["access_token"].as_str().unwrap(), "kdbt-broker")
        .await;
    assert_eq!(claims["preferred_username"], "ada");
    idp.pass(5);
    assert_eq!(
        idp.poll(&device["device_code"]).await["error"],
        "invalid_grant",
        "a device code works once"
    );
}

#[tokio::test]
async fn a_device_is_told_of_a_no_and_of_its_end() {
    let idp = Fixture::new();
    let device = idp.start_device().await;
    idp.issuer
        .deny_device("ada", device["user_code"].as_str().unwrap())
        .await
        .unwrap();
    assert_eq!(idp.poll(&device["device_code"]).await["error"], "access_denied");

    let device = idp.start_device().await;
    idp.pass(600);
    assert_eq!(idp.poll(&device["device_code"]).await["error"], "expired_token");
}

#[tokio::test]
async fn a_device_without_pkce_is_refused() {
    let idp = Fixture::new();
    let (status, answer) = idp.post("auth/device", &[("client_id", "kdbt-cli")]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error_description"], "Missing parameter: code_challenge_method");
}

#[tokio::test]
async fn a_refresh_token_works_once_where_the_realm_revokes_it() {
    let idp = Fixture::new();
    let first = idp.issuer.tokens_for("ada").refresh.unwrap();
    let (status, second) = idp.refresh(&first).await;
    assert_eq!(status, StatusCode::OK, "{second}");
    assert_eq!(idp.refresh(&first).await.1["error"], "invalid_grant");
    assert_eq!(
        idp.refresh(second["refresh_token"].as_str().unwrap()).await.0,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_refresh_token_works_again_where_the_realm_does_not_revoke_it() {
    let lasting = REALM.replace(r#""revokeRefreshToken": true"#, r#""revokeRefreshToken": false"#);
    let idp = Fixture::with(&Realm::parse(&lasting).unwrap());
    let token = idp.issuer.tokens_for("ada").refresh.unwrap();
    assert_eq!(idp.refresh(&token).await.0, StatusCode::OK);
    assert_eq!(idp.refresh(&token).await.0, StatusCode::OK);
    idp.pass(1_800);
    assert_eq!(idp.refresh(&token).await.1["error_description"], "Token is not active");
}

#[tokio::test]
async fn a_service_account_has_neither_session_nor_refresh_token() {
    let idp = Fixture::new();
    let grant = ("grant_type", "client_credentials");
    let (_, by_form) = idp
        .token(&[grant, ("client_id", "kdbt-ci"), ("client_secret", "ci-secret")])
        .await;
    assert_eq!(by_form.get("refresh_token"), None);
    let by_header = idp
        .http
        .post(idp.oidc("token"))
        .basic_auth("kdbt-ci", Some("ci-secret"))
        .form(&[grant]);
    let by_header: Value = by_header.send().await.unwrap().json().await.unwrap();
    for answer in [by_form, by_header] {
        let claims = idp
            .verified(answer["access_token"].as_str().unwrap(), "kdbt-broker")
            .await;
        assert_eq!((claims.get("sid"), claims.get("client_id")), (None, None));
        assert_eq!(claims["preferred_username"], "service-account-kdbt-ci");
        assert_eq!(
            claims["resource_access"]["kdbt-broker"]["roles"],
            json!(["analyst", "engineer"])
        );
    }
    let (status, wrong) = idp
        .token(&[grant, ("client_id", "kdbt-ci"), ("client_secret", "guess")])
        .await;
    assert_eq!(
        (status, &wrong["error"]),
        (StatusCode::UNAUTHORIZED, &json!("unauthorized_client"))
    );
}

#[tokio::test]
async fn introspection_answers_only_the_audience_and_only_while_the_session_lives() {
    let idp = Fixture::new();
    let tokens = idp.issuer.tokens_for("ada");
    let ask = |id: &'static str, secret: &'static str| {
        let form = [
            ("client_id", id),
            ("client_secret", secret),
            ("token", tokens.access.as_str()),
        ];
        let idp = &idp;
        async move { idp.post("token/introspect", &form).await.1["active"].clone() }
    };
    assert_eq!(ask("kdbt-broker", "broker-secret").await, true);
    assert_eq!(ask("kdbt-ci", "ci-secret").await, false);
    let form = [
        ("client_id", "kdbt-cli"),
        ("refresh_token", tokens.refresh.as_ref().unwrap()),
    ];
    assert_eq!(idp.post("logout", &form).await.0, StatusCode::NO_CONTENT);
    assert_eq!(ask("kdbt-broker", "broker-secret").await, false);
}

#[tokio::test]
async fn revoking_a_refresh_token_ends_its_session() {
    let idp = Fixture::new();
    let tokens = idp.issuer.tokens_for("ada");
    let refresh = tokens.refresh.unwrap();
    assert_eq!(
        idp.post("revoke", &[("client_id", "kdbt-cli"), ("token", &refresh)])
            .await
            .0,
        StatusCode::OK
    );
    assert_eq!(idp.refresh(&refresh).await.1["error"], "invalid_grant");
    assert!(!idp.issuer.end_session(&tokens.sid.unwrap()), "it is over already");
}

#[tokio::test]
async fn the_key_set_lists_signing_and_encryption_keys_and_keeps_an_old_one_until_it_is_dropped() {
    let idp = Fixture::new();
    let listed = async || {
        let keys = idp.get(&idp.oidc("certs")).await["keys"].as_array().unwrap().clone();
        keys.iter()
            .map(|key| format!("{} {}", key["use"].as_str().unwrap(), key["alg"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(listed().await, ["sig ES256", "sig RS256", "enc RSA-OAEP"]);
    let before = idp.issuer.token_for("ada");
    idp.issuer.rotate_keys();
    assert_eq!(listed().await, ["sig RS256", "sig ES256", "sig RS256", "enc RSA-OAEP"]);
    idp.verified(&before, "kdbt-broker").await;
    idp.verified(&idp.issuer.token_for("ada"), "kdbt-broker").await;
    idp.issuer.drop_old_keys();
    assert_eq!(listed().await, ["sig RS256", "sig ES256", "enc RSA-OAEP"]);
    assert_eq!(idp.issuer.keys_fetches(), 5);
}

#[tokio::test]
async fn every_kind_of_key_signs_what_its_published_half_verifies() {
    let idp = Fixture::new();
    for algorithm in [
        Algorithm::RS256,
        Algorithm::PS256,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ] {
        let key = idp.issuer.add_key(algorithm);
        let token = idp.issuer.forge("ada").signed_by(&key).token();
        assert_eq!(idp.verified(&token, "kdbt-broker").await["azp"], "kdbt-cli");
    }
    let by_client = idp.issuer.tokens_of("ada", "kdbt-es256").access;
    let header = jsonwebtoken::decode_header(&by_client).unwrap();
    assert_eq!((header.alg, header.typ.as_deref()), (Algorithm::ES256, Some("at+jwt")));
}

#[test]
fn a_forged_token_says_exactly_what_it_was_told_to() {
    let issuer = Issuer::start(&Realm::parse(REALM).unwrap()).unwrap();
    let parts = |token: String| {
        let parts: Vec<String> = token
            .split('.')
            .map(|part| String::from_utf8_lossy(&URL_SAFE_NO_PAD.decode(part).unwrap()).into_owned())
            .collect();
        <[String; 3]>::try_from(parts).unwrap()
    };
    let forge = issuer.forge("ada");
    let [header, payload, signature] = parts(
        forge
            .clone()
            .header("alg", "none")
            .without_header("kid")
            .header("crit", json!(["b64"]))
            .without("sub")
            .repeated("iss", "https://evil.example")
            .raw_claim("name", r#""\ud800""#)
            .sealed(Seal::Empty)
            .token(),
    );
    assert_eq!(header, r#"{"typ":"JWT","alg":"none","crit":["b64"]}"#);
    assert_eq!(payload.matches(r#""iss":"#).count(), 2);
    assert!(
        !payload.contains(r#""sub":"#) && payload.contains(r#""name":"\ud800""#),
        "{payload}"
    );
    assert_eq!(signature, "");

    let pem = issuer.active_key(Algorithm::RS256).public_pem();
    let confused = forge
        .header("alg", "HS256")
        .sealed(Seal::Hs256(pem.clone().into()))
        .token();
    let mut rules = Validation::new(Algorithm::HS256);
    rules.validate_aud = false;
    jsonwebtoken::decode::<Value>(confused, &DecodingKey::from_secret(pem.as_bytes()), &rules).unwrap();
}

#[tokio::test]
async fn faults_show_and_go_away() {
    let idp = Fixture::new();
    let certs = idp.oidc("certs");
    let status = async || idp.http.get(&certs).send().await.unwrap().status();
    idp.issuer.set_keys_fault(Fault::Status(500));
    assert_eq!(status().await, StatusCode::INTERNAL_SERVER_ERROR);
    idp.issuer.set_keys_fault(Fault::Redirect("http://127.0.0.1:1/".into()));
    assert_eq!(status().await, StatusCode::FOUND);
    idp.issuer.set_keys_fault(Fault::Oversized(1 << 20));
    assert!(idp.http.get(&certs).send().await.unwrap().bytes().await.unwrap().len() > 1 << 20);
    idp.issuer.set_keys_fault(Fault::None);
    assert_eq!(status().await, StatusCode::OK);

    idp.issuer.set_discovery("issuer", "https://other.example");
    let document = idp
        .get(&format!("{}/.well-known/openid-configuration", idp.issuer.url()))
        .await;
    assert_eq!(document["issuer"], "https://other.example");
    assert_eq!(document["jwks_uri"], certs);
}

#[tokio::test]
async fn a_client_that_needs_more_than_a_secret_is_told_so() {
    let idp = Fixture::new();
    let (status, answer) = idp
        .token(&[("grant_type", "client_credentials"), ("client_id", "kdbt-ci-jwt")])
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(
        answer["error_description"]
            .as_str()
            .unwrap()
            .contains("need a real Keycloak"),
        "{answer}"
    );
}

#[test]
fn a_realm_that_asks_for_more_than_the_issuer_can_do_is_refused_by_name() {
    let refused = |from: &str, to: &str| format!("{:#}", Realm::parse(&REALM.replacen(from, to, 1)).unwrap_err());
    let cases = [
        (
            r#""sslRequired": "external""#,
            r#""clientScopes": []"#,
            "the realm sets `clientScopes`",
        ),
        (
            "oidc-audience-mapper",
            "oidc-script-mapper",
            "client `kdbt-cli`, mapper `audience`",
        ),
        (
            r#""realmRoles": ["admin"]"#,
            r#""requiredActions": ["VERIFY_EMAIL"]"#,
            "user `ada` has required actions",
        ),
        (
            r#""groups": ["/data/analysts"]"#,
            r#""groups": ["/nowhere"]"#,
            "unknown group `/nowhere`",
        ),
        (
            r#""realmRoles": ["admin"]"#,
            r#""realmRoles": ["root"]"#,
            "user `ada` has a role that the file does not define",
        ),
        (
            "access.token.signed.response.alg",
            "saml.assertion.signature",
            "client `kdbt-es256` sets the attribute",
        ),
        (
            r#""serviceAccountClientId": "kdbt-ci","#,
            "",
            "client `kdbt-ci` has a service account but no user",
        ),
        (
            r#""secret": "broker-secret","#,
            "",
            "client `kdbt-broker` is confidential but has no secret",
        ),
    ];
    for (from, to, complaint) in cases {
        let error = refused(from, to);
        assert!(error.contains(complaint), "{error}");
    }
}
