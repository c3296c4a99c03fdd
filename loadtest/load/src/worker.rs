//! One simulated worker: the real agent behind a real session; what would be built is made at once, or after a while, and uploaded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kiln_agent::{Action, Agent};
use kiln_link::{Connection, Dialer, Sender};
use kiln_route::{Found, Scouts};
use kiln_wire::client::{Request, Response};
use kiln_wire::limits::HEARTBEAT_MS;
use kiln_wire::worker::{Assignment, FromWorker, ToWorker};
use kiln_wire::{Failure, FailureClass, Lease, Outcome, Usage};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::crew::{Seen, Work};
use crate::output::{self, Made};

/// A simulated worker.
pub(crate) struct Worker {
    pub(crate) agent: Agent,
    pub(crate) dialer: Dialer,
    pub(crate) addresses: Vec<String>,
    pub(crate) seen: Arc<Seen>,
    /// Delays the first heartbeat, so that workers which started together do not speak together.
    pub(crate) heartbeat_offset: Duration,
}

type Ended = (Lease, Outcome);

/// What runs, and how its end is told.
struct Attempts {
    running: BTreeMap<Lease, AbortHandle>,
    ended: mpsc::UnboundedSender<Ended>,
}

impl Worker {
    /// Serves session after session, until its task is aborted.
    pub(crate) async fn run(mut self) {
        let mut scouts = Scouts::start(self.dialer.clone(), self.addresses.iter().cloned());
        let (ended, mut ends) = mpsc::unbounded_channel();
        let mut attempts = Attempts { running: BTreeMap::new(), ended };
        loop {
            let found = scouts.leader().await;
            let served = self.serve(&mut scouts, &found, &mut attempts, &mut ends).await;
            self.agent.disconnected();
            found.connection.close("the session has ended");
            if let Err(error) = served {
                self.seen.trouble(&error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn serve(
        &mut self,
        scouts: &mut Scouts,
        found: &Found,
        attempts: &mut Attempts,
        ends: &mut mpsc::UnboundedReceiver<Ended>,
    ) -> anyhow::Result<()> {
        let (mut sender, mut receiver) = found.connection.open().await?;
        sender.feed(&Request::Session)?;
        sender.send(&FromWorker::Hello(self.agent.hello())).await?;
        let period = Duration::from_millis(HEARTBEAT_MS);
        let mut heartbeat = interval_at(Instant::now() + self.heartbeat_offset, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pending_bytes = 0;
        loop {
            tokio::select! {
                // As real workers have it: what is due at one time leaves together.
                biased;
                _ = heartbeat.tick() => pending_bytes = sender.feed(&FromWorker::Heartbeat)?,
                message = receiver.recv::<ToWorker>() => {
                    let Some(message) = message? else { anyhow::bail!("the coordinator ended the session") };
                    match &message {
                        ToWorker::NotLeader(_) => return Ok(()),
                        ToWorker::Dispatch(assignment) => self.seen.received(&assignment.lease.derivation),
                        ToWorker::Welcome { .. } | ToWorker::Revoke { .. } | ToWorker::Acknowledge { .. } => {}
                    }
                    let actions = self.agent.receive(message);
                    pending_bytes += self.act(actions, attempts, &found.connection, &mut sender)?;
                }
                Some((lease, outcome)) = ends.recv() => {
                    attempts.running.remove(&lease);
                    self.seen.reported(&lease.derivation);
                    let actions = self.agent.ended(&lease, outcome);
                    pending_bytes += self.act(actions, attempts, &found.connection, &mut sender)?;
                }
                () = scouts.superseded(found.leader) => return Ok(()),
                flushed = sender.flush(), if pending_bytes > 0 => {
                    flushed?;
                    pending_bytes = 0;
                }
            }
        }
    }

    fn act(&self, actions: Vec<Action>, attempts: &mut Attempts, connection: &Connection, sender: &mut Sender) -> anyhow::Result<usize> {
        let mut fed = 0;
        for action in actions {
            match action {
                Action::Start(assignment) => attempts.start(*assignment, &self.seen, connection),
                Action::Kill(lease) => attempts.kill(&lease),
                Action::Send(message) => fed = sender.feed(&message)?,
                // There is no journal: a simulated worker does not outlive its process.
                Action::Keep { .. } | Action::Forget(_) | Action::Remember(_) => {}
                Action::Disconnect(stale) => return Err(stale.into()),
            }
        }
        Ok(fed)
    }
}

impl Attempts {
    fn start(&mut self, assignment: Assignment, seen: &Arc<Seen>, connection: &Connection) {
        let (lease, ended) = (assignment.lease.clone(), self.ended.clone());
        if seen.work() == Work::Refuse {
            // Nobody listens any more only when the worker itself is gone.
            let _gone = ended.send((lease, failed(FailureClass::BuildFailure, "the load test refuses all work")));
            return;
        }
        let (seen, connection) = (seen.clone(), connection.clone());
        let task = tokio::spawn(async move {
            let lease = assignment.lease.clone();
            let outcome = match attempt(assignment, seen.work(), &connection).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    seen.trouble(&error);
                    failed(FailureClass::Infrastructure, &format!("{error:#}"))
                }
            };
            let _gone = ended.send((lease, outcome));
        });
        self.running.insert(lease, task.abort_handle());
    }

    fn kill(&mut self, lease: &Lease) {
        if let Some(task) = self.running.get(lease) {
            task.abort();
        }
        let _gone = self.ended.send((lease.clone(), failed(FailureClass::Cancelled, "it was stopped")));
    }
}

/// Takes as long as the work does, and uploads what it makes.
async fn attempt(assignment: Assignment, work: Work, connection: &Connection) -> anyhow::Result<Outcome> {
    let begin = Instant::now();
    let pause = work.duration(&assignment.lease.derivation, assignment.input_outputs.is_empty());
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    let made = output::make(&assignment)?;
    let mut outputs = Vec::with_capacity(made.len());
    for Made { output, blob } in made {
        upload(connection, Request::Upload { lease: assignment.lease.clone(), output: output.clone() }, blob).await?;
        outputs.push(output);
    }
    let wall_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Outcome::Built { outputs, usage: Usage { wall_ms, ..Usage::default() } })
}

/// Sends a blob right after its request, as workers do with small ones.
async fn upload(connection: &Connection, request: Request, blob: Vec<u8>) -> anyhow::Result<()> {
    let (mut sender, mut receiver) = connection.open().await?;
    sender.feed(&request)?;
    let size = blob.len() as u64;
    match sender.send_blob(blob, size, 0).await {
        // Who stops reading says why on its own half.
        Ok(_) | Err(kiln_link::LinkError::Stopped) => {}
        Err(error) => return Err(error.into()),
    }
    loop {
        match receiver.recv::<Response>().await?.context("the farm gave no answer to an upload")? {
            Response::UploadAt(_) => {}
            Response::Stored => return Ok(()),
            Response::Refused(refusal) => anyhow::bail!("the farm refuses an output: {}", refusal.message),
            _ => anyhow::bail!("the farm gave another answer to an upload"),
        }
    }
}

fn failed(class: FailureClass, message: &str) -> Outcome {
    Outcome::Failed { failure: Failure { class, message: message.to_owned() }, usage: Usage::default() }
}

/// Before the leader is looked for again.
const PAUSE: Duration = Duration::from_millis(50);
