//! Live sessions with workers: where to send what, and who has been silent for how long. Memory of the leader only.
//!
//! Decides nothing: `kiln_core::Contacts` knows which session counts and who is silent; the streams are kept here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_core::{Contacts, Farm, Steady};
use kiln_wire::worker::{Assignment, Strain, ToWorker};
use kiln_wire::{AttemptId, Epoch, WorkerId};
use tokio::sync::{Notify, mpsc};

/// Sends messages to one worker, in order.
pub(crate) type Outbox = mpsc::UnboundedSender<ToWorker>;

/// What the leader knows of its workers beside their durable state.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    inner: Mutex<Inner>,
    changes: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    contacts: Contacts,
    /// The live session's stream of each worker that has one.
    outboxes: BTreeMap<WorkerId, Outbox>,
    /// Nobody will have been silent for too long before this: a worker that is heard of makes it later, and nothing makes it earlier.
    quiet_until: Option<Steady>,
}

impl Sessions {
    /// Notes a worker that the farm knows and this leader has not heard of: it has the usual time to come back.
    pub(crate) fn expect(&self, worker: WorkerId, epoch: Epoch, now: Steady) {
        self.lock().contacts.expect(worker, epoch, now);
    }

    /// Opens a session; an earlier one of the same worker gets nothing more. Returns false if a later one is there already.
    pub(crate) fn open(&self, worker: &WorkerId, session: u64, outbox: Outbox, now: Steady) -> bool {
        let mut inner = self.lock();
        let opened = inner.contacts.open(worker, session, now);
        if opened {
            inner.outboxes.insert(worker.clone(), outbox);
        }
        opened
    }

    /// Closes a session, unless a later one has taken its place. A job that failed elsewhere waits for the worker no more.
    pub(crate) fn close(&self, worker: &WorkerId, session: u64) {
        let mut inner = self.lock();
        if inner.contacts.close(worker, session) {
            inner.outboxes.remove(worker);
            self.changes.notify_one();
        }
    }

    /// Notes that a worker lives.
    pub(crate) fn heard(&self, worker: &WorkerId, now: Steady) {
        self.lock().contacts.heard(worker, now);
    }

    /// Notes the registration that the farm gave to a worker.
    pub(crate) fn registered(&self, worker: &WorkerId, epoch: Epoch, now: Steady) {
        self.lock().contacts.registered(worker, epoch, now);
    }

    /// Notes whether a worker takes new jobs, and why not.
    pub(crate) fn strained(&self, worker: &WorkerId, session: u64, strain: Option<Strain>) {
        let mut inner = self.lock();
        if !inner.contacts.strained(worker, session, strain) {
            return;
        }
        match inner.contacts.strain(worker) {
            Some(strain) => tracing::warn!(%worker, why = strain.message, "worker takes nothing new"),
            None => tracing::info!(%worker, "worker takes jobs again"),
        }
        self.changes.notify_one();
    }

    /// Notes that an attempt whose lease lives only uploads: another may take its place.
    pub(crate) fn wound(&self, worker: &WorkerId, session: u64, attempt: AttemptId) {
        if self.lock().contacts.wound(worker, session, attempt) {
            self.changes.notify_one();
        }
    }

    /// Returns the attempts that only upload, by their workers.
    pub(crate) fn winding(&self, farm: &Farm) -> BTreeMap<WorkerId, BTreeSet<AttemptId>> {
        self.lock().contacts.winding(farm)
    }

    /// Returns why a worker takes nothing new.
    pub(crate) fn strain(&self, worker: &WorkerId) -> Option<Strain> {
        self.lock().contacts.strain(worker).cloned()
    }

    /// Waits until a worker takes jobs again, or none, or has room that no entry of the log tells of. Cancel safe; for one waiter.
    pub(crate) async fn changed(&self) {
        self.changes.notified().await;
    }

