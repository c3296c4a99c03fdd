//! Jobs as the farm keeps them: one per derivation, however many builds want it.
//!
//! Whether a job is blocked or ready is not stored: it follows from its inputs (see [`crate::index`]). Does not change itself;
//! the modules of [`crate::apply`] do.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use kiln_wire::{
    AttemptId, BuiltOutput, DrvPath, Epoch, FailureClass, JobKind, JobLimits, JobSpec, Lease, OutputName, Priority, Resources, StorePath,
    Timestamp, Usage, WorkerId,
};
use serde::{Deserialize, Serialize};

/// A job's number in this farm. Only grows, and a job's inputs have lower numbers than the job: number order is topological. A job that turns out
/// to need more, and those that wait for it, get new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct JobKey(pub u32);

/// What a worker must have to run a job. Jobs with equal needs form a class: where there is no room for one, there is none for any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Needs {
    /// The platform, or `builtin`.
    pub system: String,
    /// Features, all of them.
    pub features: BTreeSet<String>,
    /// Capacity.
    pub resources: Resources,
    /// Memory in MiB that it is given where there is as much, because builds of its like took it; 0 if nobody knows. Never in a log or a
    /// snapshot: it follows from what was learned.
    #[serde(skip)]
    pub memory_wish_mib: u64,
    /// A short job that holds no core: it may take a light slot. Never in a log or a snapshot either.
    #[serde(skip)]
    pub light: bool,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    #[serde(with = "shared")]
    pub derivation: Arc<DrvPath>,
    /// As submitted; the retries may ask for more memory (see [`Tries::memory_mib`]).
    #[serde(with = "shared")]
    pub needs: Arc<Needs>,
    pub kind: JobKind,
    pub prefer_local: bool,
    pub limits: JobLimits,
    /// Sorted by name.
    pub outputs: Box<[OutputSpec]>,
    /// Sorted; all lower than the job's own key.
    pub inputs: Box<[JobKey]>,
    /// Its upward rank as versions of this program that learnt nothing took it: records of failures hold it. The index has the one that counts.
    pub upward_rank_ms: u64,
    pub tries: Tries,
    pub state: State,
    /// Its outputs exist, and it is built to see whether it makes the same again.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub check: bool,
    /// Its own priority, in the place of its builds'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Which workers have its outputs, where these are large enough to be worth a thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Box<Held>>,
    /// For jobs whose inputs' paths only their builds tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolving: Option<Box<Resolving>>,
}

/// Where a job's outputs are, as far as the farm knows: who made them or fetched them lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Bytes of all outputs, as NARs.
    pub bytes: u64,
    /// At most `HOLDERS_MAX`, in the order in which they came. Once there are more, all count as having them.
    pub by: Vec<WorkerId>,
}

/// How far the resolution of a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Resolving {
    /// It waits for its inputs, or for the leader to put their paths into it.
    Due,
    /// Done.
    Done {
        /// The derivation that is built in its place.
        derivation: DrvPath,
        /// Where its inputs were taken to be. Those that have left the farm since are no inputs of it any more.
        inputs: Box<[(JobKey, OutputName, StorePath)]>,
    },
}

/// One output that the derivation declares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutputSpec {
    pub name: OutputName,
    /// Its path, where that is known before the build.
    pub path: Option<StorePath>,
}

/// What the failure policy remembers of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tries {
    /// Ended attempts, oldest first, at most `ATTEMPTS_KEPT_MAX`.
    pub ended: Vec<Attempt>,
    /// Infrastructure failures so far; decides the back-off.
    pub infrastructure_count: u32,
    /// Workers on which it failed for infrastructure reasons.
    pub failed_on: BTreeSet<WorkerId>,
    /// Memory to ask for after an out of memory failure.
    pub memory_mib: Option<u64>,
    /// Not before this time.
    pub retry_at: Option<Timestamp>,
}

/// An ended attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub attempt: AttemptId,
    pub worker: WorkerId,
    pub epoch: Epoch,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub end: AttemptEnd,
    /// What it took, if its worker said so while it held the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AttemptEnd {
    /// It made the committed outputs.
    Built,
    /// Its worker reported a failure.
    Failed { class: FailureClass, message: String },
    /// Its lease ended without a report.
    Lost { class: FailureClass, message: String },
    /// It reported other content than the committed one, too late.
    Differs,
    /// The other one of two attempts was first.
    Outrun,
    /// The other one of two attempts was first, and it reported the same content.
    Same,
    /// Its lease ended early, so that a build of the security class had room.
    Preempted,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// Not started: blocked by inputs, or ready.
    Waiting,
    /// Leased.
    Running(Box<Running>),
    /// The whole output set is committed.
    Built {
        /// Sorted by name.
        outputs: Box<[BuiltOutput]>,
        /// The narinfos are readable.
        published: bool,
    },
    /// Failed for good.
    Failed { class: FailureClass, message: String },
    /// An input failed for good.
    DependencyFailed { cause: JobKey },
}

