//! Elections of the modelled log. A vote is taken in one moment, among those that can be reached both ways; what it may decide is what
//! Raft's may: one leader for each term, whose log holds everything that is committed. Source: Ongaro, Ousterhout 2014, with pre-vote.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::{Leader, NodeId};

use crate::bug::Bug;
use crate::event::Event;
use crate::fact::Fact;
use crate::log::Body;
use crate::node::{Fate, Follower, Leading, Waiting};
use crate::world::World;

/// A follower that heard of a leader so lately lets nobody else lead; a leader that knows so of a majority leads.
const LEASE_US: u64 = 600_000;
/// How often a leader says that it leads.
const HEARTBEAT_US: u64 = 200_000;
/// A leader that no majority answers goes on believing in itself for so long at most.
const BELIEF_US_MAX: u64 = 4_000_000;

impl World {
    /// A coordinator's log looks at its clock.
    pub(crate) fn tick(&mut self, node: usize) {
        let patience = LEASE_US + self.dice.below(LEASE_US);
        let this = &self.nodes[node];
        let next = if this.memory.leading.is_some() {
            if self.now.saturating_sub(self.quorum_us(node, |follower| follower.heard_us)) > BELIEF_US_MAX {
                self.step_down(node);
            } else {
                self.follow(node);
                self.replicate(node);
                if self.has(Bug::PollsForWork) {
                    self.nodes[node].memory.lead.changed();
                    self.turn(node);
                }
            }
            HEARTBEAT_US
        } else {
            if self.now.saturating_sub(this.memory.heard_us) > patience {
                self.campaign(node, false);
            }
            HEARTBEAT_US + self.dice.below(HEARTBEAT_US * 2)
        };
        let life = self.nodes[node].life;
        self.after(next, Event::Tick { node, life });
    }

    /// Returns its leadership if it leads at this moment: nobody else can have been elected. Whether it does, the program asks for every
    /// request (`Consensus::leads`), and the loop, which may notice later, for all that it does.
    pub(crate) fn leads(&self, node: usize) -> Option<Leader> {
        let leadership = self.nodes[node].leadership()?;
        let acked_us = self.quorum_us(node, |follower| follower.acked_us);
        (self.now.saturating_sub(acked_us) < LEASE_US).then_some(leadership)
    }

    /// Returns the time up to which a majority of the voters come, this node among them.
    fn quorum_us(&self, node: usize, us: fn(&Follower) -> u64) -> u64 {
        let this = &self.nodes[node];
        let Some(leading) = &this.memory.leading else { return 0 };
        let of = |member: &NodeId| match leading.followers.get(member) {
            Some(follower) => us(follower),
            None if *member == this.id => self.now,
            None => 0,
        };
        let mut times: Vec<u64> = this.disk.members().iter().map(of).collect();
        times.sort_unstable();
        times.get((times.len() - 1) / 2).copied().unwrap_or(0)
    }

    /// Asks for votes. `forced`: a leader handed over, so that its lease does not count.
    pub(crate) fn campaign(&mut self, node: usize, forced: bool) {
        let this = &self.nodes[node];
        let members = this.disk.members().clone();
        if !this.up || this.disk.full || !members.contains(&this.id) || this.memory.leading.is_some() {
            return;
        }
        let term = this.disk.term + 1;
        let mut highest = term - 1;
        let mut voters: BTreeSet<usize> = BTreeSet::from([node]);
        for voter in members.iter().map(|member| self.node_of(*member)) {
            if voter == node || !self.nodes[voter].up || !self.net.reaches(node, voter) || !self.net.reaches(voter, node) {
                continue;
            }
            highest = highest.max(self.nodes[voter].disk.term);
            if self.would_vote(voter, node, term, forced) {
                voters.insert(voter);
            }
        }
        if voters.len() * 2 > members.len() {
            for voter in &voters {
                self.nodes[*voter].disk.term = term;
                self.nodes[*voter].memory.heard_us = self.now;
                if *voter != node {
                    self.step_down(*voter);
                }
            }
            self.lead(node, term, &members);
        } else {
            self.nodes[node].disk.term = highest;
        }
    }

    fn would_vote(&self, voter: usize, candidate: usize, term: u64, forced: bool) -> bool {
        let (voter, candidate) = (&self.nodes[voter], &self.nodes[candidate]);
        let heard_lately = self.now.saturating_sub(voter.memory.heard_us) < LEASE_US || voter.memory.leading.is_some();
        let order = |(index, term): (u64, u64)| (term, index);
        (voter.disk.term < term || self.has(Bug::VotesTwice))
            && !voter.disk.full
            && (forced || !heard_lately)
            && (order(voter.disk.last()) <= order(candidate.disk.last()) || self.has(Bug::VotesForAShorterLog))
    }

    fn lead(&mut self, node: usize, term: u64, members: &BTreeSet<NodeId>) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let leader = Leader { term, node: this.id };
        let next = this.disk.last().0 + 1;
        let follower = Follower { next, matched: 0, heard_us: now, acked_us: 0 };
        let followers = members.iter().filter(|member| **member != this.id).map(|member| (*member, follower)).collect();
        this.memory.leader = Some(leader);
        this.memory.leading = Some(Leading { leader, blank: next, followers, waiting: Default::default() });
        self.say(|| format!("node {} leads term {term}", leader.node));
        self.fact(&Fact::Elected { leader });
        self.isolate_if_due(node);
        self.write(node, Body::Blank);
        self.replicate(node);
    }

    /// Leads no more: open proposals have an unknown fate.
    pub(crate) fn step_down(&mut self, node: usize) {
        let Some(leading) = self.nodes[node].memory.leading.take() else { return };
        self.say(|| format!("node {} steps down from term {}", leading.leader.node, leading.leader.term));
        self.follow(node);
        self.give_up(node, leading.waiting);
    }

    /// What a leader proposed has an unknown fate.
    pub(crate) fn give_up(&mut self, node: usize, waiting: BTreeMap<u64, Waiting>) {
        for Waiting { then, answers, .. } in waiting.into_values() {
            self.settled(node, then, Fate::Unknown, answers);
        }
    }

    /// Hands the leadership to the follower that has most of the log.
    pub(crate) fn hand_over(&mut self, node: usize) {
        let Some(leading) = &self.nodes[node].memory.leading else { return };
        let members = self.nodes[node].disk.members();
        let best = leading.followers.iter().filter(|(member, _)| members.contains(member)).max_by_key(|(_, follower)| follower.matched);
        let Some((heir, _)) = best else { return };
        let heir = self.node_of(*heir);
        self.step_down(node);
        self.campaign(heir, true);
    }
}
