//! Who was heard of when: the leader's memory of its workers beside their durable registration. Pure: time comes in as `now`.
//!
//! Holds no streams (the shell does, by the number of the session). A silence becomes a `Lose` command, and the farm decides what that
//! means. Invariant: a session that ends late never closes its successor.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use kiln_wire::limits::{STRAIN_MESSAGE_BYTES_MAX, WORKER_SILENCE_MS_MAX};
use kiln_wire::worker::Strain;
use kiln_wire::{AttemptId, Epoch, WorkerId};

use crate::clock::Steady;
use crate::farm::{Farm, cut};

/// What a leader knows of its workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contacts {
    workers: BTreeMap<WorkerId, Contact>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Contact {
    /// The number of the live session, if there is one.
    session: Option<u64>,
    /// The registration that a silence would end; none until the farm has answered.
    epoch: Option<Epoch>,
    /// The farm has registered the live session: what is sent reaches the worker.
    is_welcome: bool,
    heard_at: Steady,
    /// Why it takes nothing new, as it said in the live session.
    strain: Option<Strain>,
    /// Its attempts whose builders have exited, as it said in the live session.
    winding: BTreeSet<AttemptId>,
}

impl Contact {
    fn new(epoch: Option<Epoch>, now: Steady) -> Self {
        Self { session: None, epoch, is_welcome: false, heard_at: now, strain: None, winding: BTreeSet::new() }
    }
}

impl Contacts {
    /// Notes a worker that the farm knows and this leader has not heard of: it has the usual time to come back.
    pub fn expect(&mut self, worker: WorkerId, epoch: Epoch, now: Steady) {
        self.workers.entry(worker).or_insert_with(|| Contact::new(Some(epoch), now));
    }

    /// Opens a session; it takes the place of an earlier one of the same worker. Returns false if a later one is there already: what
    /// an old stream says late must not count.
    pub fn open(&mut self, worker: &WorkerId, session: u64, now: Steady) -> bool {
        let contact = self.workers.entry(worker.clone()).or_insert_with(|| Contact::new(None, now));
        if contact.session.is_some_and(|live| live > session) {
            return false;
        }
        *contact = Contact { session: Some(session), ..Contact::new(contact.epoch, now) };
        true
    }

    /// Closes a session, unless a later one has taken its place. Returns whether it was the live one.
    pub fn close(&mut self, worker: &WorkerId, session: u64) -> bool {
        let contact = self.workers.get_mut(worker).filter(|contact| contact.session == Some(session));
        contact.map(|contact| (contact.session, contact.strain, contact.winding) = (None, None, BTreeSet::new())).is_some()
    }

    /// Notes that a worker lives.
    pub fn heard(&mut self, worker: &WorkerId, now: Steady) {
        if let Some(contact) = self.workers.get_mut(worker) {
            contact.heard_at = contact.heard_at.max(now);
        }
    }

    /// Notes the registration that the farm gave to a worker. One that was given up meanwhile is expected again: a registration that
    /// nobody watches would hold its leases for ever.
    pub fn registered(&mut self, worker: &WorkerId, epoch: Epoch, now: Steady) {
        self.expect(worker.clone(), epoch, now);
        if let Some(contact) = self.workers.get_mut(worker) {
            contact.epoch = contact.epoch.max(Some(epoch));
            contact.is_welcome = contact.session.is_some();
        }
    }

    /// Notes whether the worker of the live session takes new jobs, and why not. Returns whether that is news: an old session has none.
    pub fn strained(&mut self, worker: &WorkerId, session: u64, strain: Option<Strain>) -> bool {
        let Some(contact) = self.workers.get_mut(worker).filter(|contact| contact.session == Some(session)) else { return false };
        let strain = strain.map(|strain| Strain { message: cut(&strain.message, STRAIN_MESSAGE_BYTES_MAX), ..strain });
        let lacks = |strain: &Option<Strain>| strain.as_ref().map(|strain| strain.lacks);
        let is_news = lacks(&strain) != lacks(&contact.strain);
        contact.strain = strain;
        is_news
    }

    /// Notes that the builder of an attempt has exited, as the worker of the live session says of a lease that the farm takes for live.
    /// Returns whether that is news.
    pub fn wound(&mut self, worker: &WorkerId, session: u64, attempt: AttemptId) -> bool {
        let contact = self.workers.get_mut(worker).filter(|contact| contact.session == Some(session));
        contact.is_some_and(|contact| contact.winding.insert(attempt))
    }

    /// Returns the attempts whose builders have exited and whose leases live, by their workers. The others are forgotten.
    pub fn winding(&mut self, farm: &Farm) -> BTreeMap<WorkerId, BTreeSet<AttemptId>> {
        let mut winding = BTreeMap::new();
        for (worker, contact) in self.workers.iter_mut().filter(|(_, contact)| !contact.winding.is_empty()) {
            let live: BTreeSet<AttemptId> = farm.leases_of(worker).into_iter().map(|lease| lease.attempt).collect();
            contact.winding.retain(|attempt| live.contains(attempt));
            if !contact.winding.is_empty() {
                winding.insert(worker.clone(), contact.winding.clone());
            }
        }
        winding
    }

    /// Returns why the worker takes nothing new.
    pub fn strain(&self, worker: &WorkerId) -> Option<&Strain> {
        self.workers.get(worker)?.strain.as_ref()
    }

