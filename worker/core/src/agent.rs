//! The agent: decides what a worker does with what its leader says and with what becomes of its attempts.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use kiln_wire::worker::{Assignment, FromWorker, Hello, Lacking, Offer, Strain, ToWorker};
use kiln_wire::{AttemptId, DrvPath, Epoch, Leader, Lease, Outcome, OutputName, Resources, WorkerId};

use crate::action::{Action, StaleLeader};
use crate::attempt::Attempt;

/// Attempts that ended here and whose late or repeated messages are recognised. Far more than can be in flight on a session.
pub const ENDED_REMEMBERED_MAX: usize = 1_024;

/// A worker's attempts and what it knows of its leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    worker: WorkerId,
    offer: Offer,
    leader_seen: Leader,
    /// The registration of the open session; none without one.
    session: Option<Epoch>,
    /// The highest registration that was ever welcomed.
    epoch_seen: Epoch,
    /// The first one.
    epoch_first: Option<Epoch>,
    attempts: BTreeMap<Lease, Attempt>,
    /// Queued attempts, in the order in which they came.
    queue: VecDeque<Lease>,
    ended: BTreeSet<Lease>,
    ended_order: VecDeque<Lease>,
    /// Why it takes nothing new.
    strain: Option<Strain>,
    /// What of it the leader of the open session was told.
    told: Option<Lacking>,
    /// Whether that leader would understand.
    is_heard: bool,
    /// Whether it would understand that an attempt only uploads.
    hears_winding: bool,
}

impl Agent {
    /// Makes an agent of what the journal holds: the highest leader seen, and results that were not acknowledged.
    pub fn restore(worker: WorkerId, offer: Offer, leader_seen: Leader, finished: Vec<(Lease, Outcome)>) -> Self {
        Self {
            worker,
            offer,
            leader_seen,
            session: None,
            epoch_seen: Epoch::default(),
            epoch_first: None,
            attempts: finished.into_iter().map(|(lease, outcome)| (lease, Attempt::Finished(outcome))).collect(),
            queue: VecDeque::new(),
            ended: BTreeSet::new(),
            ended_order: VecDeque::new(),
            strain: None,
            told: None,
            is_heard: false,
            hears_winding: false,
        }
    }

    /// Returns what opens a session. Names every attempt that runs, waits, or has an unacknowledged result.
    pub fn hello(&mut self) -> Hello {
        self.told = self.strain.as_ref().map(|strain| strain.lacks);
        let alive = self.attempts.iter().filter(|(_, attempt)| attempt.is_alive());
        Hello {
            worker: self.worker.clone(),
            offer: self.offer.clone(),
            leader_seen: self.leader_seen,
            attempts: alive.map(|(lease, _)| lease.clone()).collect(),
            since: self.epoch_first,
            strain: self.strain.clone(),
        }
    }

    /// Takes a message of a leader. The same message twice does nothing the second time.
    pub fn receive(&mut self, message: ToWorker) -> Vec<Action> {
        match message {
            ToWorker::Welcome { leader, epoch, keep, log_bytes: _, hears_strain, hears_winding } => {
                self.obey(leader, |agent| agent.welcome(epoch, &keep, hears_strain, hears_winding))
            }
            // Of concern to whoever looks for the leader; attempts go on.
            ToWorker::NotLeader(_) => Vec::new(),
            ToWorker::Dispatch(assignment) => self.obey(assignment.leader, |agent| agent.dispatch(Box::new(assignment))),
            ToWorker::Revoke { leader, lease } => self.obey(leader, |agent| agent.revoke(&lease)),
            ToWorker::Acknowledge { derivation, attempt } => self.acknowledge(&derivation, attempt),
        }
    }

    /// The builder of an attempt was started.
    pub fn started(&self, lease: &Lease) -> Vec<Action> {
        match self.attempts.get(lease) {
            Some(Attempt::Running { .. }) => self.send(FromWorker::Started(lease.clone())),
            Some(Attempt::Queued(_) | Attempt::Stopping { .. } | Attempt::Finished(_)) | None => Vec::new(),
        }
    }

    /// The builder of an attempt has exited and its outputs are checked: it only uploads, and what it held is another's. Not if as many
    /// attempts upload as the worker has slots: where the link is the bottleneck, no more is built than it carries.
    pub fn wound(&mut self, lease: &Lease) -> Vec<Action> {
        let uploads = self.attempts.values().filter(|attempt| attempt.is_at_work() && attempt.held().is_none()).count();
        let has_turn = u32::try_from(uploads).is_ok_and(|uploads| uploads < self.offer.slots);
        let Some(Attempt::Running { winding, .. }) = self.attempts.get_mut(lease).filter(|_| has_turn) else { return Vec::new() };
        *winding = true;
        let mut actions = if self.hears_winding { self.send(FromWorker::Winding(lease.clone())) } else { Vec::new() };
        actions.extend(self.start_queued());
        actions
    }

