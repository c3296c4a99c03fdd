//! What a sandbox is asked to run, and how the run ended. Plain data; nothing here touches the kernel.

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
    /// Host user and group that the build's one user (1000, group 100) stands for. No other running build may have it.
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

/// A user and group id of the host, from the pool of a worker's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostId {
    /// Host user.
    pub uid: u32,
    /// Host group.
    pub gid: u32,
}

impl HostId {
    /// Returns the id of slot number `slot`, as Nix's own automatic allocation places them.
    ///
    /// # Panics
    /// If `slot` is 1024 or more: no worker has so many slots.
    pub fn of_slot(slot: u32) -> Self {
        assert!(slot < SLOTS_MAX, "slot {slot} is beyond the pool of {SLOTS_MAX} ids");
        let id = FIRST_ID + slot;
        Self { uid: id, gid: id }
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
        let Self { uid, .. } = Self::of_slot(slot_first);
        Self { uid: uid + SLOTS_MAX, gid: uid + SLOTS_MAX }
    }
}

/// First id of the pool: Nix's `start-id` (872415232) plus its whole range of 128 × 65536, so that a Nix on the same host never
/// runs a build under one of our ids.
const FIRST_ID: u32 = 872_415_232 + 128 * 65_536;
/// Ids in the pool: far more than any machine has slots.
const SLOTS_MAX: u32 = 1024;

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
