//! A typed statement becomes SQL text here and nowhere else. Pure: no connection is in reach.
//!
//! Every name goes through [`ident`] and every value through [`literal`]; one request holds one statement, so none has
//! a semicolon of its own. Forms: Snowflake SQL reference, CREATE USER, ALTER USER, DROP USER, GRANT ROLE, SHOW USERS.

/// An identifier, quoted always: names are taken exactly, upper and lower case told apart.
#[must_use]
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string. In Snowflake a backslash escapes what follows it, in every string.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    /// Never OR REPLACE, never IF NOT EXISTS: the latter would adopt a user that holds another key.
    CreateUser(Box<CreateUser>),
    GrantRole {
        role: String,
        user: String,
    },
    /// Aborts what runs, and lets nobody in any more.
    Disable {
        user: String,
    },
    Drop {
        user: String,
    },
    AbortQueries {
        user: String,
    },
    /// The mark holds the end, so both move together.
    Extend {
        user: String,
        days: u32,
        comment: String,
    },
    AddKeyPair {
        user: String,
        key: String,
    },
    /// The key that the holder has expires after so many hours; nobody has the other half of the new one.
    RotateKeyPair {
        user: String,
        throw_away_key: String,
        hours: u32,
    },
    SessionPolicy {
        user: String,
        policy: PolicyName,
    },
    /// All of them without a prefix.
    ShowUsers {
        prefix: Option<String>,
        limit: u32,
        after: Option<String>,
    },
    DescribeUser {
        user: String,
    },
    ShowGrantsToRole {
        role: String,
    },
    ShowGrantsToUser {
        user: String,
    },
    CurrentRole,
}

/// A service user with all its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CreateUser {
    pub(super) name: String,
    /// SPKI in base64 on one line; `None` where a named key follows.
    pub(super) public_key: Option<String>,
    pub(super) role: String,
    pub(super) warehouse: Option<String>,
    /// All granted roles at once, or only the session's.
    pub(super) secondary_roles: bool,
    pub(super) days: u32,
    pub(super) query_tag: Option<String>,
    /// Seconds.
    pub(super) statement_timeout: Option<u32>,
    pub(super) comment: String,
}

/// The name of a session policy with its database and schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyName([String; 3]);

/// A text that is no full name of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session policy is named `DATABASE.SCHEMA.POLICY`, in the case that SHOW SESSION POLICIES prints")]
pub struct PolicyNameError;

impl PolicyName {
    /// Database, schema and name.
    pub(super) fn parts(&self) -> &[String; 3] {
        &self.0
    }
}

impl std::str::FromStr for PolicyName {
    type Err = PolicyNameError;

    fn from_str(text: &str) -> Result<Self, PolicyNameError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        let parts: [String; 3] = parts.try_into().map_err(|_| PolicyNameError)?;
        if parts.iter().all(|part| !part.is_empty() && part.chars().all(plain)) {
            Ok(Self(parts))
        } else {
            Err(PolicyNameError)
        }
    }
}

/// The privilege on the account that setting a session policy takes.
pub(super) const APPLY_POLICY: &str = "APPLY SESSION POLICY";

/// What the named key of a lease is called, where keys expire by the hour.
const KEY_NAME: &str = "KDBT";

impl Statement {
    /// The text.
    pub(super) fn text(&self) -> String {
        match self {
            Self::CreateUser(user) => create_user(user),
            Self::GrantRole { role, user } => format!("GRANT ROLE {} TO USER {}", ident(role), ident(user)),
            Self::Disable { user } => format!("ALTER USER IF EXISTS {} SET DISABLED = TRUE", ident(user)),
            Self::Drop { user } => format!("DROP USER IF EXISTS {}", ident(user)),
            Self::AbortQueries { user } => format!("ALTER USER {} ABORT ALL QUERIES", ident(user)),
            Self::Extend { user, days, comment } => format!(
                "ALTER USER {} SET DAYS_TO_EXPIRY = {days} COMMENT = {}",
                ident(user),
                literal(comment)
            ),
            Self::AddKeyPair { user, key } => format!(
                "ALTER USER {} ADD KEY PAIR {} PUBLIC_KEY = {}",
                ident(user),
                ident(KEY_NAME),
                literal(key)
            ),
            Self::RotateKeyPair {
                user,
                throw_away_key,
                hours,
            } => format!(
                "ALTER USER {} ROTATE KEY PAIR {} PUBLIC_KEY = {} EXPIRE_ROTATED_KEY_PAIR_AFTER_HOURS = {hours}",
                ident(user),
                ident(KEY_NAME),
                literal(throw_away_key)
            ),
            Self::SessionPolicy { user, policy } => {
                let [database, schema, name] = &policy.0;
                let policy = [database, schema, name].map(|part| ident(part)).join(".");
                format!("ALTER USER {} SET SESSION POLICY {policy}", ident(user))
            }
            Self::ShowUsers { prefix, limit, after } => {
                let clause = |word: &str, value: &Option<String>| {
                    let clause = value.as_ref().map(|value| format!(" {word} {}", literal(value)));
                    clause.unwrap_or_default()
                };
                let (starts, from) = (clause("STARTS WITH", prefix), clause("FROM", after));
                format!("SHOW USERS{starts} LIMIT {limit}{from}")
            }
            Self::DescribeUser { user } => format!("DESCRIBE USER {}", ident(user)),
            Self::ShowGrantsToRole { role } => format!("SHOW GRANTS TO ROLE {}", ident(role)),
            Self::ShowGrantsToUser { user } => format!("SHOW GRANTS TO USER {}", ident(user)),
            Self::CurrentRole => "SELECT CURRENT_ROLE()".to_owned(),
        }
    }

