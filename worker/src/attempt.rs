//! One attempt from its assignment to its outcome: inputs, builder, outputs, upload.
//!
//! Every way out names whose fault it was. A task of its own; what blocks runs on a thread that may. Does not report: the events it
//! sends go through the [`crate::shell::Shell`].

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use kiln_nix::derivation::{self, Derivation};
use kiln_trace::TARGET;
use kiln_wire::worker::Assignment;
use kiln_wire::{Failure, FailureClass, JobLimits, Outcome, Usage};
use tokio::sync::mpsc;
use tracing::{Instrument, Span};

use crate::attempt_log::AttemptLog;
use crate::builder;
use crate::builtin::{Builtin, Closure, Site};
use crate::cache::Pin;
use crate::failure::{caused, failure, of_run};
use crate::launcher::{Claim, LauncherError, Owner, Reach, Task};
use crate::outputs::{self, Import, Made};
use crate::sandbox;
use crate::scratch::Scratch;
use crate::shell::AttemptEvent;
use crate::slots::Slot;
use crate::spans::{self, Running};
use crate::stop::{Stop, Stopped};
use crate::upload::{UploadError, upload};
use crate::workshop::Workshop;

/// Free bytes below which a disk counts as full.
const DISK_FREE_BYTES_MIN: u64 = 8 << 20;

/// An attempt to run.
#[derive(Debug)]
pub struct Order {
    /// What to run.
    pub assignment: Assignment,
    /// Where its log goes.
    pub log: Arc<AttemptLog>,
    /// Stops it.
    pub stop: Stop,
    /// Hears what becomes of it.
    pub events: mpsc::UnboundedSender<AttemptEvent>,
}

/// Why an attempt made nothing, and what it took all the same.
struct Failed {
    failure: Failure,
    usage: Usage,
}

/// What a builder made.
struct Built {
    made: Vec<Made>,
    usage: Usage,
    /// Keeps the outputs in the cache until the farm has them.
    _pin: Pin,
}

/// Runs an attempt to its end and says so, whatever happens.
pub async fn run(workshop: Arc<Workshop>, order: Order) {
    let (lease, events) = (order.assignment.lease.clone(), order.events.clone());
    let span = spans::attempt(&order.assignment);
    let ended = AssertUnwindSafe(outcome(workshop, order)).catch_unwind().instrument(span.clone()).await;
    let outcome = ended.unwrap_or_else(|_| {
        let text = format!("run attempt {}: the worker has a bug and gave up", lease.attempt);
        Outcome::Failed { failure: failure(FailureClass::Infrastructure, &text), usage: Usage::default() }
    });
    spans::ended(&span, &outcome);
    drop(span);
    // Nobody listens any more only when the whole worker ends.
    let _ = events.send(AttemptEvent::Ended(lease, outcome));
}

async fn outcome(workshop: Arc<Workshop>, order: Order) -> Outcome {
    let (lease, stop) = (order.assignment.lease.clone(), order.stop.clone());
    let (uplink, events) = (workshop.uplink.clone(), order.events.clone());
    let built = match build(workshop, order).await {
        Ok(built) => built,
        Err(Failed { failure, usage }) => return Outcome::Failed { failure, usage },
    };
    let usage = built.usage;
    // Its build user is free, its processes are gone: what is left takes a link. Nobody listens any more only when the whole worker ends.
    let _ = events.send(AttemptEvent::Wound(lease.clone()));
    let uploading = tracing::info_span!(target: TARGET, "upload", outputs = built.made.len());
    match stop.unless(upload(&uplink, &lease, &built.made)).instrument(uploading).await {
        Ok(Ok(())) => Outcome::Built { outputs: built.made.into_iter().map(|made| made.output).collect(), usage },
        Ok(Err(err @ UploadError::StaleLease { .. })) => Outcome::Failed { failure: caused(FailureClass::Cancelled, "", &err), usage },
        Ok(Err(err @ (UploadError::Request { .. } | UploadError::Damaged { .. } | UploadError::Read { .. }))) => {
            Outcome::Failed { failure: caused(FailureClass::Infrastructure, "", &err), usage }
        }
        Err(Stopped) => Outcome::Failed { failure: stopped(), usage },
    }
}

async fn build(workshop: Arc<Workshop>, order: Order) -> Result<Built, Failed> {
    let assignment = &order.assignment;
    let derivation = read_derivation(assignment)?;
    outputs::output_paths(assignment, &derivation)?;
    let fetching = tracing::info_span!(target: TARGET, "fetch", paths = assignment.inputs.len());
    let inputs = order.stop.unless(workshop.inputs.ensure(&assignment.inputs)).instrument(fetching).await?;
    let inputs = inputs.map_err(|err| caused(FailureClass::Infrastructure, "", &*err))?;
    let slot = order.stop.unless(workshop.slots.take()).await?;
    let limits = workshop.limits.of(&assignment.limits);
    // Nobody listens any more only when the whole worker ends.
    let _ = order.events.send(AttemptEvent::Started(assignment.lease.clone()));
    let room = Room { workshop, order, derivation, limits, slot, _inputs: inputs };
    if room.derivation.is_builtin() { room.built_in().await } else { room.sandboxed().await }
}

