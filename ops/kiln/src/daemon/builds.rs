//! Builds for a client: all that it wants in one submission, told as it goes, and cancelled when the client is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_nix::daemon::{ActivityKind, BuildResult, Field, Level, Note, Options, ResultKind, Status, Target};
use kiln_wire::client::{BuildState, BuildView, Event, EventKind, Request};
use kiln_wire::{AttemptId, BuildId, DrvPath, Patience, Urgency};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::log_lines::{self, Followed, Told};
use super::outcome::{self, Course, Wanted};
use super::store::Store;
use super::stream::{Broken, Failure, Stream};
use crate::submission::{self, Watching, default_name};

/// Builds what is not there of `targets`, and returns what became of each. What was made is here then, if files are kept here.
pub(super) async fn build(store: &Store, stream: &mut Stream, targets: &[Target], options: Options) -> Result<Vec<BuildResult>, Failure> {
    let led = led_to(store, stream, targets, options).await?;
    let there: Vec<Target> = led.iter().filter_map(|led| led.as_ref().ok()).cloned().collect();
    let mut built = build_there(store, stream, &there, options).await?.into_iter();
    // As many as there are targets that could be looked for.
    Ok(led.into_iter().filter_map(|led| led.map_or_else(Some, |_| built.next())).collect())
}

/// Has those derivations built that make derivations of which outputs are wanted. Returns the targets with these in their place, or why there
/// is none.
async fn led_to(
    store: &Store,
    stream: &mut Stream,
    targets: &[Target],
    options: Options,
) -> Result<Vec<Result<Target, BuildResult>>, Failure> {
    let mut led: Vec<Result<Target, BuildResult>> = targets.iter().cloned().map(Ok).collect();
    loop {
        let mut makers = Vec::new();
        for (at, target) in led.iter().enumerate() {
            if let Ok(Target::Made { derivation, through, outputs }) = target
                && let Some((first, rest)) = through.split_first()
            {
                let maker = Target::Outputs { derivation: derivation.clone(), outputs: [first.clone()].into() };
                makers.push((at, maker, first.clone(), rest.to_vec(), outputs.clone()));
            }
        }
        if makers.is_empty() {
            return Ok(led);
        }
        let wanted: Vec<Target> = makers.iter().map(|(_, maker, ..)| maker.clone()).collect();
        let results = build_there(store, stream, &wanted, options).await?;
        for ((at, _, output, through, outputs), result) in makers.into_iter().zip(results) {
            led[at] = match result.outputs.get(&output).cloned().map(DrvPath::from_path) {
                None => Err(result),
                Some(Err(error)) => Err(outcome::failed(Status::PermanentFailure, format!("what was built is no derivation: {error}"))),
                Some(Ok(derivation)) if through.is_empty() => Ok(Target::Outputs { derivation, outputs }),
                Some(Ok(derivation)) => Ok(Target::Made { derivation, through, outputs }),
            };
        }
    }
}

async fn build_there(store: &Store, stream: &mut Stream, targets: &[Target], options: Options) -> Result<Vec<BuildResult>, Failure> {
    let wanted = Wanted::look(store, targets).await?;
    let roots = wanted.roots();
    let course = match roots.is_empty() {
        true => Course::default(),
        false => {
            let patience =
                Patience { attempt_ms_max: milliseconds(options.seconds_max), silent_ms_max: milliseconds(options.silent_seconds_max) };
            let (build, mut held) =
                submission::submit_held(store.client(), default_name(&roots), roots, options.keep_going, patience).await?;
            let mut course = run(store, stream, build).await?;
            if course.view.as_ref().is_some_and(|view| view.state == BuildState::Cancelled) {
                // Whoever cancelled it: if it was for want of patience, the farm says so.
                course.out_of_patience = tokio::time::timeout(LOG_REST_MAX, held.over()).await.ok().and_then(Result::ok);
            }
            held.release().await;
            course
        }
    };
    let results = wanted.results(store, &course).await?;
    store.bring(results.iter().flat_map(|result| result.outputs.values().cloned()).collect()).await?;
    Ok(results)
}

/// Reads a limit of Nix': none is 0.
fn milliseconds(seconds: u64) -> Option<u64> {
    (seconds > 0).then(|| seconds.saturating_mul(1000))
}

/// Builds again what is there of `targets`, and returns whether each came out the same.
pub(super) async fn check(store: &Store, stream: &mut Stream, targets: &[Target], keep_going: bool) -> Result<Vec<BuildResult>, Failure> {
    if targets.iter().any(|target| matches!(target, Target::Made { .. })) {
        return Err(Failure::Told(anyhow::anyhow!("check: a derivation that a build makes is checked by its own path: build it first")));
    }
    let wanted = Wanted::look(store, targets).await?;
    let roots = wanted.all_roots();
    let course = match roots.is_empty() {
        true => Course::default(),
        false => {
            let build = {
                let (name, urgency) = (default_name(&roots), Urgency::default());
                submission::check(store.client(), submission::Wanted { name, roots, keep_going, urgency, evaluation: None }).await?
            };
            run(store, stream, build).await?
        }
    };
    let results = wanted.results_of_check(store, &course).await;
    store.bring(results.iter().flat_map(|result| result.outputs.values().cloned()).collect()).await?;
    Ok(results)
}

