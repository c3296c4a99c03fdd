//! One build's own directory: made below a directory that only root may enter, thrown away whole when the build is over.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;

use crate::trash::{Trash, c_name, open_dir};

/// A directory that goes to the trash when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    trash: Trash,
}

impl Scratch {
    /// Makes a directory below `parent`. Its name starts with `label` and cannot be guessed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(parent: &Path, label: &str, trash: &Trash) -> io::Result<Self> {
        let dir = parent.join(format!("{label}-{:016x}", random()?));
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self { dir, trash: trash.clone() })
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let parent = self.dir.parent().unwrap_or(Path::new("/"));
        let name = Path::new(self.dir.file_name().unwrap_or_default());
        let discarded = c_name(parent)
            .and_then(|parent| Ok(open_dir(CWD, &parent)?))
            .and_then(|parent| self.trash.discard(&parent, &c_name(name)?).map_err(io::Error::other));
        if let Err(err) = discarded {
            tracing::warn!(dir = %self.dir.display(), %err, "throw away a build's directory");
        }
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
