//! The file: who may open it, and what stands in it. Migrations go forward only.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kdbt_api::name::InstallationName;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

/// "kdbt" in ASCII: tells our files from other SQLite files.
const APPLICATION_ID: i64 = 0x6b64_6274;

/// How long a statement waits for another process that holds the file, such as an operator's shell.
const BUSY: Duration = Duration::from_secs(2);

/// One batch of statements per version of the schema.
const MIGRATIONS: &[&str] = &[include_str!("schema/1.sql"), include_str!("schema/2.sql")];

/// Why a store cannot be opened. For operators.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its folder cannot be used.
    #[error("cannot open the store `{}`: {why}; its folder must exist and be writable for the broker", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// Another broker has it.
    #[error("another broker has the store `{}` open: stop it first, since two would end each other's leases", .0.display())]
    Locked(PathBuf),
    /// A broker of a later version has written it.
    #[error(
        "the store `{}` has schema {found}, this broker knows up to {known}: use a newer broker, or a backup from \
         before the upgrade",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// An SQLite file of something else.
    #[error("`{}` is not a kdbt store; name another file", .0.display())]
    Foreign(PathBuf),
    /// The store of another installation.
    #[error("the store `{}` belongs to the installation `{theirs}`, not to `{ours}`", path.display())]
    OtherInstallation {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        theirs: String,
        /// Who asks.
        ours: InstallationName,
    },
}

impl OpenError {
    pub(super) fn file(path: &Path, why: &impl ToString) -> Self {
        Self::File {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
}

/// Takes the lock that keeps a second broker out. It lies beside the store, is held while the value lives, and
/// goes with the process however that ends.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = private(&PathBuf::from(name)).map_err(|error| OpenError::file(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(OpenError::file(path, &error)),
    }
}

/// Which file it is that was opened, whatever stands under its name later.
pub(super) struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// Whether the name still leads to that file.
    pub(super) fn holds(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|now| now.dev() == self.device && now.ino() == self.inode)
    }
}

/// A file that only its owner can read; SQLite gives the files beside it the same mode.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Opens the file for writing and brings it to the newest schema.
pub(super) fn open(path: &Path, installation: &InstallationName) -> Result<Connection, OpenError> {
    private(path).map_err(|error| OpenError::file(path, &error))?;
    let failed = |error: rusqlite::Error| OpenError::file(path, &error);
    let mut db = Connection::open_with_flags(path, flags(OpenFlags::SQLITE_OPEN_READ_WRITE)).map_err(failed)?;
    db.busy_timeout(BUSY).map_err(failed)?;
    db.set_prepared_statement_cache_capacity(128);
    let version = version(&db, path)?;
    // FULL: an acknowledged commit outlives a power cut. Foreign keys are off by default in SQLite.
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(failed)?;
    migrate(&mut db, version).map_err(failed)?;
    match claim(&db, installation).map_err(failed)? {
        theirs if theirs == installation.as_str() => {
            void_claims(&db).map_err(failed)?;
            Ok(db)
        }
        theirs => Err(OpenError::OtherInstallation {
            path: path.to_owned(),
            theirs,
            ours: installation.clone(),
        }),
    }
}

/// Opens the file for reading only, next to a running broker or without one.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, OpenError> {
    let failed = |error: rusqlite::Error| OpenError::file(path, &error);
    let db = Connection::open_with_flags(path, flags(OpenFlags::SQLITE_OPEN_READ_ONLY)).map_err(failed)?;
    db.busy_timeout(BUSY).map_err(failed)?;
    match version(&db, path)? {
        0 => Err(OpenError::Foreign(path.to_owned())),
        _ => Ok(db),
    }
}

fn flags(access: OpenFlags) -> OpenFlags {
    access | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// The schema's version; 0 for an empty file.
fn version(db: &Connection, path: &Path) -> Result<i64, OpenError> {
    let number = |pragma: &str| {
        db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0))
            .map_err(|error| OpenError::file(path, &error))
    };
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found = number("user_version")?;
    let empty = number("schema_version")? == 0;
    match number("application_id")? {
        APPLICATION_ID if (0..=known).contains(&found) => Ok(found),
        APPLICATION_ID => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known,
        }),
        0 if empty => Ok(0),
        _ => Err(OpenError::Foreign(path.to_owned())),
    }
}

fn migrate(db: &mut Connection, from: i64) -> rusqlite::Result<()> {
    for (migration, to) in MIGRATIONS.iter().zip(1_i64..).filter(|(_, to)| *to > from) {
        let change = db.transaction()?;
        change.execute_batch(migration)?;
        change.pragma_update(None, "application_id", APPLICATION_ID)?;
        change.pragma_update(None, "user_version", to)?;
        change.commit()?;
    }
    Ok(())
}

/// Whoever claimed leases before has died, since nobody else can hold the lock: they are due at once. When they were
/// issued is past by any clock.
fn void_claims(db: &Connection) -> rusqlite::Result<()> {
    let void = "UPDATE leases SET claim = NULL, wake_at = issued_at WHERE claim IS NOT NULL AND wake_at IS NOT NULL";
    db.execute(void, []).map(drop)
}

/// Writes down whose store it is, the first time, and says whose it is.
fn claim(db: &Connection, installation: &InstallationName) -> rusqlite::Result<String> {
    let theirs = db
        .query_row("SELECT name FROM installation", [], |row| row.get(0))
        .optional()?;
    if let Some(theirs) = theirs {
        return Ok(theirs);
    }
    db.execute("INSERT INTO installation (name) VALUES (?1)", [installation.as_str()])?;
    Ok(installation.as_str().to_owned())
}
