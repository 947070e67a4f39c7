//! The account: users, roles, who owns what, who holds what. Every right is looked up here, and nowhere assumed.

use std::collections::{BTreeMap, BTreeSet};

use super::Refusal;

/// Days of a user without `DAYS_TO_EXPIRY` are none; one day in milliseconds.
pub(super) const DAY: i64 = 86_400_000;

/// Who receives a role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grantee {
    /// A role.
    Role(String),
    /// A user.
    User(String),
}

/// A user, as far as the broker or its users could notice.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// `TYPE`; `PERSON` unless given.
    pub kind: String,
    /// The role that owns it.
    pub owner: String,
    /// Milliseconds since the epoch.
    pub created_on: i64,
    /// `RSA_PUBLIC_KEY`, and named keys by their names: base64 of the SPKI.
    pub keys: BTreeMap<String, Key>,
    /// `DEFAULT_ROLE`. Not checked, and no grant.
    pub default_role: Option<String>,
    /// `DEFAULT_WAREHOUSE`. Not checked.
    pub default_warehouse: Option<String>,
    /// `DEFAULT_SECONDARY_ROLES`: all, unless it was set to `()`.
    pub secondary_roles: bool,
    /// When it expires: milliseconds since the epoch.
    pub expires_at: Option<i64>,
    /// `DISABLED`.
    pub disabled: bool,
    /// `COMMENT`.
    pub comment: Option<String>,
    /// Session parameters set on the user, such as `QUERY_TAG`.
    pub parameters: BTreeMap<String, String>,
    /// `SESSION POLICY`.
    pub session_policy: Option<String>,
    /// `NETWORK_POLICY`.
    pub network_policy: Option<String>,
    /// Logins that failed since the last that did not.
    pub failed_logins: u32,
    /// Locked until then.
    pub locked_until: Option<i64>,
}

/// Something in a database that a role owns. What it does is of no matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Such as `TASK`.
    pub kind: String,
    /// With its database and schema.
    pub name: String,
    /// The role that owns it.
    pub owner: String,
    /// Milliseconds since the epoch.
    pub created_on: i64,
}

/// A public key of a user.
#[derive(Debug, Clone)]
pub struct Key {
    /// Base64 of the SPKI.
    pub spki: String,
    /// It is taken until then.
    pub until: Option<i64>,
}

/// All of an account's state.
#[derive(Debug, Default)]
pub struct Account {
    pub(super) users: BTreeMap<String, User>,
    /// Each role and its owner.
    pub(super) roles: BTreeMap<String, String>,
    pub(super) grants: BTreeSet<(String, Grantee)>,
    /// Privileges on the account itself, by role.
    pub(super) privileges: BTreeSet<(String, String)>,
    pub(super) objects: Vec<Object>,
    /// Session policies, by their full names.
    pub(super) session_policies: BTreeSet<String>,
    /// Whether CREATE USER is enough to see all of every user: the vendor's pages do not agree on it.
    pub(super) creators_see_users: bool,
    /// Network policies and the addresses that each lets in.
    pub(super) network_policies: BTreeMap<String, Vec<String>>,
    /// Milliseconds since the epoch, as the account's clock shows them.
    pub(super) now: i64,
}

impl Account {
    /// An account as it is handed over: the system's roles, and one administrator `ADMIN` without a key.
    pub fn new() -> Self {
        let mut account = Self::default();
        for role in ["ACCOUNTADMIN", "SECURITYADMIN", "USERADMIN", "SYSADMIN", "PUBLIC"] {
            account.roles.insert(role.to_owned(), "ACCOUNTADMIN".to_owned());
        }
        for (role, holder) in [
            ("SECURITYADMIN", "ACCOUNTADMIN"),
            ("USERADMIN", "SECURITYADMIN"),
            ("SYSADMIN", "ACCOUNTADMIN"),
        ] {
            account
                .grants
                .insert((role.to_owned(), Grantee::Role(holder.to_owned())));
        }
        for (role, privilege) in [
            ("SECURITYADMIN", "MANAGE GRANTS"),
            ("SECURITYADMIN", "CREATE NETWORK POLICY"),
            ("ACCOUNTADMIN", "CREATE SESSION POLICY"),
            ("ACCOUNTADMIN", "APPLY SESSION POLICY"),
            ("USERADMIN", "CREATE USER"),
            ("USERADMIN", "CREATE ROLE"),
        ] {
            account.privileges.insert((role.to_owned(), privilege.to_owned()));
        }
        let admin = User {
            kind: "PERSON".to_owned(),
            owner: "ACCOUNTADMIN".to_owned(),
            ..User::default()
        };
        account.users.insert("ADMIN".to_owned(), admin);
        account
            .grants
            .insert(("ACCOUNTADMIN".to_owned(), Grantee::User("ADMIN".to_owned())));
        account
    }

    /// Its time: milliseconds since the epoch.
    pub fn now(&self) -> i64 {
        self.now
    }

