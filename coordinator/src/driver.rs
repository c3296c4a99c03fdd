//! The leader's loop: does what effects say, and what `kiln_core::Lead` decides: when to plan, what deadlines ask for, when to wake.
//!
//! Never waits for a disk, a store or a peer: whatever takes time is a task that reports back as a command. Nothing polls: a wake
//! time always belongs to a deadline of the farm or of a session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_core::{COPYING, Command, Copied, Effect, JUDGING, Lead, Limits, SUCCEEDING, Turn};
use kiln_wire::worker::ToWorker;
use kiln_wire::{AttemptId, DrvPath, Leader, WorkerId};
use tokio::sync::{Notify, mpsc};

use crate::dispatch::Due;
use crate::parts::Parts;
use crate::raft::{Applied, ConsensusError, EffectReceiver, Leadership};
use crate::{archiving, dispatch, drain, garbage, kept_logs, publish, resolve};

/// Runs the loop until consensus stops or `stop` is told.
pub(crate) async fn run(parts: Arc<Parts>, mut effects: EffectReceiver, stop: Arc<Notify>) {
    let mut leadership = parts.consensus.leadership();
    let (settled, mut fates) = mpsc::unbounded_channel();
    let mut driver = Driver { parts, settled, lead: Lead::default(), due: None, leased: Vec::new(), acknowledged: Vec::new() };
    loop {
        driver.follow(*leadership.borrow_and_update());
        driver.plan();
        let parts = driver.parts.clone();
        // A moment that has come is not put off by what else happens: under load something always does.
        let now = tokio::time::Instant::now();
        let soonest = now + driver.wake_after();
        let due = driver.due.map_or(soonest, |due| due.min(soonest));
        driver.due = Some(due);
        if due <= now {
            driver.enforce_deadlines();
        }
        tokio::select! {
            () = stop.notified() => return,
            followed = leadership.changed() => if followed.is_err() { return },
            owed = effects.recv() => match owed {
                Some(first) => {
                    // What was applied together is planned for together.
                    let more = std::iter::from_fn(|| effects.try_recv().ok()).take(OWED_MAX);
                    for owed in std::iter::once(first).chain(more) {
                        driver.follow(*leadership.borrow_and_update());
                        driver.act_as(owed.leader, owed.effects);
                    }
                    driver.send_due();
                }
                None => return,
            },
            () = parts.sessions.changed() => driver.lead.changed(),
            Some(fate) = fates.recv() => driver.settle(fate),
            () = tokio::time::sleep_until(due) => driver.enforce_deadlines(),
        }
    }
}

struct Driver {
    parts: Arc<Parts>,
    /// Told what became of the loop's own proposals.
    settled: mpsc::UnboundedSender<Fate>,
    /// Decides when to plan and what deadlines ask for.
    lead: Lead,
    /// When deadlines are looked at, whatever else happens.
    due: Option<tokio::time::Instant>,
    /// Leases whose jobs are to be sent, once what was applied together is gone through.
    leased: Vec<Due>,
    /// Reports that are to be acknowledged then.
    acknowledged: Vec<(WorkerId, DrvPath, AttemptId)>,
}

/// What became of a proposal of the loop's own.
struct Fate {
    what: Proposed,
    /// Under which leadership it was made.
    leader: Leader,
    applied: bool,
}

enum Proposed {
    Leases,
    Deadlines,
}

impl Driver {
    /// On becoming leader: does what is owed, and gives the workers it inherits the usual time to come back.
    fn follow(&mut self, leadership: Leadership) {
        self.parts.meter.led_by(leadership.leader, || self.parts.clock.now());
        match self.lead.follow(leadership.is_self.then_some(leadership.leader)) {
            Turn::Same => {}
            Turn::TakesOver(leader) => {
                tracing::info!(term = leader.term, node = %leader.node, "this coordinator leads");
                self.parts.sessions.forget_all();
                garbage::take_over(&self.parts, leader);
                self.parts.clock.not_before(self.parts.farm(|farm| farm.latest()));
                self.expect_workers();
                kept_logs::sweep(&self.parts);
                let owed = self.parts.farm(|farm| farm.pending_effects());
                self.act(leader, owed);
                self.send_due();
                self.enforce_deadlines();
            }
            Turn::StepsDown => {
                tracing::info!("this coordinator leads no more");
                self.parts.sessions.forget_all();
                self.parts.granted.forget_all();
                self.parts.verified.forget_all();
                self.parts.watchers.forget_all();
                self.parts.logs.close_all();
                garbage::step_down(&self.parts);
                self.parts.intake.step_down();
            }
        }
    }

