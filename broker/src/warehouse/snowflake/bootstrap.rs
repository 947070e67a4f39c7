//! What a SECURITYADMIN runs once, made from the policy: the broker's role and user, and the wrapper roles that leases
//! get. Running it again changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kdbt_api::name::{DatabaseName, InstallationName, RoleName, WarehouseName};

use super::sql::{APPLY_POLICY, PolicyName, ident, literal};
use crate::warehouse::{DatabaseNeeds, Needs};

/// The broker as the account shall know it.
#[derive(Debug, Clone)]
pub(super) struct Login<'a> {
    /// Its role, which owns users and wrapper roles.
    pub(super) role: &'a str,
    /// Its service user.
    pub(super) user: &'a str,
    /// The public half of the key that the configuration names: base64 of the SPKI.
    pub(super) key: &'a str,
    /// The session policy that leases get, if any.
    pub(super) session_policy: Option<&'a PolicyName>,
}

/// The script, for a worksheet or `snow sql -f` of a user with SECURITYADMIN.
#[must_use]
pub(super) fn script(needs: &Needs, installation: &InstallationName, login: &Login<'_>) -> String {
    let mut text = String::new();
    let role = ident(login.role);
    let user = ident(login.user);
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&format!(
        "-- kdbt installation {installation}, for a user with SECURITYADMIN. Run again at will."
    ));
    line("USE ROLE SECURITYADMIN;");
    line("-- The broker makes users, and owns those that it makes. It gets no other power.");
    line(&format!("CREATE ROLE IF NOT EXISTS {role};"));
    line(&format!("GRANT CREATE USER ON ACCOUNT TO ROLE {role};"));
    line(&format!(
        "CREATE USER IF NOT EXISTS {user} TYPE = SERVICE DEFAULT_ROLE = {role} DEFAULT_SECONDARY_ROLES = ();"
    ));
    line(&format!(
        "ALTER USER {user} SET RSA_PUBLIC_KEY = {};",
        literal(login.key)
    ));
    line(&format!("GRANT ROLE {role} TO USER {user};"));
    if let Some(policy) = login.session_policy {
        let [database, schema, name] = policy.parts().each_ref().map(|part| ident(part));
        line(&format!(
            "-- Leases get session policy {database}.{schema}.{name}; look whether it is there."
        ));
        line(&format!("GRANT {APPLY_POLICY} ON ACCOUNT TO ROLE {role};"));
        line(&format!("-- GRANT USAGE ON DATABASE {database} TO ROLE {role};"));
        line(&format!("-- GRANT USAGE ON SCHEMA {database}.{schema} TO ROLE {role};"));
    }
    line("-- Recommended: a network policy that lets in the broker's address only.");
    line(&format!("-- ALTER USER {user} SET NETWORK_POLICY = <yours>;"));
    for (wrapper, session_role) in wrappers(needs) {
        text.push('\n');
        text.push_str(&wrap(wrapper, session_role, &role));
    }
    for database in &needs.databases {
        text.push('\n');
        text.push_str(&used(database));
    }
    text
}

/// Each wrapper once, by its name.
fn wrappers(needs: &Needs) -> BTreeMap<&RoleName, &RoleName> {
    let roles = needs.databases.iter().flat_map(|database| &database.roles);
    roles
        .flat_map(|roles| roles.grants.iter().map(|grant| (grant, &roles.session_role)))
        .collect()
}

/// Since bundle `2026_07` the one who hands a role over must hold MANAGE GRANTS, as SECURITYADMIN does.
fn wrap(wrapper: &RoleName, session_role: &RoleName, broker: &str) -> String {
    let (name, held) = (ident(wrapper.as_str()), ident(session_role.as_str()));
    let mut text =
        format!("-- Leases get {wrapper}, which holds {session_role}; the broker owns it, so that it may grant it.\n");
    let _ = writeln!(text, "CREATE ROLE IF NOT EXISTS {name};");
    if wrapper != session_role {
        let _ = writeln!(text, "GRANT ROLE {held} TO ROLE {name};");
    }
    let _ = writeln!(
        text,
        "GRANT OWNERSHIP ON ROLE {name} TO ROLE {broker} COPY CURRENT GRANTS;"
    );
    text
}

/// What the session roles need is theirs already, or yours to give: the script grants nothing on data.
fn used(database: &DatabaseNeeds) -> String {
    let name: &DatabaseName = &database.database;
    let mut text = format!("-- Look whether these roles may use database {name} and its warehouses; if not:\n");
    for roles in &database.roles {
        let role = ident(roles.session_role.as_str());
        let _ = writeln!(
            text,
            "-- GRANT USAGE ON DATABASE {} TO ROLE {role};",
            ident(name.as_str())
        );
        for warehouse in &database.warehouses {
            let warehouse: &WarehouseName = warehouse;
            let _ = writeln!(
                text,
                "-- GRANT USAGE ON WAREHOUSE {} TO ROLE {role};",
                ident(warehouse.as_str())
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::grant::SnowflakeRoles;

    #[test]
    fn the_script_makes_the_broker_and_hands_it_the_wrappers_and_nothing_else() {
        let pair = |grant: &str, session_role: &str| SnowflakeRoles {
            grants: BTreeSet::from([grant.parse().unwrap()]),
            session_role: session_role.parse().unwrap(),
        };
        let needs = Needs {
            databases: vec![DatabaseNeeds {
                database: "ANALYTICS".parse().unwrap(),
                owners: Vec::new(),
                groups: Vec::new(),
                zones: Vec::new(),
                own_schemas: false,
                create_schemas: false,
                connections: 0,
                targets: 1,
                roles: vec![
                    pair("KDBT_ENT_MARTS_READER", "MARTS_READER"),
                    pair("KDBT_ENT_DBT_PROD", "DBT_PROD_OWNER"),
                ],
                warehouses: vec!["BI".parse().unwrap()],
            }],
        };
        let login = Login {
            role: "KDBT_BROKER",
            user: "KDBT_SVC",
            key: KEY,
            session_policy: None,
        };
        insta::assert_snapshot!(script(&needs, &"acme-prod".parse().unwrap(), &login));
    }

    const KEY: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAwNTHBXC/Tko9rzJePHQi0fKI9DsdY4i2UAW1PBtx+f+3WDeqPkKCeka5YXM3I0zbM/COqRO2NrbgwlqYSABJaRbxXf3NCRvkFkPpWli9CQJ11Q5ntiYhjNCmKcRRMAsEd/g7UhJFAFM4pfImtgR1c3m1jLycZ+hfAStoqf97Ta9ENfxYdHtpvLZmBAyaYU8+a8Solq3EZnAymxw7NIap5LpyI8FCH9VYleoKadphVUhOzSFLCXcJVeJ03CkjSj/dWhfvMiBVUcXnz/B93kUAuBbi7Slu5Vrh8M64ysoCf28Is9T3/qsAQCePClFxQKM6p7fePsUx4NzNQzcKU4MrLwIDAQAB";
}
