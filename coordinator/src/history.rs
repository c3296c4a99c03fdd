//! What ran lately and what failed, for people: a bounded memory of what committed entries told.
//!
//! Every coordinator has one, for it follows from what is applied; after a restart it holds what the log since the last snapshot tells, and
//! says since when. Decides nothing, and nothing is lost with it: the archive has how builds ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_core::{Effect, Farm, Sight};
use kiln_wire::client::{Event, EventKind};
use kiln_wire::limits::{FAILURES_REMEMBERED_MAX, SPANS_REMEMBERED_MAX};
use kiln_wire::{AttemptId, BuildId, DrvPath, FailureClass, TenantName, Timestamp, WorkerId};

/// What a coordinator remembers. What is applied waits for who reads it, so that readers take shares of what is there and let go.
#[derive(Debug, Default)]
pub struct History(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// From when on all attempts are known.
    spans_known: Known,
    /// From when on all failures are known.
    failures_known: Known,
    open: BTreeMap<DrvPath, Span>,
    ended: VecDeque<Arc<Span>>,
    failures: VecDeque<Arc<Failure>>,
    /// Of what failed for good, when, and how many jobs failed because of it since.
    held: BTreeMap<DrvPath, (Timestamp, u64)>,
}

/// From when on all is known.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// None while nothing was told since a gap.
    since: Option<Timestamp>,
    /// Something of before is forgotten, or was never told.
    is_cut: bool,
}

impl Known {
    /// This coordinator began to listen: nothing happens from then on of which it is not told.
    fn begin(&mut self, at: Timestamp) {
        if !self.is_cut {
            self.since = Some(self.since.map_or(at, |since| since.min(at)));
        }
    }

    fn forget(&mut self, upto: Timestamp) {
        *self = Self { since: self.since.max(Some(upto)), is_cut: true };
    }
}

/// Whose builds something was for: their tenants, nobody among them. Kept, for builds leave the farm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(BTreeSet<Option<TenantName>>);

impl Owners {
    /// Returns those of some builds that the farm has.
    fn of(builds: &[BuildId], farm: &Farm) -> Self {
        Self(builds.iter().filter_map(|build| farm.tenant_of(*build)).map(|tenant| tenant.cloned()).collect())
    }

    /// Returns whether somebody sees what was for them.
    pub fn are_seen(&self, sight: &Sight) -> bool {
        match sight {
            Sight::All => true,
            Sight::Of(own) => self.0.iter().any(|tenant| tenant.as_ref().is_none_or(|tenant| tenant == own)),
        }
    }
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
    /// Whose builds wanted it.
    pub owners: Owners,
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
    /// Whose builds wanted it.
    pub owners: Owners,
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
    /// This coordinator began to listen.
    pub fn begin(&self, at: Timestamp) {
        let mut remembered = self.remembered();
        remembered.spans_known.begin(at);
        remembered.failures_known.begin(at);
    }

