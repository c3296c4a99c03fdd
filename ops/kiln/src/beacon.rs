//! The beacon of a running `kiln up`: the file that tells other commands of this machine how to reach it.
//!
//! The farm holds a lock on the very file, which the kernel takes away with the process: a beacon that a crash or a reboot left
//! behind is known as such. A process id would not tell, for another process may have it by then.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// How a running farm can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// Its process, for people and scripts.
    pub pid: u32,
    /// UDP address of the coordinator.
    pub link: SocketAddr,
    /// Where the binary cache is served.
    pub cache: String,
    /// The key that signs it, as Nix writes it.
    pub public_key: String,
    /// Directory with a client's certificate.
    pub identity: PathBuf,
}

/// A beacon that is lit: as long as this lives, [`Beacon::read`] finds it.
#[derive(Debug)]
pub struct Lit {
    path: PathBuf,
    _lock: File,
}

impl Beacon {
    /// Reads the beacon of a farm that runs in `dir`; none if none does.
    pub fn read(dir: &Path) -> Option<Self> {
        let mut file = File::open(path(dir)).ok()?;
        if file.try_lock_shared().is_ok() {
            // Nobody holds it.
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the beacon of a farm that answers.
    ///
    /// # Errors
    /// Says what could not be done to which file.
    pub fn light(&self, dir: &Path) -> anyhow::Result<Lit> {
        let path = path(dir);
        let staged = path.with_extension("new");
        // What an interrupted start left there may be locked still.
        if let Err(error) = std::fs::remove_file(&staged)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("remove `{}`", staged.display()));
        }
        let lock = File::create_new(&staged).with_context(|| format!("make `{}`", staged.display()))?;
        // Locked and whole before it has its name, so that nobody reads it otherwise. The farm's own lock keeps others away.
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => anyhow::bail!("lock `{}`: another process has it", staged.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock `{}`", staged.display())),
        }
        let write = (&lock).write_all(&serde_json::to_vec_pretty(self)?).and_then(|()| std::fs::rename(&staged, &path));
        write.with_context(|| format!("write `{}`", path.display()))?;
        Ok(Lit { path, _lock: lock })
    }
}

impl Lit {
    /// Takes the beacon away, before the farm ends: who looks from here on finds none.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn put_out(self) -> anyhow::Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("remove `{}`", self.path.display()))
    }
}

/// Returns where a farm that runs in `dir` has its beacon.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("farm.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beacon() -> Beacon {
        Beacon {
            pid: std::process::id(),
            link: SocketAddr::from(([127, 0, 0, 1], 7420)),
            cache: "http://127.0.0.1:7480".to_owned(),
            public_key: "key".to_owned(),
            identity: PathBuf::from("client"),
        }
    }

    #[test]
    fn a_beacon_is_found_while_its_farm_lives_and_no_longer_whatever_its_process_id() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(Beacon::read(dir.path()), None);
        let lit = beacon().light(dir.path()).expect("lights");
        assert_eq!(Beacon::read(dir.path()), Some(beacon()));
        assert_eq!(Beacon::read(dir.path()), Some(beacon()), "reading it does not put it out");
        // As a crash does: the file stays, with the id of a process that lives, this one.
        drop(lit);
        assert!(path(dir.path()).exists());
        assert_eq!(Beacon::read(dir.path()), None);
        let again = beacon().light(dir.path()).expect("lights over what was left behind");
        assert_eq!(Beacon::read(dir.path()), Some(beacon()));
        again.put_out().expect("removes");
        assert!(!path(dir.path()).exists());
    }

    #[test]
    fn what_is_no_beacon_is_none_even_if_it_is_locked() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for text in ["", "{", "{\"pid\": 1}"] {
            std::fs::write(path(dir.path()), text).expect("write");
            let file = File::open(path(dir.path())).expect("open");
            file.lock().expect("lock");
            assert_eq!(Beacon::read(dir.path()), None, "{text}");
        }
    }
}
