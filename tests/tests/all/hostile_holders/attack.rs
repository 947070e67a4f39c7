//! How an attack is written down: what a holder does, and what of it may remain.

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;

use super::holder::Holder;

/// What a holder does during the life of its lease. Its sessions stay open past the end.
pub(super) struct Attack {
    /// A sentence: the holder …
    pub(super) holder: &'static str,
    pub(super) target: &'static str,
    pub(super) acts: &'static [Act],
    pub(super) remains: Remains<'static>,
    pub(super) ends: Ends,
}

/// One thing that it does. In texts, `{me}` is its user, `{other}` a bystander's, `{n}` the number of the attack.
pub(super) enum Act {
    /// The server does it, in the holder's first session, which acts as the owner role at first.
    Does(&'static str),
    /// The server refuses it for want of rights.
    Refused(&'static str),
    /// The server refuses it with this SQLSTATE.
    Fails(&'static str, &'static str),
    /// Done or not, as the version and its packages go.
    Tries(&'static str),
    /// Done or not, in a session in another database.
    TriesIn(&'static str, &'static str),
    /// In a session of its own, where it would run for ever.
    LeftRunning(&'static str),
    /// Anything that is not SQL.
    Plays(Play),
}

/// What a holder does that is not SQL.
pub(super) type Play = for<'a> fn(&'a Holder<'a>) -> Played<'a>;
/// When it is done.
pub(super) type Played<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// What the end leaves of the user.
#[derive(Debug, Clone, Copy)]
pub(super) enum Remains<'a> {
    Nothing,
    /// A role that can do nothing, and a report that names this.
    Quarantine(&'a str),
}

/// How the lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Revoked,
    Expires,
}

/// A holder of the target `team`, whose lease is revoked and leaves nothing.
pub(super) const fn attack(holder: &'static str, acts: &'static [Act]) -> Attack {
    Attack {
        holder,
        target: "team",
        acts,
        remains: Remains::Nothing,
        ends: Ends::Revoked,
    }
}

impl Attack {
    pub(super) const fn on(mut self, target: &'static str) -> Self {
        self.target = target;
        self
    }

    pub(super) const fn expiring(mut self) -> Self {
        self.ends = Ends::Expires;
        self
    }

    pub(super) const fn quarantined_for(mut self, object: &'static str) -> Self {
        self.remains = Remains::Quarantine(object);
        self
    }
}