    /// An attempt is over and holds nothing any more. One that was stopped reports nothing.
    pub fn ended(&mut self, lease: &Lease, outcome: Outcome) -> Vec<Action> {
        let mut actions = match self.attempts.get(lease) {
            Some(Attempt::Running { .. }) => {
                self.attempts.insert(lease.clone(), Attempt::Finished(outcome.clone()));
                let mut actions = Vec::from([Action::Keep { lease: lease.clone(), outcome: outcome.clone() }]);
                actions.extend(self.send(FromWorker::Finished { lease: lease.clone(), outcome }));
                actions
            }
            Some(Attempt::Stopping { .. }) => self.forget(lease),
            Some(Attempt::Queued(_) | Attempt::Finished(_)) | None => return Vec::new(),
        };
        actions.extend(self.start_queued());
        actions
    }

    /// Notes whether the machine can take more, and why not; the leader hears of it when what is short changes. A job that comes all the same is
    /// taken: it was sent before.
    pub fn strained(&mut self, strain: Option<Strain>) -> Vec<Action> {
        self.strain = strain;
        self.tell_strain().into_iter().collect()
    }

    /// Tells the leader of the open session what it does not know of the machine.
    fn tell_strain(&mut self) -> Option<Action> {
        let lacks = self.strain.as_ref().map(|strain| strain.lacks);
        if self.session.is_none() || !self.is_heard || lacks == self.told {
            return None;
        }
        self.told = lacks;
        Some(Action::Send(FromWorker::Admission(self.strain.clone())))
    }

    /// The farm confirmed that it has this many bytes of an output. Never goes back.
    pub fn uploaded(&mut self, lease: &Lease, output: &OutputName, bytes: u64) {
        if let Some(Attempt::Running { uploaded, .. }) = self.attempts.get_mut(lease) {
            let known = uploaded.entry(output.clone()).or_default();
            *known = bytes.max(*known);
        }
    }

    /// Returns how many bytes of an output the farm is known to have: where an interrupted upload goes on.
    pub fn upload_offset(&self, lease: &Lease, output: &OutputName) -> u64 {
        match self.attempts.get(lease) {
            Some(Attempt::Running { uploaded, .. }) => uploaded.get(output).copied().unwrap_or(0),
            Some(Attempt::Queued(_) | Attempt::Stopping { .. } | Attempt::Finished(_)) | None => 0,
        }
    }

    /// The session is closed. Attempts go on; results wait for the next one.
    pub fn disconnected(&mut self) {
        self.session = None;
    }

    /// Returns the registration of the open session.
    pub fn session(&self) -> Option<Epoch> {
        self.session
    }

    /// Returns the highest leader seen.
    pub fn leader_seen(&self) -> Leader {
        self.leader_seen
    }

    /// Returns what it offers.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Returns the attempts that run or upload, those that are being stopped among them.
    pub fn at_work(&self) -> impl Iterator<Item = &Lease> {
        self.attempts.iter().filter(|(_, attempt)| attempt.is_at_work()).map(|(lease, _)| lease)
    }

    /// Returns the results that were not acknowledged.
    pub fn unacknowledged(&self) -> impl Iterator<Item = (&Lease, &Outcome)> {
        self.attempts.iter().filter_map(|(lease, attempt)| match attempt {
            Attempt::Finished(outcome) => Some((lease, outcome)),
            Attempt::Queued(_) | Attempt::Running { .. } | Attempt::Stopping { .. } => None,
        })
    }

    /// Returns free slots and capacity, derived from what runs. Attempts without cores hold light slots as long as there are some.
    pub fn free(&self) -> (u32, Resources) {
        let (mut slots, mut free) = (self.offer.slots, self.offer.capacity);
        let mut light = self.offer.light_slots;
        for held in self.attempts.values().filter_map(Attempt::held) {
            if held.cores == 0 && light > 0 {
                light -= 1;
            } else {
                slots = slots.saturating_sub(1);
            }
            free.cores = free.cores.saturating_sub(held.cores);
            free.memory_mib = free.memory_mib.saturating_sub(held.memory_mib);
        }
        (slots, free)
    }

    fn has_light_slot(&self) -> bool {
        let held = self.attempts.values().filter_map(Attempt::held).filter(|held| held.cores == 0).count();
        u32::try_from(held).is_ok_and(|held| held < self.offer.light_slots)
    }

    /// Obeys a leader unless a higher one was seen.
    fn obey(&mut self, leader: Leader, act: impl FnOnce(&mut Self) -> Vec<Action>) -> Vec<Action> {
        if leader < self.leader_seen {
            return Vec::from([Action::Disconnect(StaleLeader { offered: leader, seen: self.leader_seen })]);
        }
        let mut actions = Vec::new();
        if leader > self.leader_seen {
            self.leader_seen = leader;
            actions.push(Action::Remember(leader));
        }
        actions.extend(act(self));
        actions
    }

