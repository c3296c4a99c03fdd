//! What applied entries did that people are told of: the same of the same entry at every coordinator, whoever leads.
//!
//! Facts for people: they decide nothing, so what nobody hears in time is dropped, and whoever hears is told that something is missing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_core::{Answer, Command, Effect, Farm};
use kiln_wire::client::{BuildState, Event};
use kiln_wire::{Account, Ailing, BuildId, DrvPath, Leader, LogIndex, Timestamp, Traceparent, WorkerId};
use tokio::sync::mpsc;

/// What one entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// The entry.
    pub index: LogIndex,
    /// What happened before it was not told, or not all of it.
    pub after_gap: bool,
    /// In order.
    pub facts: Vec<Fact>,
    /// The job whose outputs it says are published, and since when; for traces alone.
    pub published: Option<Published>,
}

/// A job, and when its outputs were published.
pub type Published = (DrvPath, Timestamp);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// To a job that these live builds want.
    Job(Vec<BuildId>, Event),
    /// A build was submitted.
    Submitted(BuildId, Option<Box<Asked>>),
    /// A build has ended, whose and when, and what it built is published.
    Ended(BuildId, BuildState, Option<Account>, Timestamp),
    /// A worker registered.
    Registered(WorkerId),
    /// A worker was lost.
    Lost(WorkerId),
    /// A worker stands differently with the farm; well, if nothing is said.
    Judged(WorkerId, Option<Ailing>),
    /// The entry is the first of another leader.
    Leads(Leader),
}

/// What was asked for: whoever hears of it later may find the build gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What people call it.
    pub name: String,
    /// Whose it is.
    pub account: Account,
    /// When it was submitted.
    pub at: Timestamp,
    /// What its client does with it, if that is traced.
    pub trace: Option<Traceparent>,
}

/// Tells what happened to whoever hears: some listen for people, and some for traces.
#[derive(Debug, Default)]
pub struct Telling {
    people: Ear,
    traces: Ear,
}

/// One who hears.
#[derive(Debug)]
struct Ear {
    sender: mpsc::Sender<Happened>,
    receiver: Mutex<Option<mpsc::Receiver<Happened>>>,
    /// Something was not told.
    gap: AtomicBool,
}

impl Default for Ear {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(UNHEARD_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)), gap: AtomicBool::default() }
    }
}

impl Ear {
    fn heard(&self) -> Option<mpsc::Receiver<Happened>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn tell(&self, index: LogIndex, after_gap: bool, what: impl FnOnce() -> (Vec<Fact>, Option<Published>)) {
        // Who does not want to hear costs nothing.
        if self.sender.is_closed() {
            return;
        }
        let after_gap = after_gap || self.gap.load(Ordering::Relaxed);
        let (facts, published) = what();
        let told = self.sender.try_send(Happened { index, after_gap, facts, published }).is_ok();
        self.gap.store(!told, Ordering::Relaxed);
    }
}

impl Telling {
    /// Returns where it is heard for people; the first who asks has it.
    pub fn heard(&self) -> Option<mpsc::Receiver<Happened>> {
        self.people.heard()
    }

    /// Returns where it is heard for traces; the first who asks has it.
    pub fn heard_for_traces(&self) -> Option<mpsc::Receiver<Happened>> {
        self.traces.heard()
    }

    /// Tells what an entry did, and for traces what it says is published.
    pub fn tell(&self, index: LogIndex, facts: Vec<Fact>, published: Option<Published>) {
        if !facts.is_empty() || published.is_some() {
            self.traces.tell(index, false, || (facts.clone(), published));
        }
        if !facts.is_empty() {
            self.people.tell(index, false, || (facts, None));
        }
    }

    /// Says that what was applied up to an entry is not told: the state is that of a snapshot.
    pub fn skip_to(&self, index: LogIndex) {
        let next = LogIndex(index.0.saturating_add(1));
        [&self.traces, &self.people].into_iter().for_each(|ear| ear.tell(next, true, Default::default));
    }
}

/// Whose loss a command is, before it is applied.
pub fn loses(command: &Command) -> Option<WorkerId> {
    if let Command::Lose { worker, .. } = command { Some(worker.clone()) } else { None }
}

/// What a command says is published, before it is applied.
pub fn publishes(command: &Command) -> Option<Published> {
    if let Command::Publish { derivation, now } = command { Some((derivation.clone(), *now)) } else { None }
}

/// Returns what people are told of a command's effects on a farm.
pub fn facts(index: LogIndex, lost: Option<WorkerId>, effects: &[Effect], farm: &Farm) -> Vec<Fact> {
    let account = |build: BuildId| farm.build_glance(build).map(|glance| glance.account);
    let mut facts = Vec::new();
    let mut is_refused = false;
    for effect in effects {
        facts.extend(match effect {
            Effect::Notify { builds, event } => Some(Fact::Job(builds.clone(), event.clone())),
            Effect::Archive(record) => Some(Fact::Ended(record.build, record.state, account(record.build), record.ended_at)),
            Effect::Welcome { worker, .. } => Some(Fact::Registered(worker.clone())),
            Effect::Judged { worker, ailing } => Some(Fact::Judged(worker.clone(), ailing.clone())),
            // Sent twice, it is answered twice: a build is new at the entry that gave it its number.
            Effect::Answer(Answer::Submitted { build, .. }) => (build.0 == index.0).then(|| Fact::Submitted(*build, asked(*build, farm))),
            Effect::Answer(Answer::Refused(_)) => {
                is_refused = true;
                None
            }
            Effect::Dispatch { .. }
            | Effect::Revoke(_)
            | Effect::Acknowledge { .. }
            | Effect::Publish { .. }
            | Effect::Resolve { .. }
            | Effect::Copied { .. } => None,
        });
    }
    facts.extend(lost.filter(|_| !is_refused).map(Fact::Lost));
    facts
}

fn asked(build: BuildId, farm: &Farm) -> Option<Box<Asked>> {
    let (glance, (at, trace)) = (farm.build_glance(build)?, farm.trace_of(build)?);
    Some(Box::new(Asked { name: glance.name, account: glance.account, at, trace }))
}

/// Entries that wait to be heard, some hundred bytes each: a second of a busy farm. Passing it: they are dropped.
const UNHEARD_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_told_for_traces_alone() {
        let telling = Telling::default();
        let (mut people, mut traces) = (telling.heard().expect("the first"), telling.heard_for_traces().expect("the first"));
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-a.drv").expect("a path");
        let published = publishes(&Command::Publish { derivation: derivation.clone(), now: Timestamp(7) });
        telling.tell(LogIndex(1), Vec::new(), published);
        let heard = traces.try_recv().expect("it is told");
        assert_eq!((heard.published, heard.facts), (Some((derivation, Timestamp(7))), Vec::new()));
        assert!(people.try_recv().is_err());
    }
}
