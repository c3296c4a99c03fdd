//! The leader's loop: does what effects say, plans when anything changed, and wakes for deadlines.
//!
//! Never waits for a disk, a store or a peer: whatever takes time is a task that reports back as a command. Nothing polls: a wake
//! time always belongs to a deadline of the farm or of a session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_core::{Command, Effect, Limits, plan};
use kiln_wire::worker::ToWorker;
use kiln_wire::{Leader, Timestamp, WorkerId};
use tokio::sync::{Notify, mpsc};

use crate::parts::Parts;
use crate::raft::{Applied, ConsensusError, EffectReceiver, Leadership};
use crate::{archiving, dispatch, publish};

/// Runs the loop until consensus stops or `stop` is told.
pub(crate) async fn run(parts: Arc<Parts>, mut effects: EffectReceiver, stop: Arc<Notify>) {
    let mut leadership = parts.consensus.leadership();
    let (assigned, mut assignments_done) = mpsc::channel(1);
    let mut driver = Driver { parts, assigned, assigning: false, leads: false, changed: false };
    loop {
        driver.follow(*leadership.borrow_and_update());
        driver.plan_if_changed();
        let wake = driver.wake_after();
        tokio::select! {
            () = stop.notified() => return,
            followed = leadership.changed() => if followed.is_err() { return },
            owed = effects.recv() => match owed {
                Some(owed) => driver.act(owed.leader, owed.effects),
                None => return,
            },
            Some(()) = assignments_done.recv() => {
                driver.assigning = false;
                driver.changed = true;
            }
            () = tokio::time::sleep(wake) => driver.enforce_deadlines(),
        }
    }
}

struct Driver {
    parts: Arc<Parts>,
    /// Told when the `Assign` in flight has been applied.
    assigned: mpsc::Sender<()>,
    /// Whether an `Assign` is in flight. Planning meanwhile would propose the same leases again.
    assigning: bool,
    /// Whether this node leads and has taken over.
    leads: bool,
    /// Whether anything changed since the last plan.
    changed: bool,
}

impl Driver {
    /// On becoming leader: does what is owed, and gives the workers it inherits the usual time to come back.
    fn follow(&mut self, leadership: Leadership) {
        if leadership.is_self && !self.leads {
            let now = self.parts.clock.now();
            let (owed, workers) = self.parts.farm(|farm| {
                (farm.pending_effects(), farm.registrations().map(|(worker, epoch)| (worker.clone(), epoch)).collect::<Vec<_>>())
            });
            for (worker, epoch) in workers {
                self.parts.sessions.expect(worker, epoch, now);
            }
            self.act(leadership.leader, owed);
            // A deadline that passed while nobody led has no wake time of its own.
            self.enforce_deadlines();
        }
        self.leads = leadership.is_self;
    }

    fn act(&mut self, leader: Leader, effects: Vec<Effect>) {
        self.changed = true;
        for effect in effects {
            self.act_on(leader, effect);
        }
    }

    fn act_on(&self, leader: Leader, effect: Effect) {
        let parts = &self.parts;
        match effect {
            Effect::Welcome { worker, epoch, keep } => {
                parts.granted.keep_only(&worker, &keep);
                parts.sessions.registered(&worker, epoch);
                self.send(&worker, ToWorker::Welcome { leader, epoch, keep });
            }
            Effect::Dispatch { lease, resources, limits } => {
                tokio::spawn(dispatch::dispatch(parts.clone(), leader, lease, resources, limits));
            }
            Effect::Revoke(lease) => {
                let worker = lease.worker.clone();
                parts.granted.forget(&worker, &lease.derivation, lease.attempt);
                self.send(&worker, ToWorker::Revoke { leader, lease });
            }
            Effect::Acknowledge { worker, derivation, attempt } => {
                parts.verified.forget(&derivation, attempt);
                parts.granted.forget(&worker, &derivation, attempt);
                parts.logs.close(&derivation, attempt);
                self.send(&worker, ToWorker::Acknowledge { derivation, attempt });
            }
            Effect::Publish { derivation, outputs } => {
                tokio::spawn(publish::publish(parts.clone(), derivation, outputs));
            }
            Effect::Notify { builds, event } => {
                parts.meter.count(&event);
                parts.watchers.event(builds, event);
            }
            Effect::Archive(record) => {
                tokio::spawn(archiving::archive(parts.clone(), record));
            }
            // Whoever proposed the command has the answer from its proposal.
            Effect::Answer(_) => {}
        }
    }

    fn send(&self, worker: &WorkerId, message: ToWorker) {
        if !self.parts.sessions.send(worker, message) {
            tracing::debug!(%worker, "no session: its next hello says what it missed");
        }
    }

    fn plan_if_changed(&mut self) {
        if self.leads && self.changed && !self.assigning {
            self.changed = false;
            self.plan();
        }
    }

    fn plan(&mut self) {
        let now = self.parts.clock.now();
        let started = Instant::now();
        let (plan, report) = self.parts.farm(|farm| plan(farm, now, &Limits::default()));
        self.parts.meter.planned(started.elapsed(), &report);
        if !plan.placements.is_empty() {
            self.assigning = true;
            let done = self.assigned.clone();
            // An attempt's id is the index of its entry: one lease in each entry makes it unique in the farm. They are written together.
            let assign = |placement| Command::Assign { placements: vec![placement], now };
            let proposal = propose(self.parts.clone(), plan.placements.into_iter().map(assign).collect());
            tokio::spawn(async move {
                if let Err(error) = proposal.await {
                    tracing::warn!(error = %Chain(&error), "assign");
                }
                let _driver_is_gone = done.send(()).await.is_err();
            });
        }
    }

    fn enforce_deadlines(&mut self) {
        self.changed = true;
        let now = self.parts.clock.now();
        let mut commands = self.parts.farm(|farm| farm.due(now));
        for (worker, epoch) in self.parts.sessions.take_silent(now) {
            tracing::warn!(%worker, %epoch, "worker is silent: its leases are lost");
            self.parts.granted.forget_worker(&worker);
            commands.push(Command::Lose { worker, epoch, now });
        }
        if !commands.is_empty() {
            let proposal = propose(self.parts.clone(), commands);
            tokio::spawn(async move {
                if let Err(error) = proposal.await {
                    tracing::warn!(error = %Chain(&error), "enforce deadlines");
                }
            });
        }
    }

    fn wake_after(&self) -> Duration {
        let now = self.parts.clock.now();
        let farm = self.parts.farm(|farm| farm.next_wake(now)).map(|(at, _reason)| at);
        let next = [farm, self.parts.sessions.next_silence()].into_iter().flatten().min();
        next.map_or(IDLE, |at: Timestamp| Duration::from_millis(at.since_ms(now).max(1)))
    }
}

/// Proposes commands and waits until they are applied.
pub(crate) async fn propose(parts: Arc<Parts>, commands: Vec<Command>) -> Result<Applied, ConsensusError> {
    parts.consensus.propose(commands).await
}

/// Prints an error with everything that caused it.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + Send + Sync + 'a));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// How long to sleep when nothing has a deadline; any effect ends it at once.
const IDLE: Duration = Duration::from_secs(3600);
