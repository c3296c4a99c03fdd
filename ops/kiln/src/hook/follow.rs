//! A build of the farm, followed for Nix: its log to the descriptor that Nix reads logs from, and how it ended.

use kiln_wire::client::{BuildState, BuildView, Event, EventKind, JobView};
use kiln_wire::{AttemptId, BuildId, DrvPath, FailureClass, OutOfPatience, StoreDir};
use tokio::sync::{mpsc, watch};

use super::voice::Voice;
use crate::client::Client;
use crate::daemon::log_lines::{self, Followed, Told};
use crate::failures;
use crate::submission::{Held, Watching};

/// How a build ended.
pub(super) enum Ended {
    /// Its outputs are on the farm.
    Built,
    /// It failed, and would again.
    Failed(String),
    /// It took too long.
    TimedOut(String),
    /// It ended for no reason of its own.
    Otherwise(String),
}

/// Follows a build of one derivation to its end.
pub(super) async fn follow(
    client: &Client,
    store_dir: &StoreDir,
    voice: &Voice,
    build: BuildId,
    derivation: &DrvPath,
    held: &mut Held,
) -> anyhow::Result<Ended> {
    let (tell, mut told) = mpsc::channel(LINES_AHEAD);
    let mut log = Log { client, derivation, voice, tell, over: None, open: 0, others: 0 };
    let mut watching = Watching::new(client, build);
    let (happened, mut events) = mpsc::unbounded_channel();
    let mut last = None;
    loop {
        tokio::select! {
            // An attempt is known by the event that says so, and a short one is over by the time that its build is: events come first.
            biased;
            Some(event) = events.recv() => log.happened(event).await,
            out = held.over() => return Ok(Ended::TimedOut(took_too_long(store_dir, &out?))),
            // Its receiver lives as long as this.
            next = watching.next(|event| drop(happened.send(event))) => match next? {
                Some(view) => {
                    log.begin_running(&view).await;
                    last = Some(view);
                }
                None => break,
            },
            Some(told) = told.recv() => log.tell(told).await?,
        }
    }
    while let Ok(event) = events.try_recv() {
        log.happened(event).await;
    }
    log.over();
    while log.open > 0
        && let Some(told) = told.recv().await
    {
        log.tell(told).await?;
    }
    match last {
        Some(view) => how(client, store_dir, derivation, &view).await,
        None => Ok(Ended::Otherwise(format!("the farm says nothing of build {build}"))),
    }
}

/// The log of the derivation's attempts.
struct Log<'a> {
    client: &'a Client,
    derivation: &'a DrvPath,
    voice: &'a Voice,
    tell: mpsc::Sender<Told>,
    /// The attempt that is followed, with what tells its follower that it has ended.
    over: Option<(AttemptId, watch::Sender<bool>)>,
    /// Attempts whose log is not all told.
    open: usize,
    /// Inputs that the farm builds first, so far.
    others: u64,
}

impl Log<'_> {
    async fn happened(&mut self, event: Event) {
        match event.kind {
            EventKind::Started { attempt, worker } => self.begin(&event.derivation, attempt, worker.as_str()).await,
            kind if event.derivation == *self.derivation && kind.is_final() => self.over(),
            _ => {}
        }
    }

    async fn begin_running(&mut self, view: &BuildView) {
        for job in view.running.iter().filter(|job| job.derivation == *self.derivation) {
            if let Some(attempt) = job.attempts.last().filter(|attempt| attempt.ended_at.is_none()) {
                self.begin(&job.derivation, attempt.attempt, attempt.worker.as_str()).await;
            }
        }
    }

    async fn begin(&mut self, derivation: &DrvPath, attempt: AttemptId, worker: &str) {
        if derivation != self.derivation {
            self.others += 1;
            self.voice.info(&format!("the farm builds an input first: {derivation} on {worker}")).await;
            return;
        }
        if self.over.as_ref().is_some_and(|(followed, _)| *followed == attempt) {
            return;
        }
        self.over();
        let (over, is_over) = watch::channel(false);
        let (client, tell) = (self.client.clone(), self.tell.clone());
        // Nix keeps it.
        let followed = Followed { derivation: derivation.clone(), attempt, activity: 0, keep: None };
        tokio::spawn(async move { log_lines::follow(&client, followed, is_over, tell).await });
        self.over = Some((attempt, over));
        self.open += 1;
    }

    fn over(&mut self) {
        if let Some((_, over)) = &self.over {
            over.send_replace(true);
        }
    }

    async fn tell(&mut self, told: Told) -> anyhow::Result<()> {
        match told {
            Told::Line(_, mut text) => {
                text.push(b'\n');
                self.voice.log(text).await
            }
            Told::End(_) => {
                self.open -= 1;
                Ok(())
            }
        }
    }
}

fn took_too_long(store_dir: &StoreDir, out: &OutOfPatience) -> String {
    let full = store_dir.join(out.derivation.as_path());
    let seconds = out.ms_max / 1000;
    match out.is_silent {
        true => format!("building of '{full}' timed out after {seconds} seconds of silence, on the farm"),
        false => format!("building of '{full}' timed out after {seconds} seconds, on the farm"),
    }
}

async fn how(client: &Client, store_dir: &StoreDir, derivation: &DrvPath, view: &BuildView) -> anyhow::Result<Ended> {
    match view.state {
        BuildState::Built => return Ok(Ended::Built),
        BuildState::Cancelled => return Ok(Ended::Otherwise(format!("build {} was cancelled on the farm", view.build))),
        BuildState::Active | BuildState::Failed => {}
    }
    let own = view.failures.iter().find(|job| job.derivation == *derivation);
    let Some(job) = own.or_else(|| view.failures.first()) else {
        return Ok(Ended::Otherwise(format!("build {} failed on the farm", view.build)));
    };
    let full = store_dir.join(job.derivation.as_path());
    let mut text = match job.reason.contains(&full) {
        true => format!("on the farm: {}", job.reason),
        false => format!("on the farm: '{full}': {}", job.reason),
    };
    if own.is_none() {
        // Nix has not seen this log, and cannot show its end.
        let tail = failures::tail(client, job, TAIL_LINES).await.unwrap_or_default();
        tail.lines.iter().for_each(|line| text.push_str(&format!("\n> {line}")));
    }
    Ok(match class_of(job) {
        Some(FailureClass::BuildFailure | FailureClass::OutOfMemory) | None => Ended::Failed(text),
        Some(FailureClass::LimitExceeded) => Ended::TimedOut(text),
        Some(FailureClass::Infrastructure | FailureClass::Cancelled) => Ended::Otherwise(text),
    })
}

fn class_of(job: &JobView) -> Option<FailureClass> {
    job.attempts.last().and_then(|attempt| attempt.failure.as_ref()).map(|(class, _)| *class)
}

/// Lines that may wait to be told.
const LINES_AHEAD: usize = 64;
/// Lines of log of an input that failed.
const TAIL_LINES: usize = 10;
