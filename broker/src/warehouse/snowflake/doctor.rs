//! Whether an account is as the policy needs it: every finding says what is missing, as SQL. Changes nothing, but for
//! the canary of [`SnowflakeWarehouse::probe`].

use std::collections::{BTreeMap, BTreeSet};

use kdbt_api::name::RoleName;

use super::api::Lane;
use super::sql::{APPLY_POLICY, CreateUser, Statement, ident};
use super::{SnowflakeWarehouse, error};
use crate::warehouse::{Finding, Needs, Severity, WarehouseError};

mod remains;

/// System roles that no broker needs.
const MIGHTY: [&str; 5] = ["ACCOUNTADMIN", "SECURITYADMIN", "USERADMIN", "SYSADMIN", "ORGADMIN"];

/// A user that `probe` makes and drops. Two underscores: no lease can have the name. No mark: no sweep takes it for one.
const CANARY: &str = "KDBT__CANARY";

/// Past this the clocks are worth a word.
const SKEW_WORTH_NAMING: u64 = 2_000;

/// What a role holds, as SHOW GRANTS TO ROLE lists it.
#[derive(Debug, Default)]
struct Held {
    /// Privileges on the account.
    account: BTreeSet<String>,
    /// Roles that it owns.
    owned: BTreeSet<String>,
    /// Roles that it was granted.
    roles: BTreeSet<String>,
}