/// A failure, and what follows from it once no attempt at the job is left: the same class, or nothing but another try if that is
/// [`FailureClass::Cancelled`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setback {
    pub class: FailureClass,
    pub message: String,
    /// Memory that the attempt was given, in MiB; 0 if it had all that there was.
    pub granted_mib: u64,
    /// What it took at most, in MiB; 0 if nobody knows.
    pub peak_mib: u64,
}

/// A live lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub attempt: AttemptId,
    pub worker: WorkerId,
    pub epoch: Epoch,
    /// What it holds of the worker.
    pub granted: Resources,
    pub started_at: Timestamp,
    /// When the lease may be revoked, because nobody wants the job.
    pub revoke_at: Option<Timestamp>,
    /// It holds a light slot.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub light: bool,
    /// Its builder had exited when another attempt took its place: it only uploads, and holds nothing.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub relieved: bool,
    /// A second attempt, which began later and on another worker: the first to make its outputs wins. It has none of its own, and ends with
    /// this one where nobody wants the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Box<Self>>,
    /// How the other one of two attempts failed: forgotten if this one makes its outputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed: Option<Box<Setback>>,
}

impl Running {
    /// Returns the lease of an attempt that begins on a worker, by its name and its registration.
    pub fn begun(attempt: AttemptId, (worker, epoch): (WorkerId, Epoch), granted: Resources, now: Timestamp) -> Self {
        Self { attempt, worker, epoch, granted, started_at: now, revoke_at: None, light: false, relieved: false, copy: None, owed: None }
    }
}

impl Setback {
    /// Returns whichever of two says more of the job.
    pub fn graver(self, other: Self) -> Self {
        let weight = |setback: &Self| match setback.class {
            FailureClass::BuildFailure | FailureClass::LimitExceeded => 3,
            FailureClass::OutOfMemory => 2,
            FailureClass::Infrastructure => 1,
            FailureClass::Cancelled => 0,
        };
        let memory = |setback: &Self| (setback.granted_mib, setback.peak_mib);
        match weight(&other).cmp(&weight(&self)).then_with(|| memory(&other).cmp(&memory(&self))) {
            core::cmp::Ordering::Greater => other,
            core::cmp::Ordering::Less | core::cmp::Ordering::Equal => self,
        }
    }
}

impl Job {
    /// Makes a job that was never tried, with its inputs' keys.
    pub fn new(spec: JobSpec, needs: Arc<Needs>, mut inputs: Vec<JobKey>) -> Self {
        inputs.sort_unstable();
        inputs.dedup();
        Self {
            derivation: Arc::new(spec.derivation),
            needs,
            kind: spec.kind,
            prefer_local: spec.prefer_local,
            limits: spec.limits,
            outputs: spec.outputs.into_iter().map(|(name, path)| OutputSpec { name, path }).collect(),
            inputs: inputs.into_boxed_slice(),
            upward_rank_ms: 0,
            tries: Tries::default(),
            state: State::Waiting,
            check: false,
            priority: None,
            held: None,
            resolving: spec.resolve.then(|| Box::new(Resolving::Due)),
        }
    }

    /// Returns whether it must be resolved before a worker can have it.
    pub fn is_unresolved(&self) -> bool {
        self.resolving.as_deref() == Some(&Resolving::Due)
    }

    /// Returns the derivation that is built in its place.
    pub fn resolved(&self) -> Option<&DrvPath> {
        match self.resolving.as_deref()? {
            Resolving::Due => None,
            Resolving::Done { derivation, .. } => Some(derivation),
        }
    }

    /// Returns whether nothing more happens to it by itself.
    pub fn is_final(&self) -> bool {
        match self.state {
            State::Waiting | State::Running(_) => false,
            State::Built { .. } | State::Failed { .. } | State::DependencyFailed { .. } => true,
        }
    }

    /// Returns whether its outputs are committed.
    pub fn is_built(&self) -> bool {
        matches!(self.state, State::Built { .. })
    }

    /// Returns whether it, or something it needs, failed for good.
    pub fn is_failed(&self) -> bool {
        matches!(self.state, State::Failed { .. } | State::DependencyFailed { .. })
    }

