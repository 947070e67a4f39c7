//! What goes over the wire between broker and client, besides problems: orders, leases, connections.
//!
//! Requests refuse unknown members; answers may gain some, so clients ignore what they do not know.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::credential::{ProofHash, PublicKey, ScramVerifier};
use crate::name::{
    DatabaseName, DbUsername, ProfileName, RoleName, RuleId, SchemaName, ServerName, SnowflakeUsername, TargetName,
    WarehouseName,
};
use crate::time::{Timestamp, Ttl};

/// Names a lease. Sorted by time of issue; no capability: whoever knows it can do nothing with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(Uuid);

impl LeaseId {
    /// A lease id around a UUID of version 7.
    #[must_use]
    pub fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lse_{}", self.0.simple())
    }
}

/// A text that is no lease id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a lease id is `lse_` and 32 hex digits")]
pub struct LeaseIdError;

impl std::str::FromStr for LeaseId {
    type Err = LeaseIdError;

    fn from_str(text: &str) -> Result<Self, LeaseIdError> {
        let id = text
            .strip_prefix("lse_")
            .and_then(|hex| Uuid::try_parse(hex).ok())
            .map(Self);
        // One text per id: no hyphens, no capitals, no braces.
        id.filter(|id| id.to_string() == text).ok_or(LeaseIdError)
    }
}

impl Serialize for LeaseId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LeaseId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for LeaseId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        crate::openapi::text("^lse_[0-9a-f]{32}$")
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for LeaseId {}

/// `POST /v1/leases`: what a caller asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OrderRequest {
    /// The target to connect to.
    pub target: TargetName,
    /// How long; the policy's default if absent. Outside the policy's range it is refused, never cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// Exactly the rules that shall join; empty for all that match without being named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleId>,
    /// Why, for the audit log; some rules require one. At most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 500))]
    pub reason: Option<String>,
    /// For PostgreSQL: the verifier of a password that the caller made. Without one, and without a public key, the
    /// broker makes the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier: Option<ScramVerifier>,
    /// The public half of an RSA key pair that the caller made: what a Snowflake target takes in place of a verifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<PublicKey>,
    /// The name of the dbt profile; `kdbt` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileName>,
    /// The hash of an owner proof. Required of callers without a session (CI) who want to renew or revoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_proof: Option<ProofHash>,
}

/// The header that carries the owner proof of callers without a session.
pub const OWNER_PROOF_HEADER: &str = "kdbt-owner-proof";

/// The warehouse engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Engine {
    /// PostgreSQL 15 to 18.
    Postgres,
    /// Snowflake.
    Snowflake,
}

impl Engine {
    /// The word in policies and configuration, and dbt's `type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Snowflake => "snowflake",
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How libpq secures the connection; only the forms that leave a say to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SslMode {
    /// No TLS: loopback, or a server that the operator has marked insecure.
    Disable,
    /// TLS without a check of the certificate: servers that the operator has marked insecure.
    Require,
    /// TLS with certificate and host name checked: the default.
    VerifyFull,
}

impl SslMode {
    /// libpq's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// All that a dbt output needs, but the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Connection {
    /// With a password.
    Postgres(PostgresConnection),
    /// With a key pair.
    Snowflake(SnowflakeConnection),
}

impl Connection {
    /// The engine; dbt's `type`.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self {
            Self::Postgres(_) => Engine::Postgres,
            Self::Snowflake(_) => Engine::Snowflake,
        }
    }
}

/// How dbt connects to PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PostgresConnection {
    /// Host name or address as dbt reaches it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// dbt's `dbname`.
    pub database: DatabaseName,
    /// The ephemeral user.
    pub user: DbUsername,
    /// The durable role that owns what dbt makes; dbt's `role`. Absent where the user acts as itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// dbt's `schema`.
    pub schema: SchemaName,
    /// dbt's `threads`.
    pub threads: u16,
    /// libpq's `sslmode`.
    pub sslmode: SslMode,
    /// The certificate authority as PEM; the client writes the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// dbt's `search_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_path: Option<String>,
    /// dbt's `keepalives_idle`, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalives_idle: Option<u32>,
    /// dbt's `connect_timeout`, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<u32>,
    /// dbt's `retries`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

