//! Schemas that a reserved role may use and that less trusted roles write to: a view or a function planted there runs
//! with the rights of whoever selects from it (S9).

use std::collections::BTreeSet;

use kdbt_api::name::RoleName;

use super::super::connect::{Failure, Link};
use super::super::sql::{ident, literal};
use super::Doctor;
use crate::warehouse::{DatabaseNeeds, Severity};

impl Doctor<'_> {
    pub(super) async fn trust(&mut self, link: &Link, needs: &DatabaseNeeds) -> Result<(), Failure> {
        for zone in &needs.zones {
            self.planted(link, needs, zone).await?;
        }
        Ok(())
    }

    async fn planted(&mut self, link: &Link, needs: &DatabaseNeeds, zone: &BTreeSet<RoleName>) -> Result<(), Failure> {
        let database = &needs.database;
        let all = needs.owners.iter().chain(&needs.groups);
        let (within, outside): (Vec<&RoleName>, Vec<&RoleName>) = all.partition(|role| zone.contains(role));
        let text = format!(
            "SELECT n.nspname, p.rolname, q.rolname FROM pg_catalog.pg_namespace n \
             JOIN pg_catalog.pg_roles p ON p.rolname IN ({}) AND pg_catalog.has_schema_privilege(p.oid, n.oid, 'USAGE') \
             JOIN pg_catalog.pg_roles q ON (q.rolname IN ({}) OR pg_catalog.starts_with(q.rolname, 'kdbt__own_')) \
             AND pg_catalog.has_schema_privilege(q.oid, n.oid, 'CREATE') ORDER BY 1, 2, 3 LIMIT 20",
            list(&within),
            list(&outside),
        );
        for row in link
            .query("look for schemas that less trusted roles write to", &text)
            .await?
        {
            let get = |index| row.get(index).unwrap_or_default();
            let (schema, reader, writer) = (get(0), get(1), get(2));
            let message = format!(
                "{reader}, which `protect` reserves, may use schema {schema} of {database}, where {writer} may create \
                 objects: what is planted there runs with the rights of {reader}"
            );
            let remedy = format!(
                "REVOKE CREATE ON SCHEMA {schema} FROM {writer}; -- in {database}; or USAGE from {reader}",
                schema = ident(schema),
                writer = ident(writer)
            );
            self.add(Severity::Warning, "less-trusted-schema", message, Some(remedy));
        }
        Ok(())
    }
}

/// For `IN (…)`, which must not be empty; NULL is in nothing.
fn list(roles: &[&RoleName]) -> String {
    let names = roles.iter().map(|role| literal(role.as_str()));
    names.chain(["NULL".to_owned()]).collect::<Vec<_>>().join(", ")
}
