//! What the account does on a statement. What is not written here is a syntax error.

use super::account::{Account, DAY, Grantee, Key, User};
use super::token::rsa_key;
use super::words::Reader;
use super::{Refusal, Table};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Runs one statement as a user with a role.
pub(super) fn run(account: &mut Account, user: &str, role: &str, text: &str) -> Result<Table, Refusal> {
    let mut words = Reader::new(text)?;
    let words = &mut words;
    if words.takes("CREATE USER") {
        create_user(account, role, words)
    } else if words.takes("ALTER USER") {
        alter_user(account, role, words)
    } else if words.takes("DROP USER") {
        let lenient = words.takes("IF EXISTS");
        let name = words.name()?;
        words.end()?;
        match account.owned(role, &name) {
            Ok(_) => account.forget(&name),
            Err(refusal) if lenient && refusal.code == "002003" => {}
            Err(refusal) => return Err(refusal),
        }
        Ok(Table::status(&format!("{name} successfully dropped.")))
    } else if words.takes("GRANT ROLE") {
        grant_role(account, role, words, true)
    } else if words.takes("REVOKE ROLE") {
        grant_role(account, role, words, false)
    } else if words.takes("GRANT OWNERSHIP ON ROLE") {
        let name = words.name()?;
        words.expect("TO ROLE")?;
        let to = words.name()?;
        if !words.takes("COPY CURRENT GRANTS") {
            words.expect("REVOKE CURRENT GRANTS")?;
        }
        words.end()?;
        account.may_grant(role, &name)?;
        account.role(&to)?;
        account.roles.insert(name, to);
        Ok(Table::status("Statement executed successfully."))
    } else if words.takes("GRANT OWNERSHIP ON USER") {
        user_to(account, role, words)
    } else if words.takes("GRANT CREATE USER ON ACCOUNT") {
        grant_on_account(account, role, "CREATE USER", words)
    } else if words.takes("GRANT APPLY SESSION POLICY ON ACCOUNT") {
        grant_on_account(account, role, "APPLY SESSION POLICY", words)
    } else if words.takes("CREATE NETWORK POLICY") {
        create_network_policy(account, role, words)
    } else if words.takes("CREATE SESSION POLICY") {
        let name = full_name(words)?;
        words.end()?;
        if !account.holds(role, "CREATE SESSION POLICY") {
            return Err(Refusal::privilege("schema"));
        }
        account.session_policies.insert(name);
        Ok(Table::status("Statement executed successfully."))
    } else if words.takes("CREATE ROLE") {
        let lenient = words.takes("IF NOT EXISTS");
        let name = words.name()?;
        words.end()?;
        if !account.holds(role, "CREATE ROLE") {
            return Err(Refusal::privilege("account"));
        }
        if account.roles.contains_key(&name) && !lenient {
            return Err(Refusal::exists("Role", &name));
        }
        account.roles.entry(name.clone()).or_insert_with(|| role.to_owned());
        Ok(Table::status(&format!("Role {name} successfully created.")))
    } else if words.takes("SHOW USERS") {
        show_users(account, role, words)
    } else if words.takes("DESCRIBE USER") || words.takes("DESC USER") {
        describe_user(account, role, words)
    } else if words.takes("SHOW GRANTS TO ROLE") {
        let name = words.name()?;
        words.end()?;
        account.role(&name)?;
        Ok(grants_to_role(account, &name))
    } else if words.takes("SHOW GRANTS TO USER") {
        let name = words.name()?;
        words.end()?;
        account.user(&name).ok_or_else(|| Refusal::missing("User", &name))?;
        let rows = account
            .roles_of(&name)
            .into_iter()
            .map(|granted| vec![None, Some(granted), Some("USER".into()), Some(name.clone()), None]);
        Ok(Table::new(
            &["created_on", "role", "granted_to", "grantee_name", "granted_by"],
            rows.collect(),
        ))
    } else if words.takes("SHOW ROLES") {
        words.end()?;
        let rows = account
            .roles
            .iter()
            .map(|(name, owner)| vec![None, Some(name.clone()), Some(owner.clone())]);
        Ok(Table::new(&["created_on", "name", "owner"], rows.collect()))
    } else if words.takes("SELECT CURRENT_ROLE") {
        call(words)?;
        Ok(Table::new(&["CURRENT_ROLE()"], vec![vec![Some(role.to_owned())]]))
    } else if words.takes("SELECT CURRENT_USER") {
        call(words)?;
        Ok(Table::new(&["CURRENT_USER()"], vec![vec![Some(user.to_owned())]]))
    } else {
        Err(Refusal::syntax("unexpected statement"))
    }
}