    /// A user by its exact name.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// The names of all users.
    pub fn user_names(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    /// The roles that a user was granted, without those that come with them.
    pub fn roles_of(&self, user: &str) -> BTreeSet<String> {
        let user = Grantee::User(user.to_owned());
        self.grants
            .iter()
            .filter(|(_, to)| *to == user)
            .map(|(role, _)| role.clone())
            .collect()
    }

    /// A role with all that it holds through other roles.
    pub fn closure(&self, role: &str) -> BTreeSet<String> {
        let mut all = BTreeSet::from([role.to_owned()]);
        let mut more = vec![role.to_owned()];
        while let Some(role) = more.pop() {
            let holder = Grantee::Role(role);
            for (held, to) in &self.grants {
                if *to == holder && all.insert(held.clone()) {
                    more.push(held.clone());
                }
            }
        }
        all
    }

    /// Whether a user may use a role: granted, or held by a role that is.
    pub fn may_use(&self, user: &str, role: &str) -> bool {
        role == "PUBLIC"
            || self
                .roles_of(user)
                .iter()
                .any(|granted| self.closure(granted).contains(role))
    }

    pub(super) fn holds(&self, role: &str, privilege: &str) -> bool {
        let all = self.closure(role);
        self.privileges
            .iter()
            .any(|(holder, held)| held == privilege && all.contains(holder))
    }

    /// Whether a role owns what this owner owns, itself or through a role that it holds.
    pub(super) fn owns(&self, role: &str, owner: &str) -> bool {
        self.closure(role).contains(owner)
    }

    /// The user, if this role may change it. What does not exist and what may not be seen look alike.
    pub(super) fn owned(&mut self, role: &str, name: &str) -> Result<&mut User, Refusal> {
        let all = self.closure(role);
        match self.users.get_mut(name) {
            None => Err(Refusal::missing("User", name)),
            Some(user) if all.contains(&user.owner) => Ok(user),
            Some(_) => Err(Refusal::privilege(&format!("user '{name}'"))),
        }
    }

    /// A role that exists, or the refusal that a server gives.
    pub(super) fn role(&self, name: &str) -> Result<&String, Refusal> {
        self.roles.get(name).ok_or_else(|| Refusal::missing("Role", name))
    }

    /// Who may grant a role: its owner, and who manages grants.
    pub(super) fn may_grant(&self, role: &str, granted: &str) -> Result<(), Refusal> {
        let owner = self.role(granted)?;
        if self.owns(role, owner) || self.holds(role, "MANAGE GRANTS") {
            Ok(())
        } else {
            Err(Refusal::privilege(&format!("role '{granted}'")))
        }
    }

    /// Takes a role away, as somebody else might.
    pub fn take(&mut self, role: &str, from: &Grantee) -> bool {
        self.grants.remove(&(role.to_owned(), from.clone()))
    }

    /// Takes a privilege on the account away.
    pub fn withdraw(&mut self, role: &str, privilege: &str) -> bool {
        self.privileges.remove(&(role.to_owned(), privilege.to_owned()))
    }

    /// Makes somebody else the owner of a role.
    pub fn hand_over(&mut self, role: &str, to: &str) {
        self.roles.insert(role.to_owned(), to.to_owned());
    }

    /// From now on SHOW USERS shows all of every user to who holds CREATE USER.
    pub fn show_users_to_creators(&mut self) {
        self.creators_see_users = true;
    }

    /// Drops a role by an administrator's hand.
    pub fn forget_role(&mut self, name: &str) {
        let gone = Grantee::Role(name.to_owned());
        self.roles.remove(name);
        self.grants.retain(|(role, to)| role != name && *to != gone);
    }

    /// Makes an object in a session of this role, which then owns it.
    pub fn plant(&mut self, kind: &str, name: &str, role: &str) {
        self.objects.push(Object {
            kind: kind.to_owned(),
            name: name.to_owned(),
            owner: role.to_owned(),
            created_on: self.now,
        });
    }

    /// Whether the network lets this user log in from this address. Without a policy it does.
    pub(super) fn lets_in(&self, user: &User, address: &str) -> bool {
        let policy = user
            .network_policy
            .as_ref()
            .and_then(|name| self.network_policies.get(name));
        policy.is_none_or(|allowed| allowed.iter().any(|allowed| allowed == address))
    }

    /// Drops a user by an administrator's hand.
    pub fn forget_user(&mut self, name: &str) {
        self.forget(name);
    }

    /// Gives a user another name. All else stays with it.
    pub(super) fn rename(&mut self, name: &str, to: String) -> Result<(), Refusal> {
        if self.users.contains_key(&to) {
            return Err(Refusal::exists("User", &to));
        }
        let user = self.users.remove(name).ok_or_else(|| Refusal::missing("User", name))?;
        let (old, new) = (Grantee::User(name.to_owned()), Grantee::User(to.clone()));
        let granted: Vec<_> = self.grants.extract_if(.., |(_, holder)| *holder == old).collect();
        self.grants
            .extend(granted.into_iter().map(|(role, _)| (role, new.clone())));
        self.users.insert(to, user);
        Ok(())
    }

    /// Forgets a user and all grants to it.
    pub(super) fn forget(&mut self, name: &str) {
        let gone = Grantee::User(name.to_owned());
        self.users.remove(name);
        self.grants.retain(|(_, to)| *to != gone);
    }
}

impl User {
    /// Why it may not log in now, as a detail code of the vendor's, if it may not.
    pub fn locked_out(&self, now: i64) -> Option<&'static str> {
        if self.disabled {
            return Some("390101");
        }
        if self.expires_at.is_some_and(|end| end < now) {
            return Some("390100");
        }
        if self.locked_until.is_some_and(|until| now < until) {
            return Some("390102");
        }
        None
    }

    /// `DAYS_TO_EXPIRY` as it is shown: what is left, in days.
    pub fn days_left(&self, now: i64) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "days, for people")]
        self.expires_at.map(|end| (end - now) as f64 / DAY as f64)
    }
}