    /// Returns whether the worker gets new jobs: it hears what it is told, and did not ask for nothing.
    pub fn takes_jobs(&self, worker: &WorkerId) -> bool {
        self.is_present(worker) && self.strain(worker).is_none()
    }

    /// Returns the number of a worker's live session.
    pub fn session(&self, worker: &WorkerId) -> Option<u64> {
        self.workers.get(worker)?.session
    }

    /// Returns whether the worker hears what it is told, and its next hello can name it: it has a live session that the farm has
    /// registered.
    pub fn is_present(&self, worker: &WorkerId) -> bool {
        self.workers.get(worker).is_some_and(|contact| contact.session.is_some() && contact.is_welcome)
    }

    /// Returns the workers with a live session.
    pub fn connected(&self) -> impl Iterator<Item = &WorkerId> {
        self.workers.iter().filter(|(_, contact)| contact.session.is_some()).map(|(worker, _)| worker)
    }

    /// Takes out the workers that have been silent for too long at `now`, with the registration that ends by it.
    pub fn take_silent(&mut self, now: Steady) -> Vec<(WorkerId, Option<Epoch>)> {
        let mut silent = Vec::new();
        self.workers.retain(|worker, contact| {
            let over = now.since_ms(contact.heard_at) >= WORKER_SILENCE_MS_MAX;
            if over {
                silent.push((worker.clone(), contact.epoch));
            }
            !over
        });
        silent
    }

    /// Returns when the next worker will have been silent for too long.
    pub fn next_silence(&self) -> Option<Steady> {
        self.workers.values().map(|contact| contact.heard_at.after_ms(WORKER_SILENCE_MS_MAX)).min()
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use kiln_wire::worker::Lacking;

    use super::*;

    fn worker() -> WorkerId {
        WorkerId::parse("w1").expect("a name")
    }

    #[test]
    fn only_a_worker_that_is_silent_for_the_whole_time_is_taken_out() {
        let mut contacts = Contacts::default();
        contacts.expect(worker(), Epoch(3), Steady(1000));
        contacts.heard(&worker(), Steady(2000));
        assert_eq!(contacts.next_silence(), Some(Steady(2000 + WORKER_SILENCE_MS_MAX)));
        assert_eq!(contacts.take_silent(Steady(1999 + WORKER_SILENCE_MS_MAX)), []);
        assert_eq!(contacts.take_silent(Steady(2000 + WORKER_SILENCE_MS_MAX)), [(worker(), Some(Epoch(3)))]);
        assert_eq!(contacts.take_silent(Steady(u64::MAX)), []);
    }

    #[test]
    fn a_registration_that_took_longer_than_patience_is_watched_all_the_same() {
        let mut contacts = Contacts::default();
        contacts.open(&worker(), 1, Steady(0));
        assert_eq!(contacts.take_silent(Steady(WORKER_SILENCE_MS_MAX)), [(worker(), None)]);
        contacts.registered(&worker(), Epoch(9), Steady(20_000));
        assert_eq!(contacts.take_silent(Steady(20_000 + WORKER_SILENCE_MS_MAX)), [(worker(), Some(Epoch(9)))]);
    }

    #[test]
    fn a_strain_is_the_live_sessions_and_news_once() {
        let strain = |words: &str| Some(Strain { lacks: Lacking::Disk, message: String::from(words) });
        let mut contacts = Contacts::default();
        assert!(!contacts.strained(&worker(), 1, strain("nobody knows it")));
        contacts.open(&worker(), 1, Steady(0));
        contacts.registered(&worker(), Epoch(7), Steady(0));
        assert!(contacts.takes_jobs(&worker()));
        assert!(contacts.strained(&worker(), 1, strain("full")));
        assert!(!contacts.strained(&worker(), 1, strain("still full")), "the same");
        assert!(!contacts.takes_jobs(&worker()) && contacts.is_present(&worker()));
        assert!(!contacts.strained(&worker(), 0, None), "an old session");
        assert_eq!(contacts.strain(&worker()).map(|strain| strain.message.as_str()), Some("still full"));
        assert!(contacts.strained(&worker(), 1, None));
        assert!(!contacts.strained(&worker(), 1, None), "it took jobs already");
        contacts.strained(&worker(), 1, strain(&"x".repeat(9_999)));
        assert_eq!(contacts.strain(&worker()).map(|strain| strain.message.len()), Some(STRAIN_MESSAGE_BYTES_MAX));
        contacts.open(&worker(), 2, Steady(0));
        assert_eq!(contacts.strain(&worker()), None, "the next session says it anew");
        contacts.strained(&worker(), 2, strain("full"));
        contacts.close(&worker(), 2);
        assert_eq!(contacts.strain(&worker()), None, "of one that is away nothing is known");
    }

    #[test]
    fn an_old_session_that_ends_late_does_not_close_its_successor() {
        let mut contacts = Contacts::default();
        assert!(contacts.open(&worker(), 1, Steady(0)));
        assert!(contacts.open(&worker(), 2, Steady(0)));
        assert!(!contacts.open(&worker(), 1, Steady(0)), "what an old stream says late");
        assert!(!contacts.is_present(&worker()), "the farm has not registered it");
        contacts.registered(&worker(), Epoch(7), Steady(0));
        assert!(contacts.is_present(&worker()));
        assert!(!contacts.close(&worker(), 1));
        assert_eq!(contacts.session(&worker()), Some(2));
        assert!(contacts.close(&worker(), 2));
        assert_eq!((contacts.connected().count(), contacts.is_present(&worker())), (0, false));
    }
}
