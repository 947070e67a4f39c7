//! A Snowflake account, simulated: the SQL API in front of an account model, strict and deny by default.
//!
//! It shares no code with the driver, nor with who signs tokens. What it does and where that is known from stands in
//! [`behaviour`]; no live account was ever asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::account::Account;
use self::fault::{Fault, Script};
use self::token::Token;

pub mod account;
pub mod behaviour;
pub mod fakesnow;
pub mod fault;
pub mod gate;
mod server;
pub mod stack;
mod statement;
pub mod token;
pub mod words;

/// An answer that says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The vendor's code.
    pub code: String,
    /// SQLSTATE.
    pub sql_state: String,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal in full.
    pub fn new(status: u16, code: &str, sql_state: &str, message: &str) -> Self {
        Self {
            status,
            code: code.to_owned(),
            sql_state: sql_state.to_owned(),
            message: message.to_owned(),
        }
    }

    fn syntax(what: &str) -> Self {
        Self::new(
            422,
            "001003",
            "42000",
            &format!("SQL compilation error:\nsyntax error: {what}."),
        )
    }

    fn missing(kind: &str, name: &str) -> Self {
        let message = format!("SQL compilation error:\n{kind} '{name}' does not exist or not authorized.");
        Self::new(422, "002003", "02000", &message)
    }

    fn exists(kind: &str, name: &str) -> Self {
        let message = format!("SQL compilation error:\nObject '{name}' already exists ({kind}).");
        Self::new(422, "002002", "42710", &message)
    }

    fn privilege(on: &str) -> Self {
        let message = format!("SQL access control error:\nInsufficient privileges to operate on {on}.");
        Self::new(422, "003001", "42501", &message)
    }
}

/// Rows of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    fn new(columns: &[&str], rows: Vec<Vec<Option<String>>>) -> Self {
        Self {
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            rows,
        }
    }

    fn status(text: &str) -> Self {
        Self::new(&["status"], vec![vec![Some(text.to_owned())]])
    }
}

/// One statement as it arrived.
#[derive(Debug, Clone)]
pub struct Said {
    /// The user whose token it came with.
    pub user: String,
    /// The role that it asked for.
    pub role: String,
    /// The id of the request.
    pub request: Option<String>,
    /// It said that it comes again.
    pub retry: bool,
    /// The statement.
    pub text: String,
    /// `None` where an earlier answer was given again; else `Ok`, or the code.
    pub outcome: Option<Result<(), String>>,
}

/// A login that was refused, as `SYSTEM$GET_LOGIN_FAILURE_DETAILS` would tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginFailure {
    /// The id that the public answer names.
    pub id: String,
    /// The cause.
    pub code: &'static str,
}

fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// All that happens in there.
struct Inside {
    account: Account,
    name: String,
    /// How far the account's clock is ahead of the machine's, in milliseconds.
    ahead: i64,
    script: Script,
    transcript: Vec<Said>,
    failures: Vec<LoginFailure>,
    /// What was answered to whom, for who asks again.
    answers: BTreeMap<String, Table>,
    /// Results to be fetched: the handle, how often it is still not ready, and the result.
    pending: BTreeMap<String, (u32, Table)>,
    partition: usize,
    latency: Duration,
    /// Wrong logins that lock a user for a quarter of an hour.
    strikes: u32,
}

/// A running simulator. It stops when the last clone is gone with the runtime.
#[derive(Clone)]
pub struct Simulator {
    inside: Arc<Mutex<Inside>>,
    address: SocketAddr,
}

