//! What the policy reads of tokens, for the doctor: an issuer must always say it, and nobody may edit it (S16).

use super::PolicySet;
use crate::identity::doctor::Reads;

impl PolicySet {
    /// What the conditions of all rules name.
    #[must_use]
    pub fn reads(&self) -> Reads {
        let mut reads = Reads::default();
        for rule in &self.document.rules {
            let excluding = rule.unless.iter().chain(rule.deny.then_some(&rule.when));
            for condition in excluding {
                let realm_roles = condition.realm_roles.iter().flatten();
                reads.excluding_realm_roles.extend(realm_roles.cloned());
                for (client, roles) in &condition.client_roles {
                    let roles = roles.iter().map(|role| (client.clone(), role.clone()));
                    reads.excluding_client_roles.extend(roles);
                }
            }
            for condition in rule.unless.iter().chain([&rule.when]) {
                reads.claims.extend(condition.claims.keys().cloned());
            }
        }
        reads
    }
}
