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
    Cache::open(dir, Budget { bytes_max, share_files: true }, Trash::open(&dir.join("trash")).expect("trash")).expect("cache")
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
    assert_eq!(cache.index().bytes(), 30);
}

#[test]
fn a_full_cache_of_pinned_paths_takes_more_and_shrinks_later() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cache = open(dir.path(), 10);
    let first = keep(&cache, &info('a', 1, 10)).expect("kept");
    let second = keep(&cache, &info('b', 1, 10)).expect("kept");
    assert_eq!(cache.index().bytes(), 20);
    drop((first, second));
    assert_eq!(cache.index().bytes(), 10);
}

#[test]
fn a_disk_that_is_short_gets_back_what_was_used_longest_ago_and_nothing_that_is_in_use() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cache = open(dir.path(), 1000);
    let pinned = keep(&cache, &info('a', 1, 10)).expect("kept");
    for name in ['b', 'c', 'd'] {
        drop(keep(&cache, &info(name, 1, 10)).expect("kept"));
    }
    let emptied = || {
        let (done, gone) = std::sync::mpsc::channel();
        cache.shared.trash.then(move || done.send(()).expect("somebody waits"));
        gone.recv().expect("the trash is emptied");
    };
    cache.make_room(11);
    assert_eq!(present(&cache), "ad", "b and c were used longest ago");
    emptied();
    assert!(!cache.host_path(&info('b', 1, 10).path).exists());
    cache.make_room(u64::MAX);
    assert_eq!(present(&cache), "a", "a build uses it");
    drop(pinned);
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
    assert_eq!(cache.index().bytes(), 20);
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

/// A path that is a directory with one file of 8,000 times `letter`.
fn tree(cache: &Cache, path: &PathInfo, letter: &str) -> PathInfo {
    use std::os::unix::fs::PermissionsExt as _;
    let info = PathInfo { nar_size_bytes: 10_000, ..path.clone() };
    let incoming = cache.incoming();
    std::fs::create_dir(&incoming).expect("mkdir");
    let file = incoming.join("file");
    std::fs::write(&file, letter.repeat(8000)).expect("write");
    for (path, mode) in [(&file, 0o444), (&incoming, 0o555)] {
        rustix::fs::futimens(std::fs::File::open(path).expect("opens"), &crate::outputs::canonical::MTIME).expect("sets");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let mut pin = cache.empty_pin();
    pin.keep_incoming(&info, &incoming).expect("kept");
    info
}

/// Waits until the trash is empty and what was to follow is done.
fn settle(cache: &Cache) {
    for _ in 0..2 {
        let (done, wait) = std::sync::mpsc::channel();
        cache.shared.trash.then(move || done.send(()).expect("the test waits"));
        wait.recv().expect("the trash's thread lives");
    }
}

fn file_inode(cache: &Cache, info: &PathInfo) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(cache.host_path(&info.path).join("file")).expect("stat"))
}

#[test]
fn what_paths_share_is_counted_once_and_until_the_last_of_them_is_gone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cache = open(dir.path(), 100_000);
    let [a, b, c] = [("a", 'a', "x"), ("b", 'b', "x"), ("c", 'c', "y")].map(|(_, name, letter)| tree(&cache, &info(name, 1, 0), letter));
    assert_eq!(file_inode(&cache, &a), file_inode(&cache, &b));
    assert_eq!(cache.index().bytes(), 3 * 2000 + 2 * 8000);
    drop(cache);
    let cache = open(dir.path(), 100_000);
    assert_eq!(cache.index().bytes(), 3 * 2000 + 2 * 8000, "a restart counts as much");
    settle(&cache);
    for (path, left) in [(&a, 2 * 2000 + 2 * 8000), (&b, 2000 + 8000), (&c, 0)] {
        cache.reject(&path.path);
        settle(&cache);
        cache.sweep_links(cache.index().leaving_bytes());
        settle(&cache);
        assert_eq!(cache.index().bytes(), left, "{}", path.path);
    }
    assert_eq!(std::fs::read_dir(dir.path().join("links")).expect("lists").count(), 0);
}

