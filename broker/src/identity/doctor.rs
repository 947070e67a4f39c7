//! What an issuer's administrators must have set up for the token rules and the policies to hold, looked at live:
//! for `kdbt-broker doctor` alone, since the serving broker needs no right at the issuer.

mod admin;
mod entries;
mod need;
mod realm;

use std::collections::BTreeSet;
use std::sync::Arc;

use secrecy::SecretString;
use url::Url;

use super::fetch::Fetcher;
use super::issuer::{Issuer, IssuerConfig, IssuerProblem};

/// What the policy reads of tokens, as far as a realm can break it (S16).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    /// Realm roles that a `deny` rule or an `unless` names: a token without them lifts the prohibition.
    pub excluding_realm_roles: BTreeSet<String>,
    /// The same of clients: client and role.
    pub excluding_client_roles: BTreeSet<(String, String)>,
    /// Claims that any condition reads, by name or JSON pointer: who can edit one of their own decides for us.
    pub claims: BTreeSet<String>,
}

/// Read access to a Keycloak's administration: a service account with `view-clients` and `view-realm`.
#[derive(Debug, Clone)]
pub struct AdminAccess {
    /// The client.
    pub client_id: String,
    /// Its secret.
    pub secret: SecretString,
    /// `https://HOST/admin/realms/REALM`, if not where the issuer's own address says.
    pub url: Option<Url>,
}

/// What is not as it must be, and where to change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// A promise does not hold or tokens are refused; else it should be looked at.
    pub serious: bool,
    /// A stable kebab-case code.
    pub code: &'static str,
    /// What was seen.
    pub what: String,
    /// What to do, with the place in Keycloak's console.
    pub remedy: String,
}

impl Flaw {
    fn error(code: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            serious: true,
            code,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    fn warning(code: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            serious: false,
            ..Self::error(code, what, remedy)
        }
    }
}

/// Dials an issuer as the serving broker does: its metadata, its keys, and a key for each algorithm that is allowed.
pub async fn examine_issuer(config: &IssuerConfig) -> Vec<Flaw> {
    let unusable = |problem: IssuerProblem| Flaw {
        serious: config.required,
        ..Flaw::error("issuer", problem.to_string(), "mend its entry in `issuers`")
    };
    let issuer = match Issuer::new(config.clone()) {
        Ok(issuer) => Arc::new(issuer),
        Err(error) => return vec![unusable(error.problem)],
    };
    let fetcher = match Fetcher::new(issuer) {
        Ok(fetcher) => fetcher,
        Err(problem) => return vec![unusable(problem)],
    };
    let keys = match fetcher.keys().await {
        Ok(keys) => keys,
        Err(error) => {
            let remedy = "no token of this issuer can be verified until that works from the broker's host";
            return vec![Flaw {
                serious: config.required,
                ..Flaw::error("issuer-keys", error.to_string(), remedy)
            }];
        }
    };
    if config.algorithms.iter().any(|algorithm| keys.can_verify(*algorithm)) {
        return Vec::new();
    }
    let allowed: Vec<&str> = config.algorithms.iter().map(|algorithm| algorithm.as_str()).collect();
    vec![Flaw::error(
        "issuer-algorithms",
        format!(
            "it publishes no key for {}, so every token is refused",
            allowed.join(", ")
        ),
        "let `algorithms` name what the issuer signs with, or leave it out (Keycloak: Realm settings → Keys)",
    )]
}

/// Reads a Keycloak's realm and compares it with what the configuration promises of its tokens and the policy reads.
pub async fn examine_realm(config: &IssuerConfig, reads: &Reads, access: &AdminAccess) -> Vec<Flaw> {
    let realm = async {
        let admin = admin::Admin::log_in(config, access).await?;
        admin.realm(config, reads).await
    };
    match realm.await {
        Ok(realm) => realm.flaws(config, reads),
        Err(error) => vec![Flaw::error("realm-unreadable", error.to_string(), error.remedy())],
    }
}
