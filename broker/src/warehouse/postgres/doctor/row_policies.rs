//! Row policies that a lease could drop: whoever has the rights of a role may run DROP OWNED BY it, and a policy `TO`
//! that role is gone, with whatever it hid (S7). Issuing refuses the same.

use kdbt_api::name::RoleName;

use super::super::connect::{Failure, Link};
use super::super::plan::DatabaseRoles;
use super::super::sql::{ident, literal, rights_pass};
use super::Doctor;
use crate::warehouse::{DatabaseNeeds, Severity};

impl Doctor<'_> {
    pub(super) async fn row_policies(&mut self, link: &Link, needs: &DatabaseNeeds) -> Result<(), Failure> {
        let of_database = DatabaseRoles::of(&needs.database);
        let given = [&of_database.connect, &of_database.temp, &of_database.create];
        let named = needs.owners.iter().chain(&needs.groups).map(RoleName::as_str);
        let roles: Vec<String> = named.chain(given.map(String::as_str)).map(literal).collect();
        let text = format!(
            "WITH RECURSIVE up(oid) AS (SELECT r.oid FROM pg_catalog.pg_roles r \
             WHERE r.rolname IN ({}) OR pg_catalog.starts_with(r.rolname, 'kdbt__own_') \
             UNION SELECT m.roleid FROM up JOIN pg_catalog.pg_auth_members m ON m.member = up.oid AND {}) \
             SELECT p.polname, p.polrelid::pg_catalog.regclass::pg_catalog.text, r.rolname, p.polpermissive FROM pg_catalog.pg_policy p \
             JOIN up ON up.oid = ANY (p.polroles) JOIN pg_catalog.pg_roles r ON r.oid = up.oid ORDER BY 2, 1, 3 LIMIT 20",
            roles.join(", "),
            rights_pass(link.era)
        );
        for row in link.query("look for row policies", &text).await? {
            let get = |index| row.get(index).unwrap_or_default();
            let (policy, table, role) = (get(0), get(1), get(2));
            let message = format!(
                "the row policy {policy} on {table} names {role}: a lease with the rights of that role could drop it, so \
                 none is issued"
            );
            // What is restrictive hides rows from this role alone, what is permissive shows them to it alone.
            let condition = if get(3) == "t" {
                format!("pg_has_role({}, 'USAGE') AND …", literal(role))
            } else {
                format!("NOT pg_has_role({}, 'USAGE') OR …", literal(role))
            };
            let remedy = format!(
                "ALTER POLICY {} ON {table} TO PUBLIC USING ({condition}); -- and WITH CHECK likewise; in {}",
                ident(policy),
                needs.database
            );
            self.add(Severity::Error, "row-policy", message, Some(remedy));
        }
        Ok(())
    }
}