#[test]
fn removing_what_others_share_is_not_taken_for_space() {
    let dir = tempfile::tempdir().expect("temporary directory");
    // Two paths that share, and one of their own: 3 * 2,000 + 2 * 8,000.
    let cache = open(dir.path(), 21_999);
    let paths = [('a', "x"), ('b', "x"), ('c', "y")].map(|(name, letter)| tree(&cache, &info(name, 1, 0), letter));
    settle(&cache);
    settle(&cache);
    // At first removing `a` seems to free 10,000; it frees 2,000, which is enough.
    assert_eq!(present(&cache), "bc");
    assert_eq!(cache.index().bytes(), 2 * 2000 + 2 * 8000);
    assert!(cache.host_path(&paths[1].path).join("file").exists());
    let pinned = cache.pin(&paths[1..]);
    let fourth = tree(&cache, &info('d', 1, 0), "z");
    settle(&cache);
    settle(&cache);
    assert_eq!(present(&cache), "bc", "{} came to a cache that is full of what is used", fourth.path);
    drop(pinned);
    assert_eq!(cache.index().bytes(), 2 * 2000 + 2 * 8000);
}

#[test]
fn a_worker_without_privileges_shares_files_too() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let user = 4_000_001;
    std::os::unix::fs::chown(dir.path(), Some(user), Some(user)).expect("these tests run as root");
    let inside = || {
        let (uid, gid) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(user));
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root may");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
        let cache = open(dir.path(), 100_000);
        let [a, b] = ['a', 'b'].map(|name| tree(&cache, &info(name, 1, 0), "x"));
        assert_eq!(file_inode(&cache, &a), file_inode(&cache, &b));
        let meta = std::fs::metadata(cache.host_path(&b.path)).expect("stat");
        let (mode, time) = (std::os::unix::fs::MetadataExt::mode(&meta), std::os::unix::fs::MetadataExt::mtime(&meta));
        assert_eq!((mode & 0o7777, time), (0o555, 1));
        cache.reject(&a.path);
        settle(&cache);
        assert_eq!(std::fs::read(cache.host_path(&b.path).join("file")).expect("reads").len(), 8000);
    };
    std::thread::scope(|scope| scope.spawn(inside).join().expect("no panic"));
}

#[test]
fn no_running_build_loses_an_input_and_the_budget_holds_whenever_what_is_used_leaves_room() {
    for seed in 0..20u64 {
        let dir = tempfile::tempdir().expect("temporary directory");
        let bytes_max = 60;
        let cache = open(dir.path(), bytes_max);
        let paths: Vec<PathInfo> = ('a'..='l').enumerate().map(|(at, name)| info(name, 1, 5 + (at as u64 * 7) % 20)).collect();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let mut draw = |end: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % end as u64) as usize
        };
        // Builds that run, each with its inputs and what keeps them.
        let mut running: Vec<(Vec<PathInfo>, Pin)> = Vec::new();
        for step in 0..60 {
            if running.len() == 3 || (!running.is_empty() && draw(3) == 0) {
                drop(running.remove(draw(running.len())));
            } else {
                let wanted: Vec<PathInfo> = (0..1 + draw(3)).map(|_| paths[draw(paths.len())].clone()).collect();
                let Found { mut pin, missing, unproven } = cache.pin(&wanted);
                assert!(unproven.is_empty());
                missing.iter().for_each(|lacking| pin.join(keep(&cache, lacking).expect("kept")));
                running.push((wanted, pin));
            }
            let used: BTreeSet<&StorePath> = running.iter().flat_map(|(wanted, _)| wanted.iter().map(|info| &info.path)).collect();
            for path in &used {
                assert!(cache.host_path(path).exists(), "seed {seed}, step {step}: `{path}` is in use");
            }
            let used_bytes: u64 = paths.iter().filter(|info| used.contains(&info.path)).map(|info| info.nar_size_bytes).sum();
            assert!(
                cache.index().bytes() <= bytes_max.max(used_bytes),
                "seed {seed}, step {step}: no more than the budget or what is used"
            );
        }
        drop(running);
        assert!(cache.index().bytes() <= bytes_max, "seed {seed}: after the builds the budget holds");
        assert!(!present(&cache).is_empty(), "what fits stays");
    }
}
