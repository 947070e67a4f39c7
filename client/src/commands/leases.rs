//! `leases`, `renew`, `revoke`.

use kdbt_api::lease::{LeaseStatus, LeaseView};

use crate::broker::Broker;
use crate::cli::{Json, Renew, Revoke};
use crate::exit::{Code, Failure, Outcome};
use crate::order::kept_proof;
use crate::output::{clean, moment, table};
use crate::settings::{Settings, now};

/// Our leases that have not ended.
pub(crate) async fn leases(settings: Settings, args: Json) -> Outcome<()> {
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    let leases = broker.leases().await?;
    let output = broker.settings().output;
    if args.json {
        return output.json(&leases);
    }
    let rows: Vec<Vec<String>> = leases
        .iter()
        .filter(|lease| lease.state != LeaseStatus::Ended)
        .map(row)
        .collect();
    if rows.is_empty() {
        output.note("You have no leases");
        return Ok(());
    }
    output.show(&table(&["LEASE", "TARGET", "USER", "STATE", "UNTIL", "RULES"], &rows))
}

fn row(lease: &LeaseView) -> Vec<String> {
    let rules: Vec<&str> = lease.rules.iter().map(AsRef::as_ref).collect();
    vec![
        lease.id.to_string(),
        lease.target.as_ref().map_or_else(|| "-".into(), ToString::to_string),
        lease.user.to_string(),
        state(lease.state).to_owned(),
        moment(lease.ends_at, now()),
        rules.join(","),
    ]
}

fn state(state: LeaseStatus) -> &'static str {
    match state {
        LeaseStatus::Provisioning => "provisioning",
        LeaseStatus::Active => "active",
        LeaseStatus::Ending => "ending",
        LeaseStatus::Quarantined => "quarantined",
        LeaseStatus::Ended => "ended",
    }
}

/// Moves the end of a lease.
pub(crate) async fn renew(settings: Settings, args: Renew) -> Outcome<()> {
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    let proof = kept_proof(broker.settings(), args.id)?;
    let view = broker.renew(args.id, args.ttl, proof.as_ref()).await?;
    let output = broker.settings().output;
    output.note(&format!("{} lives until {}", view.id, moment(view.ends_at, now())));
    if view.ends_at >= view.max_ends_at {
        output.note("It cannot be renewed beyond that");
    }
    Ok(())
}

/// Ends one lease or all of ours.
pub(crate) async fn revoke(settings: Settings, args: Revoke) -> Outcome<()> {
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    let ended = match args.id {
        Some(id) => {
            let proof = kept_proof(broker.settings(), id)?;
            vec![broker.revoke(id, proof.as_ref()).await?]
        }
        None if args.all => broker.revoke_mine().await?.leases,
        None => return Err(Failure::new(Code::Usage, "name a lease, or --all")),
    };
    let output = broker.settings().output;
    if ended.is_empty() {
        output.note("You have no leases");
    }
    for view in &ended {
        let blocked = match view.blocked_by.first() {
            Some(object) => format!(" (kept by {})", clean(object)),
            None => String::new(),
        };
        output.note(&format!("{} {}{blocked}", view.id, state(view.state)));
    }
    Ok(())
}