/// How dbt connects to Snowflake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnowflakeConnection {
    /// The account identifier, as dbt takes it.
    pub account: String,
    /// Another address than the one that follows from the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SnowflakeAddress>,
    /// The ephemeral user.
    pub user: SnowflakeUsername,
    /// dbt's `role`: it owns what dbt makes.
    pub role: RoleName,
    /// dbt's `database`.
    pub database: DatabaseName,
    /// dbt's `warehouse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warehouse: Option<WarehouseName>,
    /// dbt's `schema`.
    pub schema: SchemaName,
    /// dbt's `threads`.
    pub threads: u16,
    /// dbt's `connect_timeout`, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<u32>,
    /// dbt's `connect_retries`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_retries: Option<u32>,
}

/// An address of a Snowflake account that does not follow from its name: a proxy, or a simulator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnowflakeAddress {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Without TLS: loopback only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LeaseStatus {
    /// Written down; the user may or may not exist yet.
    Provisioning,
    /// The user can log in.
    Active,
    /// The user is being ended.
    Ending,
    /// The user cannot log in and has no sessions, but cannot be dropped yet.
    Quarantined,
    /// The user is gone.
    Ended,
}

/// A lease as its holder (or an admin) sees it. Never a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseView {
    /// Its id.
    pub id: LeaseId,
    /// Where it stands.
    pub state: LeaseStatus,
    /// The server that the user is on.
    pub server: ServerName,
    /// The target that was asked for. Adopted leases, whose row was lost, have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetName>,
    /// The ephemeral user.
    pub user: DbUsername,
    /// The rules that joined.
    pub rules: Vec<RuleId>,
    /// The hash of the policy that decided.
    pub policy: String,
    /// Who holds it, for display.
    pub holder: String,
    /// When it was booked.
    pub issued_at: Timestamp,
    /// When it ends, unless renewed.
    pub ends_at: Timestamp,
    /// Past this no renewal goes.
    pub max_ends_at: Timestamp,
    /// Why it is ending or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<String>,
    /// When the user was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The objects that keep a quarantined user from being dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<String>,
}

/// `201` of `POST /v1/leases`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IssuedView {
    /// The lease.
    pub lease: LeaseView,
    /// How to connect.
    pub connection: Connection,
    /// `profiles.yml`. With a secret made by the client it reads the secret from a variable; with one made
    /// by the broker it holds the secret, and this answer is the only place where that ever stands.
    pub profiles_yml: String,
    /// The secret, if the broker made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretView>,
}

/// A secret that the broker made because the caller sent neither verifier nor public key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SecretView {
    /// For PostgreSQL.
    Password(String),
    /// For Snowflake: base64 of the PKCS#8 DER, on one line.
    PrivateKey(String),
}

impl std::fmt::Debug for SecretView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretView(..)")
    }
}

/// `POST /v1/leases/{id}/renew`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenewRequest {
    /// How long from now; the policy's default if absent. Cut to what is left until `max_ends_at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
}

/// `200` of `POST /v1/leases/{id}/cancel`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CancelledView {
    /// How many sessions were ended; the lease lives on. Absent where the engine does not say: Snowflake ends the
    /// statements, and leaves the sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions_ended: Option<u32>,
}

/// `GET /v1/leases`: one page.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseList {
    /// Newest first.
    pub leases: Vec<LeaseView>,
    /// Send it as `after` to get the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<LeaseId>,
}

