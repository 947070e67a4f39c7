//! What the realm remembers: logins in progress, codes, device codes, sessions, refresh tokens. No HTTP here.

mod device;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use device::Device;

use super::claims::{Claims, Grant, Occasion, SessionClaims};
use super::forge::{Seal, TokenForge};
use super::keys::{Keyring, base64url, random_text, sha256};
use super::realm::{Client, Realm, User};

/// Everything that requests change, behind one lock.
#[derive(Default)]
pub(super) struct Sessions {
    logins: HashMap<String, Login>,
    codes: HashMap<String, Code>,
    devices: HashMap<String, Device>,
    live: BTreeMap<String, Session>,
    /// The refresh tokens that still work, by their text.
    refresh_tokens: HashMap<String, RefreshToken>,
    /// Access tokens that this issuer signed for someone: introspection knows no others.
    access_tokens: HashMap<String, AccessToken>,
    refresh_secret: Vec<u8>,
}

/// What a login on the page leads to.
#[derive(Debug, Clone)]
pub(super) enum Login {
    /// Back to the client, with a code.
    Code(Asked),
    /// To the question whether this device may.
    Device { user_code: String },
    /// The person who now answers that question.
    Consent { user_code: String, username: String },
}

/// What the client asked for when it sent the browser, and what the login must give back.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) client: String,
    pub(super) redirect_uri: String,
    pub(super) state: Option<String>,
    pub(super) nonce: Option<String>,
    pub(super) openid: bool,
    pub(super) challenge: Option<String>,
}

struct Code {
    asked: Asked,
    sid: String,
    expires_at: i64,
    used: bool,
}

struct Session {
    username: String,
    client: String,
    nonce: Option<String>,
    openid: bool,
    started_at: i64,
    ends_at: i64,
}

struct RefreshToken {
    sid: String,
    client: String,
    expires_at: i64,
}

struct AccessToken {
    sid: Option<String>,
    client: String,
    username: String,
    claims: Claims,
}

/// The tokens of one answer.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// The access token.
    pub access: String,
    /// Absent for client credentials.
    pub refresh: Option<String>,
    /// Only where `openid` was asked for.
    pub id: Option<String>,
    /// The session's id; absent for client credentials.
    pub sid: Option<String>,
    /// Seconds until the access token expires.
    pub(super) expires_in: i64,
    pub(super) refresh_expires_in: i64,
    pub(super) scope: String,
}

/// An OAuth error answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) error: &'static str,
    pub(super) description: String,
}

/// What stays the same while one request is answered.
pub(super) struct Now<'a> {
    pub(super) iss: &'a str,
    pub(super) realm: &'a Realm,
    pub(super) keys: &'a Keyring,
    pub(super) seconds: i64,
}

pub(super) fn refused(error: &'static str, description: impl Into<String>) -> Refused {
    Refused {
        status: 400,
        error,
        description: description.into(),
    }
}

