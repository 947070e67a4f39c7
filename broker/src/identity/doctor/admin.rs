//! Keycloak's admin REST interface, read only: as much of a realm as [`Realm`] judges, in a bounded number of calls.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use super::entries::{ClientEntry, Profile, RealmEntry, ScopeEntry};
use super::realm::{Grants, Realm};
use super::{AdminAccess, Reads};
use crate::identity::fetch;
use crate::identity::issuer::{IssuerConfig, has_credentials, may_be_dialled};

/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// How many clients come with one call.
const PAGE: usize = 100;
/// Realms with more clients than this many pages are looked at so far and no further.
const MAX_PAGES: usize = 100;

/// Why a realm cannot be read. No text of it holds the secret or a token.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    #[error("`{0}` is not the address of a Keycloak realm, which ends in `/realms/NAME`")]
    NoRealm(String),
    #[error("{0} is not https, or holds a password; plain http is for loopback addresses only")]
    Insecure(Url),
    #[error("its certificates cannot be used")]
    Certificates(#[source] reqwest::Error),
    #[error("{url} cannot be reached: {}", fetch::root_cause(.source))]
    Unreachable { url: Url, source: reqwest::Error },
    #[error("Keycloak does not let the client `{client}` log in with its secret ({status})")]
    LogIn { client: String, status: StatusCode },
    #[error("{url} answers {status}")]
    Status { url: Url, status: StatusCode },
    #[error("{url} answers with more than {MAX_BODY_BYTES} bytes")]
    TooLong { url: Url },
    #[error("{url} does not answer as a Keycloak does: {source}")]
    Unexpected { url: Url, source: serde_json::Error },
}

impl AdminError {
    /// What to do about it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::NoRealm(_) | Self::Insecure(_) => {
                "name the realm's admin address with --keycloak-admin-url: https://HOST/admin/realms/NAME"
            }
            Self::Certificates(_) => "`ca_file` of the issuer takes certificates in PEM",
            Self::LogIn { .. } => {
                "Clients → (the client) → Settings: client authentication and service account on; its secret stands \
                 under Credentials"
            }
            Self::Status { status, .. } if *status == StatusCode::FORBIDDEN => {
                "Clients → (the client) → Service account roles: assign `view-clients` and `view-realm` of \
                 `realm-management`, and nothing more"
            }
            Self::Unreachable { .. } | Self::Status { .. } | Self::TooLong { .. } | Self::Unexpected { .. } => {
                "if the administration has another address than the issuer, name it with --keycloak-admin-url"
            }
        }
    }
}

/// A logged-in reader of one realm.
pub(super) struct Admin {
    http: Client,
    /// `…/admin/realms/NAME`, without a slash at the end.
    url: Url,
    token: SecretString,
}

#[derive(serde::Deserialize)]
struct Token {
    access_token: String,
}