fn grant_on_account(account: &mut Account, role: &str, privilege: &str, words: &mut Reader) -> Result<Table, Refusal> {
    words.expect("TO ROLE")?;
    let to = words.name()?;
    words.end()?;
    account.role(&to)?;
    if !account.holds(role, "MANAGE GRANTS") {
        return Err(Refusal::privilege("account"));
    }
    account.privileges.insert((to, privilege.to_owned()));
    Ok(Table::status("Statement executed successfully."))
}

/// Its owner hands a user over, or who manages grants.
fn user_to(account: &mut Account, role: &str, words: &mut Reader) -> Result<Table, Refusal> {
    let name = words.name()?;
    words.expect("TO ROLE")?;
    let to = words.name()?;
    if !words.takes("COPY CURRENT GRANTS") {
        words.expect("REVOKE CURRENT GRANTS")?;
    }
    words.end()?;
    account.role(&to)?;
    let manages = account.holds(role, "MANAGE GRANTS");
    let closure = account.closure(role);
    let user = account
        .users
        .get_mut(&name)
        .ok_or_else(|| Refusal::missing("User", &name))?;
    if !manages && !closure.contains(&user.owner) {
        return Err(Refusal::privilege(&format!("user '{name}'")));
    }
    user.owner = to;
    Ok(Table::status("Statement executed successfully."))
}

fn create_network_policy(account: &mut Account, role: &str, words: &mut Reader) -> Result<Table, Refusal> {
    let name = words.name()?;
    words.expect("ALLOWED_IP_LIST")?;
    if !(words.sign('=') && words.sign('(')) {
        return Err(Refusal::syntax("= ("));
    }
    let mut allowed = vec![words.text()?];
    while words.sign(',') {
        allowed.push(words.text()?);
    }
    if !words.sign(')') {
        return Err(Refusal::syntax(")"));
    }
    words.end()?;
    if !account.holds(role, "CREATE NETWORK POLICY") {
        return Err(Refusal::privilege("account"));
    }
    account.network_policies.insert(name, allowed);
    Ok(Table::status("Statement executed successfully."))
}

/// `database.schema.name`.
fn full_name(words: &mut Reader) -> Result<String, Refusal> {
    let mut parts = vec![words.name()?];
    while words.sign('.') {
        parts.push(words.name()?);
    }
    if parts.len() == 3 {
        Ok(parts.join("."))
    } else {
        Err(Refusal::syntax("database.schema.name"))
    }
}

fn call(words: &mut Reader) -> Result<(), Refusal> {
    if words.sign('(') && words.sign(')') {
        words.end()
    } else {
        Err(Refusal::syntax("expected ()"))
    }
}

