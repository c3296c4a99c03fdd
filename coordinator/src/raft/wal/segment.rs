//! Segment files: made full of zeros, named only once their head is durable, sealed when complete.

use std::io;
use std::path::{Path, PathBuf};

use super::super::disk::{self, File, FileExt, OpenOptions};
use super::layout::{BLOCK_BYTES, Header, encode_seal};
use super::{WalError, at};

/// Name of a file that is being filled with zeros. One may be left behind by a crash.
pub const PREPARED: &str = "prepared.tmp";

const ENDING: &str = ".wal";

/// Returns the path of segment `number` in `dir`.
pub fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}{ENDING}"))
}

/// Returns the numbers of the segments in `dir`, ascending.
///
/// # Errors
/// [`WalError::Io`] if the directory cannot be read, [`WalError::Stranger`] for a file that is none of the log's.
pub fn list(dir: &Path) -> Result<Vec<u64>, WalError> {
    let mut numbers = Vec::new();
    for file in disk::read_dir(dir).map_err(at("list", dir))? {
        let file = file.map_err(at("list", dir))?.path();
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == PREPARED {
            continue;
        }
        let number = name.strip_suffix(ENDING).and_then(|digits| digits.parse().ok());
        match number {
            Some(number) if path(dir, number) == file => numbers.push(number),
            Some(_) | None => return Err(WalError::Stranger { path: file }),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes a file of `size_bytes` zeros that are really on the disk, so that a later fdatasync writes no metadata.
///
/// # Errors
/// [`WalError::Io`] if the disk refuses.
pub fn prepare(dir: &Path, size_bytes: u64) -> Result<File, WalError> {
    let path = dir.join(PREPARED);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).map_err(at("create", &path))?;
    fill(&file, 0, size_bytes).map_err(at("fill", &path))?;
    Ok(file)
}

/// Writes zeros from `start` to `end` and waits until they are on the disk, length and all.
pub fn fill(file: &File, start: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut offset = start;
    while offset < end {
        let count = usize::try_from(end - offset).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..count], offset)?;
        offset += count as u64;
    }
    file.sync_all()
}

/// Gives the prepared file its name; its header and first records must be written already.
///
/// # Errors
/// [`WalError::Io`] if the disk refuses.
pub fn publish(dir: &Path, file: &mut File, number: u64) -> Result<(), WalError> {
    let path = path(dir, number);
    file.sync_data().map_err(at("sync", &path))?;
    disk::rename_open(file, &dir.join(PREPARED), &path).map_err(at("name", &path))?;
    sync_dir(dir)
}

/// Marks a segment as complete. Done after the next segment has its name, so a seal without a successor means a lost file.
///
/// # Errors
/// [`WalError::Io`] if the disk refuses.
pub fn seal(dir: &Path, file: &File, header: &Header, last_seq: u64) -> Result<(), WalError> {
    let path = path(dir, header.number);
    file.write_all_at(&encode_seal(header, last_seq), BLOCK_BYTES as u64).map_err(at("seal", &path))?;
    file.sync_data().map_err(at("seal", &path))
}

/// Makes names in `dir` durable.
///
/// # Errors
/// [`WalError::Io`] if the disk refuses.
pub fn sync_dir(dir: &Path) -> Result<(), WalError> {
    disk::sync_dir(dir).map_err(at("sync", dir))
}