/// `POST /v1/revocations`. Exactly one selection: `mine`, or (admins) any of the others together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RevocationRequest {
    /// All leases of the caller.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mine: bool,
    /// All of this person: the `sub` of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The issuer of that subject; any issuer if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// All that this rule joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
    /// All on this target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetName>,
    /// Say what would end, and end nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for RevocationRequest {
    /// A derived schema would allow every member beside every other one, and none.
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::schema::{AdditionalProperties, Type};
        use utoipa::openapi::{ObjectBuilder, OneOfBuilder};
        let selection = |what: &str, mine: bool| {
            let word = |mine: bool| {
                ObjectBuilder::new()
                    .schema_type(Type::Boolean)
                    .enum_values(Some([mine]))
            };
            let dry_run = ObjectBuilder::new()
                .schema_type(Type::Boolean)
                .description(Some("Say what would end, and end nothing."));
            ObjectBuilder::new()
                .description(Some(what))
                .property("mine", word(mine))
                .property("dry_run", dry_run)
                .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        };
        let mine = selection("All leases of the caller.", true).required("mine");
        let subject = selection("For admins: all of this person, the `sub` of the token.", false)
            .property("subject", String::schema())
            .required("subject")
            .property("issuer", String::schema())
            .property("rule", RuleId::schema())
            .property("target", TargetName::schema());
        let rule = selection("For admins: all that this rule joined.", false)
            .property("rule", RuleId::schema())
            .required("rule")
            .property("target", TargetName::schema());
        let target = selection("For admins: all on this target.", false)
            .property("target", TargetName::schema())
            .required("target");
        let selections = [mine, subject, rule, target];
        let one_of = selections.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item);
        let one_of = one_of.description(Some("`POST /v1/revocations`. Exactly one selection."));
        utoipa::openapi::Schema::OneOf(one_of.build()).into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for RevocationRequest {}

/// `200` of `POST /v1/revocations`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RevocationView {
    /// Nothing was ended.
    pub dry_run: bool,
    /// The leases that are being ended (or would be).
    pub leases: Vec<LeaseView>,
}

/// A TTL range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TtlRange {
    /// The least that may be asked.
    pub min: Ttl,
    /// What is given when nothing is asked.
    pub default: Ttl,
    /// The most that may be asked, and the most that renewals reach.
    pub max: Ttl,
}

/// `GET /v1/targets`: one that the caller may ask for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetView {
    /// Its name.
    pub target: TargetName,
    /// The engine.
    pub engine: Engine,
    /// The tier, such as `dev` or `prod`.
    pub tier: String,
    /// The rules that join when none is named.
    pub rules: Vec<RuleId>,
    /// The rules that join only when named.
    pub opt_in: Vec<RuleId>,
    /// The range for an order that names no rules; absent if only named rules give something here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<TtlRange>,
    /// What one gets, in a sentence.
    pub access: String,
}

/// `200` of `GET /v1/targets`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetList {
    /// In the order of their names.
    pub targets: Vec<TargetView>,
}

/// `POST /v1/explain`: would this order be filled, and why (not)?
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplainRequest {
    /// The target.
    pub target: TargetName,
    /// As in an order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// As in an order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleId>,
    /// As in an order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 500))]
    pub reason: Option<String>,
}

/// `200` of `POST /v1/explain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplainView {
    /// Whether the order would be filled.
    pub allowed: bool,
    /// The policy's reason, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The whole story as text, a line per rule.
    pub text: String,
}

/// `GET /v1/client-config`: what a client needs so that its user configures one URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClientConfig {
    /// The installation's name.
    pub installation: String,
    /// The broker's version.
    pub version: String,
    /// Where people log in. The first is the default.
    pub issuers: Vec<ClientIssuer>,
    /// How many iterations a verifier shall have.
    pub scram_iterations: u32,
}

/// One issuer for the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClientIssuer {
    /// The issuer identifier; the client appends the discovery path.
    pub issuer: String,
    /// The public client that people log in with.
    pub client_id: String,
    /// The audiences that a token must have one of.
    pub audiences: Vec<String>,
    /// The scopes to ask for.
    pub scopes: Vec<String>,
}
