//! Many small objects at once: on a local disk they wait for it together, and are read in one task. A task for each of them costs more than
//! its bytes do.
//!
//! Invariant: an object has its name only when its bytes are on stable storage, as with a single one. A file that is synced by itself costs
//! the disk's journal a turn of its own, some 700 µs of processor time; a thousand that are synced together cost one turn. Files that a
//! crash leaves behind have the names of unfinished writes of `object_store`, whose lists leave them out.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::path::Path;

/// Tells unfinished writes apart, from those of `object_store` too, which counts from 1; what a process before left under such a name is written over.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Writes objects below `dir` in place of what was there. On return all are on stable storage; of an error, any of them may be.
pub(crate) fn write_all(dir: &FilePath, objects: &[(Path, Bytes)]) -> io::Result<()> {
    // Opened first: what goes wrong with these files is told to whoever had the file system open before (Linux 5.8 and later).
    let root = File::open(dir)?;
    let mut unfinished = Unfinished(Vec::with_capacity(objects.len()));
    for (key, bytes) in objects {
        let name = dir.join(key.as_ref());
        let parent = name.parent().unwrap_or(dir);
        // Short, whatever the object's own name: a file's name has 255 bytes at most.
        let staged = parent.join(format!("unfinished#9{:012}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let created = match File::create(&staged) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(parent)?;
                File::create(&staged)
            }
            created => created,
        };
        let mut file = created?;
        unfinished.0.push((staged, name));
        file.write_all(bytes)?;
    }
    nix::unistd::syncfs(&root)?;
    while let Some((staged, name)) = unfinished.0.pop() {
        fs::rename(&staged, &name).inspect_err(|_| unfinished.0.push((staged.clone(), name.clone())))?;
    }
    let mut parents: Vec<PathBuf> = objects.iter().filter_map(|(key, _)| Some(dir.join(key.as_ref()).parent()?.to_owned())).collect();
    parents.sort();
    parents.dedup();
    parents.iter().try_for_each(|parent| File::open(parent)?.sync_all())?;
    // A directory that was made here must be found again as well.
    root.sync_all()
}

/// Returns the bytes of an object below `dir`, if it is there, can be read and has at most `bytes_max`.
pub(crate) fn read(dir: &FilePath, key: &Path, bytes_max: u64) -> Option<Bytes> {
    let file = File::open(dir.join(key.as_ref())).ok()?;
    let size_bytes = file.metadata().ok().filter(|known| known.is_file() && known.len() <= bytes_max)?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).ok()?);
    file.take(bytes_max).read_to_end(&mut bytes).ok()?;
    Some(bytes.into())
}

/// Files that have no name of their own yet: dropped, they are removed.
struct Unfinished(Vec<(PathBuf, PathBuf)>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for (staged, _) in &self.0 {
            // What cannot be removed is in nobody's way.
            let _left_behind = fs::remove_file(staged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_there_whole_and_a_failed_one_leaves_nothing_unfinished() {
        let dir = tempfile::tempdir().expect("a directory");
        let long = format!("drv/{}", "n".repeat(255));
        let object = |key: &str, text: &str| (Path::from(key), Bytes::from(text.to_owned()));
        write_all(dir.path(), &[object("drv/a", "1"), object("drv/b", "2"), object("drv/a", "3")]).expect("written");
        write_all(dir.path(), &[object("drv/b", "4")]).expect("written over");
        write_all(dir.path(), &[object(&long, "7"), object("drv/b", "4")]).expect("as long as a file's name may be");
        fs::remove_file(dir.path().join(&long)).expect("it is there");
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(dir.path().join("drv")).expect("lists").map(|file| file.expect("lists").file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["a", "b"]);
        assert_eq!(fs::read(dir.path().join("drv/b")).expect("reads"), b"4");
        let read = |key: &str, bytes_max| read(dir.path(), &Path::from(key), bytes_max);
        assert_eq!(read("drv/b", 1).as_deref(), Some(&b"4"[..]));
        assert_eq!([read("drv/b", 0), read("drv/x", 9), read("drv", 9)], [None, None, None], "too large, absent, and a directory");
        fs::create_dir(dir.path().join("drv/c")).expect("in the way");
        fs::write(dir.path().join("drv/c/d"), "").expect("not empty");
        write_all(dir.path(), &[object("drv/e", "5"), object("drv/c", "6")]).expect_err("a directory is in the way");
        assert!(names().iter().all(|name| !name.to_string_lossy().contains('#')), "{:?}", names());
    }
}
