//! Live sessions with workers: where to send what, and who has been silent for how long. Memory of the leader only.
//!
//! Decides nothing: a silence becomes a `Lose` command, and the farm decides what that means.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_wire::limits::WORKER_SILENCE_MS_MAX;
use kiln_wire::worker::ToWorker;
use kiln_wire::{Epoch, Timestamp, WorkerId};
use tokio::sync::mpsc;

/// Sends messages to one worker, in order.
pub(crate) type Outbox = mpsc::UnboundedSender<ToWorker>;

/// What the leader knows of its workers beside their durable state.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    workers: Mutex<BTreeMap<WorkerId, Contact>>,
}

#[derive(Debug)]
struct Contact {
    /// The live stream, if there is one, with the number of its session.
    outbox: Option<(u64, Outbox)>,
    /// The registration that a silence would end; none until the farm has answered.
    epoch: Option<Epoch>,
    heard_at: Timestamp,
}

impl Sessions {
    /// Notes a worker that the farm knows from before this leader: it has the usual time to come back.
    pub(crate) fn expect(&self, worker: WorkerId, epoch: Epoch, now: Timestamp) {
        self.lock().entry(worker).or_insert(Contact { outbox: None, epoch: Some(epoch), heard_at: now });
    }

    /// Opens a session; an earlier one of the same worker gets nothing more.
    pub(crate) fn open(&self, worker: &WorkerId, session: u64, outbox: Outbox, now: Timestamp) {
        let mut workers = self.lock();
        let contact = workers.entry(worker.clone()).or_insert(Contact { outbox: None, epoch: None, heard_at: now });
        contact.outbox = Some((session, outbox));
        contact.heard_at = now;
    }

    /// Closes a session, unless a later one has taken its place.
    pub(crate) fn close(&self, worker: &WorkerId, session: u64) {
        if let Some(contact) = self.lock().get_mut(worker)
            && contact.outbox.as_ref().is_some_and(|(live, _)| *live == session)
        {
            contact.outbox = None;
        }
    }

    /// Notes that a worker lives.
    pub(crate) fn heard(&self, worker: &WorkerId, now: Timestamp) {
        if let Some(contact) = self.lock().get_mut(worker) {
            contact.heard_at = contact.heard_at.max(now);
        }
    }

    /// Notes the registration that the farm gave to a worker.
    pub(crate) fn registered(&self, worker: &WorkerId, epoch: Epoch) {
        if let Some(contact) = self.lock().get_mut(worker) {
            contact.epoch = Some(epoch);
        }
    }

    /// Sends a message; returns false if the worker has no live session, which its next `Hello` mends.
    pub(crate) fn send(&self, worker: &WorkerId, message: ToWorker) -> bool {
        let workers = self.lock();
        let outbox = workers.get(worker).and_then(|contact| contact.outbox.as_ref());
        outbox.is_some_and(|(_, outbox)| outbox.send(message).is_ok())
    }

    /// Returns the workers with a live session.
    pub(crate) fn connected(&self) -> Vec<WorkerId> {
        self.lock().iter().filter(|(_, contact)| contact.outbox.is_some()).map(|(worker, _)| worker.clone()).collect()
    }

    /// Takes out the registrations that have been silent for too long at `now`.
    pub(crate) fn take_silent(&self, now: Timestamp) -> Vec<(WorkerId, Epoch)> {
        let mut silent = Vec::new();
        self.lock().retain(|worker, contact| {
            let over = now.since_ms(contact.heard_at) >= WORKER_SILENCE_MS_MAX;
            if let (true, Some(epoch)) = (over, contact.epoch) {
                silent.push((worker.clone(), epoch));
            }
            !over
        });
        silent
    }

    /// Returns when the next registration will have been silent for too long.
    pub(crate) fn next_silence(&self) -> Option<Timestamp> {
        self.lock().values().map(|contact| contact.heard_at.after_ms(WORKER_SILENCE_MS_MAX)).min()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkerId, Contact>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> WorkerId {
        WorkerId::parse("w1").expect("a name")
    }

    #[test]
    fn only_a_worker_that_is_silent_for_the_whole_time_is_taken_out() {
        let sessions = Sessions::default();
        sessions.expect(worker(), Epoch(3), Timestamp(1000));
        sessions.heard(&worker(), Timestamp(2000));
        assert_eq!(sessions.next_silence(), Some(Timestamp(2000 + WORKER_SILENCE_MS_MAX)));
        assert_eq!(sessions.take_silent(Timestamp(1999 + WORKER_SILENCE_MS_MAX)), []);
        assert_eq!(sessions.take_silent(Timestamp(2000 + WORKER_SILENCE_MS_MAX)), [(worker(), Epoch(3))]);
        assert_eq!(sessions.take_silent(Timestamp(u64::MAX)), []);
    }

    #[test]
    fn an_old_session_that_ends_late_does_not_close_its_successor() {
        let sessions = Sessions::default();
        let (first, _kept_first) = mpsc::unbounded_channel();
        let (second, mut inbox) = mpsc::unbounded_channel();
        sessions.open(&worker(), 1, first, Timestamp(0));
        sessions.open(&worker(), 2, second, Timestamp(0));
        sessions.close(&worker(), 1);
        let message = ToWorker::Welcome { leader: Default::default(), epoch: Epoch(1), keep: Vec::new() };
        assert!(sessions.send(&worker(), message.clone()));
        assert_eq!(inbox.try_recv().ok(), Some(message));
        sessions.close(&worker(), 2);
        assert_eq!(sessions.connected(), []);
    }
}