    /// Does what follows from an entry, unless this coordinator has stopped leading since it wrote it: then its successor does.
    fn act_as(&mut self, leader: Leader, effects: Vec<Effect>) {
        if self.lead.leader() == Some(leader) {
            self.act(leader, effects);
        }
    }

    fn expect_workers(&self) {
        let now = self.parts.clock.steady();
        let workers: Vec<_> = self.parts.farm(|farm| farm.registrations().map(|(worker, epoch)| (worker.clone(), epoch)).collect());
        for (worker, epoch) in workers {
            self.parts.sessions.expect(worker, epoch, now);
        }
    }

    fn act(&mut self, leader: Leader, effects: Vec<Effect>) {
        self.lead.changed();
        for effect in effects {
            self.act_on(leader, effect);
        }
    }

    fn act_on(&mut self, leader: Leader, effect: Effect) {
        let parts = &self.parts;
        match effect {
            Effect::Welcome { worker, epoch, keep } => {
                parts.granted.keep_only(&worker, &keep);
                parts.sessions.registered(&worker, epoch, parts.clock.steady());
                let log_bytes = parts.logs.open_bytes(&keep);
                self.send(&worker, ToWorker::Welcome { leader, epoch, keep, log_bytes, hears_strain: true, hears_winding: true });
            }
            Effect::Dispatch { lease, resources, limits } => {
                self.leased.push(Due { leader, lease, resources, limits });
            }
            Effect::Revoke(lease) => {
                let worker = lease.worker.clone();
                parts.granted.forget(&worker, &lease.derivation, lease.attempt);
                kept_logs::drop_if_outrun(parts, &lease);
                self.send(&worker, ToWorker::Revoke { leader, lease });
            }
            Effect::Acknowledge { worker, derivation, attempt } => {
                parts.verified.forget(&derivation, attempt);
                parts.granted.forget(&worker, &derivation, attempt);
                self.acknowledged.push((worker, derivation, attempt));
            }
            Effect::Publish { derivation, outputs } => {
                tokio::spawn(publish::publish(parts.clone(), leader, derivation, outputs));
            }
            Effect::Resolve { derivation } => {
                tokio::spawn(resolve::resolve(parts.clone(), leader, derivation));
            }
            Effect::Notify { builds, event } => {
                parts.watchers.event(builds, event);
            }
            Effect::Archive(record) => {
                tokio::spawn(archiving::archive(parts.clone(), record));
            }
            Effect::Copied { derivation, copied } => tell_of_copy(&derivation, copied, leader.term),
            Effect::Judged { worker, ailing } => {
                drain::tell(&worker, ailing.as_ref());
                parts.hooks.wake();
            }
            // Whoever proposed the command has the answer from its proposal.
            Effect::Answer(_) => {}
        }
    }

    /// Sends what one round of effects left to send, worker by worker: what one worker gets leaves together.
    fn send_due(&mut self) {
        let mut acknowledged = std::mem::take(&mut self.acknowledged);
        acknowledged.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        for (worker, derivation, attempt) in acknowledged {
            kept_logs::end(&self.parts, worker, derivation, attempt);
        }
        if !self.leased.is_empty() {
            tokio::spawn(dispatch::dispatch_all(self.parts.clone(), std::mem::take(&mut self.leased)));
        }
    }

    fn send(&self, worker: &WorkerId, message: ToWorker) {
        if !self.parts.sessions.send(worker, message) {
            tracing::debug!(%worker, "no session: its next hello says what it missed");
        }
    }

    fn plan(&mut self) {
        let (now, steady) = (self.parts.clock.now(), self.parts.clock.steady());
        if !self.lead.is_due(steady) {
            return;
        }
        let started = Instant::now();
        self.lead.bounded(self.limits());
        let (lead, sessions, version) = (&mut self.lead, &self.parts.sessions, self.parts.consensus.version());
        let planned = self.parts.farm(|farm| {
            lead.away(sessions.away(farm.registrations().map(|(worker, _)| worker)));
            lead.winding(if version < SUCCEEDING { BTreeMap::new() } else { sessions.winding(farm) });
            lead.plan(farm, now, steady)
        });
        if let Some((commands, _)) = planned {
            self.parts.meter.planned(started.elapsed());
            self.propose(Proposed::Leases, commands);
        }
    }

