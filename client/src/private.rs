//! Files and folders for one user only: 0700 and 0600 from their first moment, written whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rand::Rng as _;

use crate::exit::{Code, Failure, Outcome};

/// The largest file of ours that is read.
const MAX_BYTES: u64 = 1024 * 1024;

/// Passwords and tokens pass through our memory, so it must not reach a disk, nor a debugger of somebody else's.
///
/// A limit would be inherited by what `exec` runs, whose dumps are its own; this ends where another program begins.
pub(crate) fn forbid_core_dumps() -> Outcome<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| Failure::new(Code::Failed, format!("core dumps cannot be turned off: {error}")))?;
    Ok(())
}

/// Makes a folder 0700 (with its parents) unless it is there; one that others may write to is refused.
pub(crate) fn create_folder(path: &Path) -> Outcome<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(path)
        .map_err(|error| Failure::file("make the folder", path, &error))?;
    check_mode(path, 0o022)
}

/// Writes a file 0600: beside its place first, then renamed over it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", random_hex()));
    let beside = PathBuf::from(beside);
    create(&beside, bytes)?;
    std::fs::rename(&beside, path).map_err(|error| {
        // The failed rename is what counts; the leftover is tried once.
        let _ = std::fs::remove_file(&beside);
        Failure::file("write", path, &error)
    })
}

/// Writes a value as JSON like [`write()`].
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Outcome<()> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Failure::new(Code::Failed, format!("cannot write `{}`: {error}", path.display())))?;
    write(path, &bytes)
}

/// Reads a value that [`write_json`] wrote; `None` if there is no file. One that others may read is refused.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Outcome<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::file("read", path, &error)),
    };
    check_mode(path, 0o077)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::file("read", path, &error))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|_| {
        // The parser's text could quote the file.
        Failure::new(Code::Failed, format!("`{}` is damaged", path.display())).hint("remove it and log in again")
    })
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Outcome<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::file("remove", path, &error)),
        _ => Ok(()),
    }
}

/// Waits until no other process holds the lock of this file; held until dropped.
pub(crate) fn lock(path: &Path) -> Outcome<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options
        .open(path)
        .map_err(|error| Failure::file("open", path, &error))?;
    file.lock().map_err(|error| Failure::file("lock", path, &error))?;
    Ok(file)
}

/// A new file 0600; one that exists already, or a link, is refused.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|error| Failure::file("write", path, &error))
}

/// 16 random bytes as hex, for names that nobody can guess.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 16];
    crate::settings::rng().fill_bytes(&mut bytes);
    kdbt_api::hex::encode(&bytes)
}

fn check_mode(path: &Path, forbidden: u32) -> Outcome<()> {
    let metadata = std::fs::metadata(path).map_err(|error| Failure::file("look at", path, &error))?;
    if metadata.mode() & forbidden == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Code::Failed,
        format!(
            "`{}` is open to other users (mode {:o})",
            path.display(),
            metadata.mode() & 0o777
        ),
    )
    .hint(format!("chmod go-rwx '{}'", path.display())))
}

/// A folder that lives as long as this value.
#[derive(Debug)]
pub(crate) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// In the runtime folder (memory, gone at logout) if there is one, else where temporary files go.
    pub(crate) fn new() -> Outcome<Self> {
        let runtime = crate::settings::variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        let parent = runtime.filter(|path| path.is_dir()).unwrap_or_else(std::env::temp_dir);
        let path = parent.join(format!("kdbt-{}", random_hex()));
        let created = DirBuilder::new().mode(0o700).create(&path);
        created.map_err(|error| Failure::file("make the folder", &path, &error))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // It holds no secret, so what cannot be removed harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_for_its_owner_only_and_an_open_one_is_refused() {
        let folder = TemporaryFolder::new().unwrap();
        let path = folder.path().join("token.json");
        write_json(&path, &"secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_json::<String>(&path).unwrap().as_deref(), Some("secret"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_json::<String>(&path).is_err());
    }

    #[test]
    fn a_damaged_file_is_not_quoted() {
        let folder = TemporaryFolder::new().unwrap();
        let path = folder.path().join("token.json");
        write(&path, b"\"hunter2").unwrap();
        let failure = read_json::<String>(&path).unwrap_err();
        assert!(!failure.to_string().contains("hunter2"));
    }

    #[test]
    fn a_temporary_folder_goes_with_its_value() {
        let folder = TemporaryFolder::new().unwrap();
        let path = folder.path().to_owned();
        create(&path.join("a"), b"x").unwrap();
        assert!(
            create(&path.join("a"), b"y").is_err(),
            "an existing file was overwritten"
        );
        drop(folder);
        assert!(!path.exists());
    }
}
