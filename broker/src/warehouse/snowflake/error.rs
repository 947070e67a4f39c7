//! What can go wrong between the driver and an account, sorted by what the driver may do next; and the vendor's codes
//! with what an administrator does about each. Codes decide, never message text.

use super::sql::{Statement, ident};
use crate::warehouse::WarehouseError;

/// A user of that name exists (SQLSTATE 42710).
pub(super) const EXISTS: &str = "002002";
/// There is no such object, or our role may not see it: the account does not say which (02000).
pub(super) const MISSING: &str = "002003";
/// Our role may not do this (42501).
pub(super) const NOT_PERMITTED: &str = "003001";
/// The statement does not parse (42000): a fault of the driver's.
const SYNTAX: &str = "001003";
/// The request does not parse: a fault of the driver's.
const BAD_REQUEST: &str = "390142";
/// The login does not hold the role that the request names.
const ROLE_NOT_GRANTED: &str = "390186";
/// There is no such role, or the login does not hold it.
const ROLE_UNKNOWN: &str = "390189";
/// The statement was cancelled (57014).
pub(super) const CANCELLED: &str = "000604";
/// The statement ran past its time limit (57014).
pub(super) const TIMED_OUT: &str = "000630";
/// The account does not know the handle that it gave us.
pub(super) const HANDLE_UNKNOWN: &str = "000709";

/// Why a statement has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not run: nothing was sent, or the account was too busy to take it.
    NotRun(String),
    /// It may have been run, or may be running still.
    Unknown(String),
    /// The account said no.
    Refused(Refusal),
}

/// A no, with what there is to say about it.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The vendor's code, or `http-<status>` where there is none.
    pub(super) code: String,
    /// For operators: what to do.
    pub(super) hint: Option<String>,
    /// Whether it is the statement that was refused, and not the request: only then is its outcome known.
    pub(super) judged: bool,
    /// Whether an earlier try of the same statement may have been run.
    pub(super) repeated: bool,
}

impl Refusal {
    /// The hint behind a code.
    pub(super) fn in_brackets(&self) -> String {
        self.hint
            .as_deref()
            .map(|hint| format!(" ({hint})"))
            .unwrap_or_default()
    }
}

impl Failure {
    /// The vendor's code, if the account said no.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => Some(&refusal.code),
            Self::NotRun(_) | Self::Unknown(_) => None,
        }
    }

    /// For operators; `broker` is the broker's role.
    pub(super) fn of(self, statement: &Statement, broker: &str) -> WarehouseError {
        match self {
            Self::NotRun(why) | Self::Unknown(why) => {
                WarehouseError::Unreachable(format!("cannot {}: {why}", statement.what()))
            }
            Self::Refused(Refusal { code, hint, .. }) => {
                let hint = hint.or_else(|| about(&code, statement, broker));
                WarehouseError::Server {
                    what: statement.what(),
                    code,
                    hint,
                }
            }
        }
    }
}

/// What an administrator does about a code.
fn about(code: &str, statement: &Statement, broker: &str) -> Option<String> {
    let remedy = || {
        let remedy = statement.remedy(broker);
        remedy
            .map(|grant| format!("; run as SECURITYADMIN: {grant}"))
            .unwrap_or_default()
    };
    Some(match code {
        NOT_PERMITTED => format!("role `{broker}` may not{}", remedy()),
        MISSING => format!("it does not exist, or role `{broker}` may not use it{}", remedy()),
        ROLE_NOT_GRANTED | ROLE_UNKNOWN => format!(
            "the broker's user does not hold the role that it acts as; run as SECURITYADMIN: GRANT ROLE {} TO USER, with its name",
            ident(broker)
        ),
        SYNTAX | BAD_REQUEST => "the account does not understand this version of the broker: report it".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str, statement: &Statement) -> String {
        let refusal = Refusal {
            code: code.into(),
            hint: None,
            judged: true,
            repeated: false,
        };
        Failure::Refused(refusal).of(statement, "KDBT_BROKER").to_string()
    }

    #[test]
    fn every_known_code_says_what_to_do() {
        let grant = Statement::GrantRole {
            role: "ENT".into(),
            user: "KDBT_ADA_0".into(),
        };
        let drop = Statement::Drop {
            user: "KDBT_ADA_0".into(),
        };
        let lines: Vec<String> = [
            NOT_PERMITTED,
            MISSING,
            ROLE_NOT_GRANTED,
            ROLE_UNKNOWN,
            SYNTAX,
            BAD_REQUEST,
            "009999",
        ]
        .iter()
        .map(|code| refused(code, &grant))
        .chain([refused(NOT_PERMITTED, &drop)])
        .collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
    grant a role: 003001 (role `KDBT_BROKER` may not; run as SECURITYADMIN: GRANT OWNERSHIP ON ROLE "ENT" TO ROLE "KDBT_BROKER" COPY CURRENT GRANTS)
    grant a role: 002003 (it does not exist, or role `KDBT_BROKER` may not use it; run as SECURITYADMIN: GRANT OWNERSHIP ON ROLE "ENT" TO ROLE "KDBT_BROKER" COPY CURRENT GRANTS)
    grant a role: 390186 (the broker's user does not hold the role that it acts as; run as SECURITYADMIN: GRANT ROLE "KDBT_BROKER" TO USER, with its name)
    grant a role: 390189 (the broker's user does not hold the role that it acts as; run as SECURITYADMIN: GRANT ROLE "KDBT_BROKER" TO USER, with its name)
    grant a role: 001003 (the account does not understand this version of the broker: report it)
    grant a role: 390142 (the account does not understand this version of the broker: report it)
    grant a role: 009999
    drop a user: 003001 (role `KDBT_BROKER` may not; run as SECURITYADMIN: GRANT OWNERSHIP ON USER "KDBT_ADA_0" TO ROLE "KDBT_BROKER" COPY CURRENT GRANTS)
    "#);
    }

    #[test]
    fn what_cannot_be_reached_says_what_was_being_done() {
        let error = Failure::Unknown("the connection broke".into()).of(&Statement::CurrentRole, "KDBT_BROKER");
        assert_eq!(
            error.to_string(),
            "the server cannot be reached: cannot log in: the connection broke"
        );
        assert_eq!(error.code(), "unreachable");
    }
}
