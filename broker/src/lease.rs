//! The life of a lease: one enum, one function that moves it, and the row around it. Pure.
//!
//! ```text
//! provisioning ─created→ active ─end_due→ ending ─dropped→ ended
//!      └──────────end_due──────────────────↑  └─blocked→ quarantined ─retry→ ending
//! ```

use kdbt_api::Timestamp;
use kdbt_api::credential::ProofHash;
use kdbt_api::lease::{LeaseId, LeaseStatus};
use kdbt_api::name::{DatabaseName, DbUsername, ServerName, TargetName};
use serde::{Deserialize, Serialize};

use crate::grant::{OwnerName, RenderedGrant};

/// How the engine identifies a user for good. Names are reused; this is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineId {
    /// PostgreSQL's `pg_authid.oid`.
    Oid(u32),
    /// None: Snowflake shows no id that outlives a name, so the mark in the user's comment, which only its owner may
    /// change, stands for it. Its keys do not: a user may change them (S23).
    Mark,
}

impl EngineId {
    /// PostgreSQL's number, if it is one.
    #[must_use]
    pub fn oid(self) -> Option<u32> {
        match self {
            Self::Oid(oid) => Some(oid),
            Self::Mark => None,
        }
    }
}

/// Where a lease stands, with the data of each state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseState {
    /// Stored before the warehouse is touched: the user may or may not exist.
    Provisioning,
    /// The user can log in.
    Active,
    /// The user is to be ended, or is being ended.
    Ending {
        /// How often it was tried.
        attempts: u32,
    },
    /// Cannot log in and has no sessions, but cannot be dropped: the objects say why. Retried for ever.
    Quarantined {
        /// How often it was tried.
        attempts: u32,
        /// What stands in the way, for people.
        blocked_by: Vec<String>,
    },
    /// The user is gone.
    Ended {
        /// Since when.
        at: Timestamp,
    },
}

/// What happens to a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The warehouse has made the user.
    Created {
        /// Under this id.
        engine_id: EngineId,
    },
    /// The name was taken by somebody else's role: no user of ours exists, and none must be touched.
    NameTaken {
        /// When that was seen.
        at: Timestamp,
    },
    /// The lease must end. Asked again, it changes nothing.
    EndDue {
        /// Why. The first reason stays.
        reason: EndReason,
    },
    /// One more try has failed, and may be repeated at once after a backoff; the code is an operator's.
    EndFailed {
        /// A stable code, such as an SQLSTATE; never message text.
        code: String,
    },
    /// The user is gone.
    Dropped {
        /// When that was seen.
        at: Timestamp,
    },
    /// The user is locked out, but these objects keep it from being dropped.
    Blocked {
        /// For people.
        objects: Vec<String>,
    },
    /// A quarantined one is tried again.
    Retry,
    /// The end has moved.
    Extended {
        /// To here, in the server's time.
        ends_at: Timestamp,
    },
}

/// Why a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// Its time is over.
    Expired,
    /// Its holder gave it back.
    Revoked,
    /// An admin ended it.
    RevokedByAdmin,
    /// The warehouse refused to make the user, or nobody knows whether it did.
    IssueFailed,
    /// It stood in provisioning for longer than an issue can take: the broker died meanwhile.
    IssueAbandoned,
    /// The policy that gave it was replaced by one that does not, while it was being made.
    PolicyChanged,
    /// A user of a lost store whose mark has expired or cannot be read.
    Unknown,
}

impl EndReason {
    /// The code in audit and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::RevokedByAdmin => "revoked-by-admin",
            Self::IssueFailed => "issue-failed",
            Self::IssueAbandoned => "issue-abandoned",
            Self::PolicyChanged => "policy-changed",
            Self::Unknown => "unknown",
        }
    }

    /// Ended against the holder's will: the name then rests, because a client that stalls in the middle of
    /// authentication would otherwise open the next lease of that name with the old secret (S26).
    #[must_use]
    pub fn is_for_cause(self) -> bool {
        match self {
            Self::RevokedByAdmin | Self::PolicyChanged | Self::Unknown => true,
            Self::Expired | Self::Revoked | Self::IssueFailed | Self::IssueAbandoned => false,
        }
    }
}

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A move that the life of a lease does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a lease that is {state} cannot take `{event}`")]
pub struct IllegalTransition {
    /// Where it stood.
    pub state: &'static str,
    /// What was asked.
    pub event: &'static str,
}

