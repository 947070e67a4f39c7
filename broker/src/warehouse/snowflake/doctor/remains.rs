//! What leases have left on an account: users that are not as the broker made them, and objects that act without a
//! session and so outlive the lease that made them (S23). Looks only.

use kdbt_api::Timestamp;
use kdbt_api::name::RoleName;

use super::super::SnowflakeWarehouse;
use super::super::api::{Lane, Row};
use super::super::error::{MISSING, NOT_PERMITTED};
use super::super::listing::{Listed, epoch};
use super::super::sql::{Statement, ident, ownership};
use super::super::sweep::PREFIX;
use super::{finding, wrappers};
use crate::mark;
use crate::warehouse::{Finding, Needs, Severity, WarehouseError};

/// What runs by itself, or with its owner's rights for whoever calls it.
const ACTS: [&str; 4] = ["TASK", "ALERT", "PIPE", "PROCEDURE"];
/// What others may lean on unawares; dbt makes such things in good order too.
const SERVES: [&str; 2] = ["FUNCTION", "STREAM"];
/// So many are named.
const NAMED: usize = 20;

/// What is not as it should be with a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Oddity {
    /// A lease's name, and no mark.
    Foreign,
    /// A lease's name, and nothing more to be seen.
    Hidden,
    /// Ours by its mark, and another role's.
    HandedOver,
    /// Ours by its mark, under a name that no lease has.
    Renamed,
    /// Ours, and its end got stuck.
    Disabled,
}

const ODDITIES: [(Oddity, Severity, &str, &str); 5] = [
    (
        Oddity::Foreign,
        Severity::Info,
        "foreign-users",
        "users with a lease's name and no mark, which are never touched",
    ),
    (
        Oddity::Hidden,
        Severity::Info,
        "hidden-users",
        "users with a lease's name that another role owns, by another installation or handed over; for the latter",
    ),
    (
        Oddity::HandedOver,
        Severity::Warning,
        "handed-over-users",
        "users of leases that another role owns, and that can therefore not be ended",
    ),
    (
        Oddity::Renamed,
        Severity::Warning,
        "renamed-users",
        "users of leases that were renamed; they end with their leases",
    ),
    (
        Oddity::Disabled,
        Severity::Warning,
        "disabled-users",
        "users that are disabled and could not be dropped",
    ),
];

impl SnowflakeWarehouse {
    /// Users that are, or look like, those of leases.
    pub(super) async fn users(&self, needs: &Needs, findings: &mut Vec<Finding>) -> Result<(), WarehouseError> {
        let listing = self.list(None, self.patience()).await?;
        let broker = ident(&self.config.role);
        for (oddity, severity, code, what) in ODDITIES {
            let odd = listing.users.iter().filter(|user| self.oddity(user) == Some(oddity));
            let users: Vec<&str> = odd.map(|user| &*user.name).collect();
            if users.is_empty() {
                continue;
            }
            let give_back = || {
                let each: Vec<String> = users
                    .iter()
                    .map(|user| format!("{};", ownership(user, &broker)))
                    .collect();
                each.join("\n")
            };
            let remedy = matches!(oddity, Oddity::Hidden | Oddity::HandedOver).then(give_back);
            findings.push(finding(severity, code, format!("{what}: {}", users.join(", ")), remedy));
        }
        for user in listing.users.iter().filter(|user| user.all_roles && self.is_ours(user)) {
            self.all_roles(user, needs, findings).await?;
        }
        Ok(())
    }

    fn is_ours(&self, user: &Listed) -> bool {
        let prefix = mark::prefix(&self.config.installation);
        user.comment
            .as_deref()
            .is_some_and(|comment| comment.starts_with(&prefix))
    }

    fn oddity(&self, user: &Listed) -> Option<Oddity> {
        let has_a_leases_name = user.name.starts_with(PREFIX) && user.name != self.config.user;
        let is_marked = user
            .comment
            .as_deref()
            .is_some_and(|comment| comment.starts_with("kdbt/"));
        if self.is_ours(user) {
            let owner = user.owner.as_deref();
            return if owner.is_some_and(|owner| owner != self.config.role) {
                Some(Oddity::HandedOver)
            } else if user.disabled {
                Some(Oddity::Disabled)
            } else {
                (!has_a_leases_name).then_some(Oddity::Renamed)
            };
        }
        if !has_a_leases_name || is_marked {
            return None;
        }
        Some(if user.comment.is_none() && user.owner.is_none() {
            Oddity::Hidden
        } else {
            Oddity::Foreign
        })
    }

