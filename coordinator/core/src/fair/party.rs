//! To whom a ready job belongs, and how urgent it is to them. Jobs of equal parties wait in one line.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use kiln_wire::limits::{AGEING_MS_MIN, AGEING_POINTS, AGEING_STEP_MS};
use kiln_wire::{Account, BuildId, Priority, Timestamp};

use crate::build::Build;
use crate::farm::Facts;
use crate::index::Index;
use crate::job::{Job, JobKey};

/// The builds that want a job started, as far as its turn depends on them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Party {
    /// One of them is of the security class.
    pub security: bool,
    /// Their accounts.
    pub members: Box<[Member]>,
    /// The highest of theirs, or the job's own.
    pub priority: Priority,
    /// The step of age, from the beginning of time, in which the oldest of them was submitted.
    pub born: u64,
}

/// An account, and how many of the builds are its.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    pub account: Account,
    pub builds: u32,
}

impl Party {
    /// Returns the party of a build by itself.
    pub fn of(build: &Build) -> Self {
        Self {
            security: build.asker.as_ref().is_some_and(|asker| asker.security),
            members: [Member { account: build.account().clone(), builds: 1 }].into(),
            priority: build.priority(),
            born: build.submitted_at.0 / AGEING_STEP_MS,
        }
    }

    /// Returns its priority by now: what has waited for long rises, and ends above all that is younger.
    pub fn aged(&self, now: Timestamp) -> Aged {
        let old_ms = now.0.saturating_sub(self.born.saturating_mul(AGEING_STEP_MS));
        let steps = old_ms.saturating_sub(AGEING_MS_MIN) / AGEING_STEP_MS;
        let priority = self.priority.raised(steps.saturating_mul(AGEING_POINTS));
        // Below the highest priority urgency decides; there, age does.
        let born = if priority == Priority::MAX { self.born } else { 0 };
        Aged { priority: core::cmp::Reverse(priority), born }
    }
}

/// The order of lines of one party: the most urgent first, at the highest priority the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Aged {
    priority: core::cmp::Reverse<Priority>,
    born: u64,
}

impl Index {
    /// Notes to whom a build's jobs belong while no other build wants them.
    pub fn name_party(&mut self, id: BuildId, build: &Build) {
        self.parties.insert(id, Arc::new(Party::of(build)));
    }

    /// Returns to whom a ready job belongs.
    pub fn party_of(&self, facts: &Facts, key: JobKey, job: &Job) -> Arc<Party> {
        let builds = self.links.get(&key).map(|links| links.builds.as_slice()).unwrap_or_default();
        let going = |id: &&BuildId| facts.builds.get(id).is_some_and(Build::is_going);
        let mut parties = builds.iter().filter(going).filter_map(|id| self.parties.get(id));
        let first = parties.next().cloned().unwrap_or_default();
        let mut rest = parties.peekable();
        if rest.peek().is_none() && job.priority.is_none_or(|priority| priority == first.priority) {
            return first;
        }
        let mut party = Party { security: first.security, members: Box::default(), priority: first.priority, born: first.born };
        let mut members: BTreeMap<&Account, u32> = first.members.iter().map(|member| (&member.account, member.builds)).collect();
        for other in rest {
            party.security |= other.security;
            party.priority = party.priority.max(other.priority);
            party.born = party.born.min(other.born);
            for member in &other.members {
                *members.entry(&member.account).or_default() += member.builds;
            }
        }
        party.priority = job.priority.unwrap_or(party.priority);
        party.members = members.into_iter().map(|(account, builds)| Member { account: account.clone(), builds }).collect();
        Arc::new(party)
    }
}
