//! Making a user: CREATE USER, then the roles. Two round trips for a lease with one role, and no more.
//!
//! Each statement is committed alone, so a user may be left in part: without roles, or with some. Whoever finds it so
//! ends it. A user gets its roles last, and holds nothing until then.

use std::time::Duration;

use futures_util::future::try_join_all;
use kdbt_api::Timestamp;
use kdbt_api::credential::{PrivateKey, PublicKey};
use kdbt_api::name::SnowflakeUsername;
use tokio::time::Instant;

use super::SnowflakeWarehouse;
use super::api::Lane;
use super::error::{EXISTS, Failure, MISSING, NOT_PERMITTED};
use super::sql::{CreateUser, Statement};
use crate::grant::{Access, SnowflakeRoles};
use crate::mark::Mark;
use crate::warehouse::{CreateError, Credential, NewUser, WarehouseError};

/// For ending a user that was made in part, before the caller is told; the reaper does what is left.
const CLEAN_UP: Duration = Duration::from_secs(5);
const SECONDS_PER_DAY: u64 = 86_400;
const SECONDS_PER_HOUR: u64 = 3_600;

impl SnowflakeWarehouse {
    /// Makes the user with all its roles. Nothing is sent after the user's deadline, but for cleaning up.
    pub(super) async fn create(&self, user: &NewUser) -> Result<(), CreateError> {
        let (key, roles) = parts(user).map_err(CreateError::Refused)?;
        let name = SnowflakeUsername::from(&user.username);
        let mark = self.mark_of(user).to_string();
        let create = Statement::CreateUser(Box::new(CreateUser {
            name: name.as_str().to_owned(),
            public_key: (!self.config.hard_expiry).then(|| key.to_snowflake()),
            role: roles.session_role.as_str().to_owned(),
            warehouse: user.profile.warehouse.as_ref().map(|name| name.as_str().to_owned()),
            secondary_roles: roles.unites(),
            days: self.days_until(user.ends_at),
            query_tag: Some(query_tag(user)),
            statement_timeout: user.session.statement_timeout.map(kdbt_api::Ttl::as_secs),
            comment: mark.clone(),
        }));
        match self.api.run(Lane::Issue, &create, user.deadline).await {
            Ok(_) => {}
            Err(failure) => self.after_failure(failure, &create, user, key, &mark).await?,
        }
        let Err(error) = self.equip(user, key, roles, name.as_str()).await else {
            return Ok(());
        };
        // At once, if it can be; the caller makes sure in any case.
        let ours = |comment: &str| comment == mark;
        let ended = tokio::time::timeout(CLEAN_UP, self.ladder(name.as_str(), ours, Instant::now() + CLEAN_UP)).await;
        if !matches!(ended, Ok(Ok(_))) {
            tracing::warn!(user = %name, "a user that was made in part could not be ended yet");
        }
        Err(CreateError::Unknown(error))
    }

