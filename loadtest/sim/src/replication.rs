//! Replication of the modelled log: entries and snapshots to followers, commitment by majority, application to the farm.

use std::rc::Rc;

use kiln_core::{Command, Effect, Farm};
use kiln_wire::{Leader, LogIndex, NodeId};

use crate::bug::Bug;
use crate::event::{Event, LogMessage};
use crate::fact::Fact;
use crate::log::{Body, Entry, Snapshot};
use crate::node::{Fate, Follower};
use crate::world::World;

/// Entries in one message.
const ENTRIES_MAX: usize = 64;
/// Entries after which a snapshot takes their place.
const COMPACT_ENTRIES: u64 = 40;

impl World {
    /// Writes an entry to a leader's log.
    pub(crate) fn write(&mut self, node: usize, body: Body) -> u64 {
        let this = &mut self.nodes[node];
        let leader = this.memory.leading.as_ref().map(|leading| leading.leader).expect("only a leader writes");
        let index = this.disk.last().0 + 1;
        this.disk.append(Rc::new(Entry { index, leader, body }));
        self.sync(node);
        index
    }

    fn sync(&mut self, node: usize) {
        let this = &self.nodes[node];
        let (life, upto, cuts) = (this.life, this.disk.last().0, this.disk.cuts);
        let needed = 50 + self.dice.below(this.sync_us_max);
        self.after(needed, Event::Synced { node, life, upto, cuts });
    }

    /// A sync ended.
    pub(crate) fn synced(&mut self, node: usize, upto: u64, cuts: u64) {
        let this = &mut self.nodes[node];
        if this.disk.full {
            return self.step_down(node);
        }
        if this.disk.cuts == cuts {
            this.disk.synced = this.disk.synced.max(upto.min(this.disk.last().0));
        }
        match (&this.memory.leading, this.memory.leader) {
            (Some(_), _) => self.commit(node),
            (None, Some(leader)) => self.report_log(node, leader, None),
            (None, None) => {}
        }
    }

    /// The disk has room again.
    pub(crate) fn disk_mended(&mut self, node: usize) {
        self.nodes[node].disk.full = false;
        if self.nodes[node].up {
            self.sync(node);
        }
    }

    fn report_log(&mut self, node: usize, leader: Leader, lacks: Option<u64>) {
        let this = &self.nodes[node];
        let matched = this.disk.synced.min(this.memory.agreed);
        let acked_us = this.memory.acked_us;
        let message = LogMessage::Has { from: this.id, term: this.disk.term, matched, lacks, acked_us };
        let to = self.node_of(leader.node);
        self.send_log(node, to, message);
    }

    /// Sends every follower what it lacks; a sign of life where it lacks nothing.
    pub(crate) fn replicate(&mut self, node: usize) {
        let followers: Vec<NodeId> = match &self.nodes[node].memory.leading {
            Some(leading) => leading.followers.keys().copied().collect(),
            None => return,
        };
        for follower in followers {
            self.replicate_to(node, follower);
        }
    }

    fn replicate_to(&mut self, node: usize, to: NodeId) {
        let (sent_us, this) = (self.now, &mut self.nodes[node]);
        let Some(leading) = &mut this.memory.leading else { return };
        let Some(follower) = leading.followers.get_mut(&to) else { return };
        let leader = leading.leader;
        let message = match (this.disk.term_at(follower.next - 1), &this.disk.snapshot) {
            (Some(term), _) => {
                let entries = this.disk.from(follower.next, ENTRIES_MAX);
                let previous = (follower.next - 1, term);
                // Taken for delivered: what is lost shows at the next message.
                follower.next += u64::try_from(entries.len()).expect("few");
                LogMessage::Append { leader, sent_us, previous, entries, commit: this.memory.commit }
            }
            (None, Some(snapshot)) => {
                follower.next = snapshot.index + 1;
                LogMessage::Install { leader, sent_us, snapshot: snapshot.clone() }
            }
            (None, None) => return,
        };
        let place = self.node_of(to);
        self.send_log(node, place, message);
    }

