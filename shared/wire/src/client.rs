//! Requests. Each travels on a stream of its own: one [`Request`] frame, then [`Response`] frames until the stream ends.
//!
//! Goals: a client uploads only what the farm lacks; everything that is uploaded is verified before it is kept. Non-goals: the
//! long session of a worker after its `Session` request (see [`crate::worker`]).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub use crate::event::{Event, EventKind};
use crate::{
    AttemptId, BuildId, BuiltOutput, ClusterRequest, ClusterView, DrvPath, Evaluated, Evaluation, Explanation, FailureClass, GarbageAnswer,
    GarbageRequest, Lease, Measured, NotLeader, OutOfPatience, OutputName, PackageView, PathInfo, Patience, RequestId, Resources, Root,
    ShareRequest, ShareView, Steering, StoreDir, StorePath, Timestamp, Traceparent, Urgency, Usage, WhoLeads, WorkerId,
};

/// What a peer asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Anyone: who leads. Answered by every coordinator, with a [`Response::Leader`] at once and with every change until the asker
    /// finishes its half of the stream. All other requests are answered by the leader alone; another coordinator answers
    /// [`Response::NotLeader`].
    Leader,
    /// Worker: turns this stream into a session; frames of [`crate::worker`] follow in both directions.
    Session,
    /// Worker: offers one output of a leased attempt. Answered by [`Response::UploadAt`]; the verified stream of the blob follows,
    /// then [`Response::Stored`]. A blob of a single chunk group always starts at 0, so its stream may follow the request at once.
    Upload {
        /// The right to upload.
        lease: Lease,
        /// What is uploaded.
        output: BuiltOutput,
    },
    /// Client: offers a content-addressed path (an input source). Answered as `Upload` is.
    Import(PathInfo),
    /// Worker (of the inputs of its leased jobs) or client (of any path): asks for the blob of a path, from an offset. Answered by
    /// [`Response::Blob`], then the verified stream.
    FetchBlob {
        /// Whose NAR.
        path: StorePath,
        /// Bytes of the blob that the asker has already; a multiple of 16 KiB.
        offset_bytes: u64,
    },
    /// Client: which of these paths the farm lacks. Answered by [`Response::Paths`].
    Missing(Vec<StorePath>),
    /// Client: hands over `.drv` files. Each must have the path that follows from its content. Answered by [`Response::Done`].
    AddDerivations(Vec<DerivationFile>),
    /// Client: asks for roots to be built. Answered by [`Response::Submitted`].
    Submit(Submission),
    /// Client: follows a build. Answered by a [`Response::Build`], then [`Response::Event`]s until it has ended and a last `Build`.
    Watch(BuildId),
    /// Client: stops wanting a build. Answered by [`Response::Done`].
    Cancel(BuildId),
    /// Client: the farm at a glance. Answered by [`Response::Status`].
    Status,
    /// Client: jobs of live builds. Answered by [`Response::Jobs`] frames.
    Jobs,
    /// Client: the fleet. Answered by [`Response::Workers`].
    Workers,
    /// Client: the log of a job. Answered by [`Response::Log`] frames.
    Log {
        /// Whose log.
        derivation: DrvPath,
        /// Of which attempt; the last one if none is named.
        attempt: Option<AttemptId>,
        /// Stay until the attempt ends.
        follow: bool,
    },
    /// Admin: a backup of the farm's state. Answered by [`Response::Backup`] frames.
    Backup,
    /// Client: facts about paths, and optionally all they refer to. Answered by [`Response::PathInfos`] frames.
    PathInfos {
        /// The paths.
        paths: Vec<StorePath>,
        /// Include their closure.
        closure: bool,
    },
    /// Client (to look) or admin (to change): the coordinators themselves. Answered by [`Response::Cluster`] or [`Response::Done`].
    Cluster(ClusterRequest),
    /// Client: the signed descriptions of published paths, by the hash parts of their names. Answered by [`Response::Narinfos`] frames.
    Narinfos(Vec<String>),
    /// Client: `.drv` files. Answered by [`Response::Derivations`] frames.
    Derivations(Vec<DrvPath>),
    /// Client: as `Submit`, but the roots are built although the farm has their outputs, all of which it must have. A root that makes
    /// other outputs fails, with a message that starts with [`NOT_DETERMINISTIC`], and the farm keeps what it has.
    Check(Submission),
    /// Client: where the outputs of derivations are whose paths only their builds tell. Answered by [`Response::Outputs`].
    Outputs(Vec<DrvPath>),
    /// Client: what an output became that is named as Nix to 2.34 names it, `sha256:<hash>!<output>`. Answered by
    /// [`Response::Realisation`].
    Realisation(String),
    /// Client (to look, to keep) or admin (to delete): the store as a whole. Answered by [`Response::Garbage`] frames or [`Response::Done`].
    Garbage(GarbageRequest),
    /// Client: offers a path that was built elsewhere. One of the signatures must be by a key that the farm trusts for uploads, or the
    /// path must follow from its content. Answered as `Upload` is.
    ImportSigned {
        /// What is offered.
        info: PathInfo,
        /// Signatures, as a narinfo has them.
        signatures: Vec<String>,
    },
    /// Client: which of these paths an upstream cache has and the farm lacks. Answered by [`Response::Substitutable`].
    Substitutable(Vec<StorePath>),
    /// Client: as `Submit`, and the build is wanted only as long as this stream lives. Answered by [`Response::Submitted`], then as `Hold`.
    SubmitHeld(Submission, Patience),
    /// Client: a build is wanted only as long as this stream lives. If the stream breaks the build is cancelled; a stream that its client
    /// finishes leaves the build alone. Answered by [`Response::OutOfPatience`] if it comes to that. A leader that dies cancels nothing:
    /// its successor holds what it is asked to hold.
    Hold(BuildId, Patience),
    /// Client: what a derived output became elsewhere. A key that the farm trusts for uploads must have signed it, unless an admin says that
    /// who brought it is trusted. Answered by [`Response::Done`].
    Register {
        /// As Nix to 2.34 writes it, in JSON with its `id`.
        realisation: String,
        /// Somebody trusted brought it.
        trusted: bool,
    },
    /// Client: looks at what is stored of paths. Answered by [`Response::Damaged`].
    Verify {
        /// Which.
        paths: Vec<StorePath>,
        /// How closely, and what follows.
        how: Thoroughness,
    },
    /// Admin: what builds took elsewhere, at most `DURATIONS_PER_ENTRY_MAX`. Answered by [`Response::Done`].
    ImportDurations(Vec<Measured>),
    /// Client: what the farm expects of packages; of all, or of those of this name. Answered by [`Response::Packages`] frames.
    Packages(Option<String>),
    /// Client: why a job is where it is. Answered by [`Response::Explained`].
    Explain(DrvPath),
    /// Admin: a worker takes nothing new, or takes jobs again, whatever kept it from that. Answered by [`Response::Done`].
    Drain {
        /// Which.
        worker: WorkerId,
        /// It takes nothing new and finishes what it has; if not, it takes jobs again.
        drain: bool,
    },
    /// Client (to look) or admin (to set): who has which share of the farm. Answered by [`Response::Shares`] or [`Response::Done`].
    Shares(ShareRequest),
    /// Client (of its own builds) or admin: moves, restarts or cancels a build or a job. Answered by [`Response::Done`], or by
    /// [`Response::Submitted`] where a build that had ended is built again.
    Steer(Steering),
}