    /// `Ok` if the user was made all the same.
    async fn after_failure(
        &self,
        failure: Failure,
        create: &Statement,
        user: &NewUser,
        key: &PublicKey,
        mark: &str,
    ) -> Result<(), CreateError> {
        let of = |failure: Failure| failure.of(create, &self.config.role);
        match failure {
            Failure::Refused(refusal) if refusal.code == EXISTS && refusal.repeated => {
                match self.is_made(user, key, mark).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(CreateError::NameTaken),
                    Err(failure) => Err(CreateError::Unknown(of(failure))),
                }
            }
            Failure::Refused(refusal) if refusal.code == EXISTS => Err(CreateError::NameTaken),
            Failure::Refused(refusal) if refusal.repeated => Err(CreateError::Unknown(of(Failure::Refused(refusal)))),
            Failure::Refused(_) | Failure::NotRun(_) => Err(CreateError::Refused(of(failure))),
            Failure::Unknown(_) => Err(CreateError::Unknown(of(failure))),
        }
    }

    /// Whether the user that is in the way is the one that our own first try has made.
    async fn is_made(&self, user: &NewUser, key: &PublicKey, mark: &str) -> Result<bool, Failure> {
        let describe = Statement::DescribeUser {
            user: SnowflakeUsername::from(&user.username).as_str().to_owned(),
        };
        let done = match self.api.run(Lane::Issue, &describe, user.deadline).await {
            // What our role has made, it may look at.
            Err(failure)
                if failure
                    .code()
                    .is_some_and(|code| [MISSING, NOT_PERMITTED].contains(&code)) =>
            {
                return Ok(false);
            }
            done => done?,
        };
        let has = |property: &str, value: &str| {
            let mut rows = done.rows.iter();
            rows.any(|row| row.get("property") == Some(property) && row.get("value") == Some(value))
        };
        let key = self.config.hard_expiry || has("RSA_PUBLIC_KEY_FP", &key.fingerprint());
        Ok(key && has("COMMENT", mark))
    }

    /// All that a user needs beyond its existence; its roles last, and all at once.
    async fn equip(
        &self,
        user: &NewUser,
        key: &PublicKey,
        roles: &SnowflakeRoles,
        name: &str,
    ) -> Result<(), WarehouseError> {
        let act = async |statement: Statement| self.act(Lane::Issue, &statement, user.deadline).await;
        if let Some(policy) = &self.config.session_policy {
            act(Statement::SessionPolicy {
                user: name.to_owned(),
                policy: policy.clone(),
            })
            .await?;
        }
        if self.config.hard_expiry {
            self.give_key_that_expires(user, key, name).await?;
        }
        let grants: Vec<Statement> = roles
            .grants
            .iter()
            .map(|role| Statement::GrantRole {
                role: role.as_str().to_owned(),
                user: name.to_owned(),
            })
            .collect();
        try_join_all(grants.iter().map(|grant| self.act(Lane::Issue, grant, user.deadline)))
            .await
            .map(drop)
    }

    /// The holder's key becomes the old one of a rotation, which dies by the hour; the new one is nobody's.
    async fn give_key_that_expires(&self, user: &NewUser, key: &PublicKey, name: &str) -> Result<(), WarehouseError> {
        let unusable = || WarehouseError::Unsafe("no key could be made for a rotation".to_owned());
        let made = tokio::task::spawn_blocking(PrivateKey::generate).await;
        let (_, throw_away) = made.map_err(|_| unusable())?.map_err(|_| unusable())?;
        for statement in [
            Statement::AddKeyPair {
                user: name.to_owned(),
                key: key.to_snowflake(),
            },
            Statement::RotateKeyPair {
                user: name.to_owned(),
                throw_away_key: throw_away.to_snowflake(),
                hours: rounded_up(user.max_ends_at.since(self.api.now()), SECONDS_PER_HOUR),
            },
        ] {
            self.act(Lane::Issue, &statement, user.deadline).await?;
        }
        Ok(())
    }

    /// `DAYS_TO_EXPIRY` for this end: rounded up, since a day too few would end a login early.
    pub(super) fn days_until(&self, ends_at: Timestamp) -> u32 {
        rounded_up(ends_at.since(self.api.now()), SECONDS_PER_DAY)
    }

    fn mark_of(&self, user: &NewUser) -> Mark {
        Mark {
            installation: self.config.installation.clone(),
            lease: user.lease,
            max_ends_at: user.max_ends_at,
            subject: user.subject.clone(),
            owner: None,
            ends_at: Some(user.ends_at),
        }
    }
}

/// What every query of the lease is found by in the account's own logs.
fn query_tag(user: &NewUser) -> String {
    match &user.session.query_tag {
        Some(more) => format!("kdbt:{} {more}", user.lease),
        None => format!("kdbt:{}", user.lease),
    }
}

/// At least one.
fn rounded_up(time: Duration, unit: u64) -> u32 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    u32::try_from(seconds.div_ceil(unit)).unwrap_or(u32::MAX).max(1)
}

/// The parts that only a Snowflake user has.
fn parts(user: &NewUser) -> Result<(&PublicKey, &SnowflakeRoles), WarehouseError> {
    if Instant::now() >= user.deadline {
        return Err(WarehouseError::Unreachable(
            "it is too late to make the user".to_owned(),
        ));
    }
    match (&user.credential, &user.access) {
        (Credential::PublicKey(key), Access::Snowflake(roles)) => Ok((key, roles)),
        _ => Err(WarehouseError::Unsafe(
            "a Snowflake user needs a public key and Snowflake roles".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_hours_are_rounded_up_and_never_none() {
        for (seconds, days) in [
            (0, 1),
            (1, 1),
            (86_399, 1),
            (86_400, 1),
            (86_401, 2),
            (108_000, 2),
            (172_800, 2),
        ] {
            assert_eq!(
                rounded_up(Duration::from_secs(seconds), SECONDS_PER_DAY),
                days,
                "{seconds}"
            );
        }
        assert_eq!(rounded_up(Duration::from_millis(86_400_001), SECONDS_PER_DAY), 2);
        assert_eq!(rounded_up(Duration::from_secs(3_601), SECONDS_PER_HOUR), 2);
    }
}