    /// Returns those of some workers that have no session whose registration the farm has given, or take no new jobs.
    pub(crate) fn away<'a>(&self, workers: impl Iterator<Item = &'a WorkerId>) -> BTreeSet<WorkerId> {
        let inner = self.lock();
        workers.filter(|worker| !inner.contacts.takes_jobs(worker)).cloned().collect()
    }

    /// Sends a job, unless the session's registration is still under way: its hello could not name the job, so that the registration ends
    /// the lease, and the worker would begin what it is told to stop a moment later.
    pub(crate) fn dispatch(&self, worker: &WorkerId, assignment: Assignment) -> bool {
        let inner = self.lock();
        let outbox = inner.outboxes.get(worker).filter(|_| inner.contacts.is_present(worker));
        outbox.is_some_and(|outbox| outbox.send(ToWorker::Dispatch(assignment)).is_ok())
    }

    /// Sends a message; returns false if the worker has no live session, which its next `Hello` mends.
    pub(crate) fn send(&self, worker: &WorkerId, message: ToWorker) -> bool {
        self.lock().outboxes.get(worker).is_some_and(|outbox| outbox.send(message).is_ok())
    }

    /// Returns the workers with a live session.
    pub(crate) fn connected(&self) -> Vec<WorkerId> {
        self.lock().contacts.connected().cloned().collect()
    }

    /// Takes out the workers that have been silent for too long at `now`; their streams end, so that they dial again if they live.
    pub(crate) fn take_silent(&self, now: Steady) -> Vec<(WorkerId, Option<Epoch>)> {
        let mut inner = self.lock();
        let silent = inner.contacts.take_silent(now);
        for (worker, _) in &silent {
            inner.outboxes.remove(worker);
        }
        silent
    }

    /// Returns when to look for silent workers next: when the first will have been silent for too long if none is heard of from here on,
    /// or earlier. Looks at all workers only when an earlier answer has passed: the leader asks after all that happens.
    pub(crate) fn next_silence(&self, now: Steady) -> Option<Steady> {
        let mut inner = self.lock();
        if inner.quiet_until.is_none_or(|at| at <= now) {
            inner.quiet_until = inner.contacts.next_silence();
        }
        inner.quiet_until
    }

    /// Forgets every worker: this coordinator leads no more, and their streams end.
    pub(crate) fn forget_all(&self) {
        *self.lock() = Inner::default();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kiln_wire::limits::WORKER_SILENCE_MS_MAX;
    use kiln_wire::{AttemptId, DrvPath, JobLimits, Leader, Lease, Resources, StoreDir};

    use super::*;

    fn assignment(worker: &WorkerId) -> Assignment {
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        Assignment {
            leader: Leader::default(),
            lease: Lease { derivation, attempt: AttemptId(7), worker: worker.clone(), epoch: Epoch(5) },
            store_dir: StoreDir::default(),
            derivation: Vec::new(),
            inputs: Vec::new(),
            input_outputs: BTreeMap::new(),
            resources: Resources::default(),
            limits: JobLimits::default(),
            resolved: None,
            trace: None,
        }
    }

    #[test]
    fn silence_is_looked_for_in_time_whoever_is_heard_of_or_comes() {
        let (sessions, [one, two]) = (Sessions::default(), ["w1", "w2"].map(|name| WorkerId::parse(name).expect("a name")));
        assert_eq!(sessions.next_silence(Steady(0)), None);
        sessions.expect(one.clone(), Epoch(1), Steady(1000));
        let first = Steady(1000 + WORKER_SILENCE_MS_MAX);
        assert_eq!(sessions.next_silence(Steady(1000)), Some(first));
        sessions.expect(two.clone(), Epoch(2), Steady(2000));
        sessions.heard(&one, Steady(3000));
        assert_eq!(sessions.next_silence(Steady(3000)), Some(first), "no later than it may be");
        assert_eq!(sessions.take_silent(first), []);
        let second = Steady(2000 + WORKER_SILENCE_MS_MAX);
        assert_eq!(sessions.next_silence(first), Some(second));
        assert_eq!(sessions.take_silent(second), [(two, Some(Epoch(2)))]);
        assert_eq!(sessions.next_silence(second), Some(Steady(3000 + WORKER_SILENCE_MS_MAX)));
    }

    #[test]
    fn a_session_whose_registration_is_under_way_gets_no_job() {
        let (sessions, worker) = (Sessions::default(), WorkerId::parse("w1").expect("a name"));
        for session in 1..=2 {
            let (outbox, mut sent) = mpsc::unbounded_channel();
            sessions.open(&worker, session, outbox, Steady(0));
            assert!(!sessions.dispatch(&worker, assignment(&worker)) && sent.try_recv().is_err());
            sessions.registered(&worker, Epoch(5), Steady(0));
            assert!(sessions.dispatch(&worker, assignment(&worker)) && sent.try_recv().is_ok());
        }
    }
}