/// With the documented meaning of OR REPLACE and IF NOT EXISTS, so that who uses them wrongly is found out.
fn create_user(account: &mut Account, role: &str, words: &mut Reader) -> Result<Table, Refusal> {
    let lenient = words.takes("IF NOT EXISTS");
    let name = words.name()?;
    let mut user = User {
        kind: "PERSON".to_owned(),
        owner: role.to_owned(),
        created_on: account.now,
        secondary_roles: true,
        ..User::default()
    };
    while let Some(property) = words.property()? {
        set(&mut user, &property, words, account.now)?;
    }
    if !account.holds(role, "CREATE USER") {
        return Err(Refusal::privilege("account"));
    }
    if account.users.contains_key(&name) {
        return if lenient {
            Ok(Table::status(&format!("{name} already exists, statement succeeded.")))
        } else {
            Err(Refusal::exists("User", &name))
        };
    }
    account.users.insert(name.clone(), user);
    Ok(Table::status(&format!("User {name} successfully created.")))
}

fn alter_user(account: &mut Account, role: &str, words: &mut Reader) -> Result<Table, Refusal> {
    let lenient = words.takes("IF EXISTS");
    let name = words.name()?;
    let done = Table::status("Statement executed successfully.");
    let now = account.now;
    let mut changed = match account.owned(role, &name) {
        Ok(user) => user.clone(),
        Err(refusal) if lenient && refusal.code == "002003" => return Ok(done),
        Err(refusal) => return Err(refusal),
    };
    if words.takes("RENAME TO") {
        let to = words.name()?;
        words.end()?;
        return account.rename(&name, to).map(|()| done);
    }
    if words.takes("ABORT ALL QUERIES") {
        words.end()?;
    } else if words.takes("SET SESSION POLICY") {
        let policy = full_name(words)?;
        words.end()?;
        if !account.session_policies.contains(&policy) {
            return Err(Refusal::missing("Session policy", &policy));
        }
        if !account.holds(role, "APPLY SESSION POLICY") {
            return Err(Refusal::privilege(&format!("session policy '{policy}'")));
        }
        changed.session_policy = Some(policy);
    } else if words.takes("ADD KEY PAIR") {
        let key = words.name()?;
        words.expect("PUBLIC_KEY")?;
        let spki = if words.sign('=') {
            words.text()?
        } else {
            return Err(Refusal::syntax("="));
        };
        words.end()?;
        changed.keys.insert(
            key,
            Key {
                spki: checked(spki)?,
                until: None,
            },
        );
    } else if words.takes("ROTATE KEY PAIR") {
        let key = words.name()?;
        words.expect("PUBLIC_KEY")?;
        let spki = if words.sign('=') {
            words.text()?
        } else {
            return Err(Refusal::syntax("="));
        };
        words.expect("EXPIRE_ROTATED_KEY_PAIR_AFTER_HOURS")?;
        let hours = if words.sign('=') {
            words.number()?
        } else {
            return Err(Refusal::syntax("="));
        };
        words.end()?;
        let old = changed
            .keys
            .remove(&key)
            .ok_or_else(|| Refusal::missing("Key pair", &key))?;
        let until = Some(now + hours * 3_600_000);
        changed.keys.insert(format!("{key}_ROTATED"), Key { until, ..old });
        changed.keys.insert(
            key,
            Key {
                spki: checked(spki)?,
                until: None,
            },
        );
    } else {
        words.expect("SET")?;
        let mut none = true;
        while let Some(property) = words.property()? {
            set(&mut changed, &property, words, now)?;
            none = false;
        }
        if none {
            return Err(Refusal::syntax("a property"));
        }
    }
    account.users.insert(name, changed);
    Ok(done)
}

fn checked(spki: String) -> Result<String, Refusal> {
    let good = STANDARD.decode(&spki).ok().and_then(|der| rsa_key(&der)).is_some();
    if good {
        Ok(spki)
    } else {
        Err(Refusal::new(
            422,
            "003555",
            "22023",
            "New public key rejected by current policy. Reason: 'Invalid public key'",
        ))
    }
}