async fn run(store: &Store, stream: &mut Stream, build: BuildId) -> Result<Course, Failure> {
    let (tell, told) = mpsc::channel(LINES_AHEAD);
    let mut building = Building {
        store,
        stream,
        course: Course::default(),
        activities: BTreeMap::new(),
        begun: BTreeSet::new(),
        logs: JoinSet::new(),
        tell,
        whole: next_activity(),
    };
    let followed = building.follow(build, told).await;
    if followed.is_err() {
        let client = store.client().clone();
        let cancel = async move {
            // Nobody is there to be told if this fails too.
            let cancelled = client.one(&Request::Cancel(build)).await;
            tracing::debug!(%build, ?cancelled, "nobody follows it any more");
        };
        match &followed {
            // A client that is told does not wait for it, nor for a farm that does not answer.
            Err(Failure::Told(_)) => drop(tokio::spawn(cancel)),
            _ => cancel.await,
        }
    }
    followed?;
    Ok(building.course)
}

/// A build while it goes on.
struct Building<'a> {
    store: &'a Store,
    stream: &'a mut Stream,
    course: Course,
    /// What the client was told of and has not ended, by the number that the client has of it.
    activities: BTreeMap<u64, Activity>,
    /// Attempts that the client was told of.
    begun: BTreeSet<AttemptId>,
    /// Ends with this.
    logs: JoinSet<()>,
    tell: mpsc::Sender<Told>,
    /// The activity that counts all builds.
    whole: u64,
}

/// An attempt that the client was told of.
struct Activity {
    derivation: DrvPath,
    /// True once the attempt is over.
    over: watch::Sender<bool>,
    /// Whether all of its log was told.
    log_told: bool,
}

