//! The farm's signing key on disk: made at the first start, readable by its owner only.
//!
//! The file holds what `nix key generate-secret` prints, so it can be brought from, or taken to, another cache.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_nix::Keyring;
use kiln_nix::sign::{KeyError, PublicKey, SecretKey};

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read or written.
    #[error("{operation} signing key `{}`", path.display())]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// A key that signs no more cannot be beside the others.
    #[error("retire key `{key}`")]
    Retired {
        /// Its public half.
        key: String,
        /// The rule it breaks.
        #[source]
        err: KeyError,
    },
    /// A key that leaked cannot be beside the others.
    #[error("revoke key `{key}`")]
    Revoked {
        /// Its public half.
        key: String,
        /// The rule it breaks.
        #[source]
        err: KeyError,
    },
    /// Others than its owner may read it.
    #[error("read signing key `{}`: others may read it (mode {mode:o}); run `chmod 600` on it, or make a new key if it may have leaked", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds no key, or none that may be beside the others.
    #[error("read signing key `{}`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The rule it breaks.
        #[source]
        err: KeyError,
    },
}

/// Makes the ring of a farm from its own key, files of further keys that sign, and public halves of keys that signed before:
/// retired and revoked ones.
///
/// # Errors
/// [`KeyFileError`] names the file or key and what to do.
pub fn ring(own: SecretKey, further: &[PathBuf], retired: &[PublicKey], revoked: &[PublicKey]) -> Result<Keyring, KeyFileError> {
    let mut ring = Keyring::of(own);
    for path in further {
        ring.add(load(path)?).map_err(|err| KeyFileError::Malformed { path: path.clone(), err })?;
    }
    for key in retired {
        ring.retire(key.clone()).map_err(|err| KeyFileError::Retired { key: key.to_string(), err })?;
    }
    for key in revoked {
        ring.revoke(key.clone()).map_err(|err| KeyFileError::Revoked { key: key.to_string(), err })?;
    }
    Ok(ring)
}

/// Bytes of a key file at most: a name and 88 characters.
const KEY_FILE_BYTES_MAX: u64 = 1024;

/// Reads the key at `path`, or makes one named `<farm>-1` there if the file does not exist.
///
/// # Errors
/// [`KeyFileError`] names the file and what to do.
pub fn load_or_create(path: &Path, farm: &str) -> Result<SecretKey, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Io { err, .. }) if err.kind() == io::ErrorKind::NotFound => create(path, farm),
        result => result,
    }
}

/// Reads the key at `path`.
///
/// # Errors
/// [`KeyFileError`] names the file and what to do.
pub fn load(path: &Path) -> Result<SecretKey, KeyFileError> {
    let failed = |err| KeyFileError::Io { operation: "read", path: path.to_owned(), err };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    let text = io::read_to_string(io::Read::take(file, KEY_FILE_BYTES_MAX)).map_err(failed)?;
    SecretKey::parse(text.trim_end()).map_err(|err| KeyFileError::Malformed { path: path.to_owned(), err })
}

/// Makes a key and writes it. If another process makes one at the same time, its key is taken.
fn create(path: &Path, farm: &str) -> Result<SecretKey, KeyFileError> {
    let failed = |err| KeyFileError::Io { operation: "write", path: path.to_owned(), err };
    let key = SecretKey::generate(&format!("{farm}-1")).map_err(failed)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(failed)?;
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    let written = writeln!(file, "{}", key.to_secret_text()).and_then(|()| file.sync_all());
    // A hard link, unlike a rename, never replaces a key that somebody else made meanwhile.
    let linked = written.and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary).map_err(failed)?;
    match linked {
        Ok(()) => File::open(dir).and_then(|dir| dir.sync_all()).map(|()| key).map_err(failed),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => load(path),
        Err(err) => Err(failed(err)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("keys/signing.key");
        let made = load_or_create(&path, "farm").expect("makes a key");
        assert!(made.public().to_string().starts_with("farm-1:"));
        assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o7777, 0o600);
        let read = load_or_create(&path, "other").expect("reads the key");
        assert_eq!(read.public().to_string(), made.public().to_string());
        assert_eq!(fs::read_dir(dir.path().join("keys")).expect("lists").count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("signing.key");
        load_or_create(&path, "farm").expect("makes a key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(load(&path).map(drop).expect_err("exposed").to_string().contains("chmod 600"));
        fs::write(&path, "farm-1:AAAA").expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(matches!(load(&path).map(drop), Err(KeyFileError::Malformed { .. })));
    }
}
