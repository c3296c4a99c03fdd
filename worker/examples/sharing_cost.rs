//! Measures what sharing equal files saves in the store cache, and what it costs: unpacking with sharing and without, in turns.
//!
//! `sharing_cost WORK_DIR DIR...`: each entry of each DIR becomes a store path that is fetched, without the network. What cannot be packed
//! (sockets, files of others) is left out. Prints, for each round, CPU seconds for a gigabyte of NAR, bytes on disk and bytes counted.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_nix::scan::Candidates;
use kiln_store::{BlobBytes, Packer};
use kiln_wire::{PathInfo, StorePath};
use kiln_worker::cache::{Budget, Cache};
use kiln_worker::trash::Trash;
use kiln_worker::unpack_canonical;
use rustix::time::{ClockId, clock_gettime};

type Error = dyn StdError + Send + Sync;

fn main() -> Result<(), Box<Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [work_dir, dirs @ ..] = arguments.as_slice() else { return Err("usage: sharing_cost WORK_DIR DIR...".into()) };
    let work = tempfile::tempdir_in(work_dir)?;
    let packed = pack(dirs, work.path())?;
    let gigabytes = packed.iter().map(|(info, _)| info.nar_size_bytes).sum::<u64>() as f64 / 1e9;
    println!("{} paths, {gigabytes:.3} GB as NARs", packed.len());
    for round in 0..ROUNDS {
        let share_files = round % 2 == 1;
        let dir = work.path().join(round.to_string());
        std::fs::create_dir(&dir)?;
        let cache = Cache::open(&dir, Budget { bytes_max: u64::MAX, share_files }, Trash::open(&dir.join("trash"))?)?;
        let before = cpu()?;
        for (info, blob) in &packed {
            let incoming = cache.incoming();
            unpack_canonical(info, blob.reader(), &incoming)?;
            cache.empty_pin().keep_incoming(info, &incoming)?;
        }
        let cost = (cpu()? - before).as_secs_f64() / gigabytes;
        let disk = disk_bytes(&dir.join("store"), &mut BTreeSet::new())? as f64 / 1e9;
        let counted = cache.bytes() as f64 / 1e9;
        let words = if share_files { "shared" } else { "plain " };
        println!("{words}: {cost:.2} s CPU per GB of NAR, {disk:.3} GB on disk, {counted:.3} GB counted");
    }
    Ok(())
}

const ROUNDS: u32 = 4;

fn pack(dirs: &[PathBuf], spool_dir: &Path) -> Result<Vec<(PathInfo, BlobBytes)>, Box<Error>> {
    let packer = Packer { level: 1, spool_dir: spool_dir.into() };
    let none = Candidates::new([]);
    let mut packed = Vec::new();
    for dir in dirs {
        for tree in std::fs::read_dir(dir)? {
            let Ok(tree) = packer.pack(&tree?.path(), &none) else { continue };
            let path = StorePath::parse(&format!("{:0>32}-tree", packed.len()))?;
            packed.push((tree.path_info(path, None, None), tree.spool.into_bytes()));
        }
    }
    Ok(packed)
}

fn cpu() -> Result<Duration, Box<Error>> {
    Ok(Duration::try_from(clock_gettime(ClockId::ProcessCPUTime))?)
}

/// Bytes of the blocks that a tree takes; a file with several names takes them once.
fn disk_bytes(dir: &Path, seen: &mut BTreeSet<u64>) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = std::fs::symlink_metadata(&path)?;
        bytes += if seen.insert(meta.ino()) { meta.blocks() * 512 } else { 0 };
        bytes += if meta.is_dir() { disk_bytes(&path, seen)? } else { 0 };
    }
    Ok(bytes)
}