impl Simulator {
    /// An account of this name, such as `MYORG-MYACCT`, on a loopback port.
    pub async fn start(name: &str) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let inside = Inside {
            account: Account::new(),
            name: name.to_ascii_uppercase(),
            ahead: 0,
            script: Script::default(),
            transcript: Vec::new(),
            failures: Vec::new(),
            answers: BTreeMap::new(),
            pending: BTreeMap::new(),
            partition: 10_000,
            latency: Duration::ZERO,
            strikes: 5,
        };
        let simulator = Self {
            inside: Arc::new(Mutex::new(inside)),
            address: listener.local_addr()?,
        };
        tokio::spawn(server::serve(listener, simulator.clone()));
        Ok(simulator)
    }

    /// Where the SQL API is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address alone.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the account.
    pub fn look<T>(&self, at: impl FnOnce(&Account) -> T) -> T {
        let mut inside = self.inside();
        inside.tick();
        at(&inside.account)
    }

    /// Changes the account as nobody from outside could.
    pub fn change<T>(&self, by: impl FnOnce(&mut Account) -> T) -> T {
        let mut inside = self.inside();
        inside.tick();
        by(&mut inside.account)
    }

    /// Runs a script as an administrator does in a worksheet: statement by statement, `USE ROLE` between them.
    pub fn run_script(&self, script: &str) -> Result<(), (String, Refusal)> {
        let mut role = "ACCOUNTADMIN".to_owned();
        let code: String = script
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .collect::<Vec<_>>()
            .join("\n");
        for text in code.split(';').map(str::trim).filter(|text| !text.is_empty()) {
            let mut inside = self.inside();
            inside.tick();
            let done = match text.strip_prefix("USE ROLE ") {
                Some(name) => {
                    name.trim_matches('"').clone_into(&mut role);
                    inside.account.role(&role).map(|_| ())
                }
                None => statement::run(&mut inside.account, "ADMIN", &role, text).map(|_| ()),
            };
            done.map_err(|refusal| (text.to_owned(), refusal))?;
        }
        Ok(())
    }

    /// One statement of a role, as somebody who holds it asks in a worksheet.
    pub fn ask(&self, role: &str, text: &str) -> Result<Table, Refusal> {
        let mut inside = self.inside();
        inside.tick();
        statement::run(&mut inside.account, "ADMIN", role, text)
    }

    /// Every statement so far.
    pub fn transcript(&self) -> Vec<Said> {
        self.inside().transcript.clone()
    }

    /// Every refused login so far.
    pub fn login_failures(&self) -> Vec<LoginFailure> {
        self.inside().failures.clone()
    }

    /// The next `times` requests whose statement begins like this meet a fault.
    pub fn fault(&self, beginning: &str, fault: Fault, times: u32) {
        self.inside().script.add(beginning, fault, times);
    }

    /// Nobody is answered until this is called with `false`.
    pub fn is_down(&self, down: bool) {
        self.inside().script.down = down;
    }

    /// How many rows are in a partition.
    pub fn partitions_of(&self, rows: usize) {
        self.inside().partition = rows;
    }

    /// Every answer takes so long. Answers do not wait for one another.
    pub fn latency(&self, latency: Duration) {
        self.inside().latency = latency;
    }

    /// Sets the account's clock against the machine's.
    pub fn set_ahead(&self, ahead: i64) {
        self.inside().ahead = ahead;
    }

    /// A login by key pair, as the connectors do it: the user, or the code that its answer has.
    pub fn log_in(&self, token: &str) -> Result<String, &'static str> {
        let mut inside = self.inside();
        inside.tick();
        inside.log_in(token)
    }
}

impl Inside {
    fn tick(&mut self) {
        self.account.now = jiff::Timestamp::now().as_millisecond() + self.ahead;
    }

    /// Every rule for a token, in the order of the vendor's list of causes.
    fn log_in(&mut self, text: &str) -> Result<String, &'static str> {
        let now = self.account.now;
        let token = Token::read(text)?;
        let claims = &token.claims;
        let (account, name) = claims.sub.split_once('.').ok_or("394300")?;
        if account != self.name {
            return Err("394307");
        }
        let (user, fingerprint) = claims.iss.rsplit_once('.').ok_or("394304")?;
        if user != claims.sub {
            return Err("394300");
        }
        let seconds = now.div_euclid(1000);
        if claims.iat > seconds + 1 || claims.iat < seconds - 60 {
            return Err("394302");
        }
        if claims.exp <= seconds {
            return Err("394303");
        }
        let user = self.account.users.get_mut(name).ok_or("394300")?;
        if let Some(code) = user.locked_out(now) {
            return Err(code);
        }
        let strike = |user: &mut account::User, code, strikes| {
            user.failed_logins += 1;
            if user.failed_logins >= strikes {
                user.locked_until = Some(now + 15 * 60_000);
            }
            Err(code)
        };
        let named = |key: &&account::Key| token::fingerprint(&key.spki).as_deref() == Some(fingerprint);
        let valid = |key: &&account::Key| key.until.is_none_or(|until| now < until);
        let Some(key) = user.keys.values().filter(valid).find(named) else {
            return strike(user, "394304", self.strikes);
        };
        if !token.is_signed_by(&key.spki) {
            return strike(user, "394306", self.strikes);
        }
        user.failed_logins = 0;
        Ok(name.to_owned())
    }
}
