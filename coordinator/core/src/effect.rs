//! Effects: what the leader must do after a command was applied. Doing one twice is harmless.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::{BuildState, Event, JobCounts, JobView};
use kiln_wire::limits::{GROWTHS_PER_BUILD_MAX, JOBS_PER_BUILD_MAX, SHARES_MAX};
use kiln_wire::{
    Account, Ailing, AttemptId, BuildId, DrvPath, Epoch, Evaluated, Evaluation, JobLimits, Lease, OutputName, PathInfo, RequestId,
    Resources, Root, Share, ShareKey, StorePath, Timestamp, WorkerId,
};
use serde::{Deserialize, Serialize};

/// What the leader must do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Answer a worker's `Hello`.
    Welcome {
        /// Which worker.
        worker: WorkerId,
        /// Its new registration.
        epoch: Epoch,
        /// Attempts of its earlier registrations that go on.
        keep: Vec<Lease>,
    },
    /// Send a job to its worker.
    Dispatch {
        /// The lease that was given.
        lease: Lease,
        /// What the attempt may use.
        resources: Resources,
        /// When it is stopped.
        limits: JobLimits,
    },
    /// Tell a worker to stop an attempt.
    Revoke(Lease),
    /// Tell a worker that its report is committed or came too late, so that it may forget it.
    Acknowledge {
        /// Which worker.
        worker: WorkerId,
        /// What was built.
        derivation: DrvPath,
        /// By which attempt.
        attempt: AttemptId,
    },
    /// Sign and publish the narinfos of a committed output set, whose references are published, then propose `Command::Publish`.
    Publish {
        /// Whose outputs.
        derivation: DrvPath,
        /// The whole set.
        outputs: Vec<PathInfo>,
    },
    /// Put the paths of a job's inputs, all of them committed, into its derivation, store what results, look whether what it makes exists,
    /// then propose `Command::Resolve`.
    Resolve {
        /// Whose.
        derivation: DrvPath,
    },
    /// Tell those who watch these builds.
    Notify {
        /// Which builds.
        builds: Vec<BuildId>,
        /// What happened.
        event: Event,
    },
    /// Write an ended build to the archive, then propose `Command::Retire`. Owed only once every output it built is published.
    Archive(BuildRecord),
    /// Tell operators that the farm gives a worker less than it has room for, or as much again.
    Judged {
        /// Which worker.
        worker: WorkerId,
        /// How it stands; none if it is well.
        ailing: Option<Ailing>,
    },
    /// Tell operators what becomes of a second attempt at a job.
    Copied {
        /// Whose.
        derivation: DrvPath,
        /// What.
        copied: Copied,
    },
    /// Answer whoever proposed the command.
    Answer(Answer),
}

/// What becomes of two attempts at one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Copied {
    /// The second one begins.
    Begun {
        /// The second one.
        attempt: AttemptId,
        /// Beside which.
        of: AttemptId,
    },
    /// One of them made the outputs first; the other is stopped.
    Won {
        /// Which.
        attempt: AttemptId,
        /// It is the second one.
        by_copy: bool,
    },
    /// The slower one had made its outputs before it heard: they are the same.
    Same(AttemptId),
    /// The slower one had made its outputs before it heard: they are others. The derivation is not deterministic.
    Differs(AttemptId),
}

/// What whoever proposed a command is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The submission is a build of this farm.
    Submitted {
        /// Which submission.
        request: RequestId,
        /// Its build.
        build: BuildId,
    },
    /// The command came too late or breaks a rule. It changed nothing.
    Refused(Refused),
}

