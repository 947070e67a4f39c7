//! One full look at the catalog: every role that bears our mark, and the server's clock. Changes nothing.

use std::time::Duration;

use kdbt_api::Timestamp;
use kdbt_api::name::InstallationName;
use tokio::time::Instant;

use super::connect::{Failure, Link};
use super::sql::literal;
use crate::lease::EngineId;
use crate::mark::{self, Mark};
use crate::warehouse::{MarkedUser, Sweep};

/// The server's clock first, beside nothing that takes time, so that the round trip says how far it can be trusted.
pub(super) async fn look(link: &Link, installation: &InstallationName) -> Result<Sweep, Failure> {
    let started = Instant::now();
    let clock = "SELECT pg_catalog.round(EXTRACT(EPOCH FROM pg_catalog.clock_timestamp()) * 1000)::pg_catalog.int8, \
                 EXTRACT(EPOCH FROM pg_catalog.current_setting('authentication_timeout')::pg_catalog.interval)::pg_catalog.int8";
    let rows = link.query("read the clock", clock).await?;
    let round_trip = started.elapsed();
    let shown = |index| rows.first()?.get(index);
    let Some(millis) = shown(0).and_then(|text| text.parse().ok()) else {
        return Err(Failure::Unsafe("the server's clock cannot be read".to_owned()));
    };
    let Some(login_seconds) = shown(1).and_then(|text| text.parse().ok()) else {
        return Err(Failure::Unsafe(
            "the server does not say how long a login may take".to_owned(),
        ));
    };
    let rows = link.query("look for marked roles", &scan(installation)).await?;
    let users = rows.iter().filter_map(|row| {
        let get = |index| row.get(index).unwrap_or_default();
        let rolname = get(1).to_owned();
        Some(MarkedUser {
            username: rolname.parse().ok(),
            rolname,
            engine_id: EngineId::Oid(get(0).parse().ok()?),
            mark: get(2).parse::<Mark>().map_err(|error| error.to_string()),
            native_end: row
                .get(3)
                .and_then(|text| text.parse().ok())
                .map(Timestamp::from_unix_millis),
            can_login: get(4) == "t",
            sessions: get(5).parse().unwrap_or(0),
            powerless: get(6) == "t",
        })
    });
    Ok(Sweep {
        users: users.collect(),
        server_time: Timestamp::from_unix_millis(millis),
        round_trip,
        login_within: Duration::from_secs(login_seconds),
    })
}

/// Personal roles bear our prefix too; they are durable, and told apart by name *and* by being unable to log in.
fn scan(installation: &InstallationName) -> String {
    let prefix = mark::prefix(installation);
    format!(
        "SELECT r.oid, r.rolname, c.description, \
         CASE WHEN pg_catalog.isfinite(r.rolvaliduntil) THEN pg_catalog.floor(EXTRACT(EPOCH FROM r.rolvaliduntil) * 1000)::pg_catalog.int8 END, \
         r.rolcanlogin, \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_get_activity(NULL) a WHERE a.usesysid = r.oid), \
         NOT EXISTS (SELECT FROM pg_catalog.pg_auth_members m WHERE m.member = r.oid) AND pg_catalog.pg_has_role(CURRENT_USER, r.oid, 'USAGE') \
         FROM pg_catalog.pg_shdescription c JOIN pg_catalog.pg_roles r ON r.oid = c.objoid \
         WHERE c.classoid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND pg_catalog.starts_with(c.description, {}) \
         AND NOT (NOT r.rolcanlogin AND pg_catalog.starts_with(r.rolname, 'kdbt__own_') AND pg_catalog.starts_with(c.description, {})) \
         ORDER BY r.oid",
        literal(&prefix),
        literal(&format!("{prefix}own sub="))
    )
}
