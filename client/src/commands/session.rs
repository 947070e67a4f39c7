//! `login`, `logout`, `whoami`.

use crate::broker::Broker;
use crate::cli::{Json, Login};
use crate::exit::{Failure, Outcome};
use crate::output::{clean, moment};
use crate::settings::{Settings, now};

/// Logs in and says as whom.
pub(crate) async fn login(settings: Settings, args: Login) -> Outcome<()> {
    let broker = Broker::find(settings, args.trust_issuer).await?;
    let login = broker.login()?;
    login
        .begin(broker.settings(), &broker.issuer, broker.url.as_str(), &args)
        .await?;
    let claims = broker.claims().await?;
    let name = claims.preferred_username.or(claims.sub).unwrap_or_default();
    broker
        .settings()
        .output
        .note(&format!("Logged in to {} as {}", broker.url, clean(&name)));
    Ok(())
}

/// Ends leases, session and stored login. What fails is told; the login is forgotten in any case.
pub(crate) async fn logout(settings: Settings) -> Outcome<()> {
    let broker = Broker::find(settings, false).await?;
    let (login, output) = (broker.login()?, broker.settings().output);
    match broker.revoke_mine().await {
        Ok(ended) if ended.leases.is_empty() => {}
        Ok(ended) => output.note(&format!("Leases ended: {}", ended.leases.len())),
        Err(error) => {
            let failure = Failure::from(error);
            if failure.code != crate::exit::Code::LoginNeeded {
                output.warn(&format!("your leases could not be ended now: {failure}"));
            }
        }
    }
    let was_in = login.end(broker.settings(), &broker.issuer).await?;
    output.note(if was_in { "Logged out" } else { "You were not logged in" });
    Ok(())
}

/// Who the token says we are.
pub(crate) async fn whoami(settings: Settings, args: Json) -> Outcome<()> {
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    let claims = broker.claims().await?;
    let output = broker.settings().output;
    let roles: Vec<String> = claims.realm_roles().iter().map(|role| clean(role)).collect();
    let name = claims.preferred_username.as_deref().map(clean).unwrap_or_default();
    let subject = claims.sub.as_deref().map(clean).unwrap_or_default();
    if args.json {
        return output.json(&serde_json::json!({
            "broker": broker.url,
            "issuer": claims.iss,
            "subject": subject,
            "name": name,
            "realm_roles": roles,
            "session": claims.sid.is_some(),
            "token_expires_at": claims.expires_at(),
        }));
    }
    let expires = claims.expires_at().map_or_else(String::new, |at| moment(at, now()));
    output.show(&format!(
        "name         {name}\nsubject      {subject}\nissuer       {}\nbroker       {}\nrealm roles  {}\ntoken until  {expires}\n",
        claims.iss,
        broker.url,
        roles.join(", "),
    ))
}