impl Building<'_> {
    async fn follow(&mut self, build: BuildId, mut told: mpsc::Receiver<Told>) -> Result<(), Failure> {
        let start = Note::Start { id: self.whole, level: Level::Error, kind: ActivityKind::Builds, text: "", fields: &[], parent: 0 };
        self.stream.note(start).await?;
        let client = self.store.client().clone();
        let mut watching = Watching::new(&client, build);
        let (happened, mut events) = mpsc::unbounded_channel();
        loop {
            tokio::select! {
                // Its receiver lives as long as this.
                next = watching.next(|event| drop(happened.send(event))) => match next? {
                    Some(view) => self.view(view).await?,
                    None => break,
                },
                Some(event) = events.recv() => self.event(&event).await?,
                Some(told) = told.recv() => self.log(told).await?,
                () = self.stream.gone() => return Err(Broken::Gone.into()),
            }
        }
        while let Ok(event) = events.try_recv() {
            self.event(&event).await?;
        }
        self.end(told).await
    }

    async fn view(&mut self, view: BuildView) -> Result<(), Failure> {
        // What another build had started before this one was submitted was no event of this one.
        for job in &view.running {
            if let Some(attempt) = job.attempts.last().filter(|attempt| attempt.ended_at.is_none()) {
                self.begin(&job.derivation, attempt.attempt, attempt.worker.as_str()).await?;
            }
        }
        let counts = view.counts;
        let all = counts.blocked + counts.ready + counts.running + counts.built + counts.failed;
        let fields = [counts.built, all, counts.running, counts.failed].map(Field::Number);
        self.course.view = Some(view);
        Ok(self.stream.note(Note::Result { id: self.whole, kind: ResultKind::Progress, fields: &fields }).await?)
    }

    async fn event(&mut self, event: &Event) -> Result<(), Failure> {
        let derivation = &event.derivation;
        match &event.kind {
            EventKind::Ready => return Ok(()),
            EventKind::Started { attempt, worker } => return self.begin(derivation, *attempt, worker.as_str()).await,
            EventKind::Built { wall_ms, .. } => {
                self.course.built.insert(derivation.clone(), (event.at.0.saturating_sub(*wall_ms), event.at.0));
            }
            EventKind::Retried { class, message } => {
                let text = format!("{}: {class}: {message}; it is tried again\n", derivation.name());
                self.stream.note(Note::Text(&text)).await?;
            }
            EventKind::DependencyFailed { cause } => drop(self.course.causes.insert(derivation.clone(), cause.clone())),
            EventKind::Failed { .. } | EventKind::Cancelled => {}
        }
        self.over(derivation).await
    }

    /// Tells of an attempt, unless that was done, and follows its log.
    async fn begin(&mut self, derivation: &DrvPath, attempt: AttemptId, worker: &str) -> Result<(), Failure> {
        if !self.begun.insert(attempt) {
            return Ok(());
        }
        self.over(derivation).await?;
        let id = next_activity();
        let full = self.store.store_dir().join(derivation.as_path());
        let text = format!("building '{full}' on '{worker}'");
        let fields = [Field::Text(full.as_bytes()), Field::Text(worker.as_bytes()), Field::Number(1), Field::Number(1)];
        let kind = ActivityKind::Build;
        self.stream.note(Note::Start { id, level: Level::Info, kind, text: &text, fields: &fields, parent: self.whole }).await?;
        while self.logs.try_join_next().is_some() {}
        let follows = self.logs.len() < LOGS_FOLLOWED_MAX;
        let (over, is_over) = watch::channel(false);
        if follows {
            let keep = self.store.log_place(derivation);
            let followed = Followed { derivation: derivation.clone(), attempt, activity: id, keep };
            let (client, tell) = (self.store.client().clone(), self.tell.clone());
            self.logs.spawn(async move { log_lines::follow(&client, followed, is_over, tell).await });
        }
        self.activities.insert(id, Activity { derivation: derivation.clone(), over, log_told: !follows });
        Ok(())
    }

    /// Notes that no attempt of a derivation goes on. What is left of a log comes before the client is told.
    async fn over(&mut self, derivation: &DrvPath) -> Result<(), Failure> {
        let of_it: Vec<u64> = self.activities.iter().filter(|(_, open)| open.derivation == *derivation).map(|(id, _)| *id).collect();
        for id in of_it {
            if let Some(activity) = self.activities.get(&id) {
                activity.over.send_replace(true);
            }
            self.stop_if_told(id).await?;
        }
        Ok(())
    }

    async fn stop_if_told(&mut self, id: u64) -> Result<(), Failure> {
        if self.activities.get(&id).is_some_and(|activity| activity.log_told && *activity.over.borrow()) {
            self.activities.remove(&id);
            self.stream.note(Note::Stop { id }).await?;
        }
        Ok(())
    }

    async fn log(&mut self, told: Told) -> Result<(), Failure> {
        match told {
            Told::Line(id, line) => {
                let phase = phase_of(&line);
                let (kind, text) = match &phase {
                    Some(phase) => (ResultKind::SetPhase, phase.as_bytes()),
                    None => (ResultKind::BuildLogLine, line.as_slice()),
                };
                Ok(self.stream.note(Note::Result { id, kind, fields: &[Field::Text(text)] }).await?)
            }
            Told::End(id) => {
                if let Some(activity) = self.activities.get_mut(&id) {
                    activity.log_told = true;
                }
                self.stop_if_told(id).await
            }
        }
    }

    /// Tells what is left to tell of logs, and that all has ended.
    async fn end(&mut self, mut told: mpsc::Receiver<Told>) -> Result<(), Failure> {
        let open: BTreeSet<DrvPath> = self.activities.values().map(|activity| activity.derivation.clone()).collect();
        for derivation in &open {
            self.over(derivation).await?;
        }
        let deadline = tokio::time::Instant::now() + LOG_REST_MAX;
        while !self.activities.is_empty() {
            match tokio::time::timeout_at(deadline, told.recv()).await {
                Ok(Some(told)) => self.log(told).await?,
                Ok(None) | Err(_) => break,
            }
        }
        for id in std::mem::take(&mut self.activities).into_keys().chain([self.whole]) {
            self.stream.note(Note::Stop { id }).await?;
        }
        Ok(())
    }
}

/// Reads `@nix {"action":"setPhase","phase":…}`, by which builders say what they are at.
fn phase_of(line: &[u8]) -> Option<String> {
    let said: serde_json::Value = serde_json::from_slice(line.strip_prefix(b"@nix ")?).ok()?;
    (said["action"] == "setPhase").then(|| said["phase"].as_str().map(str::to_owned))?
}

/// Draws a number that no activity of the client or of another daemon of this machine has: Nix draws them in the same way.
fn next_activity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Lines of logs that wait for a client that reads slowly.
const LINES_AHEAD: usize = 256;
/// Logs that are followed at a time: few enough that requests find a free stream beside them. Of further attempts only failures are shown.
const LOGS_FOLLOWED_MAX: usize = 64;
/// How long the rest of logs may take to come after the last job has ended: they are known by then.
const LOG_REST_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_says_its_phase_among_its_lines() {
        let table = [
            (r#"@nix {"action":"setPhase","phase":"buildPhase"}"#, Some("buildPhase")),
            (r#"@nix {"action":"msg","msg":"x"}"#, None),
            ("@nix {", None),
            ("phase", None),
        ];
        for (line, phase) in table {
            assert_eq!(phase_of(line.as_bytes()).as_deref(), phase, "{line}");
        }
    }
}