    /// Takes in what an applied entry told; `farm` is as it is behind that.
    pub fn note(&self, effects: &[Effect], farm: &Farm) {
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
            events.for_each(|(builds, event)| remembered.event(&Owners::of(builds, farm), event));
        }
    }

    /// Owns up to a gap: what was applied meanwhile was not told. What ran is not known to run on, and what comes next is where it knows
    /// everything from.
    pub fn skip(&self) {
        let mut remembered = self.remembered();
        remembered.open.clear();
        let gap = Known { since: None, is_cut: true };
        (remembered.spans_known, remembered.failures_known) = (gap, gap);
    }

    /// Returns the moments from which on all attempts, and all failures, are known; `now` where nothing was told since a gap.
    pub fn since(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let remembered = self.remembered();
        (remembered.spans_known.since.unwrap_or(now), remembered.failures_known.since.unwrap_or(now))
    }

    /// Returns ended attempts that ran between two moments, as far as somebody sees them, oldest end first.
    pub fn ended(&self, from: Timestamp, to: Timestamp, sight: &Sight) -> Vec<Arc<Span>> {
        let mut ended: Vec<Arc<Span>> = self.remembered().ended.iter().cloned().collect();
        ended.retain(|span| span.to >= from && span.from <= to && span.owners.are_seen(sight));
        ended
    }

    /// Returns the failures since a moment, as far as somebody sees them, latest first.
    pub fn failures(&self, since: Timestamp, sight: &Sight) -> Vec<Arc<Failure>> {
        let mut failures: Vec<Arc<Failure>> = self.remembered().failures.iter().rev().cloned().collect();
        failures.retain(|failure| failure.at >= since && failure.owners.are_seen(sight));
        failures
    }

    /// Returns the latest failure of a job.
    pub fn failure_of(&self, derivation: &DrvPath) -> Option<Arc<Failure>> {
        self.remembered().failures.iter().rfind(|failure| failure.derivation == *derivation).cloned()
    }

    /// Returns how many jobs failed because a job did; none if that is not remembered.
    pub fn held_up(&self, derivation: &DrvPath) -> Option<u64> {
        self.remembered().held.get(derivation).map(|(_, held)| *held)
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn event(&mut self, owners: &Owners, event: &Event) {
        let Event { at, derivation, kind } = event;
        self.spans_known.since.get_or_insert(*at);
        self.failures_known.since.get_or_insert(*at);
        match kind {
            EventKind::Ready => {}
            EventKind::DependencyFailed { cause } => {
                if let Some((_, held)) = self.held.get_mut(cause) {
                    *held += 1;
                }
            }
            EventKind::Started { attempt, worker } => {
                self.close(derivation, *at, SpanEnd::GivenUp);
                let (attempt, worker, owners) = (*attempt, worker.clone(), owners.clone());
                let span = Span { attempt, derivation: derivation.clone(), worker, owners, from: *at, to: *at, end: SpanEnd::Open };
                self.open.insert(derivation.clone(), span);
                // Whoever nobody heard of again: a build that left the farm while its job ran on.
                if self.open.len() > SPANS_REMEMBERED_MAX {
                    self.open.pop_first();
                }
            }
            EventKind::Built { .. } => drop(self.close(derivation, *at, SpanEnd::Built)),
            EventKind::Cancelled => drop(self.close(derivation, *at, SpanEnd::GivenUp)),
            // Whoever cancels or drains lets an attempt go; nothing failed by it.
            EventKind::Retried { class: FailureClass::Cancelled, .. } | EventKind::Failed { class: FailureClass::Cancelled, .. } => {
                drop(self.close(derivation, *at, SpanEnd::GivenUp))
            }
            EventKind::Retried { class, message } => {
                let worker = self.close(derivation, *at, SpanEnd::Retried);
                self.fail(owners, event, *class, message, worker, true);
            }
            EventKind::Failed { class, message } => {
                let worker = self.close(derivation, *at, SpanEnd::Failed);
                self.fail(owners, event, *class, message, worker, false);
            }
        }
    }

    /// Ends the attempt at a job that goes on, if one does; returns where it ran.
    fn close(&mut self, derivation: &DrvPath, at: Timestamp, end: SpanEnd) -> Option<WorkerId> {
        let span = self.open.remove(derivation)?;
        let worker = span.worker.clone();
        self.ended.push_back(Arc::new(Span { to: at, end, ..span }));
        if self.ended.len() > SPANS_REMEMBERED_MAX
            && let Some(forgotten) = self.ended.pop_front()
        {
            self.spans_known.forget(forgotten.to);
        }
        Some(worker)
    }

    fn fail(&mut self, owners: &Owners, event: &Event, class: FailureClass, message: &str, worker: Option<WorkerId>, is_retried: bool) {
        let (at, derivation) = (event.at, event.derivation.clone());
        if !is_retried {
            self.held.insert(derivation.clone(), (at, 0));
        }
        let (owners, message) = (owners.clone(), message.to_owned());
        self.failures.push_back(Arc::new(Failure { at, derivation, owners, class, message, worker, is_retried }));
        if self.failures.len() > FAILURES_REMEMBERED_MAX
            && let Some(forgotten) = self.failures.pop_front()
        {
            self.failures_known.forget(forgotten.at);
            // Of a job that failed again since, that one counts.
            if self.held.get(&forgotten.derivation).is_some_and(|(at, _)| *at <= forgotten.at) {
                self.held.remove(&forgotten.derivation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history beside a farm that has no build: what is told is nobody's.
    struct Noting(History);

    fn noting() -> Noting {
        Noting(History::default())
    }

    impl Noting {
        fn note(&self, effects: &[Effect]) {
            self.0.note(effects, &Farm::new());
        }
    }

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

    fn spans(Noting(history): &Noting) -> Vec<(u64, u64, u64, SpanEnd)> {
        let all = history.ended(Timestamp(0), Timestamp(u64::MAX), &Sight::All);
        all.into_iter().map(|span| (span.attempt.0, span.from.0, span.to.0, span.end)).collect()
    }

    #[test]
    fn every_attempt_has_its_time_and_its_end() {
        let history = noting();
        assert_eq!(history.0.since(Timestamp(3)), (Timestamp(3), Timestamp(3)), "nothing has happened");
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
        let Noting(history) = history;
        assert_eq!(history.since(Timestamp(99)), (Timestamp(10), Timestamp(10)));
        assert_eq!(history.ended(Timestamp(21), Timestamp(39), &Sight::All).len(), 1, "what ran in that time");
        let failures = history.failures(Timestamp(0), &Sight::All);
        let failures: Vec<_> = failures.iter().map(|failure| (failure.at.0, failure.is_retried, failure.worker.is_some())).collect();
        assert_eq!(failures, [(45, false, true), (30, true, true)], "what was given up did not fail");
        assert_eq!(history.failures(Timestamp(31), &Sight::All).len(), 1);
    }

    #[test]
    fn what_happened_longest_ago_is_forgotten_and_that_is_owned_up_to() {
        let history = noting();
        for at in 0..u64::try_from(SPANS_REMEMBERED_MAX).expect("few") + 3 {
            history.note(&[started(2 * at, "a", at), told(2 * at + 1, "a", EventKind::Built { wall_ms: 1, nar_bytes: 1 })]);
        }
        assert_eq!(spans(&history).len(), SPANS_REMEMBERED_MAX);
        assert_eq!(history.0.since(Timestamp(0)).0, Timestamp(5), "the end of the last one that is forgotten");
    }

    #[test]
    fn failures_are_forgotten_by_themselves_with_what_they_held_up() {
        let history = noting();
        history.note(&[told(1, "a", failed(FailureClass::BuildFailure, false))]);
        let cause = |name: &str| DrvPath::parse(&format!("00000000000000000000000000000000-{name}.drv")).expect("a path");
        history.note(&[told(1, "b", EventKind::DependencyFailed { cause: cause("a") })]);
        history.note(&[told(2, "c", EventKind::DependencyFailed { cause: cause("unheard-of") })]);
        assert_eq!((history.0.held_up(&cause("a")), history.0.held_up(&cause("unheard-of"))), (Some(1), None));
        for at in 0..u64::try_from(FAILURES_REMEMBERED_MAX).expect("few") {
            history.note(&[told(10 + at, "d", failed(FailureClass::BuildFailure, true))]);
        }
        assert_eq!(
            history.0.since(Timestamp(0)),
            (Timestamp(1), Timestamp(1)),
            "all attempts are known, and failures behind the first one"
        );
        history.note(&[told(9_999, "d", failed(FailureClass::BuildFailure, true))]);
        assert_eq!(history.0.since(Timestamp(0)), (Timestamp(1), Timestamp(10)));
        assert_eq!((history.0.held_up(&cause("a")), history.0.failure_of(&cause("a"))), (None, None));
    }

    #[test]
    fn a_gap_is_owned_up_to_and_nothing_runs_across_it() {
        let history = noting();
        history.note(&[started(10, "a", 1), started(10, "b", 2), told(20, "b", EventKind::Built { wall_ms: 1, nar_bytes: 1 })]);
        history.0.skip();
        assert_eq!(history.0.since(Timestamp(77)).0, Timestamp(77));
        history.note(&[told(80, "a", EventKind::Built { wall_ms: 1, nar_bytes: 1 })]);
        assert_eq!(history.0.since(Timestamp(99)), (Timestamp(80), Timestamp(80)));
        assert_eq!(spans(&history), [(2, 10, 20, SpanEnd::Built)], "when the first one began to run again nobody heard");
    }

    #[test]
    fn what_an_operator_ends_did_not_fail() {
        let history = noting();
        history.note(&[started(1, "a", 1), told(2, "a", failed(FailureClass::Cancelled, false))]);
        assert_eq!(spans(&history), [(1, 1, 2, SpanEnd::GivenUp)]);
        assert!(history.0.failures(Timestamp(0), &Sight::All).is_empty());
    }

    #[test]
    fn a_tenant_sees_its_own_and_what_is_nobodys() {
        let tenant = |name: &str| TenantName::parse(name).expect("a name");
        let owners = |names: &[Option<&str>]| Owners(names.iter().map(|name| name.map(tenant)).collect());
        let own = Sight::Of(tenant("a"));
        for (of, is_seen) in [
            (owners(&[Some("a")]), true),
            (owners(&[Some("b")]), false),
            (owners(&[Some("b"), Some("a")]), true),
            (owners(&[Some("b"), None]), true),
            (owners(&[]), false),
        ] {
            assert_eq!((of.are_seen(&own), of.are_seen(&Sight::All)), (is_seen, true), "{of:?}");
        }
    }

    #[test]
    fn what_is_known_begins_with_the_start_until_something_of_it_is_forgotten() {
        let since = |history: &Noting| history.0.since(Timestamp(500)).0.0;
        let history = noting();
        history.0.begin(Timestamp(50));
        assert_eq!(since(&history), 50, "nothing has happened since");
        history.note(&[started(60, "a", 1), told(61, "a", EventKind::Built { wall_ms: 1, nar_bytes: 1 })]);
        assert_eq!(since(&history), 50);
        let replayed = noting();
        replayed.note(&[started(10, "a", 1)]);
        replayed.0.begin(Timestamp(50));
        assert_eq!(since(&replayed), 10, "the log told what was before");
        for at in 0..u64::try_from(SPANS_REMEMBERED_MAX).expect("few") {
            history.note(&[started(100 + at, "b", at), told(100 + at, "b", EventKind::Built { wall_ms: 1, nar_bytes: 1 })]);
        }
        history.0.begin(Timestamp(50));
        assert_eq!(since(&history), 61, "what was forgotten is not known, whenever this coordinator started");
    }
}
