//! Leases and connections as they go over the wire. Pure.

use kdbt_api::lease::{Connection, LeaseView};

use crate::grant::{Access, Owner};
use crate::lease::{Lease, LeaseState};
use crate::server::PublicAddress;

/// A lease for its holder or an admin.
#[must_use]
pub fn lease(lease: &Lease) -> LeaseView {
    let issue = lease.issue();
    let (ended_at, blocked_by) = match &lease.state {
        LeaseState::Ended { at } => (Some(*at), Vec::new()),
        LeaseState::Quarantined { blocked_by, .. } => (None, blocked_by.clone()),
        LeaseState::Provisioning | LeaseState::Active | LeaseState::Ending { .. } => (None, Vec::new()),
    };
    LeaseView {
        id: lease.id,
        state: lease.state.status(),
        server: lease.server.clone(),
        target: lease.target.clone(),
        user: lease.username.clone(),
        rules: issue.map(|issue| issue.grant.rules.clone()).unwrap_or_default(),
        policy: issue.map(|issue| issue.grant.policy.to_string()).unwrap_or_default(),
        holder: issue.map_or_else(|| "adopted".to_owned(), |issue| issue.holder.display_name.clone()),
        issued_at: lease.issued_at,
        ends_at: lease.ends_at,
        max_ends_at: lease.max_ends_at,
        end_reason: lease.end_reason.map(|reason| reason.to_string()),
        ended_at,
        blocked_by,
    }
}

/// How to connect with a lease; `None` for an adopted one, which nobody is told of.
#[must_use]
pub fn connection(public: &PublicAddress, lease: &Lease) -> Option<Connection> {
    let grant = &lease.issue()?.grant;
    let role = match &grant.access {
        Access::ActAs(Owner::Role(role)) => Some(role.to_string()),
        Access::ActAs(Owner::Personal(_)) => grant.access.owner().map(|owner| owner.to_string()),
        Access::Read(_) => None,
    };
    let search_path: Vec<&str> = grant.profile.search_path.iter().map(AsRef::as_ref).collect();
    Some(Connection {
        engine: grant.target.engine,
        host: public.host.clone(),
        port: public.port,
        database: grant.target.database.clone(),
        user: lease.username.clone(),
        role,
        schema: grant.profile.schema.clone(),
        threads: grant.profile.threads,
        sslmode: public.sslmode,
        ca_pem: public.ca_pem.clone(),
        search_path: (!search_path.is_empty()).then(|| search_path.join(",")),
        keepalives_idle: grant.profile.keepalives_idle,
        connect_timeout: grant.profile.connect_timeout,
        retries: grant.profile.retries,
    })
}