/// How the message begins of a root that does not make again what it made.
pub const NOT_DETERMINISTIC: &str = "not deterministic: ";

/// One `.drv` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DerivationFile {
    /// Its path.
    pub path: DrvPath,
    /// Its content, byte for byte.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// A request to have roots built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Drawn by the client; the same number twice is one submission.
    pub request: RequestId,
    /// What people call it.
    pub name: String,
    /// What is wanted.
    pub roots: Vec<Root>,
    /// Build everything that can be built after a failure, as `--keep-going` does.
    pub keep_going: bool,
    /// What is said of its turn. A farm that is older than version 5 does not look at it.
    #[serde(default, skip_serializing_if = "Urgency::is_plain")]
    pub urgency: Urgency,
    /// What the client does with it, if that is traced: the build's spans belong there. A farm that is older than version 6 does not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Traceparent>,
    /// What is known of the evaluation that its roots come from. A farm that is older than version 6 does not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Box<Evaluation>>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done and there is nothing to say.
    Done,
    /// It was refused, for a reason that the asker can act on.
    Refused(Refusal),
    /// Who leads.
    Leader(WhoLeads),
    /// The coordinator that was asked does not lead: ask the one that does.
    NotLeader(NotLeader),
    /// Send the verified stream from this offset; `None`: the farm has the blob already; what is under way is not read.
    UploadAt(Option<u64>),
    /// The upload is verified and stored.
    Stored,
    /// The blob follows as a verified stream, from the asked offset.
    Blob(PathInfo),
    /// Paths.
    Paths(Vec<StorePath>),
    /// Facts about paths; those that the farm lacks are left out.
    PathInfos(Vec<PathInfo>),
    /// The submission is committed.
    Submitted(BuildId),
    /// A build as it stands.
    Build(BuildView),
    /// Something happened to a job of the watched build.
    Event(Event),
    /// The farm at a glance.
    Status(FarmView),
    /// Jobs.
    Jobs(Vec<JobView>),
    /// Workers.
    Workers(Vec<WorkerView>),
    /// A piece of log.
    Log(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The coordinators as one of them sees them.
    Cluster(ClusterView),
    /// A piece of a backup; none is empty but the last, which says that it was that.
    Backup(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Narinfos, as the binary cache serves them; those of paths that are not published are left out.
    Narinfos(Vec<String>),
    /// `.drv` files; those that the farm lacks are left out.
    Derivations(Vec<DerivationFile>),
    /// Outputs that were built, by derivation; those that the farm lacks, or that the derivation itself gives a path, are left out.
    Outputs(BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>),
    /// A signed realisation, as the binary cache serves it; none if there is none.
    Realisation(Option<String>),
    /// About the store as a whole.
    Garbage(GarbageAnswer),
    /// The held build is cancelled, for it took too long.
    OutOfPatience(OutOfPatience),
    /// What upstream caches have.
    Substitutable(Vec<Substitutable>),
    /// What is damaged of the paths that were asked about.
    Damaged(Vec<Damage>),
    /// Packages.
    Packages(Vec<PackageView>),
    /// Why a job is where it is.
    Explained(Explanation),
    /// Shares: tenants, each followed by its projects.
    Shares(Vec<ShareView>),
}

/// How closely stored paths are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Thoroughness {
    /// Whether their archives are there.
    Names,
    /// Every byte is read and held against what is signed.
    Read,
    /// As `Read`; what is damaged is taken anew from upstream caches that have the same.
    Mend,
}