    /// A message of the log arrives.
    pub(crate) fn log_message(&mut self, node: usize, message: &LogMessage) {
        match message {
            LogMessage::Append { leader, sent_us, previous, entries, commit } => {
                if self.hear(node, *leader, *sent_us) {
                    let lacks = self.take_entries(node, *previous, entries, *commit);
                    self.report_log(node, *leader, lacks);
                }
            }
            LogMessage::Install { leader, sent_us, snapshot } => {
                if self.hear(node, *leader, *sent_us) {
                    self.take_snapshot(node, snapshot);
                    self.report_log(node, *leader, None);
                }
            }
            LogMessage::Has { from, term, matched, lacks, acked_us } => {
                self.take_report(node, *from, *term, (*matched, *lacks), *acked_us);
            }
        }
    }

    /// Hears of a leader; returns false if it was deposed, which it is told, or nothing can be written.
    fn hear(&mut self, node: usize, leader: Leader, sent_us: u64) -> bool {
        let this = &mut self.nodes[node];
        if leader.term < this.disk.term || this.memory.leading.as_ref().is_some_and(|leading| leading.leader == leader) {
            if leader.node != this.id {
                self.report_log(node, leader, None);
            }
            return false;
        }
        if this.disk.full {
            return false;
        }
        this.disk.term = leader.term;
        this.memory.heard_us = self.now;
        if this.memory.leader != Some(leader) {
            this.memory.leader = Some(leader);
            this.memory.agreed = this.memory.commit;
            this.memory.acked_us = 0;
        }
        this.memory.acked_us = this.memory.acked_us.max(sent_us);
        self.step_down(node);
        true
    }

    /// Returns from where on it lacks something, if the entries do not follow what it has.
    fn take_entries(&mut self, node: usize, previous: (u64, u64), entries: &[Rc<Entry>], commit: u64) -> Option<u64> {
        let this = &mut self.nodes[node];
        let known = previous.0 <= this.memory.commit || this.disk.term_at(previous.0) == Some(previous.1);
        if !known {
            return Some(this.memory.commit + 1);
        }
        let mut news = false;
        for entry in entries.iter().filter(|entry| entry.index > this.memory.commit) {
            if this.disk.term_at(entry.index) != Some(entry.leader.term) {
                this.disk.append(entry.clone());
                news = true;
            }
        }
        let upto = previous.0 + u64::try_from(entries.len()).expect("few");
        this.memory.agreed = this.memory.agreed.max(upto);
        this.memory.commit = this.memory.commit.max(commit.min(this.memory.agreed));
        if news {
            self.sync(node);
        }
        self.apply(node);
        None
    }

    fn take_snapshot(&mut self, node: usize, snapshot: &Rc<Snapshot>) {
        let this = &mut self.nodes[node];
        if snapshot.index > this.memory.commit {
            this.disk.install(snapshot);
            this.memory.farm = Farm::from_snapshot(&snapshot.bytes).expect("a coordinator's snapshot can be read");
            (this.memory.applied, this.memory.commit) = (snapshot.index, snapshot.index);
            self.say(|| format!("node {node} takes the snapshot of {}", snapshot.index));
        }
        let this = &mut self.nodes[node];
        this.memory.agreed = this.memory.agreed.max(snapshot.index);
    }

    fn take_report(&mut self, node: usize, from: NodeId, term: u64, (matched, lacks): (u64, Option<u64>), acked_us: u64) {
        let (now, this) = (self.now, &mut self.nodes[node]);
        if term > this.disk.term {
            this.disk.term = term;
            return self.step_down(node);
        }
        let Some(leading) = this.memory.leading.as_mut().filter(|leading| leading.leader.term == term) else { return };
        let Some(follower) = leading.followers.get_mut(&from) else { return };
        follower.heard_us = now;
        follower.acked_us = follower.acked_us.max(acked_us);
        follower.matched = follower.matched.max(matched);
        follower.next = follower.next.max(follower.matched + 1);
        if let Some(lacks) = lacks {
            follower.next = lacks.max(follower.matched + 1);
            self.replicate_to(node, from);
        }
        self.commit(node);
    }

    /// Finds what a majority has synced. Only an entry of the leader's own term commits those before it.
    fn commit(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let Some(leading) = &this.memory.leading else { return };
        let matched = |member: &NodeId| match leading.followers.get(member) {
            Some(follower) => follower.matched,
            None if *member == this.id => this.disk.synced,
            None => 0,
        };
        let members = this.disk.members();
        let mut matched: Vec<u64> = members.iter().map(matched).collect();
        matched.sort_unstable();
        let Some(index) = matched.get((matched.len() - 1) / 2).copied() else { return };
        if index <= this.memory.commit || this.disk.term_at(index) != Some(leading.leader.term) {
            return;
        }
        let from = this.memory.commit + 1;
        this.memory.commit = index;
        self.commit_entries(node, from, index);
        self.apply(node);
        self.replicate(node);
    }

