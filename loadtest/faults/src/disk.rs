//! A small disk for each coordinator, so that it can be full: an ext4 image on a loop device, and a ballast file in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::run::run;

/// A mounted disk. Unmounted when it is dropped.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Makes a disk of `bytes` and mounts it at `dir`; the image lies beside it and takes what is used of it.
    ///
    /// # Errors
    /// What a program said.
    pub fn new(dir: &Path, bytes: u64) -> anyhow::Result<Self> {
        let image = dir.with_extension("img");
        fs::create_dir_all(dir).with_context(|| format!("make `{}`", dir.display()))?;
        let file = File::create(&image).with_context(|| format!("make `{}`", image.display()))?;
        file.set_len(bytes).with_context(|| format!("size `{}`", image.display()))?;
        // Nothing is kept back for root: full is full.
        run("mkfs.ext4", [OsStr::new("-q"), OsStr::new("-F"), OsStr::new("-m"), OsStr::new("0"), image.as_os_str()])?;
        run("mount", [OsStr::new("-o"), OsStr::new("loop"), image.as_os_str(), dir.as_os_str()])?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// Fills it to the last block.
    ///
    /// # Errors
    /// Any other failure to write than that it is full.
    pub fn fill(&self) -> anyhow::Result<()> {
        let path = self.ballast();
        let mut file = File::options().create(true).append(true).open(&path).with_context(|| format!("make `{}`", path.display()))?;
        // Large pieces first, then what is left.
        for piece in [vec![7; 1 << 20], vec![7; 4096]] {
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).with_context(|| format!("fill `{}`", path.display())),
                }
            }
        }
        Ok(())
    }

    /// Frees what was filled.
    ///
    /// # Errors
    /// If the ballast cannot be removed.
    pub fn free(&self) -> anyhow::Result<()> {
        let path = self.ballast();
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("remove `{}`", path.display()))?;
        }
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", [&self.dir]) {
            eprintln!("warning: {error:#}");
        }
    }
}
