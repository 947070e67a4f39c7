//! What an administrator of the realm does, by Keycloak's admin REST interface.

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Keycloak, REALM, http, successful};

/// The administrator, with a token that holds for a minute.
#[derive(Debug)]
pub struct Admin<'a> {
    keycloak: &'a Keycloak,
    realm: String,
    token: String,
}

impl Keycloak {
    /// Logs the administrator in.
    pub async fn admin(&self) -> Result<Admin<'_>> {
        let url = format!("{}/realms/master/protocol/openid-connect/token", self.base_url());
        let form = [
            ("grant_type", "password"),
            ("client_id", "admin-cli"),
            ("username", "admin"),
            ("password", &self.admin_password),
        ];
        let answer: Value = serde_json::from_str(&successful(http()?.post(url).form(&form).send().await?).await?)?;
        let token = answer["access_token"]
            .as_str()
            .context("the administrator got no token")?
            .to_owned();
        Ok(Admin {
            keycloak: self,
            realm: REALM.to_owned(),
            token,
        })
    }

    /// A realm of a test's own on this server, like ours but for a change of its file; its administrator.
    pub async fn own_realm(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<Admin<'_>> {
        let file = [
            ("${KDBT_PEOPLE_PASSWORD}", self.people_password()),
            ("${KDBT_BROKER_SECRET}", self.broker_secret()),
            ("${KDBT_CI_SECRET}", self.ci_secret()),
            ("${KDBT_BROKER_URL}", "http://127.0.0.1:1"),
        ]
        .iter()
        .fold(std::fs::read_to_string(super::REALM_FILE)?, |text, (name, value)| {
            text.replace(name, value)
        });
        let mut realm: Value = serde_json::from_str(&file)?;
        realm["realm"] = json!(name);
        change(&mut realm);
        let mut admin = self.admin().await?;
        let url = format!("{}/admin/realms", self.base_url());
        let request = http()?.post(url).bearer_auth(&admin.token).json(&realm);
        successful(request.send().await?).await?;
        admin.realm = name.to_owned();
        Ok(admin)
    }
}

impl Admin<'_> {
    /// The issuer of its realm.
    pub fn issuer(&self) -> String {
        format!("{}/realms/{}", self.keycloak.base_url(), self.realm)
    }

    /// Its access token, of the realm `master`.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Calls `path` under the realm's admin URL, such as `users?username=ada`; `null` for an empty answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let url = format!("{}/admin/realms/{}/{path}", self.keycloak.base_url(), self.realm);
        let mut request = http()?.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = successful(request.send().await?).await?;
        Ok(if answer.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&answer)?
        })
    }

    /// The id of a person.
    pub async fn user_id(&self, user: &str) -> Result<String> {
        let found = self
            .call(Method::GET, &format!("users?exact=true&username={user}"), None)
            .await?;
        Ok(found[0]["id"]
            .as_str()
            .with_context(|| format!("no user {user}"))?
            .to_owned())
    }

    /// A new person with everyone's password, so that a test can do to them what it likes. Groups by their paths.
    pub async fn create_user(&self, user: &str, groups: &[&str]) -> Result<String> {
        let password = json!({"type": "password", "value": self.keycloak.people_password(), "temporary": false});
        let person = json!({
            "username": user, "enabled": true, "email": format!("{user}@example.com"), "emailVerified": true,
            "firstName": user, "lastName": "Test", "groups": groups, "credentials": [password],
        });
        self.call(Method::POST, "users", Some(&person)).await?;
        self.user_id(user).await
    }

    /// Enables or disables a person.
    pub async fn set_enabled(&self, user: &str, enabled: bool) -> Result<()> {
        let path = format!("users/{}", self.user_id(user).await?);
        self.call(Method::PUT, &path, Some(&json!({ "enabled": enabled })))
            .await
            .map(drop)
    }

    /// Deletes a person.
    pub async fn delete_user(&self, user: &str) -> Result<()> {
        let path = format!("users/{}", self.user_id(user).await?);
        self.call(Method::DELETE, &path, None).await.map(drop)
    }

    /// Ends all sessions of a person; every client with a logout URL is called.
    pub async fn log_out(&self, user: &str) -> Result<()> {
        let path = format!("users/{}/logout", self.user_id(user).await?);
        self.call(Method::POST, &path, None).await.map(drop)
    }

    /// Sets one attribute of a client, such as `access.token.signed.response.alg` to `ES256`.
    ///
    /// Clients are shared by all tests: one that changes a client starts a Keycloak of its own, or takes [`Self::copy_client`].
    pub async fn set_client_attribute(&self, client: &str, name: &str, value: &str) -> Result<()> {
        let mut found = self.client(client).await?;
        found["attributes"][name] = json!(value);
        let path = format!("clients/{}", found["id"].as_str().context("a client without an id")?);
        self.call(Method::PUT, &path, Some(&found)).await.map(drop)
    }

    /// A new client `name` that is like `client`, scopes and mappers included, for a test to change.
    pub async fn copy_client(&self, client: &str, name: &str) -> Result<()> {
        let mut copy = self.client(client).await?;
        let id = copy["id"].as_str().context("a client without an id")?.to_owned();
        let scopes = self
            .call(Method::GET, &format!("clients/{id}/scope-mappings"), None)
            .await?;
        let fields = copy.as_object_mut().context("a client that is no object")?;
        fields.remove("id");
        fields.insert("clientId".to_owned(), json!(name));
        if let Some(mappers) = fields.get_mut("protocolMappers").and_then(Value::as_array_mut) {
            for mapper in mappers.iter_mut().filter_map(Value::as_object_mut) {
                mapper.remove("id");
            }
        }
        self.call(Method::POST, "clients", Some(&copy)).await?;
        let new = self.client(name).await?["id"]
            .as_str()
            .context("a client without an id")?
            .to_owned();
        let realm = scopes["realmMappings"].clone();
        self.call(
            Method::POST,
            &format!("clients/{new}/scope-mappings/realm"),
            Some(&realm),
        )
        .await?;
        for (_, mapping) in scopes["clientMappings"].as_object().into_iter().flatten() {
            let of = mapping["id"].as_str().context("a scope mapping without its client")?;
            let path = format!("clients/{new}/scope-mappings/clients/{of}");
            self.call(Method::POST, &path, Some(&mapping["mappings"])).await?;
        }
        Ok(())
    }

    /// Brings in a new RS256 key that signs from now on; the old one stays in the JWKS.
    pub async fn rotate_key(&self) -> Result<()> {
        let keys = self
            .call(Method::GET, "components?type=org.keycloak.keys.KeyProvider", None)
            .await?;
        let priority = |key: &Value| key["config"]["priority"][0].as_str()?.parse::<u32>().ok();
        let highest = keys
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(priority)
            .max()
            .unwrap_or(100);
        let key = json!({
            "name": format!("rsa-{}", highest + 1), "providerId": "rsa-generated", "providerType": "org.keycloak.keys.KeyProvider",
            "config": {"priority": [(highest + 1).to_string()], "algorithm": ["RS256"], "enabled": ["true"], "active": ["true"]},
        });
        self.call(Method::POST, "components", Some(&key)).await.map(drop)
    }

    /// A client as its administrator sees it.
    pub async fn client(&self, client: &str) -> Result<Value> {
        let found = self
            .call(Method::GET, &format!("clients?clientId={client}"), None)
            .await?;
        Ok(found.get(0).with_context(|| format!("no client {client}"))?.clone())
    }
}
