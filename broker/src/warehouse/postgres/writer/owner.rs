//! A person's own durable role and schemas, made sure of before each of their leases. A role or schema of the right
//! name that is not provably this person's is refused, never adopted: a lost store must not hand it to a newcomer.

use std::collections::BTreeSet;

use kdbt_api::name::DatabaseName;

use super::{DATABASES_OPEN, Writer, limits};
use crate::grant::OwnerName;
use crate::warehouse::NewUser;
use crate::warehouse::postgres::connect::{Failure, Link};
use crate::warehouse::postgres::plan;
use crate::warehouse::postgres::sql::{Step, literal};

impl Writer {
    /// The role, its memberships and its schemas are there and are this person's.
    pub(super) async fn ensure_owner(&mut self, user: &NewUser) -> Result<(), Failure> {
        let Some(personal) = plan::personal(&user.access) else {
            return Ok(());
        };
        let name = OwnerName::Personal(personal.slug.clone()).to_string();
        let comment = plan::own_comment(&self.config.installation, &user.subject);
        let Some(link) = &self.link else {
            return Err(Failure::Lost("the connection was lost".to_owned()));
        };
        let member_of = ensure_role(link, &name, &comment).await?;
        let steps = plan::reconcile_owner(&name, personal, &user.database, &member_of);
        if !steps.is_empty() {
            link.run("grant a personal role its groups", &steps).await?;
        }
        let link = self.database(&user.database).await?;
        for schema in &personal.schemas {
            ensure_schema(link, schema.as_str(), &name).await?;
        }
        Ok(())
    }

    async fn database(&mut self, database: &DatabaseName) -> Result<&Link, Failure> {
        self.databases.retain(|_, link| link.is_usable());
        if !self.databases.contains_key(database) {
            if self.databases.len() >= DATABASES_OPEN {
                self.databases.clear();
            }
            let link = self.connector.open(database.as_str(), limits(&self.config)).await?;
            self.databases.insert(database.clone(), link);
        }
        let link = self.databases.get(database);
        link.ok_or_else(|| Failure::Lost("the connection was lost".to_owned()))
    }
}

/// The groups that the role is a member of, after it was made or found to be this person's.
async fn ensure_role(link: &Link, name: &str, comment: &str) -> Result<BTreeSet<String>, Failure> {
    let look = format!(
        "SELECT r.rolcanlogin, pg_catalog.shobj_description(r.oid, 'pg_authid'), g.rolname FROM pg_catalog.pg_roles r \
         LEFT JOIN pg_catalog.pg_auth_members m ON m.member = r.oid LEFT JOIN pg_catalog.pg_roles g ON g.oid = m.roleid \
         WHERE r.rolname = {}",
        literal(name)
    );
    let mut rows = link.query("look for a personal role", &look).await?;
    if rows.is_empty() {
        match link
            .run("make a personal role", &plan::create_owner(name, comment.to_owned()))
            .await
        {
            Ok(_) => return Ok(BTreeSet::new()),
            // Another broker of this installation was faster.
            Err(failure) if matches!(failure.code(), "42710" | "23505") => {
                rows = link.query("look for a personal role", &look).await?;
            }
            Err(failure) => return Err(failure),
        }
    }
    let first = rows.first();
    let can_login = first.and_then(|row| row.get(0)) == Some("t");
    let found = first.and_then(|row| row.get(1));
    if can_login || found != Some(comment) {
        return Err(Failure::Unsafe(format!(
            "the role {name} is there and is not this person's own ({}); a DBA must rename or drop it",
            if can_login {
                "it can log in"
            } else {
                "its comment names somebody else, or nobody"
            }
        )));
    }
    Ok(rows.iter().filter_map(|row| row.get(2)).map(str::to_owned).collect())
}

async fn ensure_schema(link: &Link, schema: &str, owner: &str) -> Result<(), Failure> {
    let look = format!(
        "SELECT o.rolname FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles o ON o.oid = n.nspowner WHERE n.nspname = {}",
        literal(schema)
    );
    let mut rows = link.query("look for a personal schema", &look).await?;
    if rows.is_empty() {
        let create = Step::CreateSchema {
            name: schema.to_owned(),
            owner: owner.to_owned(),
        };
        match link.run("make a personal schema", &[create]).await {
            Ok(_) => return Ok(()),
            Err(failure) if matches!(failure.code(), "42P06" | "23505") => {
                rows = link.query("look for a personal schema", &look).await?;
            }
            Err(failure) => return Err(failure),
        }
    }
    match rows.first().and_then(|row| row.get(0)) {
        Some(found) if found == owner => Ok(()),
        found => Err(Failure::Unsafe(format!(
            "the schema {schema} belongs to {}, not to {owner}; a DBA must hand it over or rename it",
            found.unwrap_or("nobody")
        ))),
    }
}
