//! Which steps make a user, a durable owner, an end. Pure: what the catalog says comes in as arguments.

use std::collections::BTreeSet;

use kdbt_api::name::{DatabaseName, InstallationName};

use super::sql::{Era, Step, Target, Use};
use crate::grant::{Access, Owner, OwnerName, Personal};
use crate::lease::SubjectHash;
use crate::mark::Mark;
use crate::warehouse::{Credential, NewUser};

/// The role that holds the broker's power; its logins act as it, so that they can be rotated.
pub const BROKER: &str = "kdbt__broker";

/// The durable group roles of one database, made by the bootstrap: a right on a database is one row that all
/// leases would fight over, while memberships are rows of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRoles {
    /// Holds CONNECT.
    pub connect: String,
    /// Holds TEMPORARY, which incremental models need.
    pub temp: String,
    /// Holds CREATE, for persons who may create schemas.
    pub create: String,
}

impl DatabaseRoles {
    /// Of this database.
    #[must_use]
    pub fn of(database: &DatabaseName) -> Self {
        let name = |right| durable(right, database.as_str());
        Self {
            connect: name("connect"),
            temp: name("temp"),
            create: name("create"),
        }
    }
}

/// `kdbt__<right>_<database>`; too long for the server, it is cut and told apart by a hash, since the server
/// would cut it without a word.
fn durable(right: &str, database: &str) -> String {
    const LONGEST: usize = 63;
    let name = format!("kdbt__{right}_{database}");
    if name.len() <= LONGEST {
        return name;
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, database.as_bytes());
    let hash = digest
        .as_ref()
        .iter()
        .take(4)
        .fold(0_u32, |hash, byte| hash << 8 | u32::from(*byte));
    let head: String = name.chars().take(LONGEST - 9).collect();
    format!("{head}_{hash:08x}")
}

/// What the comment on a personal role says: a lost store must not let a newcomer inherit it.
pub(super) fn own_comment(installation: &InstallationName, subject: &SubjectHash) -> String {
    format!("kdbt/1 {installation} own sub={}", subject.as_str())
}

/// The owner that leases are grouped by: on 16 and later a GRANT locks the granted role until the commit.
pub(super) fn owner(access: &Access) -> Option<OwnerName> {
    access.owner()
}

/// The user with everything it needs, and nothing else.
pub(super) fn create_user(user: &NewUser, installation: &InstallationName, era: Era) -> Vec<Step> {
    let Credential::Verifier(verifier) = &user.credential else {
        // Refused before it is planned.
        return Vec::new();
    };
    let name = user.username.as_str().to_owned();
    let owner = user.access.owner();
    let mark = Mark {
        installation: installation.clone(),
        lease: user.lease,
        max_ends_at: user.max_ends_at,
        subject: user.subject.clone(),
        owner: owner.clone(),
        ends_at: None,
    };
    let mut steps = vec![
        Step::CreateUser {
            name: name.clone(),
            inherit: owner.is_none(),
            connection_limit: user.session.connection_limit,
            verifier: verifier.to_postgres(),
            until: user.ends_at,
        },
        Step::Comment {
            role: name.clone(),
            text: mark.to_string(),
        },
    ];
    // The right to end its sessions and to clean up after it, while no lock that it could take is in the way.
    steps.push(Step::Grant {
        roles: vec![name.clone()],
        to: BROKER.to_owned(),
        usage: Use::Both,
    });
    steps.extend(settings(user, &name));
    let connect = DatabaseRoles::of(&user.database).connect;
    match &user.access {
        Access::ActAs(_) => {
            if let Some(owner) = owner {
                let owner = owner.to_string();
                steps.push(Step::Grant {
                    roles: vec![owner.clone()],
                    to: name.clone(),
                    usage: Use::Act,
                });
                steps.push(Step::Set {
                    role: name.clone(),
                    name: "role",
                    value: owner,
                });
            }
            // Before 16 NOINHERIT is role-wide, so CONNECT stays with PUBLIC on that database.
            if era == Era::From16 {
                steps.push(Step::Grant {
                    roles: vec![connect],
                    to: name,
                    usage: Use::Inherit,
                });
            }
        }
        Access::Read(groups) => {
            let groups = groups.iter().map(|group| group.as_str().to_owned());
            steps.push(Step::Grant {
                roles: std::iter::once(connect).chain(groups).collect(),
                to: name,
                usage: Use::Inherit,
            });
        }
        // Refused before it is planned.
        Access::Snowflake(_) => {}
    }
    steps
}