/// Why a command, or a part of it, changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// The lease is not the live one of its job.
    #[error("attempt {} at `{}` by worker {} holds no lease that may end so", .0.attempt, .0.derivation, .0.worker)]
    StaleLease(Lease),
    /// The worker has a later registration, or none.
    #[error("worker {worker} has no registration {epoch}")]
    StaleEpoch {
        /// Which worker.
        worker: WorkerId,
        /// Which registration.
        epoch: Epoch,
    },
    /// The job is not waiting for a worker.
    #[error("assign `{0}`: the job is not ready")]
    NotReady(DrvPath),
    /// The worker's free capacity, systems or features do not fit.
    #[error("assign `{derivation}`: it does not fit worker {worker}")]
    DoesNotFit {
        /// Which job.
        derivation: DrvPath,
        /// Which worker.
        worker: WorkerId,
    },
    /// The reported outputs are not the derivation's outputs.
    #[error("finish `{derivation}`: the reported outputs are not those of the derivation")]
    WrongOutputs {
        /// Which job.
        derivation: DrvPath,
    },
    /// The job is not one that waits to be resolved.
    #[error("resolve `{0}`: the job does not wait for it")]
    NotUnresolved(DrvPath),
    /// A resolution was made from other outputs than the committed ones, or of other outputs than the derivation's.
    #[error("resolve `{0}`: the paths that were put into it are not those of its inputs' committed outputs, or it makes other outputs")]
    WrongResolution(DrvPath),
    /// Another result for the same derivation was committed before. Recorded, never spliced in.
    #[error("finish `{derivation}`: attempt {attempt} made other content than the committed one: the derivation is not deterministic")]
    NonDeterministic {
        /// Which job.
        derivation: DrvPath,
        /// Whose result was not taken.
        attempt: AttemptId,
    },
    /// There is no such build.
    #[error("there is no live build {0}")]
    NoSuchBuild(BuildId),
    /// The farm knows no such worker.
    #[error("the farm knows no worker {0}")]
    NoSuchWorker(WorkerId),
    /// There is no such job.
    #[error("there is no live job `{0}`")]
    NoSuchJob(DrvPath),
    /// What should be built again is part of a build that has not ended.
    #[error("check `{0}`: it is part of a build that the farm still has; check it when that has ended")]
    BeingBuilt(DrvPath),
    /// The jobs of a submission form a cycle, first job first.
    #[error("submission has a cycle of {} derivations", .0.len())]
    Cycle(Vec<DrvPath>),
    /// A job needs a derivation that is neither a job nor known to be built.
    #[error("submission: `{derivation}` needs `{input}`, which is not a job of the farm")]
    UnknownInput {
        /// The job.
        derivation: DrvPath,
        /// What it needs.
        input: DrvPath,
    },
    /// A submission, or one entry of it, is over its limit.
    #[error("submission {request}: {jobs} derivations are over the limit of {jobs_max}")]
    TooManyJobs {
        /// Which submission.
        request: RequestId,
        /// How many derivations it would have.
        jobs: u64,
        /// How many it may have.
        jobs_max: u64,
    },
    /// What builders make has led a build to more jobs than it may have, or too often to more.
    #[error(
        "grow build {build}: what its builders make has led to more {growths} times, and to {jobs} derivations; at most {GROWTHS_PER_BUILD_MAX} \
         times and {JOBS_PER_BUILD_MAX} derivations are allowed: submit it in parts, or look for a builder that makes what makes more without end"
    )]
    GrownTooFar {
        /// Which build.
        build: BuildId,
        /// How often it has grown.
        growths: u32,
        /// How many derivations it would have.
        jobs: u64,
    },
    /// The staged jobs of a submission were dropped: refused before, or left lying for too long. It must be staged again under a new number.
    #[error("submission {0}: its staged derivations were dropped")]
    StageDropped(RequestId),
    /// The job neither failed nor backs off.
    #[error("restart `{0}`: it has not failed")]
    NotFailed(DrvPath),
    /// The job is built, or has failed.
    #[error("cancel `{0}`: it has ended")]
    HasEnded(DrvPath),
    /// The job's lease may not end for the security class.
    #[error("end the lease of `{0}` early: it is too old, too urgent itself, or made room before; or nothing is to have the room")]
    NotPreempted(DrvPath),
    /// The job gets no second attempt.
    #[error(
        "copy `{0}`: it does not run in that one place alone, has failed, is a check or over in a moment, or as many jobs are copied as may be"
    )]
    NotCopied(DrvPath),
    /// Nothing was set for it.
    #[error("take back the share of `{0}`: none is set; `kiln share list` names those that are")]
    NoSuchShare(ShareKey),
    /// The share makes no sense.
    #[error("set the share of `{0}`: a weight is from 1 to {max}", max = Share::WEIGHT_MAX)]
    WrongShare(ShareKey),
    /// There are as many as there may be.
    #[error("set the share of `{0}`: {SHARES_MAX} are set, which is the limit; remove one first")]
    TooManyShares(ShareKey),
    /// The build has jobs left, so it cannot leave the farm.
    #[error("retire build {0}: it has not ended")]
    NotEnded(BuildId),
}

/// Realised outputs, by root.
pub type RootOutputs = BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>;

/// An ended build, as the archive keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// Which.
    pub build: BuildId,
    /// Which submission it was.
    pub request: RequestId,
    /// What people call it.
    pub name: String,
    /// What was wanted.
    pub roots: Vec<Root>,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When its last job ended.
    pub ended_at: Timestamp,
    /// How it ended.
    pub state: BuildState,
    /// How its jobs ended.
    pub counts: JobCounts,
    /// The wanted outputs that this farm built, by root.
    pub outputs: RootOutputs,
    /// Jobs that failed, with the reason.
    pub failures: Vec<JobView>,
    /// Whose it was. The archive alone has it: in the farm's state it is the build that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// What is known of the evaluation that its roots come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Box<Evaluation>>,
}

impl BuildRecord {
    /// Returns what is known of the evaluation that its roots come from, for people.
    pub fn evaluated(&self) -> Evaluated {
        self.evaluation.as_ref().map(|evaluation| evaluation.shown(&self.roots, true)).unwrap_or_default()
    }

    /// Returns the attributes that a derivation is as a root of it.
    pub fn names(&self, derivation: &DrvPath) -> &[String] {
        self.evaluation.as_ref().map(|evaluation| evaluation.names(&self.roots, derivation)).unwrap_or_default()
    }

    /// Returns its failures, with the attributes that they are as roots of it.
    pub fn failures_named(&self) -> Vec<JobView> {
        let named = |view: &JobView| JobView { attributes: self.names(&view.derivation).to_vec(), ..view.clone() };
        self.failures.iter().map(named).collect()
    }
}
