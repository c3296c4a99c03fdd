//! What a sandbox is asked to run, and how the run ended. Plain data; nothing here touches the kernel.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use kiln_wire::{StoreDir, StorePath, Usage};
use serde::{Deserialize, Serialize};

use super::Egress;

/// Everything that a sandbox needs to run one builder.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name of the build's control group and of its thread: letters, digits, `-`, `_` and `.`; unique among running builds.
    pub name: String,
    /// An empty directory that belongs to this build alone, below a directory that the launcher owns and others cannot enter. It holds what the
    /// builder writes, and the builder's `/` is mounted over it; after the run its outputs lie in [`Spec::outputs_dir`].
    pub root_dir: PathBuf,
    /// The store directory that the builder sees.
    pub store_dir: StoreDir,
    /// The platform, `x86_64-linux` or `i686-linux`: decides the personality.
    pub system: String,
    /// The program, as an absolute path in the sandbox.
    pub builder: Vec<u8>,
    /// Its arguments, without `argv[0]`, which is the builder's base name.
    pub args: Vec<Vec<u8>>,
    /// The whole environment, in the order in which the builder gets it.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Files written into `/build` before the start: single path components, owned by the build user.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
    /// The closure of the inputs: each store object and where it lies on this host. Nothing else of the host is visible.
    pub inputs: Vec<(StorePath, PathBuf)>,
    /// What the builder may reach.
    pub network: Network,
    /// Host user and group that the build's one user (1000, group 100) stands for, or a range of them for its users 0 to 65,535. No
    /// other running build may have any of them.
    pub host_id: HostId,
    /// The statically linked shell that is bound at `/bin/sh`.
    pub shell: PathBuf,
    /// Whether `/dev/kvm` is there.
    pub dev_kvm: bool,
    /// What the build's control group may use.
    pub resources: crate::cgroup::Limits,
    /// When the run is stopped.
    pub limits: Limits,
}

impl Spec {
    /// Returns the directory of the host in which the builder's outputs lie after the run.
    pub fn outputs_dir(&self) -> PathBuf {
        self.root_dir.join(self.store_on_disk())
    }

    /// Returns where the builder's store directory lies below `root_dir`.
    pub(super) fn store_on_disk(&self) -> String {
        self.store_below_tmp().map_or_else(|| "store".to_owned(), |rest| format!("tmp/{rest}"))
    }

    /// Returns the store directory's path below `/tmp`, if it lies there: such a one is part of the build's `/tmp`.
    pub(super) fn store_below_tmp(&self) -> Option<&str> {
        self.store_dir.as_str().strip_prefix("/tmp/")
    }
}

/// What a builder may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Itself.
    Loopback,
    /// What the host reaches, from the host's own namespace.
    Host,
    /// What the host reaches, from a namespace of its own, but what is denied.
    Egress(Egress),
}

/// The user and group ids of the host that a build has, from the pool of a worker's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostId {
    /// Host user; the first of them.
    pub uid: u32,
    /// Host group; the first of them.
    pub gid: u32,
    /// How many of each, in a row: 1, or [`RANGE_IDS`].
    pub count: u32,
}

/// Ids of a build that requires `uid-range`, as many as Nix gives it.
pub const RANGE_IDS: u32 = 65_536;

impl HostId {
    /// Returns the id of slot number `slot`, as Nix's own automatic allocation places them.
    ///
    /// # Panics
    /// If `slot` is 1024 or more: no worker has so many slots.
    pub fn of_slot(slot: u32) -> Self {
        assert!(slot < SLOTS_MAX, "slot {slot} is beyond the pool of {SLOTS_MAX} ids");
        Self::one(FIRST_ID + slot)
    }

    /// Returns the range of ids of slot number `slot`, for a build that requires `uid-range`.
    ///
    /// # Panics
    /// As [`HostId::of_slot`].
    pub fn range_of_slot(slot: u32) -> Self {
        assert!(slot < SLOTS_MAX, "slot {slot} is beyond the pool of {SLOTS_MAX} ranges");
        Self { count: RANGE_IDS, ..Self::one(FIRST_RANGE + slot * RANGE_IDS) }
    }

    /// Returns one id, of a user and of a group.
    pub fn one(id: u32) -> Self {
        Self { uid: id, gid: id, count: 1 }
    }

