//! Commands: everything that can change a farm. Written to the replicated log, applied in its order by every coordinator.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::worker::Offer;
use kiln_wire::{
    AttemptId, BuildId, BuiltOutput, DrvPath, Epoch, Evaluation, JobSpec, Lease, Measured, Order, Outcome, OutputName, RequestId,
    Resources, Root, Share, ShareKey, StorePath, Subject, Timestamp, Version, WorkerId,
};
use serde::{Deserialize, Serialize};

use crate::fair::Asker;

/// One change of the farm. `now` is the leader's clock when it proposed the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A worker opened a session. Gives it a new epoch and fences its earlier ones.
    Register {
        /// Which worker.
        worker: WorkerId,
        /// What it can run.
        offer: Offer,
        /// Attempts that it still runs or has a result of. Its other leases are lost.
        attempts: Vec<Lease>,
        /// The first registration of its process: other leases given since never reached it, which is nobody's failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Epoch>,
        /// What it lost counts against it.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        judge: bool,
        /// The leader's time.
        now: Timestamp,
    },
    /// A worker was silent for too long. Its leases are lost and its jobs become ready again.
    Lose {
        /// Which worker.
        worker: WorkerId,
        /// The registration that was silent; a later one is left alone.
        epoch: Epoch,
        /// It counts against it.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        judge: bool,
        /// The leader's time.
        now: Timestamp,
    },
    /// Part of a submission's jobs. They wait aside until its `Submit`.
    Stage {
        /// Whose jobs.
        request: RequestId,
        /// At most `JOBS_PER_ENTRY_MAX`.
        jobs: Vec<JobSpec>,
        /// The leader's time.
        now: Timestamp,
    },
    /// Staged jobs of a submission that are built although the store has their outputs, to see whether they make the same again.
    Check {
        /// Whose jobs.
        request: RequestId,
        /// Which of them.
        derivations: Vec<DrvPath>,
        /// The leader's time.
        now: Timestamp,
    },
    /// What is known of the evaluation that a submission's roots come from. It waits aside until its `Submit`.
    Describe {
        /// Which submission.
        request: RequestId,
        /// What is known. What it says of roots that are not so is left out.
        evaluation: Evaluation,
        /// The leader's time.
        now: Timestamp,
    },
    /// The end of a submission: its staged jobs join the farm. A request that was submitted before changes nothing.
    Submit {
        /// Which submission.
        request: RequestId,
        /// What people call the build.
        name: String,
        /// What is wanted. A root without a job has every wanted output already.
        roots: Vec<Root>,
        /// Go on after a failure with everything that does not need what failed.
        keep_going: bool,
        /// Who asks, and how urgent it is to them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asker: Option<Asker>,
        /// The leader's time.
        now: Timestamp,
    },
    /// Gives leases. Each is checked again: what no longer fits is refused.
    Assign {
        /// What the planner proposed.
        placements: Vec<Placement>,
        /// The leader's time.
        now: Timestamp,
    },
    /// Gives a second lease on a job that runs far longer than its like, on another worker: the first attempt to end with outputs wins. Checked
    /// again: what no longer fits is refused.
    Copy {
        /// The attempt that runs.
        of: AttemptId,
        /// What the planner proposed.
        placement: Placement,
        /// The leader's time.
        now: Timestamp,
    },
    /// An attempt ended. Only the holder of its lease may say so.
    Finish {
        /// The lease it held.
        lease: Lease,
        /// How it ended; a success carries the whole output set.
        outcome: Outcome,
        /// The farm learns from it what builds of its like take.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        learn: bool,
        /// It counts for or against its worker.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        judge: bool,
        /// The leader's time.
        now: Timestamp,
    },
    /// The narinfos of a job's outputs are signed and readable.
    Publish {
        /// Whose outputs.
        derivation: DrvPath,
        /// The leader's time.
        now: Timestamp,
    },
    /// What a job's derivation is once the paths of its inputs are put into it: see [`Resolution`].
    Resolve {
        /// Whose.
        derivation: DrvPath,
        /// Where the inputs that are jobs of the farm were taken to be.
        inputs: Vec<ResolvedInput>,
        /// What it comes to.
        to: Resolution,
        /// The leader's time.
        now: Timestamp,
    },
    /// A client stops wanting a build.
    Cancel {
        /// Which.
        build: BuildId,
        /// The leader's time.
        now: Timestamp,
    },
    /// The grace period after the last cancellation of a job's builds is over: its lease ends.
    Revoke {
        /// Which lease.
        lease: Lease,
        /// The leader's time.
        now: Timestamp,
    },
    /// What builds took elsewhere, or long ago.
    ImportDurations {
        /// At most `DURATIONS_PER_ENTRY_MAX`. What makes no sense is left out.
        durations: Vec<Measured>,
        /// The leader's time.
        now: Timestamp,
    },
    /// The rest of a worker on which jobs kept failing is over: it gets one job at a time until one is built.
    Rouse {
        /// Which worker.
        worker: WorkerId,
        /// The leader's time.
        now: Timestamp,
    },
    /// An administrator says that a worker takes nothing new, or that it takes jobs again.
    Drain {
        /// Which worker.
        worker: WorkerId,
        /// It takes nothing new. If not, whatever is held against it is forgotten too.
        drain: bool,
        /// The leader's time.
        now: Timestamp,
    },
    /// Sets somebody's share, or takes back what was set.
    SetShare {
        /// Whose.
        key: ShareKey,
        /// What it is from here on. What makes no sense is refused.
        share: Option<Share>,
        /// The leader's time.
        now: Timestamp,
    },
    /// Somebody moves a build or a job, lets what failed of it wait again, or stops a job.
    Steer {
        /// What is steered.
        subject: Subject,
        /// How.
        order: Order,
        /// Who asks for it, for people; `STEERED_BY_BYTES_MAX` at most.
        by: String,
        /// The leader's time.
        now: Timestamp,
    },
    /// A young lease ends, so that a build of the security class has room. Checked again: what no longer may end so is refused.
    Preempt {
        /// Which lease.
        lease: Lease,
        /// The leader's time.
        now: Timestamp,
    },
    /// Who is told by webhook what happens. Whoever is new is told of what happens from here on.
    Announce {
        /// What the configuration calls them; at most `RECEIVERS_MAX`.
        receivers: Vec<String>,
        /// The leader's time.
        now: Timestamp,
    },
    /// A receiver took every notice up to one, or will never get it.
    Told {
        /// Which receiver.
        receiver: String,
        /// The number of the last one.
        upto: u64,
        /// The leader's time.
        now: Timestamp,
    },
    /// The archive holds an ended build: it leaves the farm, and with it every job that no other build wants.
    Retire {
        /// Which.
        build: BuildId,
        /// The leader's time.
        now: Timestamp,
    },
}