fn settings(user: &NewUser, name: &str) -> Vec<Step> {
    let schemas = if user.profile.search_path.is_empty() {
        std::slice::from_ref(&user.profile.schema)
    } else {
        user.profile.search_path.as_slice()
    };
    let mut steps = vec![Step::SearchPath {
        role: name.to_owned(),
        schemas: schemas.iter().map(|schema| schema.as_str().to_owned()).collect(),
    }];
    let mut set = |setting, value: String| {
        steps.push(Step::Set {
            role: name.to_owned(),
            name: setting,
            value,
        });
    };
    let session = &user.session;
    for (setting, value) in [
        ("statement_timeout", session.statement_timeout),
        ("lock_timeout", session.lock_timeout),
        (
            "idle_in_transaction_session_timeout",
            session.idle_in_transaction_session_timeout,
        ),
    ] {
        if let Some(value) = value {
            set(setting, format!("{}ms", u64::from(value.as_secs()) * 1000));
        }
    }
    if session.read_only {
        set("default_transaction_read_only", "on".to_owned());
    }
    steps
}

/// The users of one batch in one message: all or none, their roads checked, their OIDs read back.
pub(super) fn create_users<'a>(
    users: impl Iterator<Item = &'a NewUser> + Clone,
    installation: &InstallationName,
    era: Era,
) -> Vec<Step> {
    let names: Vec<String> = users.clone().map(|user| user.username.as_str().to_owned()).collect();
    let mut steps: Vec<Step> = users.flat_map(|user| create_user(user, installation, era)).collect();
    steps.push(Step::NoRoadToLogin { users: names.clone() });
    steps.push(Step::NoRowPolicy { users: names.clone() });
    steps.push(Step::Oids { users: names });
    steps
}

/// A personal role that is not there yet.
pub(super) fn create_owner(name: &str, comment: String) -> Vec<Step> {
    vec![
        Step::CreateDurable { name: name.to_owned() },
        Step::Comment {
            role: name.to_owned(),
            text: comment,
        },
        // To create schemas for it, and to hand it what its leases leave behind.
        Step::Grant {
            roles: vec![name.to_owned()],
            to: BROKER.to_owned(),
            usage: Use::Both,
        },
    ]
}

/// What has to change so that the personal role is a member of what it should be, and of no more.
pub(super) fn reconcile_owner(
    name: &str,
    personal: &Personal,
    database: &DatabaseName,
    member_of: &BTreeSet<String>,
) -> Vec<Step> {
    let here = DatabaseRoles::of(database);
    let mut wanted: BTreeSet<String> = personal.groups.iter().map(|group| group.as_str().to_owned()).collect();
    wanted.insert(here.temp);
    if personal.create_schemas {
        wanted.insert(here.create.clone());
    }
    // Rights in other databases are other targets' business.
    let elsewhere =
        |role: &str| role != here.create && (role.starts_with("kdbt__temp_") || role.starts_with("kdbt__create_"));
    let surplus = member_of
        .iter()
        .filter(|role| !wanted.contains(*role) && !elsewhere(role));
    let mut steps: Vec<Step> = surplus
        .map(|role| Step::Revoke {
            role: role.clone(),
            from: name.to_owned(),
        })
        .collect();
    let missing: Vec<String> = wanted.difference(member_of).cloned().collect();
    if !missing.is_empty() {
        steps.push(Step::Grant {
            roles: missing,
            to: name.to_owned(),
            usage: Use::Inherit,
        });
    }
    steps
}

/// An act on an existing user that can hit that user only: the name is compared with the OID before, and after, so that
/// what hit another is rolled back. Nothing here waits for a lock on the role, since anybody can hold that one: the
/// server takes it before it refuses a COMMENT, and keeps it until the client has read the refusal.
pub(super) fn guarded(target: &Target, act: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let same = || Step::SameRole(target.clone());
    std::iter::once(same())
        .chain(act)
        .chain(std::iter::once(same()))
        .collect()
}

/// The drop of that user. No name is left to compare after it, so the comment takes the lock that keeps the name where
/// it is; the drop needs that lock in any case.
pub(super) fn drop_role(target: &Target) -> Vec<Step> {
    vec![
        Step::Comment {
            role: target.name.clone(),
            text: target.comment.clone(),
        },
        Step::SameRole(target.clone()),
        Step::DropRole {
            role: target.name.clone(),
        },
    ]
}

/// The end of a backend that is the user's; of one that is another's, nothing. As the user, since the broker could end
/// those of every lease.
pub(super) fn terminate_as(target: &Target, pid: i32) -> Vec<Step> {
    vec![
        Step::SameRole(target.clone()),
        Step::SetLocalRole {
            role: target.name.clone(),
        },
        Step::Terminate { pid },
    ]
}

/// The personal role of this access, if it is one.
pub(super) fn personal(access: &Access) -> Option<&Personal> {
    match access {
        Access::ActAs(Owner::Personal(personal)) => Some(personal),
        Access::ActAs(Owner::Role(_)) | Access::Read(_) | Access::Snowflake(_) => None,
    }
}