/// One property of CREATE USER or ALTER USER SET.
fn set(user: &mut User, property: &str, words: &mut Reader, now: i64) -> Result<(), Refusal> {
    match property {
        "TYPE" => {
            user.kind = words.name()?;
            if !["PERSON", "SERVICE"].contains(&user.kind.as_str()) {
                return Err(Refusal::syntax("a type of user"));
            }
        }
        "RSA_PUBLIC_KEY" | "RSA_PUBLIC_KEY_2" => {
            let spki = checked(words.text()?)?;
            user.keys.insert(property.to_owned(), Key { spki, until: None });
        }
        "DEFAULT_ROLE" => user.default_role = Some(words.name()?),
        "DEFAULT_WAREHOUSE" => user.default_warehouse = Some(words.name()?),
        "DEFAULT_SECONDARY_ROLES" => {
            if !words.sign('(') {
                return Err(Refusal::syntax("("));
            }
            user.secondary_roles = !words.sign(')');
            if user.secondary_roles && (words.text()? != "ALL" || !words.sign(')')) {
                return Err(Refusal::syntax("('ALL') or ()"));
            }
        }
        "DAYS_TO_EXPIRY" => match words.number()? {
            0 => user.expires_at = None,
            days => user.expires_at = Some(now + days * DAY),
        },
        "DISABLED" => user.disabled = words.flag()?,
        "COMMENT" => user.comment = Some(words.text()?),
        "NETWORK_POLICY" => user.network_policy = Some(words.name()?),
        "QUERY_TAG" => {
            let tag = words.text()?;
            if tag.chars().count() > 2000 {
                return Err(Refusal::new(
                    422,
                    "000002",
                    "22023",
                    "QUERY_TAG is longer than 2000 characters",
                ));
            }
            user.parameters.insert(property.to_owned(), tag);
        }
        "STATEMENT_TIMEOUT_IN_SECONDS" | "LOCK_TIMEOUT" => {
            user.parameters.insert(property.to_owned(), words.number()?.to_string());
        }
        // A service user may have no password; nothing else is sent by anybody that we test.
        other => return Err(Refusal::syntax(&format!("invalid property '{other}'"))),
    }
    Ok(())
}

fn grant_role(account: &mut Account, role: &str, words: &mut Reader, give: bool) -> Result<Table, Refusal> {
    let granted = words.name()?;
    words.expect(if give { "TO" } else { "FROM" })?;
    let to = if words.takes("USER") {
        Grantee::User(words.name()?)
    } else {
        words.expect("ROLE")?;
        Grantee::Role(words.name()?)
    };
    words.end()?;
    account.may_grant(role, &granted)?;
    match &to {
        Grantee::User(name) => drop(account.user(name).ok_or_else(|| Refusal::missing("User", name))?),
        Grantee::Role(name) => drop(account.role(name)?),
    }
    if give {
        account.grants.insert((granted, to));
    } else {
        account.grants.remove(&(granted, to));
    }
    Ok(Table::status("Statement executed successfully."))
}

/// The columns that anybody of ours reads, by the vendor's names; the other documented ones are left out, as a client
/// must find columns by name.
const USER_COLUMNS: [&str; 12] = [
    "name",
    "created_on",
    "login_name",
    "days_to_expiry",
    "comment",
    "disabled",
    "default_role",
    "default_secondary_roles",
    "owner",
    "expires_at_time",
    "has_rsa_public_key",
    "type",
];

