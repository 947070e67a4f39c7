//! `doctor`: what a person can check from here, in the order in which things fail.

use crate::broker::Broker;
use crate::exit::Outcome;
use crate::oauth::Provider;
use crate::output::{clean, span};
use crate::settings::{Settings, now};

/// The largest difference of clocks that is not worth a word.
const SKEW: std::time::Duration = std::time::Duration::from_secs(5);

/// Looks at broker, clock, issuer, login and targets; stops at the first that fails.
pub(crate) async fn doctor(settings: Settings) -> Outcome<()> {
    let output = settings.output;
    let broker = Broker::find(settings, false).await?;
    let config = &broker.config;
    output.show(&format!(
        "ok  broker {} ({}, version {})\n",
        broker.url,
        clean(&config.installation),
        clean(&config.version)
    ))?;
    broker.iterations()?;
    if let Some(date) = broker.date().await?
        && let Ok(theirs) = jiff::fmt::rfc2822::parse(&date)
    {
        let (theirs, ours) = (kdbt_api::Timestamp::from(theirs.timestamp()), now());
        let skew = theirs.since(ours).max(ours.since(theirs));
        if skew > SKEW {
            output.warn(&format!(
                "this machine's clock differs from the broker's by {}",
                span(skew)
            ));
        } else {
            output.show("ok  clock\n")?;
        }
    }
    Provider::discover(broker.settings(), &broker.issuer).await?;
    output.show(&format!("ok  issuer {}\n", broker.issuer.issuer))?;
    let claims = broker.claims().await?;
    let name = claims.preferred_username.or(claims.sub).unwrap_or_default();
    output.show(&format!("ok  token of {}\n", clean(&name)))?;
    let targets = broker.targets().await?.targets;
    let names: Vec<&str> = targets.iter().map(|view| view.target.as_str()).collect();
    output.show(&format!(
        "ok  targets: {}\n",
        if names.is_empty() {
            "none".into()
        } else {
            names.join(", ")
        }
    ))
}