    fn commit_entries(&mut self, node: usize, from: u64, upto: u64) {
        for index in from..=upto {
            if let Some(entry) = self.nodes[node].disk.entry(index).cloned() {
                self.committed(&entry);
            }
        }
    }

    /// Applies what is committed and does, as leader, what follows.
    pub(crate) fn apply(&mut self, node: usize) {
        loop {
            let this = &mut self.nodes[node];
            let index = this.memory.applied + 1;
            if index > this.memory.commit {
                break;
            }
            let Some(entry) = this.disk.entry(index).cloned() else { break };
            let own_stamp = this.stamp(self.now);
            let own_clock = self.has(Bug::AppliesByItsOwnClock);
            let this = &mut self.nodes[node];
            this.memory.applied = index;
            let effects = match &entry.body {
                Body::Command(Command::Finish { lease, outcome, learn, judge, .. }) if own_clock => {
                    let command =
                        Command::Finish { lease: lease.clone(), outcome: outcome.clone(), learn: *learn, judge: *judge, now: own_stamp };
                    this.memory.farm.apply(LogIndex(index), command)
                }
                Body::Command(command) => this.memory.farm.apply(LogIndex(index), command.clone()),
                Body::Blank | Body::Members(_) => Vec::new(),
            };
            self.fact(&Fact::AppliedAt { node: self.nodes[node].id, entry: &entry });
            self.follow(node);
            self.applied(node, &entry, effects);
        }
        self.compact(node);
    }

    fn applied(&mut self, node: usize, entry: &Entry, effects: Vec<Effect>) {
        let Some(leading) = self.nodes[node].memory.leading.as_mut().filter(|leading| leading.leader == entry.leader) else { return };
        let place = leading.waiting.range(entry.index..).next().filter(|(_, waiting)| waiting.first <= entry.index).map(|(last, _)| *last);
        let mut owed = Vec::with_capacity(effects.len());
        for effect in effects {
            match (effect, place.and_then(|last| leading.waiting.get_mut(&last))) {
                (Effect::Answer(answer), Some(waiting)) => waiting.answers.push(answer),
                (Effect::Answer(_), None) => {}
                (effect, _) => owed.push(effect),
            }
        }
        let done = leading.waiting.remove(&entry.index);
        self.publish_out_of_order(node, entry, &mut owed);
        // Unless its time has run out since it wrote the entry: then it does what is owed once it leads again, or its successor does.
        if self.nodes[node].memory.lead.leader() == Some(entry.leader) {
            self.act(node, entry.leader, owed);
        }
        if let Some(waiting) = done {
            self.settled(node, waiting.then, Fate::Applied, waiting.answers);
        }
        self.turn(node);
    }

    fn compact(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let index = this.memory.applied;
        if index < this.disk.base().0 + COMPACT_ENTRIES || this.disk.full || index > this.disk.synced {
            return;
        }
        let term = this.disk.term_at(index).expect("an applied entry is in the log");
        let members = this.disk.members_up_to(index).clone();
        let bytes: Rc<[u8]> = this.memory.farm.to_snapshot().into();
        this.disk.compact(Snapshot { index, term, members, bytes: bytes.clone() });
        self.fact(&Fact::Snapshot { node: self.nodes[node].id, index, bytes: &bytes });
    }

    /// Changes the voters by one, if the last change is committed. Returns whether it was proposed.
    pub(crate) fn change_members(&mut self, node: usize, join: Option<NodeId>, leave: Option<NodeId>) -> bool {
        let now = self.now;
        let this = &mut self.nodes[node];
        let mut members = this.disk.members().clone();
        let settled = this.disk.members_at() <= this.memory.commit;
        let Some(leading) = this.memory.leading.as_mut().filter(|leading| settled && leading.blank <= this.memory.commit) else {
            return false;
        };
        if let Some(member) = join {
            members.insert(member);
            leading.followers.insert(member, Follower { next: 1, matched: 0, heard_us: now, acked_us: 0 });
        }
        if let Some(member) = leave {
            members.remove(&member);
        }
        if members.is_empty() {
            return false;
        }
        self.say(|| format!("voters become {members:?}"));
        self.write(node, Body::Members(members));
        self.replicate(node);
        true
    }
}