fn show_users(account: &Account, role: &str, words: &mut Reader) -> Result<Table, Refusal> {
    let prefix = if words.takes("STARTS WITH") {
        words.text()?
    } else {
        String::new()
    };
    let (mut limit, mut after) = (10_000, None);
    if words.takes("LIMIT") {
        limit = words.number()?;
        if !(1..=10_000).contains(&limit) {
            return Err(Refusal::syntax("a limit of 1 to 10000"));
        }
        if words.takes("FROM") {
            after = Some(words.text()?);
        }
    }
    words.end()?;
    let seen = account.users.iter().filter(|(name, _)| name.starts_with(&prefix));
    let page = seen.filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after));
    let rows = page.take(usize::try_from(limit).unwrap()).map(|(name, user)| {
        let sees_all = account.creators_see_users && account.holds(role, "CREATE USER");
        let own = sees_all || account.owns(role, &user.owner);
        let only_owner = |value: Option<String>| value.filter(|_| own);
        vec![
            Some(name.clone()),
            only_owner(Some(stamp(user.created_on))),
            only_owner(Some(name.clone())),
            only_owner(user.days_left(account.now).map(|days| days.to_string())),
            only_owner(user.comment.clone()),
            only_owner(Some(user.disabled.to_string())),
            only_owner(user.default_role.clone()),
            only_owner(Some(if user.secondary_roles { "[\"ALL\"]" } else { "[]" }.to_owned())),
            only_owner(Some(user.owner.clone())),
            only_owner(user.expires_at.map(stamp)),
            only_owner(Some((!user.keys.is_empty()).to_string())),
            only_owner(Some(user.kind.clone())),
        ]
    });
    Ok(Table::new(&USER_COLUMNS, rows.collect()))
}

/// A time as the SQL API writes it without a format: epoch seconds and nine digits.
fn stamp(millis: i64) -> String {
    format!("{}.{:03}000000", millis / 1000, millis % 1000)
}

fn describe_user(account: &mut Account, role: &str, words: &mut Reader) -> Result<Table, Refusal> {
    let name = words.name()?;
    words.end()?;
    let now = account.now;
    let user = account.owned(role, &name)?;
    let text = |value: Option<String>| Some(value.unwrap_or_else(|| "null".to_owned()));
    let fingerprint = |key: &str| user.keys.get(key).and_then(|key| super::token::fingerprint(&key.spki));
    let rows = [
        ("NAME", Some(name.clone())),
        ("COMMENT", user.comment.clone()),
        ("TYPE", Some(user.kind.clone())),
        ("DISABLED", Some(user.disabled.to_string())),
        ("DAYS_TO_EXPIRY", user.days_left(now).map(|days| days.to_string())),
        ("DEFAULT_ROLE", user.default_role.clone()),
        ("RSA_PUBLIC_KEY_FP", fingerprint("RSA_PUBLIC_KEY")),
        ("RSA_PUBLIC_KEY_2_FP", fingerprint("RSA_PUBLIC_KEY_2")),
    ];
    let rows = rows
        .into_iter()
        .map(|(property, value)| vec![Some(property.to_owned()), text(value), text(None), text(None)]);
    Ok(Table::new(
        &["property", "value", "default", "description"],
        rows.collect(),
    ))
}

fn grants_to_role(account: &Account, name: &str) -> Table {
    let columns = [
        "created_on",
        "privilege",
        "granted_on",
        "name",
        "granted_to",
        "grantee_name",
    ];
    let row = |privilege: &str, on: &str, what: &str| {
        let texts = [privilege, on, what, "ROLE", name].map(|text| Some(text.to_owned()));
        std::iter::once(None).chain(texts).collect::<Vec<_>>()
    };
    let mut rows = Vec::new();
    for (_, privilege) in account.privileges.iter().filter(|(role, _)| role == name) {
        rows.push(row(privilege, "ACCOUNT", "SIMULATED"));
    }
    for (role, _) in account.roles.iter().filter(|(_, owner)| *owner == name) {
        rows.push(row("OWNERSHIP", "ROLE", role));
    }
    for (user, _) in account.users.iter().filter(|(_, user)| user.owner == name) {
        rows.push(row("OWNERSHIP", "USER", user));
    }
    for object in account.objects.iter().filter(|object| object.owner == name) {
        let mut cells = row("OWNERSHIP", &object.kind, &object.name);
        cells[0] = Some(stamp(object.created_on));
        rows.push(cells);
    }
    let holder = Grantee::Role(name.to_owned());
    for (role, _) in account.grants.iter().filter(|(_, to)| *to == holder) {
        rows.push(row("USAGE", "ROLE", role));
    }
    Table::new(&columns, rows)
}
