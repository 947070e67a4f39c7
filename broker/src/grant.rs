//! What the policy gives: the outcome of a decision, first with the person's name still open, then whole.
//!
//! Pure. A [`Grant`] still holds `{{username}}`, because the slug is bound in the commit that books the lease;
//! [`Grant::render`] closes it there. The rendered grant is stored with the lease, so ending never depends on
//! today's policy.

use std::collections::BTreeSet;
use std::fmt;

use kdbt_api::lease::{Engine, TtlRange};
use kdbt_api::name::{
    DatabaseName, NameError, RoleName, RuleId, SchemaName, ServerName, Slug, TargetName, WarehouseName,
};
use kdbt_api::{Timestamp, Ttl};
use serde::{Deserialize, Serialize};

/// A server and a database in it, as the policy defines it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What people name it by.
    pub name: TargetName,
    /// The cluster.
    pub server: ServerName,
    /// The engine of that server.
    pub engine: Engine,
    /// The database.
    pub database: DatabaseName,
    /// The tier, such as `dev` or `prod`.
    pub tier: String,
}

/// SHA-256 over the policy's sources, in hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyHash(pub String);

impl fmt::Display for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A schema name that may still hold `{{username}}`; all other variables are closed by the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SchemaTemplate(pub String);

impl SchemaTemplate {
    /// The name for one person.
    pub fn render(&self, slug: &Slug) -> Result<SchemaName, NameError> {
        self.0.replace("{{username}}", slug.as_str()).parse()
    }
}

/// Who owns what a lease creates, before the person's slug is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessTemplate {
    /// `create_as`: the login acts as this durable role of the DBA's.
    Role(RoleName),
    /// `own_schema`: the login acts as the person's own durable role.
    Personal {
        /// Created if missing, owned by the personal role.
        schemas: Vec<SchemaTemplate>,
        /// CREATE on the database instead of a fixed list of schemas.
        create_schemas: bool,
        /// The group roles of the person's standing rules on this server; the personal role is a member.
        groups: BTreeSet<RoleName>,
    },
    /// Neither: the login acts as itself and inherits these group roles.
    Read(BTreeSet<RoleName>),
    /// On Snowflake, where nothing of it depends on the person.
    Snowflake(SnowflakeRoles),
}

/// Settings of the login. Only the connection limit binds; the rest are defaults that a session may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Connections at once. dbt needs 2 × (threads + 3) when two runs overlap. Snowflake knows no such limit.
    pub connection_limit: u16,
    /// `statement_timeout`.
    pub statement_timeout: Option<Ttl>,
    /// `lock_timeout`.
    pub lock_timeout: Option<Ttl>,
    /// `idle_in_transaction_session_timeout`.
    pub idle_in_transaction_session_timeout: Option<Ttl>,
    /// `default_transaction_read_only`. Never together with a right to create.
    pub read_only: bool,
    /// What the policy adds to Snowflake's `QUERY_TAG` behind the lease's id.
    #[serde(default)]
    pub query_tag: Option<String>,
}

/// Fields of the dbt output that the policy sets. Never holds what changes from lease to lease, since that
/// would void dbt's parse cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileTemplate {
    /// dbt's `threads`.
    pub threads: u16,
    /// dbt's `schema`.
    pub schema: SchemaTemplate,
    /// The schemas of `search_path`, for the login and for dbt.
    pub search_path: Vec<SchemaTemplate>,
    /// dbt's `keepalives_idle`, seconds.
    pub keepalives_idle: Option<u32>,
    /// dbt's `connect_timeout`, seconds.
    pub connect_timeout: Option<u32>,
    /// dbt's `retries`; Snowflake's `connect_retries`.
    pub retries: Option<u32>,
    /// The virtual warehouse that computes, on Snowflake.
    pub warehouse: Option<WarehouseName>,
}

/// What the policy gives to one identity for one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Where.
    pub target: Target,
    /// The rules that joined, in the policy's order.
    pub rules: Vec<RuleId>,
    /// The policy that decided.
    pub policy: PolicyHash,
    /// With which rights.
    pub access: AccessTemplate,
    /// Settings of the login.
    pub session: Session,
    /// Fields of the profile.
    pub profile: ProfileTemplate,
    /// What may be asked for.
    pub ttl_range: TtlRange,
    /// What this order gets: asked and inside the range, or the default.
    pub ttl: Ttl,
    /// The end of the nearest window of a joined rule; nothing lives past it.
    pub not_after: Option<Timestamp>,
    /// The slug that the person's name suggests. The store binds it, or one with a suffix.
    pub slug: Slug,
}