impl Command {
    /// Returns the version that a coordinator must speak to read it. What an earlier program lacks, a command or a field that is set, has
    /// its own here, and is proposed only to a farm that is at it.
    pub fn version(&self) -> Version {
        match self {
            Self::Register { judge: true, .. }
            | Self::Lose { judge: true, .. }
            | Self::Finish { judge: true, .. }
            | Self::Rouse { .. }
            | Self::Drain { .. } => JUDGING,
            Self::Register { offer, judge: false, .. } => {
                if offer.needs_4() {
                    LEARNING
                } else {
                    Version::FIRST
                }
            }
            Self::Lose { judge: false, .. }
            | Self::Submit { asker: None, .. }
            | Self::Finish { learn: false, judge: false, .. }
            | Self::Publish { .. }
            | Self::Cancel { .. }
            | Self::Revoke { .. }
            | Self::Retire { .. } => Version::FIRST,
            Self::Assign { placements, .. } => {
                if placements.iter().any(|placement| placement.after.is_some()) {
                    SUCCEEDING
                } else if placements.iter().any(|placement| placement.light || placement.resources.is_some()) {
                    LEARNING
                } else {
                    Version::FIRST
                }
            }
            Self::Finish { learn: true, judge: false, .. } | Self::ImportDurations { .. } => LEARNING,
            Self::Submit { asker: Some(Asker { trace: Some(_), .. }), .. } => TRACING,
            Self::Submit { asker: Some(Asker { trace: None, .. }), .. }
            | Self::SetShare { .. }
            | Self::Steer { .. }
            | Self::Preempt { .. } => FAIRNESS,
            Self::Copy { .. } => COPYING,
            Self::Describe { .. } => DESCRIBING,
            Self::Announce { .. } | Self::Told { .. } => ANNOUNCING,
            Self::Check { .. } => CHECKING,
            Self::Stage { jobs, .. } => {
                if jobs.iter().any(|job| job.resolve) {
                    RESOLVING
                } else {
                    Version::FIRST
                }
            }
            Self::Resolve { to: Resolution::Grow { .. }, .. } => GROWING,
            Self::Resolve { .. } => RESOLVING,
        }
    }