impl SnowflakeWarehouse {
    /// All that can be seen without changing anything.
    pub(super) async fn examine(&self, needs: &Needs) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(error) = self.examine_into(needs, &mut findings).await {
            findings.push(finding(Severity::Error, "account", error.to_string(), None));
        }
        findings
    }

    async fn examine_into(&self, needs: &Needs, findings: &mut Vec<Finding>) -> Result<(), WarehouseError> {
        let role = &self.config.role;
        let login = self.ask(&Statement::CurrentRole).await?;
        findings.push(finding(
            Severity::Ok,
            "login",
            format!(
                "account {}, user {}, role {role}",
                self.config.account, self.config.user
            ),
            None,
        ));
        if let Some(time) = login.server_time {
            let ahead = time
                .as_unix_millis()
                .saturating_sub(self.api.clock_now().as_unix_millis());
            if ahead.unsigned_abs() > SKEW_WORTH_NAMING {
                let way = if ahead < 0 { "behind" } else { "ahead of" };
                let message = format!(
                    "the account's clock is {} ms {way} the broker's; above 5 s nothing is issued",
                    ahead.unsigned_abs()
                );
                findings.push(finding(
                    Severity::Warning,
                    "clock",
                    message,
                    Some("run NTP on the broker's machine".into()),
                ));
            }
        }
        let held = self.held_by(role).await?;
        self.power(&held, needs, findings);
        for (wrapper, session_role) in wrappers(needs) {
            self.wrapper(&held, wrapper, session_role, findings).await?;
        }
        self.users(needs, findings).await?;
        for session_role in session_roles(needs) {
            self.left_behind(session_role, findings).await?;
        }
        if self.config.hard_expiry || self.config.session_policy.is_some() {
            let message =
                "`hard_expiry` and `session_policy` follow the vendor's pages and were never tried on a live account";
            findings.push(finding(Severity::Warning, "untested", message.into(), None));
        }
        Ok(())
    }

    async fn ask(&self, statement: &Statement) -> Result<super::api::Done, WarehouseError> {
        let done = self.api.run(Lane::End, statement, self.patience()).await;
        done.map_err(|failure| failure.of(statement, &self.config.role))
    }

    async fn held_by(&self, role: &str) -> Result<Held, WarehouseError> {
        let listed = self.ask(&Statement::ShowGrantsToRole { role: role.to_owned() }).await?;
        let mut held = Held::default();
        for row in listed.rows.iter() {
            let cell = |name| row.get(name).unwrap_or_default().to_owned();
            let (privilege, on, name) = (cell("privilege"), cell("granted_on"), cell("name"));
            match (privilege.as_str(), on.as_str()) {
                (_, "ACCOUNT") => drop(held.account.insert(privilege)),
                ("OWNERSHIP", "ROLE") => drop(held.owned.insert(name)),
                ("USAGE", "ROLE") => drop(held.roles.insert(name)),
                _ => {}
            }
        }
        Ok(held)
    }

    /// What the broker's role may do: what it needs, and nothing else.
    fn power(&self, held: &Held, needs: &Needs, findings: &mut Vec<Finding>) {
        let role = &self.config.role;
        if !held.account.contains("CREATE USER") {
            let remedy = format!("GRANT CREATE USER ON ACCOUNT TO ROLE {};", ident(role));
            let message = format!("role {role} may not make users");
            findings.push(finding(Severity::Error, "create-user", message, Some(remedy)));
        }
        let applies = self.config.session_policy.is_some();
        if applies && !held.account.contains(APPLY_POLICY) {
            let remedy = format!("GRANT {APPLY_POLICY} ON ACCOUNT TO ROLE {};", ident(role));
            let message = format!("role {role} may not set a session policy, as `session_policy` asks it to");
            findings.push(finding(Severity::Error, "session-policy", message, Some(remedy)));
        }
        let needed = |privilege: &str| privilege == "CREATE USER" || applies && privilege == APPLY_POLICY;
        for privilege in held.account.iter().filter(|privilege| !needed(privilege)) {
            let remedy = format!("REVOKE {privilege} ON ACCOUNT FROM ROLE {};", ident(role));
            let message = format!("role {role} holds {privilege} on the account, which the broker does not need");
            findings.push(finding(Severity::Warning, "too-much-power", message, Some(remedy)));
        }
        for mighty in held.roles.iter().filter(|held| MIGHTY.contains(&held.as_str())) {
            let remedy = format!("REVOKE ROLE {} FROM ROLE {};", ident(mighty), ident(role));
            let message = format!("role {role} holds {mighty}: whoever holds the broker's key holds it too");
            findings.push(finding(Severity::Warning, "too-much-power", message, Some(remedy)));
        }
        let named = wrappers(needs);
        let others: Vec<&str> = held
            .owned
            .iter()
            .map(String::as_str)
            .filter(|owned| !named.keys().any(|wrapper| wrapper.as_str() == *owned))
            .collect();
        if !others.is_empty() {
            let message = format!(
                "role {role} also owns roles that the policy does not name: {}",
                others.join(", ")
            );
            findings.push(finding(Severity::Info, "other-roles", message, None));
        }
    }

    /// A wrapper is the broker's to grant, and holds what leases use.
    async fn wrapper(
        &self,
        held: &Held,
        wrapper: &RoleName,
        session_role: &RoleName,
        findings: &mut Vec<Finding>,
    ) -> Result<(), WarehouseError> {
        let (name, used) = (ident(wrapper.as_str()), ident(session_role.as_str()));
        if !held.owned.contains(wrapper.as_str()) {
            let remedy = format!(
                "CREATE ROLE IF NOT EXISTS {name};\nGRANT ROLE {used} TO ROLE {name};\n\
                 GRANT OWNERSHIP ON ROLE {name} TO ROLE {} COPY CURRENT GRANTS;",
                ident(&self.config.role)
            );
            let message = format!("role {wrapper} does not exist, or {} does not own it", self.config.role);
            findings.push(finding(Severity::Error, "wrapper", message, Some(remedy)));
            return Ok(());
        }
        if wrapper == session_role {
            let message = format!("leases use {wrapper} itself: the broker owns it, and all that it can do");
            findings.push(finding(Severity::Warning, "no-wrapper", message, None));
            return Ok(());
        }
        if !self
            .held_by(wrapper.as_str())
            .await?
            .roles
            .contains(session_role.as_str())
        {
            let message = format!("role {wrapper} does not hold {session_role}");
            let remedy = format!("GRANT ROLE {used} TO ROLE {name};");
            findings.push(finding(Severity::Error, "session-role", message, Some(remedy)));
        }
        Ok(())
    }

    /// Makes a user without any role, and drops it: the one thing that grants alone do not prove.
    pub async fn probe(&self) -> Vec<Finding> {
        let create = Statement::CreateUser(Box::new(CreateUser {
            name: CANARY.to_owned(),
            public_key: None,
            role: "PUBLIC".to_owned(),
            warehouse: None,
            secondary_roles: false,
            days: 1,
            query_tag: None,
            statement_timeout: None,
            comment: format!("made by kdbt-broker doctor --probe of {}", self.config.installation),
        }));
        let drop = Statement::Drop {
            user: CANARY.to_owned(),
        };
        let until = self.patience();
        let made = match self.api.run(Lane::Issue, &create, until).await {
            Ok(_) => Ok(()),
            // Left by a probe that died between the two.
            Err(failure) if failure.code() == Some(error::EXISTS) => Ok(()),
            Err(failure) => Err(failure.of(&create, &self.config.role)),
        };
        let gone = match made {
            Ok(()) => self.act(Lane::End, &drop, until).await,
            Err(error) => Err(error),
        };
        vec![match gone {
            Ok(()) => finding(
                Severity::Ok,
                "probe",
                format!("user {CANARY} was made and dropped"),
                None,
            ),
            Err(error) => finding(Severity::Error, "probe", error.to_string(), None),
        }]
    }
}

/// Each wrapper once, and what its leases use.
fn wrappers(needs: &Needs) -> BTreeMap<&RoleName, &RoleName> {
    let roles = needs.databases.iter().flat_map(|database| &database.roles);
    roles
        .flat_map(|roles| roles.grants.iter().map(|grant| (grant, &roles.session_role)))
        .collect()
}

/// What the sessions of leases use, each once.
fn session_roles(needs: &Needs) -> BTreeSet<&RoleName> {
    let roles = needs.databases.iter().flat_map(|database| &database.roles);
    roles.map(|roles| &roles.session_role).collect()
}

fn finding(severity: Severity, code: &'static str, message: String, remedy: Option<String>) -> Finding {
    Finding {
        severity,
        code,
        message,
        remedy,
    }
}