impl Grant {
    /// Closes `{{username}}`. An error names the field whose name is no valid identifier for this person.
    pub fn render(&self, slug: &Slug) -> Result<RenderedGrant, NameError> {
        let all = |schemas: &[SchemaTemplate]| -> Result<Vec<SchemaName>, NameError> {
            schemas.iter().map(|schema| schema.render(slug)).collect()
        };
        let access = match &self.access {
            AccessTemplate::Role(role) => Access::ActAs(Owner::Role(role.clone())),
            AccessTemplate::Personal {
                schemas,
                create_schemas,
                groups,
            } => Access::ActAs(Owner::Personal(Personal {
                slug: slug.clone(),
                schemas: all(schemas)?,
                create_schemas: *create_schemas,
                groups: groups.clone(),
            })),
            AccessTemplate::Read(groups) => Access::Read(groups.clone()),
            AccessTemplate::Snowflake(roles) => Access::Snowflake(roles.clone()),
        };
        let schema = self.profile.schema.render(slug)?;
        Ok(RenderedGrant {
            target: self.target.clone(),
            rules: self.rules.clone(),
            policy: self.policy.clone(),
            access,
            session: self.session.clone(),
            profile: Profile {
                threads: self.profile.threads,
                schema: match self.target.engine {
                    Engine::Postgres => schema,
                    // A name in small letters would have to be quoted wherever anybody writes it.
                    Engine::Snowflake => schema.as_str().to_ascii_uppercase().parse()?,
                },
                search_path: all(&self.profile.search_path)?,
                keepalives_idle: self.profile.keepalives_idle,
                connect_timeout: self.profile.connect_timeout,
                retries: self.profile.retries,
                warehouse: self.profile.warehouse.clone(),
            },
        })
    }
}

/// A grant with every name closed: what the lease row stores and the warehouse renders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedGrant {
    /// Where.
    pub target: Target,
    /// The rules that joined.
    pub rules: Vec<RuleId>,
    /// The policy that decided.
    pub policy: PolicyHash,
    /// With which rights.
    pub access: Access,
    /// Settings of the login.
    pub session: Session,
    /// Fields of the profile.
    pub profile: Profile,
}

impl RenderedGrant {
    /// Whether a holder of `older` may keep it under this one: nothing that `older` gives is missing here.
    #[must_use]
    pub fn covers(&self, older: &Self) -> bool {
        let database = |grant: &Self| (grant.target.server.clone(), grant.target.database.clone());
        let access = match (&self.access, &older.access) {
            (Access::Read(now), Access::Read(then)) => now.is_superset(then),
            (Access::ActAs(Owner::Role(now)), Access::ActAs(Owner::Role(then))) => now == then,
            (Access::ActAs(Owner::Personal(now)), Access::ActAs(Owner::Personal(then))) => {
                now.slug == then.slug
                    && now.groups.is_superset(&then.groups)
                    && then.schemas.iter().all(|schema| now.schemas.contains(schema))
                    && (now.create_schemas || !then.create_schemas)
            }
            (Access::Snowflake(now), Access::Snowflake(then)) => {
                now.grants.is_superset(&then.grants) && now.session_role == then.session_role
            }
            (Access::Read(_) | Access::ActAs(_) | Access::Snowflake(_), _) => false,
        };
        let session = (self.session.read_only, older.session.read_only);
        access && database(self) == database(older) && session != (true, false)
    }
}

/// With which rights a lease user acts. Memberships only: never a grant on an object (I5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// NOINHERIT member of one durable owner, `ALTER ROLE … SET role` to it.
    ActAs(Owner),
    /// INHERIT member of these group roles, acting as itself.
    Read(BTreeSet<RoleName>),
    /// On Snowflake.
    Snowflake(SnowflakeRoles),
}

/// What a Snowflake user holds and which role its sessions use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnowflakeRoles {
    /// The roles that are granted to it: wrappers around the DBA's roles, which the broker owns.
    pub grants: BTreeSet<RoleName>,
    /// `DEFAULT_ROLE` and dbt's `role`: it owns what dbt makes.
    pub session_role: RoleName,
}

impl SnowflakeRoles {
    /// Whether sessions must use all granted roles at once: one role alone would not hold all that the lease gives.
    #[must_use]
    pub fn unites(&self) -> bool {
        self.grants.len() > 1
    }
}

impl Access {
    /// The durable role that owns what the lease creates.
    #[must_use]
    pub fn owner(&self) -> Option<OwnerName> {
        match self {
            Self::ActAs(Owner::Role(role)) => Some(OwnerName::Role(role.clone())),
            Self::ActAs(Owner::Personal(personal)) => Some(OwnerName::Personal(personal.slug.clone())),
            Self::Read(_) | Self::Snowflake(_) => None,
        }
    }
}