    /// Whether the build is root of many ids, rather than one user.
    pub fn is_range(self) -> bool {
        self.count > 1
    }

    /// Returns the host users that files of the build belong to.
    pub fn uids(self) -> RangeInclusive<u32> {
        self.uid..=self.uid + (self.count - 1)
    }

    /// Whether `uid` is that of a worker: of [`HostId::of_worker`].
    pub fn is_of_worker(uid: u32) -> bool {
        (FIRST_ID + SLOTS_MAX..FIRST_ID + 2 * SLOTS_MAX).contains(&uid)
    }

    /// Returns the id of the worker whose first slot is `slot_first`: no build of any worker has it.
    ///
    /// # Panics
    /// As [`HostId::of_slot`].
    pub fn of_worker(slot_first: u32) -> Self {
        Self::one(Self::of_slot(slot_first).uid + SLOTS_MAX)
    }
}

/// First id of the pool: Nix's `start-id` (872415232) plus its whole range of 128 × 65536, so that a Nix on the same host never
/// runs a build under one of our ids.
const FIRST_ID: u32 = 872_415_232 + 128 * 65_536;
/// Ids in the pool: far more than any machine has slots.
const SLOTS_MAX: u32 = 1024;
/// First id of the ranges: behind the ids of slots and of workers, on a multiple of a range, as Nix's are. The last range ends at
/// 947,978,239.
const FIRST_RANGE: u32 = FIRST_ID + RANGE_IDS;

/// When a run is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Longest run.
    pub wall: Duration,
    /// Longest time without a byte of log.
    pub silence: Duration,
    /// Most log bytes. The first so many are delivered.
    pub log_bytes: u64,
}

/// How a run ended. By then no process of the build exists any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What became of the builder's main process.
    pub status: Status,
    /// Why we ended it, if we did.
    pub stopped: Option<Stop>,
    /// Whether the kernel killed a process of the build for its memory limit.
    pub out_of_memory: bool,
    /// What the build took.
    pub usage: Usage,
}

impl Ended {
    /// Whether the builder itself ended the run, successfully.
    pub fn succeeded(&self) -> bool {
        self.status == Status::Exited(0) && self.stopped.is_none() && !self.out_of_memory
    }
}

/// What became of a builder's main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// The sandbox stood, but the kernel would not execute the builder: no such file, no permission, arguments too long. Holds
    /// the error number. The derivation is at fault, not the worker.
    NotExecuted(i32),
}

/// Why a run was stopped from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// It ran longer than [`Limits::wall`].
    Wall,
    /// It wrote nothing for [`Limits::silence`].
    Silence,
    /// It wrote more than [`Limits::log_bytes`].
    LogBytes,
    /// It wanted more processes and threads than its group may have.
    Processes {
        /// How many it may have.
        max: u32,
    },
    /// It used more of the disk than it may.
    Disk(super::disk::Excess),
    /// Its [`super::Cancel`] was used.
    Cancelled,
}

/// Builds the ordered list that [`Spec::env`] wants from text pairs.
pub fn env_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    pairs.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_of_nix_slots_workers_and_ranges_share_an_id() {
        let mut all = vec![(872_415_232..=872_415_232 + 128 * 65_536 - 1, "Nix's own pool".to_owned())];
        for slot in 0..SLOTS_MAX {
            all.push((HostId::of_slot(slot).uids(), format!("slot {slot}")));
            all.push((HostId::of_worker(slot).uids(), format!("worker of slot {slot}")));
            all.push((HostId::range_of_slot(slot).uids(), format!("range of slot {slot}")));
        }
        all.sort_by_key(|(ids, _)| *ids.start());
        for pair in all.windows(2) {
            assert!(pair[0].0.end() < pair[1].0.start(), "{pair:?}");
        }
        assert_eq!(all.last().map(|(ids, _)| *ids.end()), Some(947_978_239));
    }

    #[test]
    fn a_range_begins_where_the_first_of_its_users_is_root() {
        let range = HostId::range_of_slot(1);
        assert_eq!((range.uid % RANGE_IDS, range.gid, range.uids().count()), (0, range.uid, 65_536));
        assert!(range.is_range() && !HostId::of_slot(1).is_range());
    }
}