fn invalid_grant(description: &str) -> Refused {
    refused("invalid_grant", description)
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self {
            refresh_secret: random_text(64).into_bytes(),
            ..Self::default()
        }
    }

    /// Keeps a login in progress; the answer names it in the page's form.
    pub(super) fn open_login(&mut self, login: Login) -> String {
        let session_code = random_text(43);
        self.logins.insert(session_code.clone(), login);
        session_code
    }

    pub(super) fn login(&self, session_code: &str) -> Option<&Login> {
        self.logins.get(session_code)
    }

    pub(super) fn close_login(&mut self, session_code: &str) {
        self.logins.remove(session_code);
    }

    /// The user after a right password, or what the login page shows.
    pub(super) fn check_password<'r>(
        realm: &'r Realm,
        username: &str,
        password: &str,
    ) -> Result<&'r User, &'static str> {
        match realm.users.get(username) {
            Some(user) if user.password.as_deref() != Some(password) => Err("Invalid username or password."),
            Some(user) if !user.enabled => Err("Account is disabled, contact your administrator."),
            Some(user) => Ok(user),
            None => Err("Invalid username or password."),
        }
    }

    /// A new session and a code for it; also the session's id, which the redirect carries.
    pub(super) fn issue_code(&mut self, now: &Now<'_>, user: &User, asked: Asked) -> (String, String) {
        let sid = self.start(now, user, &asked.client, asked.nonce.clone(), asked.openid);
        let code = format!("{}.{sid}.{}", random_text(36), random_text(36));
        let expires_at = now.seconds + now.realm.code_lifespan;
        self.codes.insert(
            code.clone(),
            Code {
                asked,
                sid: sid.clone(),
                expires_at,
                used: false,
            },
        );
        (code, sid)
    }

    pub(super) fn redeem_code(
        &mut self,
        now: &Now<'_>,
        client: &Client,
        code: &str,
        redirect_uri: Option<&str>,
        verifier: Option<&str>,
    ) -> Result<Tokens, Refused> {
        let known = self
            .codes
            .get_mut(code)
            .ok_or_else(|| invalid_grant("Code not valid"))?;
        if std::mem::replace(&mut known.used, true) {
            // Someone else has it: Keycloak takes back what the first one got.
            let sid = known.sid.clone();
            self.end(&sid);
            return Err(invalid_grant("Code not valid"));
        }
        if known.asked.client != client.id {
            return Err(invalid_grant("Auth error"));
        }
        if known.expires_at <= now.seconds {
            return Err(invalid_grant("Code is expired"));
        }
        if redirect_uri != Some(&known.asked.redirect_uri) {
            return Err(invalid_grant("Incorrect redirect_uri"));
        }
        check_verifier(known.asked.challenge.as_deref(), verifier)?;
        let sid = known.sid.clone();
        self.tokens(now, client, &sid, Grant::Code)
    }

    pub(super) fn password(
        &mut self,
        now: &Now<'_>,
        client: &Client,
        user: &User,
        openid: bool,
    ) -> Result<Tokens, Refused> {
        let sid = self.start(now, user, &client.id, None, openid);
        self.tokens(now, client, &sid, Grant::Password)
    }

    pub(super) fn refresh(&mut self, now: &Now<'_>, client: &Client, token: &str) -> Result<Tokens, Refused> {
        let known = self
            .refresh_tokens
            .get(token)
            .ok_or_else(|| invalid_grant("Invalid refresh token"))?;
        if known.client != client.id {
            return Err(invalid_grant(
                "Invalid refresh token. Token client and authorized client don't match",
            ));
        }
        if known.expires_at <= now.seconds {
            return Err(invalid_grant("Token is not active"));
        }
        let sid = known.sid.clone();
        if now.realm.rotate_refresh_tokens {
            self.refresh_tokens.remove(token);
        }
        self.tokens(now, client, &sid, Grant::Refresh)
    }

    pub(super) fn client_credentials(&mut self, now: &Now<'_>, client: &Client) -> Result<Tokens, Refused> {
        let user = client
            .service_account
            .as_ref()
            .and_then(|name| now.realm.users.get(name));
        let user =
            user.ok_or_else(|| refused("unauthorized_client", "Client not enabled to retrieve service account"))?;
        let occasion = Occasion {
            iss: now.iss,
            realm: now.realm,
            user,
            client,
            grant: Grant::ClientCredentials,
            session: None,
            now: now.seconds,
        };
        Ok(self.sign(now, &occasion))
    }

    /// RFC 7009: a refresh token takes its session along, an access token only itself; unknown ones are no error.
    pub(super) fn revoke(&mut self, client: &Client, token: &str) {
        if let Some(known) = self.refresh_tokens.get(token).filter(|known| known.client == client.id) {
            let sid = known.sid.clone();
            self.end(&sid);
        } else if self
            .access_tokens
            .get(token)
            .is_some_and(|known| known.client == client.id)
        {
            self.access_tokens.remove(token);
        }
    }

    /// Ends the session of a refresh token.
    pub(super) fn log_out(&mut self, client: &Client, refresh_token: &str) -> Result<(), Refused> {
        let known = self
            .refresh_tokens
            .get(refresh_token)
            .filter(|known| known.client == client.id);
        let sid = known.ok_or_else(|| invalid_grant("Invalid refresh token"))?.sid.clone();
        self.end(&sid);
        Ok(())
    }

    /// What the asking client may know of a token: it must stand in the token's audience.
    pub(super) fn introspect(&self, now: &Now<'_>, asker: &Client, token: &str) -> Value {
        let inactive = json!({ "active": false });
        let Some(known) = self.access_tokens.get(token) else {
            return inactive;
        };
        let audience: BTreeSet<&str> = match known.claims.get("aud") {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            Some(one) => one.as_str().into_iter().collect(),
            None => BTreeSet::new(),
        };
        let expired = known.claims["exp"].as_i64().is_none_or(|exp| exp <= now.seconds);
        let ended = known.sid.as_ref().is_some_and(|sid| !self.is_alive(now, sid));
        let disabled = !now.realm.users[&known.username].enabled || !now.realm.clients[&known.client].enabled;
        if expired || ended || disabled || !audience.contains(asker.id.as_str()) {
            return inactive;
        }
        let mut answer = known.claims.clone();
        answer.insert("active".into(), true.into());
        answer.insert("client_id".into(), known.client.as_str().into());
        answer.insert("username".into(), known.username.as_str().into());
        answer.insert("token_type".into(), "Bearer".into());
        answer.into()
    }

    /// Ends a session: its refresh tokens stop working, its access tokens introspect as inactive.
    pub(super) fn end(&mut self, sid: &str) -> bool {
        self.refresh_tokens.retain(|_, token| token.sid != sid);
        self.live.remove(sid).is_some()
    }

    fn is_alive(&self, now: &Now<'_>, sid: &str) -> bool {
        self.live.get(sid).is_some_and(|session| session.ends_at > now.seconds)
    }

    /// A session of this user; returns its id.
    fn start(&mut self, now: &Now<'_>, user: &User, client: &str, nonce: Option<String>, openid: bool) -> String {
        let sid = random_text(24);
        let session = Session {
            username: user.username.clone(),
            client: client.to_owned(),
            nonce,
            openid,
            started_at: now.seconds,
            ends_at: now.seconds + now.realm.session_max,
        };
        self.live.insert(sid.clone(), session);
        sid
    }

    fn tokens(&mut self, now: &Now<'_>, client: &Client, sid: &str, grant: Grant) -> Result<Tokens, Refused> {
        let session = self
            .live
            .get(sid)
            .filter(|session| session.client == client.id && session.ends_at > now.seconds);
        let session = session.ok_or_else(|| invalid_grant("Session not active"))?;
        let user = &now.realm.users[&session.username];
        if !user.enabled {
            return Err(invalid_grant("User disabled"));
        }
        let nonce = session.nonce.clone();
        let occasion = Occasion {
            iss: now.iss,
            realm: now.realm,
            user,
            client,
            grant,
            session: Some(SessionClaims {
                sid,
                auth_time: session.started_at,
                nonce: nonce.as_deref(),
                openid: session.openid,
                ends_at: session.ends_at,
            }),
            now: now.seconds,
        };
        Ok(self.sign(now, &occasion))
    }

    fn sign(&mut self, now: &Now<'_>, occasion: &Occasion<'_>) -> Tokens {
        let client = occasion.client;
        let claims = occasion.access();
        let lifespan = |claims: &Claims| claims["exp"].as_i64().expect("exp is a number") - now.seconds;
        let expires_in = lifespan(&claims);
        let access = TokenForge::new(
            client.access_token_typ,
            claims,
            now.keys.active(client.access_token_alg),
        )
        .token();
        let sid = occasion.session.as_ref().map(|session| session.sid.to_owned());
        let username = occasion.user.username.clone();
        self.access_tokens.insert(
            access.clone(),
            AccessToken {
                sid: sid.clone(),
                client: client.id.clone(),
                username,
                claims: occasion.full_access(),
            },
        );

        let default_key = now.keys.active(Algorithm::RS256);
        let mut refresh = None;
        let mut refresh_expires_in = 0;
        if let Some(sid) = &sid {
            let claims = occasion.refresh();
            refresh_expires_in = lifespan(&claims);
            let token = TokenForge::new("JWT", claims, default_key)
                .header("alg", "HS512")
                .header("kid", "the-realm-keeps-this-secret")
                .sealed(Seal::Hs512(self.refresh_secret.clone()))
                .token();
            let expires_at = now.seconds + refresh_expires_in;
            self.refresh_tokens.insert(
                token.clone(),
                RefreshToken {
                    sid: sid.clone(),
                    client: client.id.clone(),
                    expires_at,
                },
            );
            refresh = Some(token);
        }
        let id = occasion.session.as_ref().filter(|session| session.openid);
        let id = id.map(|_| TokenForge::new("JWT", occasion.id(&access), default_key).token());
        Tokens {
            access,
            refresh,
            id,
            sid,
            expires_in,
            refresh_expires_in,
            scope: occasion.scope(),
        }
    }
}

/// PKCE with S256, as RFC 7636 4.6 has it; a verifier without a challenge is as wrong as a challenge without a verifier.
fn check_verifier(challenge: Option<&str>, verifier: Option<&str>) -> Result<(), Refused> {
    match (challenge, verifier) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(invalid_grant(
            "PKCE code verifier specified but challenge not present in the request",
        )),
        (Some(_), None) => Err(invalid_grant("PKCE code verifier not specified")),
        (Some(challenge), Some(verifier)) if base64url(sha256(verifier.as_bytes())) == challenge => Ok(()),
        (Some(_), Some(_)) => Err(invalid_grant("PKCE verification failed: Code mismatch")),
    }
}