impl Admin {
    /// Logs the service account in.
    pub(super) async fn log_in(config: &IssuerConfig, access: &AdminAccess) -> Result<Self, AdminError> {
        let url = match &access.url {
            Some(url) => url.clone(),
            None => below_admin(&config.issuer)?,
        };
        if !may_be_dialled(&url) || has_credentials(&url) {
            return Err(AdminError::Insecure(url));
        }
        let http = fetch::client(&url, config.ca_pem.as_deref(), TIMEOUT).map_err(AdminError::Certificates)?;
        let endpoint = token_endpoint(&url)?;
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", access.client_id.as_str()),
            ("client_secret", access.secret.expose_secret()),
        ];
        let request = http.post(endpoint.clone()).form(&form);
        let token: Token = match read(&endpoint, request).await {
            Ok(token) => token,
            Err(AdminError::Status { status, .. }) if status.is_client_error() => {
                return Err(AdminError::LogIn {
                    client: access.client_id.clone(),
                    status,
                });
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            http,
            url,
            token: token.access_token.into(),
        })
    }

    /// All of the realm that is judged.
    pub(super) async fn realm(&self, config: &IssuerConfig, reads: &Reads) -> Result<Realm, AdminError> {
        let entry: RealmEntry = self.get(&[], &[]).await?;
        let profile: Profile = self.get(&["users", "profile"], &[]).await?;
        let mut scopes: Vec<ScopeEntry> = self.get(&["client-scopes"], &[]).await?;
        scopes.retain(ScopeEntry::is_openid);
        for scope in &mut scopes {
            let mapped: BTreeMap<String, Value> =
                self.get(&["client-scopes", &scope.id, "scope-mappings"], &[]).await?;
            scope.limited_to_roles = !mapped.is_empty();
        }
        let clients = self.clients().await?;
        let mut granted = Grants::new();
        let named = config.authorized_parties.iter().chain(&config.service_clients);
        for client in clients
            .iter()
            .filter(|client| named.clone().any(|id| *id == client.client_id))
        {
            let roles = self.granted(client, &entry.realm).await?;
            granted.insert((client.client_id.clone(), None), roles);
            let holders: BTreeSet<&String> = reads.excluding_client_roles.iter().map(|(holder, _)| holder).collect();
            for holder in holders {
                let Some(found) = clients.iter().find(|client| client.client_id == *holder) else {
                    continue;
                };
                let roles = self.granted(client, &found.id).await?;
                granted.insert((client.client_id.clone(), Some(holder.clone())), roles);
            }
        }
        Ok(Realm {
            entry,
            clients,
            scopes,
            granted,
            profile,
        })
    }

    async fn clients(&self) -> Result<Vec<ClientEntry>, AdminError> {
        let mut clients: Vec<ClientEntry> = Vec::new();
        for page in 0..MAX_PAGES {
            let first = (page * PAGE).to_string();
            let query = [("first", first.as_str()), ("max", &PAGE.to_string())];
            let found: Vec<ClientEntry> = self.get(&["clients"], &query).await?;
            let is_last = found.len() < PAGE;
            clients.extend(found);
            if is_last {
                break;
            }
        }
        Ok(clients)
    }

    /// The roles of a container (a client's id, or the realm's name) that can get into tokens of a client which asks
    /// for no scope: composites, client scopes and full scope are Keycloak's own reckoning.
    async fn granted(&self, client: &ClientEntry, container: &str) -> Result<BTreeSet<String>, AdminError> {
        #[derive(serde::Deserialize)]
        struct Role {
            name: String,
        }
        let path = [
            "clients",
            &client.id,
            "evaluate-scopes",
            "scope-mappings",
            container,
            "granted",
        ];
        let roles: Vec<Role> = self.get(&path, &[("scope", "")]).await?;
        Ok(roles.into_iter().map(|role| role.name).collect())
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, AdminError> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let request = self.http.request(Method::GET, url.clone()).query(query);
        read(&url, request.bearer_auth(self.token.expose_secret())).await
    }
}

/// `…/realms/NAME` to `…/admin/realms/NAME`.
fn below_admin(issuer: &str) -> Result<Url, AdminError> {
    let none = || AdminError::NoRealm(issuer.to_owned());
    let (base, name) = issuer.trim_end_matches('/').rsplit_once("/realms/").ok_or_else(none)?;
    Url::parse(&format!("{base}/admin/realms/{name}")).map_err(|_| none())
}

/// Beside the realm's admin address, on the same host.
fn token_endpoint(admin: &Url) -> Result<Url, AdminError> {
    let none = || AdminError::NoRealm(admin.to_string());
    let (base, name) = admin
        .as_str()
        .trim_end_matches('/')
        .rsplit_once("/admin/realms/")
        .ok_or_else(none)?;
    Url::parse(&format!("{base}/realms/{name}/protocol/openid-connect/token")).map_err(|_| none())
}

async fn read<T: DeserializeOwned>(url: &Url, request: RequestBuilder) -> Result<T, AdminError> {
    let unreachable = |source: reqwest::Error| AdminError::Unreachable {
        url: url.clone(),
        source: source.without_url(),
    };
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    if status != StatusCode::OK {
        let url = url.clone();
        return Err(AdminError::Status { url, status });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(AdminError::TooLong { url: url.clone() });
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|source| AdminError::Unexpected {
        url: url.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_address_and_its_token_endpoint_follow_from_the_issuer() {
        for (issuer, admin) in [
            (
                "https://sso.example/realms/data",
                "https://sso.example/admin/realms/data",
            ),
            (
                "https://x.example/auth/realms/data/",
                "https://x.example/auth/admin/realms/data",
            ),
        ] {
            let url = below_admin(issuer).unwrap();
            assert_eq!(url.as_str(), admin);
            let endpoint = format!("{}/protocol/openid-connect/token", issuer.trim_end_matches('/'));
            assert_eq!(token_endpoint(&url).unwrap().as_str(), endpoint);
        }
        for issuer in [
            "https://token.actions.githubusercontent.com",
            "https://sso.example/realm/data",
        ] {
            assert!(matches!(below_admin(issuer), Err(AdminError::NoRealm(_))), "{issuer}");
        }
    }
}
