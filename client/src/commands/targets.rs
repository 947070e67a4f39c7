//! `targets` and `explain`.

use kdbt_api::lease::ExplainRequest;

use crate::broker::Broker;
use crate::cli::{Explain, Json};
use crate::exit::{Code, Failure, Outcome};
use crate::order::choose_target;
use crate::output::{clean, clean_lines, table};
use crate::settings::Settings;

/// What we may ask for.
pub(crate) async fn targets(settings: Settings, args: Json) -> Outcome<()> {
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    let targets = broker.targets().await?.targets;
    let output = broker.settings().output;
    if args.json {
        return output.json(&targets);
    }
    if targets.is_empty() {
        output.note("The policy gives you no target; `kdbt-client whoami` shows who you are to the broker");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = targets
        .iter()
        .map(|target| {
            let rules =
                |rules: &[kdbt_api::name::RuleId]| rules.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(",");
            let ttl = target
                .ttl
                .map_or_else(|| "-".into(), |ttl| format!("{} (at most {})", ttl.default, ttl.max));
            vec![
                target.target.to_string(),
                clean(&target.tier),
                ttl,
                rules(&target.rules),
                rules(&target.opt_in),
                clean(&target.access),
            ]
        })
        .collect();
    output.show(&table(
        &["TARGET", "TIER", "TTL", "RULES", "ON REQUEST", "ACCESS"],
        &rows,
    ))
}

/// Whether an order would be filled, and why (not). A no is exit code 4.
pub(crate) async fn explain(settings: Settings, args: Explain) -> Outcome<()> {
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    let order = args.order;
    let request = ExplainRequest {
        target: choose_target(&broker, order.target).await?,
        ttl: order.ttl,
        rules: order.rules,
        reason: order.reason,
    };
    let view = broker.explain(&request).await?;
    let output = broker.settings().output;
    if args.json {
        output.json(&view)?;
    } else {
        output.show(&format!("{}\n", clean_lines(view.text.trim_end())))?;
    }
    if view.allowed {
        return Ok(());
    }
    let reason = view
        .reason
        .as_deref()
        .map_or_else(|| "the policy says no".into(), clean);
    Err(Failure::new(
        Code::Denied,
        format!("this order would be refused: {reason}"),
    ))
}
