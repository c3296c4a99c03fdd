//! Attack A6: a directory becomes a link to something precious, and back, all the while it is removed.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, RenameFlags, mkdirat, renameat_with, symlinkat};

use super::{c_name, empty, names, open_dir};

const ROUNDS: u32 = 10_000;
/// What becomes the other. Several, so that one is likely to be changed between two looks at it.
const PAIRS: [[&str; 2]; 4] = [["t0/d0", "t0/l0"], ["t0/d1", "t0/l1"], ["t0/d2", "t0/l2"], ["t0/d3", "t0/l3"]];

/// Exchanges directories and links as fast as it can until told to stop, and counts.
fn attack(trash: impl AsFd, stop: &AtomicBool, swaps: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let exchange = |[dir, link]: &[&str; 2]| renameat_with(&trash, *dir, &trash, *link, RenameFlags::EXCHANGE).is_ok();
        let done = PAIRS.iter().filter(|pair| exchange(pair)).count();
        swaps.fetch_add(done as u64, Ordering::Relaxed);
        // Where both have one processor, the other would not come to its turn for long.
        std::thread::yield_now();
    }
}

fn plant(trash: impl AsFd, precious: &Path) {
    mkdirat(&trash, "t0", Mode::RWXU).expect("mkdir");
    for [dir, link] in PAIRS {
        mkdirat(&trash, dir, Mode::RWXU).expect("mkdir");
        mkdirat(&trash, format!("{dir}/inside"), Mode::RWXU).expect("mkdir");
        symlinkat(precious, &trash, link).expect("symlink");
    }
}

#[test]
fn a06_a_swap_between_directory_and_link_leads_no_deletion_astray() {
    // In memory: a disk's pace would make it minutes.
    let root = tempfile::tempdir_in("/dev/shm").expect("temporary directory");
    let [precious, trash] = ["precious", "trash"].map(|name| root.path().join(name));
    let canaries = [precious.join("inside"), precious.join("canary")];
    [&precious, &trash, &canaries[0]].into_iter().for_each(|dir| std::fs::create_dir(dir).expect("mkdir"));
    std::fs::write(&canaries[1], "alive").expect("write canary");
    let trash = open_dir(CWD, &c_name(&trash).expect("no NUL")).expect("open");
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| attack(&trash, &stop, &swaps));
        for round in 0..ROUNDS {
            let before = swaps.load(Ordering::Relaxed);
            plant(&trash, &precious);
            // The attacker is at it.
            while swaps.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            // What is changed under its hands may be left to the next sweep; it must be able to.
            while empty(trash.as_fd()).is_err() {}
            let alive = canaries.iter().all(|canary| canary.exists());
            let left = names(trash.as_fd(), usize::MAX).expect("list");
            if !alive || !left.is_empty() || round + 1 == ROUNDS {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(alive, "round {round}: the deletion went through a link");
            assert_eq!(left, [] as [std::ffi::CString; 0], "round {round}");
        }
    });
}