/// Everything that one build holds while it runs. Dropped as a whole on a thread that may wait.
struct Room {
    workshop: Arc<Workshop>,
    order: Order,
    derivation: Derivation,
    limits: JobLimits,
    slot: Slot,
    _inputs: Pin,
}

impl Room {
    /// Runs the builder in the sandbox, then imports what it made, on one thread.
    async fn sandboxed(self) -> Result<Built, Failed> {
        let span = Span::current();
        let work = tokio::task::spawn_blocking(move || span.in_scope(|| self.run_and_import()));
        work.await.unwrap_or_else(|err| Err(caused(FailureClass::Infrastructure, "run the builder", &err).into()))
    }

    fn run_and_import(self) -> Result<Built, Failed> {
        let assignment = &self.order.assignment;
        let task = self.task()?;
        let shared_network = task.reach != Reach::Itself;
        let log = &self.order.log;
        let infrastructure = |err: LauncherError| caused(err.class(), &self.about("run the builder"), &err);
        let mut running = Running::begin();
        let mut append = |bytes: &[u8]| {
            running.log(bytes);
            log.append(bytes);
        };
        let mut run = self.workshop.launcher.start(task).map_err(infrastructure)?;
        let ended = run.until_end(self.order.stop.cancel(), &mut append);
        running.end(ended.as_ref().ok().map(|ended| Duration::from_millis(ended.usage.wall_ms)));
        let ended = ended.map_err(infrastructure)?;
        if let Some(failure) = of_run(&assignment.store_dir, &assignment.lease.derivation, &ended, &self.limits) {
            return Err(Failed { failure: self.blame_disk(failure), usage: ended.usage });
        }
        let usage = ended.usage;
        let claim =
            Claim { outputs: outputs::output_paths(&self.order.assignment, &self.derivation)?, bytes_max: self.limits.output_bytes_max };
        let dir = run.claim(claim).map_err(|failure| self.unclaimed(&failure, usage))?;
        self.import(dir, shared_network, usage)
    }

    fn unclaimed(&self, why: &Failure, usage: Usage) -> Failed {
        let text = format!("{}: {}", outputs::importing(&self.order.assignment.lease.derivation), why.message);
        Failed { failure: failure(why.class, &text), usage }
    }

    /// Runs one of the worker's own builders, then imports what it made.
    async fn built_in(self) -> Result<Built, Failed> {
        let started = Instant::now();
        let scratch = Scratch::new(&self.workshop.builtin_dir, &self.order.assignment.lease.attempt.to_string(), &self.workshop.trash);
        let scratch = scratch.map_err(|err| caused(FailureClass::Infrastructure, "make the build's directory", &err))?;
        let (assignment, cache) = (&self.order.assignment, &self.workshop.cache);
        let paths = outputs::output_paths(&self.order.assignment, &self.derivation)?;
        let variables = builder::variables(&self.derivation, assignment, &paths);
        let builtin = Builtin::of(&self.derivation, &variables).map_err(|err| caused(FailureClass::BuildFailure, "", &err))?;
        let out = paths.iter().find(|(name, _)| name.as_str() == "out").map(|(_, path)| path).expect("a builtin has an output `out`");
        let inputs = assignment.inputs.iter().map(|info| (info.path.clone(), cache.host_path(&info.path)));
        let workshop = self.workshop.clone();
        let destinations = tokio::task::spawn_blocking(move || workshop.destinations()).await;
        let destinations = destinations.map_err(|err| caused(FailureClass::Infrastructure, "look up what may be reached", &err))?;
        let site = Site {
            out: scratch.dir().join(out.as_str()),
            closure: Closure::new(&assignment.store_dir, inputs),
            destinations,
            limits: self.limits,
            stop: self.order.stop.clone(),
            log: self.order.log.clone(),
        };
        let building = tracing::info_span!(target: TARGET, "build", builtin = %self.derivation.builder);
        let made = builtin.make(site).instrument(building).await;
        let wall_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let usage = Usage { wall_ms, log_bytes: self.order.log.len(), ..Usage::default() };
        let what = self.about(&format!("run `{}`", self.derivation.builder));
        made.map_err(|err| Failed { failure: caused(err.class(), &what, &err), usage })?;
        let span = Span::current();
        let work = tokio::task::spawn_blocking(move || {
            let _in_span = span.entered();
            let (dir, own) = (scratch.dir().to_owned(), Owner::own());
            let canonical = outputs::make_canonical(&dir, &paths, own.uid..=own.uid, own, self.limits.output_bytes_max);
            canonical.map_err(|failure| self.unclaimed(&failure, usage))?;
            self.import(dir, false, usage)
        });
        work.await.unwrap_or_else(|err| Err(caused(FailureClass::Infrastructure, "import what a builtin made", &err).into()))
    }

