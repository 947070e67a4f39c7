//! Leases and connections as they go over the wire. Pure.

use kdbt_api::lease::{Connection, LeaseView, PostgresConnection, SnowflakeConnection};
use kdbt_api::name::SnowflakeUsername;

use crate::grant::Access;
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

/// How to connect with a lease; `None` for an adopted one, which nobody is told of, and for one of another engine than
/// its server's.
#[must_use]
pub fn connection(public: &PublicAddress, lease: &Lease) -> Option<Connection> {
    let grant = &lease.issue()?.grant;
    let profile = &grant.profile;
    match (public, &grant.access) {
        (
            PublicAddress::Postgres {
                host,
                port,
                sslmode,
                ca_pem,
            },
            Access::ActAs(_) | Access::Read(_),
        ) => {
            let search_path: Vec<&str> = profile.search_path.iter().map(AsRef::as_ref).collect();
            Some(Connection::Postgres(PostgresConnection {
                host: host.clone(),
                port: *port,
                database: grant.target.database.clone(),
                user: lease.username.clone(),
                role: grant.access.owner().map(|owner| owner.to_string()),
                schema: profile.schema.clone(),
                threads: profile.threads,
                sslmode: *sslmode,
                ca_pem: ca_pem.clone(),
                search_path: (!search_path.is_empty()).then(|| search_path.join(",")),
                keepalives_idle: profile.keepalives_idle,
                connect_timeout: profile.connect_timeout,
                retries: profile.retries,
            }))
        }
        (PublicAddress::Snowflake { account, address }, Access::Snowflake(roles)) => {
            Some(Connection::Snowflake(SnowflakeConnection {
                account: account.clone(),
                address: address.clone(),
                user: SnowflakeUsername::from(&lease.username),
                role: roles.session_role.clone(),
                database: grant.target.database.clone(),
                warehouse: profile.warehouse.clone(),
                schema: profile.schema.clone(),
                threads: profile.threads,
                connect_timeout: profile.connect_timeout,
                connect_retries: profile.retries,
            }))
        }
        (PublicAddress::Postgres { .. }, Access::Snowflake(_))
        | (PublicAddress::Snowflake { .. }, Access::ActAs(_) | Access::Read(_)) => None,
    }
}
