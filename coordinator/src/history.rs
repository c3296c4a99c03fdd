//! What ran lately and what failed, for people: a bounded memory of what committed entries told.
//!
//! Every coordinator has one, for it follows from what is applied; after a restart it holds what the log since the last snapshot tells, and
//! says since when. Decides nothing, and nothing is lost with it: the archive has how builds ended.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_core::Effect;
use kiln_wire::client::{Event, EventKind};
use kiln_wire::limits::{FAILURES_REMEMBERED_MAX, SPANS_REMEMBERED_MAX};
use kiln_wire::{AttemptId, BuildId, DrvPath, FailureClass, Timestamp, WorkerId};

/// What a coordinator remembers.
#[derive(Debug, Default)]
pub struct History(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// The earliest moment of which all is known.
    since: Option<Timestamp>,
    open: BTreeMap<DrvPath, Span>,
    ended: VecDeque<Span>,
    failures: VecDeque<Failure>,
}

/// An attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which.
    pub attempt: AttemptId,
    /// Of which job.
    pub derivation: DrvPath,
    /// Where.
    pub worker: WorkerId,
    /// Builds that wanted it.
    pub builds: Vec<BuildId>,
    /// Since when.
    pub from: Timestamp,
    /// Until when; of one that goes on, the same moment.
    pub to: Timestamp,
    /// How it ended.
    pub end: SpanEnd,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanEnd {
    /// It goes on.
    Open,
    /// It made the outputs.
    Built,
    /// It failed for good.
    Failed,
    /// It failed, and its job is tried again.
    Retried,
    /// It was given up.
    GivenUp,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// Of which job.
    pub derivation: DrvPath,
    /// Builds that wanted it.
    pub builds: Vec<BuildId>,
    /// Of which class.
    pub class: FailureClass,
    /// In words.
    pub message: String,
    /// Where, if that is known.
    pub worker: Option<WorkerId>,
    /// The job is tried again.
    pub is_retried: bool,
}

impl History {
    /// Takes in what an applied entry told.
    pub fn note(&self, effects: &[Effect]) {
        let events = effects.iter().filter_map(|effect| match effect {
            Effect::Notify { builds, event } => Some((builds, event)),
            Effect::Welcome { .. }
            | Effect::Dispatch { .. }
            | Effect::Revoke(_)
            | Effect::Acknowledge { .. }
            | Effect::Publish { .. }
            | Effect::Resolve { .. }
            | Effect::Judged { .. }
            | Effect::Copied { .. }
            | Effect::Archive(_)
            | Effect::Answer(_) => None,
        });
        let mut events = events.peekable();
        if events.peek().is_some() {
            let mut remembered = self.remembered();
            events.for_each(|(builds, event)| remembered.event(builds, event));
        }
    }

    /// Returns the moment from which on all is known; none if nothing has happened so far.
    pub fn since(&self) -> Option<Timestamp> {
        self.remembered().since
    }

    /// Returns ended attempts that ran between two moments, oldest end first.
    pub fn ended(&self, from: Timestamp, to: Timestamp) -> Vec<Span> {
        self.remembered().ended.iter().filter(|span| span.to >= from && span.from <= to).cloned().collect()
    }