    /// Returns what bounds a plan: what the farm's version allows.
    fn limits(&self) -> Limits {
        let version = self.parts.consensus.version();
        Limits { judges: version >= JUDGING, copies: version >= COPYING, ..Limits::STANDARD }
    }

    fn enforce_deadlines(&mut self) {
        self.due = None;
        let silent = self.parts.sessions.take_silent(self.parts.clock.steady());
        for (worker, _) in &silent {
            tracing::warn!(%worker, "worker is silent: its leases are lost");
            self.parts.granted.forget_worker(worker);
        }
        let now = self.parts.clock.now();
        self.lead.bounded(self.limits());
        let lead = &mut self.lead;
        let commands = self.parts.farm(|farm| lead.enforce(farm, silent, now));
        self.propose(Proposed::Deadlines, commands);
    }

    /// Proposes in a task of its own, which tells the loop what became of it.
    fn propose(&self, what: Proposed, commands: Vec<Command>) {
        let Some(leader) = self.lead.leader().filter(|_| !commands.is_empty()) else { return };
        let (proposal, settled) = (propose(self.parts.clone(), commands), self.settled.clone());
        tokio::spawn(async move {
            let proposed = proposal.await;
            if let Err(error) = &proposed {
                tracing::warn!(error = %Chain(error), "propose what plan or deadlines ask for");
            }
            let _driver_is_gone = settled.send(Fate { what, leader, applied: proposed.is_ok() }).is_err();
        });
    }

    fn settle(&mut self, Fate { what, leader, applied }: Fate) {
        let steady = self.parts.clock.steady();
        match what {
            Proposed::Leases => self.lead.assigned(leader, applied, steady),
            Proposed::Deadlines => {
                self.lead.enforced(leader, applied, steady);
                if !applied && self.lead.leader() == Some(leader) {
                    // Those that were taken out as silent and not lost.
                    self.expect_workers();
                }
            }
        }
    }

    fn wake_after(&self) -> Duration {
        let (now, steady) = (self.parts.clock.now(), self.parts.clock.steady());
        let silence = self.parts.sessions.next_silence(steady);
        let wake = self.parts.farm(|farm| self.lead.wake_after_ms(farm, silence, now, steady));
        wake.map_or(IDLE, Duration::from_millis)
    }
}

/// Tells what becomes of two attempts at a job.
fn tell_of_copy(derivation: &DrvPath, copied: Copied, term: u64) {
    match copied {
        Copied::Begun { attempt, of } => {
            tracing::info!(job = %derivation, attempt = attempt.0, term, beside = of.0, "takes far longer than its like: a second attempt begins");
        }
        Copied::Won { attempt, by_copy } => {
            tracing::info!(job = %derivation, attempt = attempt.0, term, by_copy, "the first of two attempts to make its outputs");
        }
        Copied::Same(attempt) => {
            tracing::info!(job = %derivation, attempt = attempt.0, term, "the slower of two attempts made the same outputs")
        }
        Copied::Differs(attempt) => {
            tracing::warn!(job = %derivation, attempt = attempt.0, term, "the slower of two attempts made other outputs: the derivation is not deterministic");
        }
    }
}

/// Proposes commands and waits until they are applied.
pub(crate) async fn propose(parts: Arc<Parts>, commands: Vec<Command>) -> Result<Applied, ConsensusError> {
    parts.consensus.propose(commands).await
}

/// Proposes what must not be forgotten while this node leads: a queue that is full is waited for.
pub(crate) async fn propose_patiently(parts: Arc<Parts>, command: Command) -> Result<Applied, ConsensusError> {
    parts.consensus.propose_patiently(vec![command]).await
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

/// Entries whose effects are done before the loop looks elsewhere again: leadership, deadlines and proposals must not wait for long.
const OWED_MAX: usize = 1024;
/// How long to sleep when nothing has a deadline; any effect ends it at once.
const IDLE: Duration = Duration::from_secs(3600);