    /// Returns the leader's time when it proposed the command.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Register { now, .. }
            | Self::Lose { now, .. }
            | Self::Stage { now, .. }
            | Self::Check { now, .. }
            | Self::Describe { now, .. }
            | Self::Submit { now, .. }
            | Self::Assign { now, .. }
            | Self::Copy { now, .. }
            | Self::Finish { now, .. }
            | Self::Publish { now, .. }
            | Self::Resolve { now, .. }
            | Self::Cancel { now, .. }
            | Self::Revoke { now, .. }
            | Self::ImportDurations { now, .. }
            | Self::Rouse { now, .. }
            | Self::Drain { now, .. }
            | Self::SetShare { now, .. }
            | Self::Steer { now, .. }
            | Self::Preempt { now, .. }
            | Self::Announce { now, .. }
            | Self::Told { now, .. }
            | Self::Retire { now, .. } => *now,
        }
    }
}

/// The version from which on a farm builds again what it has.
pub const CHECKING: Version = Version(3);

/// The version from which on a farm learns what builds take.
pub const LEARNING: Version = Version(4);

/// The version from which on a farm judges its workers by what fails on them.
pub const JUDGING: Version = Version(5);

/// The version from which on an attempt takes the place of one that uploads.
pub const SUCCEEDING: Version = Version(5);

/// The version from which on a farm knows who asks for builds, and what share each has.
pub const FAIRNESS: Version = Version(5);

/// The version from which on a job may run in two places.
pub const COPYING: Version = Version(6);

/// The version from which on a build knows what its client does with it.
pub const TRACING: Version = Version(6);
/// The version from which on builds keep what is known of the evaluation that their roots come from.
pub const DESCRIBING: Version = Version(6);

/// The version from which on a farm keeps what receivers of webhooks are to be told.
pub const ANNOUNCING: Version = Version(6);

/// The version from which on jobs are resolved.
pub const RESOLVING: Version = Version(3);

/// The version from which on a build grows by what its builders make.
pub const GROWING: Version = Version(4);

/// Where an output of an input is, as a resolution took it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResolvedInput {
    /// The input's derivation.
    pub derivation: DrvPath,
    /// Which output of it.
    pub output: OutputName,
    /// Where it is.
    pub path: StorePath,
}

/// What a job's derivation comes to once the paths of its inputs are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolution {
    /// A worker is to build this derivation.
    Build {
        /// The resolved one.
        derivation: DrvPath,
        /// Its output paths, as far as they are known before the build.
        outputs: BTreeMap<OutputName, StorePath>,
    },
    /// Everything that it makes exists: nothing is built.
    Exists {
        /// The resolved one.
        derivation: DrvPath,
        /// The whole output set.
        outputs: Vec<BuiltOutput>,
    },
    /// It makes no sense.
    Impossible {
        /// Why, for people.
        message: String,
    },
    /// Its inputs made derivations of which it needs outputs: these are to be built first. They, and what they need, are jobs of the farm, or
    /// staged as if `request` were a submission, which it never becomes.
    Grow {
        /// Whose staged jobs join.
        request: RequestId,
        /// The derivations.
        needs: Vec<DrvPath>,
    },
}

/// A proposed lease: this job on that worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    /// The job.
    pub derivation: DrvPath,
    /// The worker.
    pub worker: WorkerId,
    /// The registration that the planner saw.
    pub epoch: Epoch,
    /// What it is given of the worker, where that is not what the job asks for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// It gets a light slot.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub light: bool,
    /// It takes the place of this attempt on the worker, whose builder has exited: from here on that one holds nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<AttemptId>,
}
