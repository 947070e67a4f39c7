//! The shape of Keycloak's import file, as far as it is read; whatever else stands there is kept in `rest`, to be judged.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

pub(super) type Rest = BTreeMap<String, Value>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawRealm {
    pub(super) realm: String,
    #[serde(default)]
    pub(super) enabled: bool,
    pub(super) access_token_lifespan: Option<i64>,
    pub(super) access_code_lifespan: Option<i64>,
    pub(super) sso_session_idle_timeout: Option<i64>,
    pub(super) sso_session_max_lifespan: Option<i64>,
    pub(super) oauth2_device_code_lifespan: Option<i64>,
    pub(super) oauth2_device_polling_interval: Option<i64>,
    #[serde(default)]
    pub(super) revoke_refresh_token: bool,
    #[serde(default)]
    pub(super) refresh_token_max_reuse: u32,
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) roles: RawRoles,
    #[serde(default)]
    pub(super) groups: Vec<RawGroup>,
    #[serde(default)]
    pub(super) clients: Vec<RawClient>,
    #[serde(default)]
    pub(super) users: Vec<RawUser>,
    #[serde(default)]
    pub(super) scope_mappings: Vec<RawScopeMapping>,
    #[serde(default)]
    pub(super) client_scope_mappings: BTreeMap<String, Vec<RawScopeMapping>>,
    #[serde(flatten)]
    pub(super) rest: Rest,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoles {
    #[serde(default)]
    pub(super) realm: Vec<RawRole>,
    #[serde(default)]
    pub(super) client: BTreeMap<String, Vec<RawRole>>,
}

#[derive(Deserialize)]
pub(super) struct RawRole {
    pub(super) name: String,
    #[serde(default)]
    pub(super) composites: RawComposites,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawComposites {
    #[serde(default)]
    pub(super) realm: Vec<String>,
    #[serde(default)]
    pub(super) client: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawGroup {
    pub(super) name: String,
    #[serde(default)]
    pub(super) realm_roles: Vec<String>,
    #[serde(default)]
    pub(super) client_roles: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub(super) sub_groups: Vec<RawGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawScopeMapping {
    pub(super) client: String,
    pub(super) roles: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "Keycloak's own shape")]
pub(super) struct RawClient {
    pub(super) client_id: String,
    #[serde(default = "yes")]
    pub(super) enabled: bool,
    #[serde(default)]
    pub(super) public_client: bool,
    #[serde(default)]
    pub(super) bearer_only: bool,
    #[serde(default)]
    pub(super) consent_required: bool,
    #[serde(default)]
    pub(super) implicit_flow_enabled: bool,
    #[serde(default = "yes")]
    pub(super) standard_flow_enabled: bool,
    #[serde(default)]
    pub(super) direct_access_grants_enabled: bool,
    #[serde(default)]
    pub(super) service_accounts_enabled: bool,
    #[serde(default = "yes")]
    pub(super) full_scope_allowed: bool,
    pub(super) secret: Option<String>,
    pub(super) client_authenticator_type: Option<String>,
    #[serde(default)]
    pub(super) redirect_uris: Vec<String>,
    #[serde(default)]
    pub(super) web_origins: Vec<String>,
    pub(super) default_client_scopes: Option<BTreeSet<String>>,
    #[serde(default)]
    pub(super) protocol_mappers: Vec<RawMapper>,
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(super) rest: Rest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawMapper {
    pub(super) name: String,
    pub(super) protocol_mapper: String,
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawUser {
    pub(super) id: Option<String>,
    pub(super) username: String,
    #[serde(default)]
    pub(super) enabled: bool,
    pub(super) email: Option<String>,
    #[serde(default)]
    pub(super) email_verified: bool,
    pub(super) first_name: Option<String>,
    pub(super) last_name: Option<String>,
    #[serde(default)]
    pub(super) credentials: Vec<RawCredential>,
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub(super) realm_roles: Vec<String>,
    #[serde(default)]
    pub(super) client_roles: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub(super) groups: Vec<String>,
    #[serde(default)]
    pub(super) required_actions: Vec<String>,
    pub(super) service_account_client_id: Option<String>,
    #[serde(flatten)]
    pub(super) rest: Rest,
}

#[derive(Deserialize)]
pub(super) struct RawCredential {
    pub(super) r#type: String,
    pub(super) value: String,
    #[serde(default)]
    pub(super) temporary: bool,
}

const fn yes() -> bool {
    true
}