impl LeaseState {
    /// Moves a lease. Asking for what is already so is no error; what cannot be is.
    pub fn transition(self, event: &LeaseEvent) -> Result<Self, IllegalTransition> {
        use LeaseEvent as E;
        match (self, event) {
            (Self::Provisioning, E::Created { .. }) | (Self::Active, E::Extended { .. }) => Ok(Self::Active),
            (Self::Provisioning, E::NameTaken { at }) | (Self::Ending { .. }, E::Dropped { at }) => {
                Ok(Self::Ended { at: *at })
            }
            // Whoever says "stop" wins a race against an issue in flight (I10).
            (ending @ Self::Ending { .. }, E::Created { .. } | E::NameTaken { .. }) => Ok(ending),
            (Self::Provisioning | Self::Active, E::EndDue { .. }) => Ok(Self::Ending { attempts: 0 }),
            (done @ (Self::Ending { .. } | Self::Quarantined { .. } | Self::Ended { .. }), E::EndDue { .. }) => {
                Ok(done)
            }
            (Self::Ending { attempts }, E::EndFailed { .. }) => Ok(Self::Ending {
                attempts: attempts.saturating_add(1),
            }),
            (ended @ Self::Ended { .. }, E::Dropped { .. }) => Ok(ended),
            (Self::Ending { attempts }, E::Blocked { objects }) => Ok(Self::Quarantined {
                attempts: attempts.saturating_add(1),
                blocked_by: objects.clone(),
            }),
            (Self::Quarantined { attempts, .. }, E::Retry) => Ok(Self::Ending { attempts }),
            (state, event) => Err(IllegalTransition {
                state: state.status_str(),
                event: event.as_str(),
            }),
        }
    }

    /// The state without its data.
    #[must_use]
    pub fn status(&self) -> LeaseStatus {
        match self {
            Self::Provisioning => LeaseStatus::Provisioning,
            Self::Active => LeaseStatus::Active,
            Self::Ending { .. } => LeaseStatus::Ending,
            Self::Quarantined { .. } => LeaseStatus::Quarantined,
            Self::Ended { .. } => LeaseStatus::Ended,
        }
    }

    /// The code in rows, audit and logs.
    #[must_use]
    pub fn status_str(&self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Ending { .. } => "ending",
            Self::Quarantined { .. } => "quarantined",
            Self::Ended { .. } => "ended",
        }
    }

    /// Whether a user may still exist.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !matches!(self, Self::Ended { .. })
    }
}

impl LeaseEvent {
    /// The code in audit and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::NameTaken { .. } => "name-taken",
            Self::EndDue { .. } => "end-due",
            Self::EndFailed { .. } => "end-failed",
            Self::Dropped { .. } => "dropped",
            Self::Blocked { .. } => "blocked",
            Self::Retry => "retry",
            Self::Extended { .. } => "extended",
        }
    }
}

/// Who holds a lease: known from the token, but for adopted ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The token's `iss`.
    pub issuer: String,
    /// The token's `sub`.
    pub subject: String,
    /// The token's `sid`; people have one, CI jobs do not.
    pub session: Option<String>,
    /// For display only.
    pub display_name: String,
    /// The token's `azp`.
    pub azp: String,
}

impl Holder {
    /// 16 hex digits that stand for (issuer, subject) in marks and on durable roles.
    #[must_use]
    pub fn subject_hash(&self) -> SubjectHash {
        SubjectHash::of(&self.issuer, &self.subject)
    }
}

/// 16 hex digits of a SHA-256 over issuer and subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubjectHash(String);

impl SubjectHash {
    /// Of this person. The zero byte keeps two splits of one text apart; neither part can hold one.
    #[must_use]
    pub fn of(issuer: &str, subject: &str) -> Self {
        let text = format!("{issuer}\0{subject}");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        let head = digest
            .as_ref()
            .iter()
            .take(8)
            .fold(0_u64, |hex, byte| hex << 8 | u64::from(*byte));
        Self(format!("{head:016x}"))
    }

    /// The hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Not 16 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a subject hash is 16 lower-case hex digits")]
pub struct SubjectHashError;

impl std::str::FromStr for SubjectHash {
    type Err = SubjectHashError;

    fn from_str(text: &str) -> Result<Self, SubjectHashError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 16 && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SubjectHashError)
        }
    }
}

/// Where a lease comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Issued to a person or job by this store.
    Issued(Box<Issue>),
    /// Found in the catalog by its mark, without a row: the store was lost or is older. Never renewable.
    Adopted {
        /// The person, as far as the mark tells.
        subject: SubjectHash,
        /// The durable owner that the mark names.
        owner: Option<OwnerName>,
    },
}

/// What is known of an issued lease and not of an adopted one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// Who holds it.
    pub holder: Holder,
    /// What was granted.
    pub grant: RenderedGrant,
    /// What was given as a reason.
    pub reason: Option<String>,
    /// The hash of the proof that callers without a session must show.
    pub owner_proof: Option<ProofHash>,
}

/// One lease. Never holds a secret, nor a verifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// The server that the user is on.
    pub server: ServerName,
    /// The target that was asked for; adopted leases have none.
    pub target: Option<TargetName>,
    /// The user's name.
    pub username: DbUsername,
    /// The engine's id of the user, once it is known.
    pub engine_id: Option<EngineId>,
    /// Where it comes from.
    pub origin: Origin,
    /// When it was booked.
    pub issued_at: Timestamp,
    /// When it ends, in the server's time, whole seconds.
    pub ends_at: Timestamp,
    /// Past this no renewal goes.
    pub max_ends_at: Timestamp,
    /// Where it stands.
    pub state: LeaseState,
    /// Why it ends, once it does.
    pub end_reason: Option<EndReason>,
    /// The code of the last failure while ending it.
    pub last_error: Option<String>,
}