    /// Stops what the farm gave up, and says again what it may have missed. A welcome that is not newer than the last one is old news.
    fn welcome(&mut self, epoch: Epoch, keep: &[Lease], hears_strain: bool, hears_winding: bool) -> Vec<Action> {
        if epoch <= self.epoch_seen {
            return Vec::new();
        }
        self.epoch_seen = epoch;
        self.epoch_first.get_or_insert(epoch);
        (self.session, self.is_heard, self.hears_winding) = (Some(epoch), hears_strain, hears_winding);
        let given_up = |(lease, attempt): (&Lease, &Attempt)| {
            let old = lease.epoch < epoch && !keep.contains(lease);
            (old && !matches!(attempt, Attempt::Finished(_))).then(|| lease.clone())
        };
        let stop: Vec<Lease> = self.attempts.iter().filter_map(given_up).collect();
        let mut actions: Vec<Action> = stop.iter().flat_map(|lease| self.stop(lease)).collect();
        // Those that were given up too: the farm acknowledges any report, so that it can be forgotten.
        let reports = self.unacknowledged().map(|(lease, outcome)| FromWorker::Finished { lease: lease.clone(), outcome: outcome.clone() });
        actions.extend(reports.map(Action::Send));
        let winds = |(lease, attempt): (&Lease, &Attempt)| {
            matches!(attempt, Attempt::Running { winding: true, .. }).then(|| Action::Send(FromWorker::Winding(lease.clone())))
        };
        actions.extend(self.attempts.iter().filter_map(winds).filter(|_| hears_winding));
        actions.extend(self.tell_strain());
        actions.extend(self.start_queued());
        actions
    }

    fn dispatch(&mut self, assignment: Box<Assignment>) -> Vec<Action> {
        let lease = assignment.lease.clone();
        let known = self.attempts.contains_key(&lease) || self.ended.contains(&lease);
        if known || lease.epoch < self.epoch_seen || lease.worker != self.worker {
            return Vec::new();
        }
        self.attempts.insert(lease.clone(), Attempt::Queued(assignment));
        self.queue.push_back(lease);
        self.start_queued()
    }

    fn revoke(&mut self, lease: &Lease) -> Vec<Action> {
        // Also what was not heard of yet: its dispatch may come late.
        self.note_ended(lease.clone());
        let mut actions = self.stop(lease);
        actions.extend(self.start_queued());
        actions
    }

    fn acknowledge(&mut self, derivation: &DrvPath, attempt: AttemptId) -> Vec<Action> {
        let of = |lease: &&Lease| lease.attempt == attempt && lease.derivation == *derivation;
        let acknowledged = self.unacknowledged().map(|(lease, _)| lease).find(of).cloned();
        acknowledged.map(|lease| self.forget(&lease)).unwrap_or_default()
    }

    /// Ends an attempt without a report.
    fn stop(&mut self, lease: &Lease) -> Vec<Action> {
        match self.attempts.get(lease) {
            Some(Attempt::Running { resources, winding, .. }) => {
                let (resources, winding) = (*resources, *winding);
                self.attempts.insert(lease.clone(), Attempt::Stopping { resources, winding });
                Vec::from([Action::Kill(lease.clone())])
            }
            Some(Attempt::Queued(_)) => {
                self.queue.retain(|other| other != lease);
                self.forget(lease)
            }
            Some(Attempt::Finished(_)) => self.forget(lease),
            Some(Attempt::Stopping { .. }) | None => Vec::new(),
        }
    }

    fn forget(&mut self, lease: &Lease) -> Vec<Action> {
        self.attempts.remove(lease);
        self.note_ended(lease.clone());
        Vec::from([Action::Forget(lease.clone())])
    }

    fn note_ended(&mut self, lease: Lease) {
        if self.ended.insert(lease.clone()) {
            self.ended_order.push_back(lease);
        }
        if self.ended_order.len() > ENDED_REMEMBERED_MAX {
            let oldest = self.ended_order.pop_front();
            oldest.map(|lease| self.ended.remove(&lease));
        }
    }

    /// Starts queued attempts, first come first served, while they fit. One that could never fit runs alone.
    fn start_queued(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(Attempt::Queued(assignment)) = self.queue.front().and_then(|lease| self.attempts.get(lease)) {
            let (slots, free) = self.free();
            let asked = assignment.resources;
            let fits = (slots > 0 || (asked.cores == 0 && self.has_light_slot()))
                && asked.cores <= free.cores
                && asked.memory_mib <= free.memory_mib;
            if !fits && self.attempts.values().any(|attempt| attempt.held().is_some()) {
                break;
            }
            let Some(lease) = self.queue.pop_front() else { break };
            let running = Attempt::Running { resources: asked, uploaded: BTreeMap::new(), winding: false };
            if let Some(Attempt::Queued(assignment)) = self.attempts.insert(lease, running) {
                actions.push(Action::Start(assignment));
            }
        }
        actions
    }

    fn send(&self, message: FromWorker) -> Vec<Action> {
        if self.session.is_some() { Vec::from([Action::Send(message)]) } else { Vec::new() }
    }
}
