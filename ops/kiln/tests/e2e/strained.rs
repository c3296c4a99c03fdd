//! A worker whose machine is short of something takes no job, says why, and takes jobs again by itself.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::crashes::Daemons;
use crate::farm::{Process, wait_for};

const SET: &str = r#"{ hello = drv "hello" "echo hello > $out" [ ]; }"#;

/// A file system of its own, in memory.
pub struct Small(PathBuf);

impl Small {
    pub fn mount(at: &Path, mib: u32) -> Self {
        fs::create_dir_all(at).expect("make directory");
        let small = Self(at.to_owned());
        small.set(MsFlags::empty(), mib);
        small
    }

    /// Gives it another size.
    pub fn resize(&self, mib: u32) {
        self.set(MsFlags::MS_REMOUNT, mib);
    }

    fn set(&self, flags: MsFlags, mib: u32) {
        let size = format!("size={mib}m,mode=755");
        nix::mount::mount(Some("tmpfs"), &self.0, Some("tmpfs"), flags, Some(size.as_str())).expect("mount");
    }

    /// Fills it until so much is free.
    pub fn fill_but(&self, free_bytes: u64) {
        let of = nix::sys::statvfs::statvfs(&self.0).expect("it is there");
        let free = of.blocks_available() * of.fragment_size();
        let filler = usize::try_from(free.saturating_sub(free_bytes)).expect("it is small");
        fs::write(self.0.join("filler"), vec![1; filler]).expect("fill the disk");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, MntFlags::MNT_DETACH).expect("unmount");
    }
}

#[test]
fn a_worker_with_a_full_disk_takes_no_job_until_there_is_room() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    let _small = Small::mount(&place.path("worker"), 256);
    let config = fs::read_to_string(place.path("worker.toml")).expect("read") + "disk_free_bytes_min = 134217728\n";
    fs::write(place.path("worker.toml"), config).expect("write");
    fs::write(place.path("worker/filler"), vec![1; 160 << 20]).expect("fill the disk");
    let _coordinator = daemons.start("coordinator");
    let worker = daemons.start("worker");
    daemons.wait_until_up();

    let workers = |more: &[&str]| place.run(&[&["workers"], more, &daemons.farm()[..]].concat()).expect_success();
    let strain = || workers(&["--json"]).json()[0]["strain"].as_str().map(str::to_owned);
    let why = wait_for("the worker to say that its disk is full", strain);
    assert!(why.contains("MiB free and 128 must be (`disk_free_bytes_min`)"), "{why}");
    let table = workers(&[]).out();
    assert!(table.contains("short of disk") && table.contains("w1 takes nothing new: its disk has"), "{table}");

    let words = [&["build", "-f", "set.nix", "-A", "hello", "--json"], &daemons.farm()[..]].concat();
    let build = Process::start(&mut place.kiln(&words));
    let jobs = || place.run(&[&["jobs", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
    wait_for("the job", || jobs().as_array().filter(|jobs| !jobs.is_empty()).map(drop));
    let job = jobs()[0].clone();
    assert_eq!(job["state"], "ready", "{job}");
    assert!(job["reason"].as_str().is_some_and(|why| why.contains("takes nothing new at present")), "{job}");
    assert_eq!(job["attempts"], serde_json::json!([]), "nothing was tried");
    let words = [&["explain", job["derivation"].as_str().expect("a path")], &daemons.farm()[..]].concat();
    let explained = place.run(&words).expect_success().out();
    let says = |what: &str| explained.lines().any(|line| line.contains(what));
    assert!(says("ready: every worker that has room for it takes nothing new") && says("workers    w1: take nothing new"), "{explained}");

    fs::remove_file(place.path("worker/filler")).expect("make room");
    let (code, rest) = build.finish();
    assert_eq!(code, 0, "{rest}");
    assert_eq!(strain(), None);
    drop(worker);
}