/// A path whose stored bytes are not what is signed of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Which.
    pub path: StorePath,
    /// What is wrong, in words.
    pub message: String,
}

/// A path that an upstream cache has and the farm lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Substitutable {
    /// The path.
    pub path: StorePath,
    /// What it refers to.
    pub references: Vec<StorePath>,
    /// Bytes of the archive as the cache has it; 0 if it does not say.
    pub download_bytes: u64,
    /// Bytes of the NAR.
    pub nar_bytes: u64,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Lets programs tell refusals apart.
    pub kind: RefusalKind,
    /// What was asked, of what, and what to do next.
    pub message: String,
    /// The paths that it is about, if any (what is missing, or a cycle in order).
    pub paths: Vec<StorePath>,
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The peer's certificate does not allow it.
    Forbidden,
    /// The request breaks a rule or a limit.
    Invalid,
    /// It needs paths that the farm lacks.
    Missing,
    /// There is no such build, job, path or worker.
    NotFound,
    /// The lease it names is not live.
    StaleLease,
    /// The farm cannot do it at the moment; the same request may succeed later.
    Unavailable,
}

/// A build as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildView {
    /// Which.
    pub build: BuildId,
    /// What people call it.
    pub name: String,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// Whether it goes on, and how it ended if not.
    pub state: BuildState,
    /// How many jobs are in which state.
    pub counts: JobCounts,
    /// Expected milliseconds until it ends, if any job is left.
    pub remaining_ms: Option<u64>,
    /// The wanted outputs that are realised, by root.
    pub outputs: BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>,
    /// Jobs that failed, with the reason.
    pub failures: Vec<JobView>,
    /// Jobs that run now.
    pub running: Vec<JobView>,
    /// Why ready jobs wait, in words, with how many wait for it.
    pub waiting: BTreeMap<String, u64>,
    /// What is known of the evaluation that its roots come from; the names of those once it has ended.
    #[serde(default, skip_serializing_if = "Evaluated::is_empty")]
    pub evaluated: Evaluated,
}