    fn import(&self, dir: PathBuf, shared_network: bool, usage: Usage) -> Result<Built, Failed> {
        let _importing = tracing::info_span!(target: TARGET, "import").entered();
        let import = Import {
            assignment: &self.order.assignment,
            derivation: &self.derivation,
            dir,
            bytes_max: self.limits.output_bytes_max,
            packer: &self.workshop.packer,
            shared_network,
        };
        match outputs::import(&import, &self.workshop.cache) {
            Ok((made, pin)) => Ok(Built { made, usage, _pin: pin }),
            Err(failure) => Err(Failed { failure, usage }),
        }
    }

    fn task(&self) -> Result<Task, Failed> {
        let (assignment, workshop) = (&self.order.assignment, &self.workshop);
        let build_failure = |err: &dyn std::error::Error| caused(FailureClass::BuildFailure, "", err);
        let paths = outputs::output_paths(&self.order.assignment, &self.derivation)?;
        let launch = builder::launch(&self.derivation, assignment, &paths, &workshop.host_env).map_err(|err| build_failure(&err))?;
        let features = self.derivation.attributes().and_then(|attributes| attributes.required_system_features());
        let features = features.map_err(|err| build_failure(&err))?;
        let uid_range = features.contains(sandbox::UID_RANGE);
        if uid_range && launch.network {
            let what = self.about("run the builder");
            let text = format!("{what}: `uid-range` is not for builds with a network, whose root could undo what keeps it from others");
            return Err(failure(FailureClass::BuildFailure, &text).into());
        }
        let pairs = |list: Vec<(Vec<u8>, Vec<u8>)>| list.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Ok(Task {
            name: format!("attempt-{}", assignment.lease.attempt),
            slot: self.slot.number(),
            store_dir: assignment.store_dir.clone(),
            system: self.derivation.system.clone(),
            builder: launch.builder.into(),
            args: launch.args.into_iter().map(Into::into).collect(),
            env: pairs(launch.env),
            files: pairs(launch.files),
            inputs: assignment.inputs.iter().map(|info| info.path.clone()).collect(),
            reach: if launch.network { workshop.reach_outside() } else { Reach::Itself },
            dev_kvm: features.contains("kvm"),
            uid_range,
            resources: workshop.policy.of(assignment.resources),
            limits: sandbox::Limits {
                wall: Duration::from_millis(self.limits.wall_ms_max),
                silence: Duration::from_millis(self.limits.silence_ms_max),
                log_bytes: self.limits.log_bytes_max,
            },
        })
    }

    /// A builder that fails on a full disk is not at fault. Nix looks at the same bound.
    fn blame_disk(&self, failed: Failure) -> Failure {
        let free = rustix::fs::statvfs(&self.workshop.dir).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        match failed.class {
            FailureClass::BuildFailure if free < DISK_FREE_BYTES_MIN => {
                let text = format!("{}; the worker's disk is full ({free} bytes are left)", failed.message);
                failure(FailureClass::Infrastructure, &text)
            }
            FailureClass::BuildFailure
            | FailureClass::OutOfMemory
            | FailureClass::LimitExceeded
            | FailureClass::Infrastructure
            | FailureClass::Cancelled => failed,
        }
    }

    fn about(&self, what: &str) -> String {
        format!("{what} of `{}`", self.order.assignment.lease.derivation)
    }
}

/// Reads the derivation and makes sure that it is the one that was leased.
fn read_derivation(assignment: &Assignment) -> Result<Derivation, Failed> {
    let wanted = assignment.resolved.as_ref().unwrap_or(&assignment.lease.derivation);
    let refuse = |text: String| failure(FailureClass::Infrastructure, &format!("read the derivation of `{wanted}`: {text}"));
    let read = Derivation::parse(&assignment.store_dir, wanted.name(), &assignment.derivation);
    let derivation = read.map_err(|err| caused(FailureClass::BuildFailure, &format!("read `{wanted}`"), &err))?;
    match derivation::path_of_parsed(&assignment.store_dir, &derivation, &assignment.derivation) {
        Ok(path) if path == *wanted => Ok(derivation),
        Ok(path) => Err(refuse(format!("the assignment brings the bytes of `{path}`")).into()),
        Err(err) => Err(refuse(crate::failure::chain(&err)).into()),
    }
}

fn stopped() -> Failure {
    failure(FailureClass::Cancelled, "the attempt was stopped because nobody wants it any more")
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, usage: Usage::default() }
    }
}

impl From<Stopped> for Failed {
    fn from(_: Stopped) -> Self {
        stopped().into()
    }
}
