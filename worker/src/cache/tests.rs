//! The cache on the real file system.

use std::collections::BTreeSet;

use kiln_wire::{Blake3Hash, Blob};

use super::*;

fn info(name: char, content: u8, size: u64) -> PathInfo {
    let path = StorePath::parse(&format!("{}-{name}", "0".repeat(32))).expect("a store path");
    let blob = Blob { size_bytes: 1, blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) };
    let nar_hash = Sha256Hash([content; 32]);
    PathInfo { path, nar_hash, nar_size_bytes: size, references: BTreeSet::new(), deriver: None, content_address: None, blob }
}

fn open(dir: &Path, bytes_max: u64) -> Cache {
    Cache::open(dir, bytes_max, Trash::open(&dir.join("trash")).expect("trash")).expect("cache")
}

fn keep(cache: &Cache, info: &PathInfo) -> Result<Pin, CacheError> {
    let incoming = cache.incoming();
    std::fs::write(&incoming, info.nar_hash.to_string()).expect("write");
    let mut pin = cache.empty_pin();
    pin.keep_incoming(info, &incoming).map(|()| pin)
}

fn present(cache: &Cache) -> String {
    let index = cache.index();
    index.entries.keys().map(StorePath::name).collect()
}

#[test]
fn the_least_recently_used_unpinned_path_goes_first() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cache = open(dir.path(), 30);
    let [a, b, c, d] = ['a', 'b', 'c', 'd'].map(|name| info(name, 1, 10));
    let pinned = keep(&cache, &b).expect("kept");
    for path in [&a, &c] {
        drop(keep(&cache, path).expect("kept"));
    }
    drop(cache.pin(std::slice::from_ref(&a)));
    drop(keep(&cache, &d).expect("kept"));
    assert_eq!(present(&cache), "abd", "c was used longest ago among the unpinned");
    assert!(!cache.host_path(&c.path).exists());
    drop(pinned);
    assert_eq!(cache.index().bytes, 30);
}

#[test]
fn a_full_cache_of_pinned_paths_takes_more_and_shrinks_later() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cache = open(dir.path(), 10);
    let first = keep(&cache, &info('a', 1, 10)).expect("kept");
    let second = keep(&cache, &info('b', 1, 10)).expect("kept");
    assert_eq!(cache.index().bytes, 20);
    drop((first, second));
    assert_eq!(cache.index().bytes, 10);
}

#[test]
fn other_content_of_a_path_is_missing_and_replaces_only_what_nobody_uses() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cache = open(dir.path(), 100);
    let (old, new) = (info('a', 1, 10), info('a', 2, 20));
    let pin = keep(&cache, &old).expect("kept");
    assert_eq!(cache.pin(std::slice::from_ref(&new)).missing, std::slice::from_ref(&new));
    assert!(matches!(keep(&cache, &new), Err(CacheError::InUse { .. })));
    drop(pin);
    drop(keep(&cache, &new).expect("nobody uses the old one"));
    assert_eq!(std::fs::read_to_string(cache.host_path(&new.path)).expect("read"), new.nar_hash.to_string());
    assert_eq!(cache.index().bytes, 20);
}

#[test]
fn a_restart_keeps_whole_paths_and_throws_away_the_rest() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let a = info('a', 1, 10);
    {
        let cache = open(dir.path(), 100);
        drop(keep(&cache, &a).expect("kept"));
        std::fs::write(cache.incoming(), "half").expect("write");
        std::fs::write(dir.path().join("store").join(info('b', 1, 1).path.as_str()), "not in the ledger").expect("write");
        std::fs::write(dir.path().join("store/strange"), "no store path").expect("write");
    }
    let cache = open(dir.path(), 100);
    assert_eq!(present(&cache), "a");
    assert!(cache.pin(std::slice::from_ref(&a)).missing.is_empty());
    let left: Vec<_> = std::fs::read_dir(dir.path().join("store")).expect("list").collect();
    assert_eq!(left.len(), 1);
    assert_eq!(std::fs::read_dir(dir.path().join("incoming")).expect("list").count(), 0);
}

#[test]
fn what_was_written_before_the_machine_started_is_hashed_first() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let a = info('a', 1, 10);
    drop(keep(&open(dir.path(), 100), &a).expect("kept"));
    let ledger = dir.path().join("state/store.ledger");
    let text = std::fs::read_to_string(&ledger).expect("read").replace(&boot_id(), "an-earlier-run");
    std::fs::write(&ledger, text).expect("write");
    let cache = open(dir.path(), 100);
    let found = cache.pin(std::slice::from_ref(&a));
    assert_eq!((found.missing.len(), found.unproven.len()), (0, 1));
    cache.prove(&a.path);
    assert!(cache.pin(std::slice::from_ref(&a)).unproven.is_empty());
    let cache = open(dir.path(), 100);
    assert!(cache.pin(std::slice::from_ref(&a)).unproven.is_empty(), "a proof outlives the process");
}
