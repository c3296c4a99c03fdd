//! The session between a worker and the leading coordinator: one long stream of frames in each direction.
//!
//! Goals: a worker resumes its running attempts after any disconnect; nothing is reported twice with effect; a deposed leader is
//! ignored. Non-goals: NAR bytes, which flow on streams of their own (`FetchBlob`, `Upload`).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{
    AttemptId, DrvPath, Epoch, JobLimits, Leader, Lease, NotLeader, Outcome, OutputName, PathInfo, Resources, StoreDir, StorePath,
    Traceparent, WorkerId,
};

/// What a worker says of itself when it opens a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its name; must equal the certificate's.
    pub worker: WorkerId,
    /// What it can run.
    pub offer: Offer,
    /// The highest leader it has obeyed.
    pub leader_seen: Leader,
    /// Attempts that run now, or ended without an acknowledgement.
    pub attempts: Vec<Lease>,
    /// The first registration of this process, once it has one. An attempt that was leased since and is not named never arrived, or is
    /// over; one that was leased before and is not named was lost with an earlier process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Epoch>,
    /// Why it takes no new attempts at present; none if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strain: Option<Strain>,
}

/// What a worker can run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Platforms it runs, such as `x86_64-linux` and `i686-linux`.
    pub systems: BTreeSet<String>,
    /// Features it has.
    pub features: BTreeSet<String>,
    /// Its whole capacity.
    pub capacity: Resources,
    /// Most attempts at a time.
    pub slots: u32,
    /// What its sandbox guarantees, in words for people (`cgroup: hybrid`, `landlock: 7`).
    pub guarantees: BTreeMap<String, String>,
    /// How fast it builds, per mille of the standard: what takes others 1,000 ms takes it 1,000,000 divided by this.
    #[serde(default = "speed_standard", skip_serializing_if = "is_speed_standard")]
    pub speed_per_mille: u32,
    /// Most light attempts at a time beside its slots: fetches by the worker itself, and builds that prefer to be local. They hold no cores.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub light_slots: u32,
    /// MiB of inputs that it fetches in a second; 0 if nobody knows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fetch_mib_per_second: u32,
}

impl Offer {
    /// Returns what farms below version 4 know of it.
    pub fn as_before_4(self) -> Self {
        Self { speed_per_mille: SPEED_STANDARD, light_slots: 0, fetch_mib_per_second: 0, ..self }
    }

    /// Returns whether it holds more than farms below version 4 know.
    pub fn needs_4(&self) -> bool {
        self.speed_per_mille != SPEED_STANDARD || self.light_slots != 0 || self.fetch_mib_per_second != 0
    }
}

impl Default for Offer {
    fn default() -> Self {
        let (systems, features, guarantees) = Default::default();
        let capacity = Resources::default();
        Self { systems, features, capacity, slots: 0, guarantees, speed_per_mille: SPEED_STANDARD, light_slots: 0, fetch_mib_per_second: 0 }
    }
}

/// The speed of a worker that does not say, per mille.
pub const SPEED_STANDARD: u32 = 1_000;

fn speed_standard() -> u32 {
    SPEED_STANDARD
}

fn is_speed_standard(speed: &u32) -> bool {
    *speed == SPEED_STANDARD
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// From a worker to the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Opens the session. Always first.
    Hello(Hello),
    /// The worker lives.
    Heartbeat,
    /// The builder of an attempt was started.
    Started(Lease),
    /// More log of an attempt.
    Log {
        /// Whose log.
        lease: Lease,
        /// Bytes of this log before `bytes`.
        offset_bytes: u64,
        /// At most `LOG_CHUNK_BYTES_MAX`.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// An attempt ended. Kept by the worker until it is acknowledged.
    Finished {
        /// Which.
        lease: Lease,
        /// How.
        outcome: Outcome,
    },
    /// Whether it takes new attempts from here on: why not, or none if it does. Said when that has changed since the hello, to a leader
    /// that hears it (`Welcome::hears_strain`).
    Admission(Option<Strain>),
    /// The builder of an attempt has exited and its outputs are checked: it only uploads, and another attempt may have its cores, memory and
    /// slot. Said to a leader that hears it (`Welcome::hears_winding`), again in each session.
    Winding(Lease),
}

/// Why a worker that lives takes no new attempts at present. What it runs goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strain {
    /// What is short there.
    pub lacks: Lacking,
    /// How short, in words for people. At most `STRAIN_MESSAGE_BYTES_MAX`.
    pub message: String,
}

/// What a worker's machine can be short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lacking {
    /// Free space on the disk of its directory.
    Disk,
    /// Memory: little is free, or processes wait for it.
    Memory,
    /// Processor time: processes wait for it.
    Cpu,
    /// Disk throughput: processes wait for it.
    Io,
}

/// From the leader to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Answers `Hello`. Attempts named there that are not in `keep` are stale and must be stopped.
    Welcome {
        /// Who leads.
        leader: Leader,
        /// The registration that leases of this session carry.
        epoch: Epoch,
        /// Attempts that go on, under the epoch that their lease names.
        keep: Vec<Lease>,
        /// Bytes of log that this leader has of attempts that go on; of others none. The worker sends the rest.
        #[serde(default)]
        log_bytes: BTreeMap<AttemptId, u64>,
        /// The leader knows `Admission`. One that does not would end the session.
        #[serde(default)]
        hears_strain: bool,
        /// The leader knows `Winding`.
        #[serde(default)]
        hears_winding: bool,
    },
    /// The coordinator does not lead; the stream ends. Attempts go on: only the leader may end them.
    NotLeader(NotLeader),
    /// Start an attempt.
    Dispatch(Assignment),
    /// Stop an attempt: kill its group, report nothing.
    Revoke {
        /// Who says so.
        leader: Leader,
        /// Which attempt.
        lease: Lease,
    },
    /// The report of an attempt is committed (or came too late); the worker may forget it.
    Acknowledge {
        /// Whose report.
        derivation: DrvPath,
        /// Of which attempt.
        attempt: AttemptId,
    },
}

/// Everything a worker needs to run one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Who says so.
    pub leader: Leader,
    /// The right to run it.
    pub lease: Lease,
    /// The farm's store directory.
    pub store_dir: StoreDir,
    /// The derivation's file, byte for byte.
    #[serde(with = "serde_bytes")]
    pub derivation: Vec<u8>,
    /// The closure of the inputs, each path with the facts to fetch and verify it. Nothing else is visible to the builder.
    pub inputs: Vec<PathInfo>,
    /// Paths of the outputs of input derivations, by derivation and output name (for placeholders and structured attributes).
    pub input_outputs: BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>,
    /// What the attempt may use.
    pub resources: Resources,
    /// When it is stopped.
    pub limits: JobLimits,
    /// Whose file `derivation` is, where that is not the leased one: the leased one with its inputs' paths put in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<DrvPath>,
    /// The span of the attempt, if the coordinators trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Traceparent>,
}