/// A durable owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// One that the DBA made; it holds its rights already.
    Role(RoleName),
    /// The person's own, made and kept by kdbt.
    Personal(Personal),
}

/// A person's own durable role and schemas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personal {
    /// Whose.
    pub slug: Slug,
    /// The schemas it owns in the target's database.
    pub schemas: Vec<SchemaName>,
    /// Whether it may create others.
    pub create_schemas: bool,
    /// The group roles it is a member of.
    pub groups: BTreeSet<RoleName>,
}

/// The name of a durable owner: a role of the DBA's, or `kdbt__own_<slug>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OwnerName {
    /// A role of the DBA's.
    Role(RoleName),
    /// A person's own role.
    Personal(Slug),
}

impl fmt::Display for OwnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(role) => role.fmt(f),
            Self::Personal(slug) => write!(f, "kdbt__own_{slug}"),
        }
    }
}

impl std::str::FromStr for OwnerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix("kdbt__own_") {
            Some(slug) => slug.parse().map(Self::Personal),
            None => text.parse().map(Self::Role),
        }
    }
}

/// Fields of the dbt output, every name closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// dbt's `threads`.
    pub threads: u16,
    /// dbt's `schema`.
    pub schema: SchemaName,
    /// The schemas of `search_path`.
    pub search_path: Vec<SchemaName>,
    /// dbt's `keepalives_idle`, seconds.
    pub keepalives_idle: Option<u32>,
    /// dbt's `connect_timeout`, seconds.
    pub connect_timeout: Option<u32>,
    /// dbt's `retries`; Snowflake's `connect_retries`.
    pub retries: Option<u32>,
    /// The virtual warehouse that computes, on Snowflake.
    #[serde(default)]
    pub warehouse: Option<WarehouseName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(grants: &[&str], session_role: &str) -> RenderedGrant {
        let ttl = Ttl::from_secs(60).unwrap();
        let grant = Grant {
            target: Target {
                name: "lake".parse().unwrap(),
                server: "sf".parse().unwrap(),
                engine: Engine::Snowflake,
                database: "ANALYTICS".parse().unwrap(),
                tier: "dev".into(),
            },
            rules: Vec::new(),
            policy: PolicyHash(String::new()),
            access: AccessTemplate::Snowflake(SnowflakeRoles {
                grants: grants.iter().map(|role| role.parse().unwrap()).collect(),
                session_role: session_role.parse().unwrap(),
            }),
            session: Session {
                connection_limit: 14,
                statement_timeout: None,
                lock_timeout: None,
                idle_in_transaction_session_timeout: None,
                read_only: false,
                query_tag: None,
            },
            profile: ProfileTemplate {
                threads: 4,
                schema: SchemaTemplate("dbt_{{username}}".into()),
                search_path: Vec::new(),
                keepalives_idle: None,
                connect_timeout: None,
                retries: None,
                warehouse: None,
            },
            ttl_range: TtlRange {
                min: ttl,
                default: ttl,
                max: ttl,
            },
            ttl,
            not_after: None,
            slug: "ada".parse().unwrap(),
        };
        grant.render(&grant.slug).unwrap()
    }

    #[test]
    fn a_snowflake_lease_is_kept_only_while_the_policy_gives_every_role_and_the_same_session_role() {
        let old = lease(&["W_READ", "W_EDIT"], "EDITOR");
        assert!(old.covers(&old));
        assert!(lease(&["W_READ", "W_EDIT", "W_MORE"], "EDITOR").covers(&old));
        assert!(!lease(&["W_EDIT"], "EDITOR").covers(&old), "a role is gone");
        assert!(
            !lease(&["W_READ", "W_EDIT"], "READER").covers(&old),
            "sessions would act otherwise"
        );
    }

    #[test]
    fn a_lease_of_one_engine_never_covers_one_of_the_other_nor_another_database() {
        let old = lease(&["W_READ"], "READER");
        let mut other = old.clone();
        other.access = Access::Read(["W_READ".parse().unwrap()].into());
        assert!(!other.covers(&old) && !old.covers(&other));
        let mut other = old.clone();
        other.target.database = "ELSEWHERE".parse().unwrap();
        assert!(!other.covers(&old));
    }

    #[test]
    fn a_schema_on_snowflake_is_in_capitals() {
        assert_eq!(lease(&["W"], "R").profile.schema.as_str(), "DBT_ADA");
    }
}