    /// Returns the failures since a moment, latest first.
    pub fn failures(&self, since: Timestamp) -> Vec<Failure> {
        self.remembered().failures.iter().rev().filter(|failure| failure.at >= since).cloned().collect()
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn event(&mut self, builds: &[BuildId], event: &Event) {
        let Event { at, derivation, kind } = event;
        self.since.get_or_insert(*at);
        match kind {
            EventKind::Ready | EventKind::DependencyFailed { .. } => {}
            EventKind::Started { attempt, worker } => {
                self.close(derivation, *at, SpanEnd::GivenUp);
                let (attempt, worker, builds) = (*attempt, worker.clone(), builds.to_vec());
                let span = Span { attempt, derivation: derivation.clone(), worker, builds, from: *at, to: *at, end: SpanEnd::Open };
                self.open.insert(derivation.clone(), span);
                // Whoever nobody heard of again: a build that left the farm while its job ran on.
                if self.open.len() > SPANS_REMEMBERED_MAX {
                    self.open.pop_first();
                }
            }
            EventKind::Built { .. } => drop(self.close(derivation, *at, SpanEnd::Built)),
            EventKind::Cancelled => drop(self.close(derivation, *at, SpanEnd::GivenUp)),
            EventKind::Retried { class: FailureClass::Cancelled, .. } => drop(self.close(derivation, *at, SpanEnd::GivenUp)),
            EventKind::Retried { class, message } => {
                let worker = self.close(derivation, *at, SpanEnd::Retried);
                self.fail(builds, event, *class, message, worker, true);
            }
            EventKind::Failed { class, message } => {
                let worker = self.close(derivation, *at, SpanEnd::Failed);
                self.fail(builds, event, *class, message, worker, false);
            }
        }
    }

    /// Ends the attempt at a job that goes on, if one does; returns where it ran.
    fn close(&mut self, derivation: &DrvPath, at: Timestamp, end: SpanEnd) -> Option<WorkerId> {
        let span = self.open.remove(derivation)?;
        let worker = span.worker.clone();
        self.ended.push_back(Span { to: at, end, ..span });
        if self.ended.len() > SPANS_REMEMBERED_MAX {
            let forgotten = self.ended.pop_front();
            self.since = self.since.max(forgotten.map(|span| span.to));
        }
        Some(worker)
    }

    fn fail(&mut self, builds: &[BuildId], event: &Event, class: FailureClass, message: &str, worker: Option<WorkerId>, is_retried: bool) {
        let (builds, message) = (builds.to_vec(), message.to_owned());
        let failure = Failure { at: event.at, derivation: event.derivation.clone(), builds, class, message, worker, is_retried };
        self.failures.push_back(failure);
        if self.failures.len() > FAILURES_REMEMBERED_MAX {
            self.failures.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(at: u64, name: &str, kind: EventKind) -> Effect {
        let derivation = DrvPath::parse(&format!("00000000000000000000000000000000-{name}.drv")).expect("a path");
        Effect::Notify { builds: vec![BuildId(1)], event: Event { at: Timestamp(at), derivation, kind } }
    }

    fn started(at: u64, name: &str, attempt: u64) -> Effect {
        told(at, name, EventKind::Started { attempt: AttemptId(attempt), worker: WorkerId::parse("w1").expect("a name") })
    }

    fn failed(class: FailureClass, is_retried: bool) -> EventKind {
        let message = "no".to_owned();
        if is_retried { EventKind::Retried { class, message } } else { EventKind::Failed { class, message } }
    }

    fn spans(history: &History) -> Vec<(u64, u64, u64, SpanEnd)> {
        let all = history.ended(Timestamp(0), Timestamp(u64::MAX));
        all.into_iter().map(|span| (span.attempt.0, span.from.0, span.to.0, span.end)).collect()
    }

    #[test]
    fn every_attempt_has_its_time_and_its_end() {
        let history = History::default();
        assert_eq!(history.since(), None);
        history.note(&[
            started(10, "a", 1),
            started(11, "b", 2),
            told(20, "a", EventKind::Built { wall_ms: 10, nar_bytes: 1 }),
            told(30, "b", failed(FailureClass::Infrastructure, true)),
            started(40, "b", 3),
            told(45, "b", failed(FailureClass::BuildFailure, false)),
            started(50, "c", 4),
            told(55, "c", failed(FailureClass::Cancelled, true)),
            started(60, "c", 5),
            started(70, "c", 6),
        ]);
        let expect = [
            (1, 10, 20, SpanEnd::Built),
            (2, 11, 30, SpanEnd::Retried),
            (3, 40, 45, SpanEnd::Failed),
            (4, 50, 55, SpanEnd::GivenUp),
            (5, 60, 70, SpanEnd::GivenUp),
        ];
        assert_eq!(spans(&history), expect);
        assert_eq!(history.since(), Some(Timestamp(10)));
        assert_eq!(history.ended(Timestamp(21), Timestamp(39)).len(), 1, "what ran in that time");
        let failures = history.failures(Timestamp(0));
        let failures: Vec<_> = failures.iter().map(|failure| (failure.at.0, failure.is_retried, failure.worker.is_some())).collect();
        assert_eq!(failures, [(45, false, true), (30, true, true)], "what was given up did not fail");
        assert_eq!(history.failures(Timestamp(31)).len(), 1);
    }

    #[test]
    fn what_happened_longest_ago_is_forgotten_and_that_is_owned_up_to() {
        let history = History::default();
        for at in 0..u64::try_from(SPANS_REMEMBERED_MAX).expect("few") + 3 {
            history.note(&[started(2 * at, "a", at), told(2 * at + 1, "a", EventKind::Built { wall_ms: 1, nar_bytes: 1 })]);
        }
        assert_eq!(spans(&history).len(), SPANS_REMEMBERED_MAX);
        assert_eq!(history.since(), Some(Timestamp(5)), "the end of the last one that is forgotten");
    }
}