/// Whether a build goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildState {
    /// Jobs are left.
    Active,
    /// Every root is realised.
    Built,
    /// Something that a root needs failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// How many jobs are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCounts {
    /// Wait for inputs.
    pub blocked: u64,
    /// Could run now.
    pub ready: u64,
    /// Leased to a worker.
    pub running: u64,
    /// Built.
    pub built: u64,
    /// Failed, or not built because an input failed.
    pub failed: u64,
}

/// One job, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// What is built.
    pub derivation: DrvPath,
    /// Its state in one word: `blocked`, `ready`, `running`, `built`, `failed`, `dependency-failed`, `cancelled`.
    pub state: String,
    /// Why it is in that state, where there is something to say.
    pub reason: String,
    /// Builds that want it.
    pub builds: Vec<BuildId>,
    /// Its tries, oldest first.
    pub attempts: Vec<AttemptView>,
    /// Expected milliseconds from its start to the end of the longest chain that needs it.
    pub upward_rank_ms: u64,
    /// The attributes that it is as a root of those builds. Whoever keeps a view does not keep them: the roots say it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
}

/// One try, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptView {
    /// Which.
    pub attempt: AttemptId,
    /// Where.
    pub worker: WorkerId,
    /// Since when.
    pub started_at: Timestamp,
    /// Until when; none while it runs.
    pub ended_at: Option<Timestamp>,
    /// How it failed, if it did.
    pub failure: Option<(FailureClass, String)>,
    /// What it took, if its worker said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One worker, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Which.
    pub worker: WorkerId,
    /// Whether its session is live.
    pub connected: bool,
    /// What it can run.
    pub offer: crate::worker::Offer,
    /// What its leases use.
    pub used: Resources,
    /// What it runs.
    pub running: Vec<DrvPath>,
    /// Why it takes nothing new at present, as it says; none if it does, or has no session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strain: Option<crate::worker::Strain>,
    /// Why the farm gives it nothing new, or little; none if it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ailing: Option<crate::Ailing>,
}

/// The farm at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FarmView {
    /// The program's version.
    pub version: String,
    /// The farm's store directory.
    pub store_dir: StoreDir,
    /// The public half of the key that signs what the farm publishes, as Nix writes it.
    pub public_key: String,
    /// Where the binary cache is served, if it is.
    pub cache_url: Option<String>,
    /// Raft's term and leader, for people.
    pub leader: crate::Leader,
    /// Live builds.
    pub builds: Vec<BuildView>,
    /// All jobs.
    pub counts: JobCounts,
    /// Workers with a live session.
    pub workers_connected: u64,
    /// Who is told what happens, by webhook, and how far each is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receivers: Vec<crate::ReceiverView>,
    /// How long what is built is kept, if the coordinator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<crate::RetentionView>,
}