impl Lease {
    /// What is known of the issue, unless it was adopted.
    #[must_use]
    pub fn issue(&self) -> Option<&Issue> {
        match &self.origin {
            Origin::Issued(issue) => Some(issue),
            Origin::Adopted { .. } => None,
        }
    }

    /// Whose lease it is, as marks tell it.
    #[must_use]
    pub fn subject_hash(&self) -> SubjectHash {
        match &self.origin {
            Origin::Issued(issue) => issue.holder.subject_hash(),
            Origin::Adopted { subject, .. } => subject.clone(),
        }
    }

    /// The durable owner of what the lease creates.
    #[must_use]
    pub fn owner(&self) -> Option<OwnerName> {
        match &self.origin {
            Origin::Issued(issue) => issue.grant.access.owner(),
            Origin::Adopted { owner, .. } => owner.clone(),
        }
    }

    /// What the warehouse needs to find and end the user.
    #[must_use]
    pub fn user_ref(&self) -> UserRef {
        UserRef {
            lease: self.id,
            username: self.username.clone(),
            engine_id: self.engine_id,
            owner: self.owner(),
            database: self.issue().map(|issue| issue.grant.target.database.clone()),
        }
    }
}

/// A user on a server as ending and extending need it: name, engine id and lease together, since each alone lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRef {
    /// The lease whose mark the user must bear.
    pub lease: LeaseId,
    /// The name.
    pub username: DbUsername,
    /// The engine's id; without one, only a user whose mark bears this lease's id may be touched.
    pub engine_id: Option<EngineId>,
    /// The durable owner that owned objects may be handed to.
    pub owner: Option<OwnerName>,
    /// The database it was issued for, if known; cleaning starts there.
    pub database: Option<DatabaseName>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn states() -> impl Strategy<Value = LeaseState> {
        prop_oneof![
            Just(LeaseState::Provisioning),
            Just(LeaseState::Active),
            Just(LeaseState::Ending { attempts: 1 }),
            Just(LeaseState::Quarantined {
                attempts: 1,
                blocked_by: vec!["table x".into()]
            }),
            Just(LeaseState::Ended {
                at: Timestamp::from_unix(1)
            }),
        ]
    }

    fn events() -> impl Strategy<Value = LeaseEvent> {
        let at = Timestamp::from_unix(2);
        prop_oneof![
            Just(LeaseEvent::Created {
                engine_id: EngineId::Oid(7)
            }),
            Just(LeaseEvent::NameTaken { at }),
            Just(LeaseEvent::EndDue {
                reason: EndReason::Expired
            }),
            Just(LeaseEvent::EndFailed { code: "55P03".into() }),
            Just(LeaseEvent::Dropped { at }),
            Just(LeaseEvent::Blocked {
                objects: vec!["table x".into()]
            }),
            Just(LeaseEvent::Retry),
            Just(LeaseEvent::Extended { ends_at: at }),
        ]
    }

    proptest! {
        #[test]
        fn nothing_leaves_ended(event in events()) {
            let ended = LeaseState::Ended { at: Timestamp::from_unix(1) };
            if let Ok(next) = ended.clone().transition(&event) {
                prop_assert_eq!(next, ended);
            }
        }

        #[test]
        fn an_end_can_be_asked_in_every_state_and_twice(state in states()) {
            let due = LeaseEvent::EndDue { reason: EndReason::Revoked };
            let once = state.transition(&due).unwrap();
            prop_assert!(!matches!(once, LeaseState::Provisioning | LeaseState::Active));
            prop_assert_eq!(once.clone().transition(&due), Ok(once));
        }

        #[test]
        fn nothing_becomes_active_again_once_its_end_is_due(events in prop::collection::vec(events(), 0..40)) {
            let mut state = LeaseState::Provisioning;
            let mut due = false;
            for event in events {
                due |= matches!(event, LeaseEvent::EndDue { .. });
                if let Ok(next) = state.clone().transition(&event) {
                    state = next;
                }
                prop_assert!(!(due && matches!(state, LeaseState::Active | LeaseState::Provisioning)));
            }
        }
    }

    #[test]
    fn created_after_the_end_is_illegal_so_that_the_caller_ends_the_user() {
        let ended = LeaseState::Ended {
            at: Timestamp::from_unix(1),
        };
        assert!(
            ended
                .transition(&LeaseEvent::Created {
                    engine_id: EngineId::Oid(1)
                })
                .is_err()
        );
    }

    #[test]
    fn two_people_of_two_issuers_never_share_a_hash_by_the_split() {
        assert_ne!(SubjectHash::of("https://a", "b"), SubjectHash::of("https://ab", ""));
    }
}