    /// A user that uses all its roles at once may hold what its lease unites, and nothing else.
    async fn all_roles(&self, user: &Listed, needs: &Needs, findings: &mut Vec<Finding>) -> Result<(), WarehouseError> {
        let granted = self
            .ask(&Statement::ShowGrantsToUser {
                user: user.name.clone(),
            })
            .await?;
        let held: Vec<&str> = granted.rows.iter().filter_map(|row| row.get("role")).collect();
        let name = ident(&user.name);
        if held.len() < 2 {
            let message = format!(
                "user {} uses all its roles at once, though its lease unites none",
                user.name
            );
            let remedy = format!("ALTER USER {name} SET DEFAULT_SECONDARY_ROLES = ();");
            findings.push(finding(Severity::Warning, "secondary-roles", message, Some(remedy)));
        }
        let given = wrappers(needs);
        for role in held
            .into_iter()
            .filter(|role| !given.keys().any(|given| given.as_str() == *role))
        {
            let message = format!("user {} also holds role {role}, which no lease gives", user.name);
            let remedy = format!("REVOKE ROLE {} FROM USER {name};", ident(role));
            findings.push(finding(Severity::Warning, "more-roles", message, Some(remedy)));
        }
        Ok(())
    }

    /// What a session role owns that acts when no lease is there. Snowflake makes the role of the session the owner,
    /// so leases and people of that role are not told apart; the times tell which leases it can have been.
    pub(super) async fn left_behind(&self, role: &RoleName, findings: &mut Vec<Finding>) -> Result<(), WarehouseError> {
        let show = Statement::ShowGrantsToRole {
            role: role.as_str().to_owned(),
        };
        let listed = match self.api.run(Lane::End, &show, self.patience()).await {
            Ok(done) => done.rows,
            Err(failure)
                if failure
                    .code()
                    .is_some_and(|code| [MISSING, NOT_PERMITTED].contains(&code)) =>
            {
                let message = format!("role {} may not see what role {role} owns", self.config.role);
                let remedy = Some(format!("as SECURITYADMIN: {};", show.text()));
                findings.push(finding(Severity::Info, "left-behind", message, remedy));
                return Ok(());
            }
            Err(failure) => return Err(failure.of(&show, &self.config.role)),
        };
        let owned = |kinds: &[&str]| -> Vec<String> { listed.iter().filter_map(|row| owned(row, kinds)).collect() };
        for (severity, kinds, what) in [
            (
                Severity::Warning,
                &ACTS[..],
                "act without a session, and outlive the lease that made them",
            ),
            (Severity::Info, &SERVES[..], "others may use unawares"),
        ] {
            let found = owned(kinds);
            if !found.is_empty() {
                let more = found.len().saturating_sub(NAMED);
                let more = if more > 0 {
                    format!(", and {more} more")
                } else {
                    String::new()
                };
                let named: Vec<String> = found.into_iter().take(NAMED).collect();
                let message = format!("role {role} owns objects that {what}: {}{more}", named.join(", "));
                let remedy = "drop what no review knows; the audit has the leases of these times";
                findings.push(finding(severity, "left-behind", message, Some(remedy.to_owned())));
            }
        }
        Ok(())
    }
}

/// An object of these kinds that the role owns, with the time since when.
fn owned(row: Row<'_>, kinds: &[&str]) -> Option<String> {
    let kind = row.get("granted_on").filter(|kind| kinds.contains(kind))?;
    let name = row.get("name").filter(|_| row.get("privilege") == Some("OWNERSHIP"))?;
    let since: Option<Timestamp> = row.get("created_on").and_then(epoch);
    Some(match since {
        Some(since) => format!("{kind} {name} since {since}"),
        None => format!("{kind} {name}"),
    })
}
