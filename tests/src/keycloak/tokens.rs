//! Every way to a token that the realm offers, and a look inside.

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{Keycloak, http, random, successful};

/// What the token endpoint hands out.
#[derive(Debug, Clone, Deserialize)]
pub struct Tokens {
    /// What the broker wants to see.
    pub access_token: String,
    /// Absent for client credentials.
    pub refresh_token: Option<String>,
    /// Absent unless `openid` was asked for.
    pub id_token: Option<String>,
}

/// What the device endpoint hands out.
#[derive(Debug, Clone, Deserialize)]
pub struct DeviceCode {
    /// What the device polls with.
    pub device_code: String,
    /// What the person may type.
    pub user_code: String,
    /// What the person opens, the code in it.
    pub verification_uri_complete: String,
    /// Proves that the one who polls is the one who asked.
    #[serde(skip)]
    pub verifier: String,
}

impl Keycloak {
    /// A person's token by password, for a client that allows it: `kdbt-test`, `kdbt-light`, `other-app`.
    pub async fn password_grant(&self, client: &str, user: &str) -> Result<Tokens> {
        self.token(&[
            ("grant_type", "password"),
            ("client_id", client),
            ("username", user),
            ("password", self.people_password()),
            ("scope", "openid"),
        ])
        .await
    }

    /// A pipeline's token: `kdbt-ci`, `kdbt-broker`.
    pub async fn client_credentials(&self, client: &str, secret: &str) -> Result<Tokens> {
        self.token(&[
            ("grant_type", "client_credentials"),
            ("client_id", client),
            ("client_secret", secret),
        ])
        .await
    }

    /// A fresh pair for a refresh token, which the realm takes only once.
    pub async fn refresh(&self, client: &str, refresh_token: &str) -> Result<Tokens> {
        self.token(&[
            ("grant_type", "refresh_token"),
            ("client_id", client),
            ("refresh_token", refresh_token),
        ])
        .await
    }

    /// Code with PKCE through the real login page, for a client with the standard flow: `kdbt-cli`, `other-app`.
    pub async fn login(&self, client: &str, user: &str) -> Result<Tokens> {
        let (verifier, state, redirect) = (verifier(), random(), "http://127.0.0.1:53682/callback");
        let authorize = Url::parse_with_params(
            &self.endpoint("auth"),
            [
                ("response_type", "code"),
                ("client_id", client),
                ("redirect_uri", redirect),
                ("scope", "openid"),
                ("state", &state),
                ("code_challenge", &challenge(&verifier)),
                ("code_challenge_method", "S256"),
            ],
        )?;
        let back = self.browser()?.log_in(authorize.as_str(), user).await?;
        let given = |name: &str| {
            back.query_pairs()
                .find_map(|(key, value)| (key == name).then(|| value.into_owned()))
        };
        anyhow::ensure!(
            given("state").as_deref() == Some(&state),
            "the state came back changed: {back}"
        );
        self.token(&[
            ("grant_type", "authorization_code"),
            ("client_id", client),
            ("redirect_uri", redirect),
            ("code", &given("code").with_context(|| format!("no code in {back}"))?),
            ("code_verifier", &verifier),
        ])
        .await
    }

    /// The first half of the device flow, with PKCE.
    pub async fn device_code(&self, client: &str) -> Result<DeviceCode> {
        let verifier = verifier();
        let form = [
            ("client_id", client),
            ("scope", "openid"),
            ("code_challenge", &challenge(&verifier)),
            ("code_challenge_method", "S256"),
        ];
        let answer = http()?.post(self.endpoint("auth/device")).form(&form).send().await?;
        let code: DeviceCode = serde_json::from_str(&successful(answer).await?)?;
        Ok(DeviceCode { verifier, ..code })
    }

    /// The second half, once: an error with `authorization_pending` until a person has agreed.
    pub async fn poll_device(&self, client: &str, device: &DeviceCode) -> Result<Tokens> {
        self.token(&[
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("client_id", client),
            ("device_code", &device.device_code),
            ("code_verifier", &device.verifier),
        ])
        .await
    }

    /// A person's token that is bound to a key which nobody keeps (client `kdbt-dpop`).
    pub async fn dpop_bound(&self, user: &str) -> Result<Tokens> {
        let url = self.endpoint("token");
        let form = [
            ("grant_type", "password"),
            ("client_id", "kdbt-dpop"),
            ("username", user),
            ("password", self.people_password()),
        ];
        let answer = http()?
            .post(&url)
            .header("DPoP", proof("POST", &url)?)
            .form(&form)
            .send()
            .await?;
        Ok(serde_json::from_str(&successful(answer).await?)?)
    }

    async fn token(&self, form: &[(&str, &str)]) -> Result<Tokens> {
        let answer = http()?.post(self.endpoint("token")).form(form).send().await?;
        Ok(serde_json::from_str(&successful(answer).await?)?)
    }
}

impl Tokens {
    /// What the access token says, unverified.
    pub fn claims(&self) -> Result<Value> {
        part(&self.access_token, 1)
    }

    /// The header of the access token, unverified.
    pub fn header(&self) -> Result<Value> {
        part(&self.access_token, 0)
    }
}

fn part(token: &str, index: usize) -> Result<Value> {
    let part = token.split('.').nth(index).context("not a token of three parts")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
}

fn verifier() -> String {
    URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 32]>())
}

fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()))
}

/// A proof of possession (RFC 9449) by a fresh key.
fn proof(method: &str, url: &str) -> Result<String> {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    // An uncompressed point: 4, x, y.
    let (x, y) = key
        .public_key()
        .as_ref()
        .get(1..)
        .context("no public key")?
        .split_at(32);
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)});
    let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk});
    let payload = json!({"htm": method, "htu": url, "iat": jiff::Timestamp::now().as_second(), "jti": random()});
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(payload));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
