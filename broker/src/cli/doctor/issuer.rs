//! The doctor's look at the issuers: what anybody can see of them, and of one Keycloak what an administrator can.

use std::path::PathBuf;

use clap::Args;
use url::Url;

use crate::config::{Config, secret_of};
use crate::identity::IssuerConfig;
use crate::identity::doctor::{AdminAccess, Flaw, examine_issuer, examine_realm};
use crate::policy::PolicySet;
use crate::warehouse::{Finding, Severity};

/// Holds the secret where no file does: it never stands in the command line, which everybody can read.
const SECRET_VARIABLE: &str = "KDBT_KEYCLOAK_SECRET";

/// How to read a Keycloak's administration.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_field_names,
    reason = "they are the names of the options, which stand beside others"
)]
pub(super) struct KeycloakOptions {
    /// Also look into a Keycloak's realm, as this client's service account with the roles `view-clients` and
    /// `view-realm`: only that shows whether tokens always hold what `provides` says. Its secret is in
    /// `KDBT_KEYCLOAK_SECRET` unless a file has it.
    #[arg(long, env = "KDBT_KEYCLOAK_CLIENT", value_name = "CLIENT")]
    keycloak_client: Option<String>,
    /// The file with the secret of that client.
    #[arg(long, env = "KDBT_KEYCLOAK_SECRET_FILE", value_name = "FILE")]
    keycloak_secret_file: Option<PathBuf>,
    /// Which issuer that Keycloak is, if several are configured.
    #[arg(long, env = "KDBT_KEYCLOAK_ISSUER", value_name = "URL")]
    keycloak_issuer: Option<String>,
    /// Where its administration is, if not beside the issuer: `https://HOST/admin/realms/REALM`.
    #[arg(long, env = "KDBT_KEYCLOAK_ADMIN_URL", value_name = "URL")]
    keycloak_admin_url: Option<Url>,
}

impl KeycloakOptions {
    /// Which issuer to look into, and how; `None` where nobody asked. The error is one of usage.
    pub(super) fn access(&self, config: &Config) -> Result<Option<(String, AdminAccess)>, String> {
        let Some(client_id) = &self.keycloak_client else {
            return Ok(None);
        };
        let mut issuers = config.issuers.iter().map(|issuer| &issuer.tokens.issuer);
        let issuer = match (&self.keycloak_issuer, &*config.issuers) {
            (Some(named), _) => issuers.find(|issuer| *issuer == named),
            (None, [only]) => Some(&only.tokens.issuer),
            (None, _) => return Err("several issuers are configured: say which with --keycloak-issuer".to_owned()),
        };
        let issuer = issuer.ok_or("--keycloak-issuer names no issuer of the configuration")?;
        let secret = secret_of(self.keycloak_secret_file.as_deref(), SECRET_VARIABLE)?;
        let access = AdminAccess {
            client_id: client_id.clone(),
            secret,
            url: self.keycloak_admin_url.clone(),
        };
        Ok(Some((issuer.clone(), access)))
    }
}

/// All that is to be said of one issuer.
pub(super) async fn examine(
    config: &IssuerConfig,
    policies: &PolicySet,
    access: Option<&(String, AdminAccess)>,
) -> Vec<Finding> {
    let mut findings: Vec<Finding> = examine_issuer(config).await.into_iter().map(finding).collect();
    if findings.is_empty() {
        findings.push(fine("issuer", "its metadata and keys are there and verify tokens"));
    }
    match access {
        Some((issuer, access)) if *issuer == config.issuer => {
            let flaws = examine_realm(config, &policies.reads(), access).await;
            if flaws.is_empty() {
                findings.push(fine("realm", "its tokens always hold what `provides` says"));
            }
            findings.extend(flaws.into_iter().map(finding));
        }
        Some(_) | None => findings.push(Finding {
            severity: Severity::Info,
            code: "realm",
            message: "nobody looked whether its tokens always hold what `provides` says".to_owned(),
            remedy: Some("name a service account that may read the realm with --keycloak-client".to_owned()),
        }),
    }
    findings
}

fn fine(code: &'static str, message: &str) -> Finding {
    Finding {
        severity: Severity::Ok,
        code,
        message: message.to_owned(),
        remedy: None,
    }
}

fn finding(flaw: Flaw) -> Finding {
    Finding {
        severity: if flaw.serious {
            Severity::Error
        } else {
            Severity::Warning
        },
        code: flaw.code,
        message: flaw.what,
        remedy: Some(flaw.remedy),
    }
}