    /// What is being done, for errors.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::CreateUser(_) => "create a user",
            Self::GrantRole { .. } => "grant a role",
            Self::Disable { .. } => "disable a user",
            Self::Drop { .. } => "drop a user",
            Self::AbortQueries { .. } => "abort a user's queries",
            Self::Extend { .. } => "extend a user",
            Self::AddKeyPair { .. } => "add a key to a user",
            Self::RotateKeyPair { .. } => "make a user's key expire",
            Self::SessionPolicy { .. } => "set a user's session policy",
            Self::ShowUsers { .. } => "list users",
            Self::DescribeUser { .. } | Self::ShowGrantsToUser { .. } => "look at a user",
            Self::ShowGrantsToRole { .. } => "look at a role",
            Self::CurrentRole => "log in",
        }
    }

    /// The grant that is missing if the account says that this is not permitted, or that something is not there:
    /// Snowflake does not tell the two apart.
    pub(super) fn remedy(&self, broker: &str) -> Option<String> {
        let broker = ident(broker);
        Some(match self {
            Self::CreateUser(_) => format!("GRANT CREATE USER ON ACCOUNT TO ROLE {broker}"),
            Self::GrantRole { role, .. } => format!(
                "GRANT OWNERSHIP ON ROLE {} TO ROLE {broker} COPY CURRENT GRANTS",
                ident(role)
            ),
            // "Managing session policies": this privilege sets any policy on any user.
            Self::SessionPolicy { .. } => format!("GRANT {APPLY_POLICY} ON ACCOUNT TO ROLE {broker}"),
            Self::Disable { user }
            | Self::Drop { user }
            | Self::AbortQueries { user }
            | Self::Extend { user, .. }
            | Self::AddKeyPair { user, .. }
            | Self::RotateKeyPair { user, .. }
            | Self::DescribeUser { user } => ownership(user, &broker),
            Self::ShowUsers { .. }
            | Self::ShowGrantsToRole { .. }
            | Self::ShowGrantsToUser { .. }
            | Self::CurrentRole => return None,
        })
    }
}

/// Gives a user back to the broker. `broker` is quoted already.
pub(super) fn ownership(user: &str, broker: &str) -> String {
    format!(
        "GRANT OWNERSHIP ON USER {} TO ROLE {broker} COPY CURRENT GRANTS",
        ident(user)
    )
}

fn create_user(user: &CreateUser) -> String {
    let mut text = format!("CREATE USER {} TYPE = SERVICE", ident(&user.name));
    let mut add = |property: &str, value: String| {
        text.push_str("\n  ");
        text.push_str(property);
        text.push_str(" = ");
        text.push_str(&value);
    };
    if let Some(key) = &user.public_key {
        add("RSA_PUBLIC_KEY", literal(key));
    }
    add("DEFAULT_ROLE", ident(&user.role));
    if let Some(warehouse) = &user.warehouse {
        add("DEFAULT_WAREHOUSE", ident(warehouse));
    }
    let secondary = if user.secondary_roles { "('ALL')" } else { "()" };
    add("DEFAULT_SECONDARY_ROLES", secondary.to_owned());
    add("DAYS_TO_EXPIRY", user.days.to_string());
    if let Some(tag) = &user.query_tag {
        add("QUERY_TAG", literal(tag));
    }
    if let Some(seconds) = user.statement_timeout {
        add("STATEMENT_TIMEOUT_IN_SECONDS", seconds.to_string());
    }
    add("COMMENT", literal(&user.comment));
    text
}

#[cfg(test)]
mod tests;