    /// Returns the facts of the live lease; of the elder one, if there are two.
    pub fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            State::Waiting | State::Built { .. } | State::Failed { .. } | State::DependencyFailed { .. } => None,
        }
    }

    /// Returns the facts of every live lease, the elder one first.
    pub fn leases(&self) -> impl Iterator<Item = &Running> {
        self.running().into_iter().flat_map(|running| core::iter::once(running).chain(running.copy.as_deref()))
    }

    /// Returns the facts of the live lease that a worker holds: there is one at most.
    pub fn leased_on(&self, worker: &WorkerId) -> Option<&Running> {
        self.leases().find(|running| running.worker == *worker)
    }

    /// Returns the facts of a lease, if it is a live one.
    pub fn leased(&self, lease: &Lease) -> Option<&Running> {
        let is_own = *self.derivation == lease.derivation;
        let is_live = |running: &&Running| {
            is_own && running.attempt == lease.attempt && running.worker == lease.worker && running.epoch == lease.epoch
        };
        self.leases().find(is_live)
    }

    /// Returns whether an attempt is the younger one of two.
    pub fn is_copy(&self, attempt: AttemptId) -> bool {
        self.leases().skip(1).any(|running| running.attempt == attempt)
    }

    /// Returns whether it could have a second attempt beside a live one, were there reason to.
    pub fn is_copyable(&self, running: &Running) -> bool {
        let is_single = running.copy.is_none() && running.owed.is_none();
        is_single && running.revoke_at.is_none() && !running.light && !running.relieved && !self.check && !self.is_light()
    }

    /// Takes out a live attempt. Another one is then the only one; if none is left the job waits, and what the other one of two owed is
    /// returned.
    pub fn part_with(&mut self, attempt: AttemptId) -> Option<Box<Setback>> {
        let State::Running(running) = &mut self.state else { return None };
        if running.attempt != attempt {
            running.copy = None;
            return None;
        }
        let (revoke_at, owed) = (running.revoke_at, running.owed.take());
        match running.copy.take() {
            Some(copy) => {
                **running = Running { revoke_at, owed, ..*copy };
                None
            }
            None => {
                self.state = State::Waiting;
                owed
            }
        }
    }

    /// Notes what follows from the failure of one of two attempts, once the other has failed too.
    pub fn owe(&mut self, setback: Setback) {
        if let State::Running(running) = &mut self.state {
            let both = match running.owed.take() {
                Some(owed) => owed.graver(setback),
                None => setback,
            };
            running.owed = Some(Box::new(both));
        }
    }

    /// Notes that another attempt took the place of a live one.
    pub fn relieve(&mut self, attempt: AttemptId) {
        let State::Running(running) = &mut self.state else { return };
        if running.attempt == attempt {
            running.relieved = true;
        } else if let Some(copy) = running.copy.as_deref_mut().filter(|copy| copy.attempt == attempt) {
            copy.relieved = true;
        }
    }

    /// Returns the live lease; the elder one, if there are two.
    pub fn lease(&self) -> Option<Lease> {
        self.running().map(|running| self.lease_of(running))
    }

    /// Returns the lease of one of the live attempts.
    pub fn lease_of(&self, running: &Running) -> Lease {
        let Running { attempt, worker, epoch, .. } = running;
        Lease { derivation: (*self.derivation).clone(), attempt: *attempt, worker: worker.clone(), epoch: *epoch }
    }

    /// Returns whether `lease` is exactly a live one.
    pub fn holds(&self, lease: &Lease) -> bool {
        self.leased(lease).is_some()
    }

    /// Returns the committed outputs, sorted by name.
    pub fn built_outputs(&self) -> Option<&[BuiltOutput]> {
        match &self.state {
            State::Built { outputs, .. } => Some(outputs),
            State::Waiting | State::Running(_) | State::Failed { .. } | State::DependencyFailed { .. } => None,
        }
    }

    /// Returns what a worker must have for the next attempt. `memory_wish_mib` is what was learned of its like: it counts where the job does
    /// not say itself what it needs.
    pub fn needs_next(&self, memory_wish_mib: u64) -> Arc<Needs> {
        let memory_mib = self.memory_next_mib();
        let memory_wish_mib = if self.needs.resources.memory_mib == 0 && memory_wish_mib > memory_mib { memory_wish_mib } else { 0 };
        let light = self.is_light();
        if memory_mib == self.needs.resources.memory_mib && memory_wish_mib == 0 && !light {
            return Arc::clone(&self.needs);
        }
        let mut needs = (*self.needs).clone();
        (needs.resources.memory_mib, needs.memory_wish_mib, needs.light) = (memory_mib, memory_wish_mib, light);
        Arc::new(needs)
    }

    /// Returns whether it is a fetch by the worker itself, or a build that prefers to be local: over in a moment.
    pub fn is_light(&self) -> bool {
        self.kind == JobKind::Builtin || (self.prefer_local && self.kind == JobKind::Ordinary)
    }

    /// Returns the memory in MiB that a worker must have for the next attempt; 0 for none in particular.
    pub fn memory_next_mib(&self) -> u64 {
        self.tries.memory_mib.unwrap_or(self.needs.resources.memory_mib)
    }
}

/// Writes what an [`Arc`] holds; sharing is restored by the reader.
mod shared {
    use alloc::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
        (**value).serialize(serializer)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}
