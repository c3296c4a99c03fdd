//! Applying commands: the only way into the state. One module per kind of change.
//!
//! Nothing here fails: a command that came too late, or makes no sense, becomes an `Answer::Refused` and changes nothing.

mod copy;
mod ending;
mod failure;
mod finish;
mod grow;
mod health;
mod learn;
mod lease;
mod order;
mod resolve;
mod session;
mod share;
mod steer;
mod submit;

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use kiln_wire::client::{Event, EventKind};
use kiln_wire::{LogIndex, Timestamp};

use crate::command::Command;
use crate::effect::{Answer, Effect, Refused};
use crate::farm::{Effects, Farm};
use crate::job::{JobKey, State};

impl Farm {
    /// Applies one committed command and returns what the leader must now do. Never fails: a command that came too late is refused,
    /// and the refusal is an effect. An entry at or below [`Farm::applied`] was applied before and changes nothing.
    pub fn apply(&mut self, index: LogIndex, command: Command) -> Vec<Effect> {
        if self.facts.applied.is_some_and(|applied| index <= applied) {
            return Vec::new();
        }
        self.facts.applied = Some(index);
        self.facts.latest = self.facts.latest.max(command.now());
        let mut fx = Effects::new();
        match command {
            Command::Register { worker, offer, attempts, since, judge, now } => {
                self.register(index, session::Arrival { worker, offer, attempts, since, judge }, now, &mut fx);
            }
            Command::Lose { worker, epoch, judge, now } => self.lose(&worker, epoch, judge, now, &mut fx),
            Command::Stage { request, jobs, now } => self.stage(request, jobs, now, &mut fx),
            Command::Check { request, derivations, now } => self.check_staged(request, derivations, now, &mut fx),
            Command::Describe { request, evaluation, now } => self.describe(request, evaluation, now, &mut fx),
            Command::Submit { request, name, roots, keep_going, asker, now } => {
                let wish = submit::Wish { request, name, roots, keep_going, asker };
                self.submit(index, wish, now, &mut fx);
            }
            Command::Assign { placements, now } => self.assign(index, placements, now, &mut fx),
            Command::Copy { of, placement, now } => self.copy(index, of, placement, now, &mut fx),
            Command::Finish { lease, outcome, learn, judge, now } => {
                if learn {
                    self.learn(&lease, &outcome);
                }
                if judge {
                    self.judge(&lease, &outcome, now, &mut fx);
                }
                self.finish(&lease, outcome, now, &mut fx);
            }
            Command::ImportDurations { durations, now: _ } => self.import_durations(&durations),
            Command::SetShare { key, share, now: _ } => self.set_share(key, share, &mut fx),
            Command::Steer { subject, order, by, now } => self.steer((subject, order, &by), now, &mut fx),
            Command::Preempt { lease, now } => self.preempt(&lease, now, &mut fx),
            Command::Resolve { derivation, inputs, to, now } => self.resolve(&derivation, inputs, to, now, &mut fx),
            Command::Publish { derivation, now: _ } => self.publish(&derivation, &mut fx),
            Command::Cancel { build, now } => self.cancel(build, now, &mut fx),
            Command::Revoke { lease, now } => self.revoke(&lease, now, &mut fx),
            Command::Rouse { worker, now } => self.rouse(&worker, now, &mut fx),
            Command::Drain { worker, drain, now } => self.drain(&worker, drain, now, &mut fx),
            Command::Announce { receivers, now: _ } => self.facts.outbox.announce(receivers),
            Command::Told { receiver, upto, now: _ } => self.facts.outbox.told(&receiver, upto),
            Command::Retire { build, now } => self.retire(build, now, &mut fx),
        }
        fx
    }

    /// The effects still owed, for a leader that has just been elected. Doing one twice is harmless.
    ///
    /// Dispatches are not among them: a worker names its attempts when it registers with the new leader, and what it does not name
    /// is lost and planned again.
    pub fn pending_effects(&self) -> Vec<Effect> {
        let unpublished = self.facts.jobs.keys().filter_map(|key| self.publish_owed(*key));
        let archives = self.facts.builds.keys().filter_map(|id| self.archive_owed(*id));
        let unresolved = self.facts.jobs.keys().filter_map(|key| self.resolution_owed(*key));
        unpublished.chain(archives).chain(unresolved).collect()
    }

    /// Tells the live builds of a job what happened to it.
    fn notify(&self, key: JobKey, at: Timestamp, kind: EventKind, fx: &mut Effects) {
        let builds = self.watchers(key);
        if !builds.is_empty() {
            fx.push(Effect::Notify { builds, event: Event { at, derivation: (*self.job(key).derivation).clone(), kind } });
        }
    }

    /// Takes a job out of the farm if nothing holds it there: no build, no lease, no output that waits to be published.
    fn drop_if_unheld(&mut self, key: JobKey) {
        let freed = self.drop_unheld(key);
        self.index.rerank(&self.facts, freed);
    }

    /// As [`Self::drop_if_unheld`], and returns the jobs whose ranks stood on this one's, for [`crate::index::Index::rerank`].
    fn drop_unheld(&mut self, key: JobKey) -> BTreeSet<JobKey> {
        let Some(job) = self.facts.jobs.get(&key) else { return BTreeSet::new() };
        let held = self.index.links.get(&key).is_some_and(|links| !links.builds.is_empty())
            || matches!(job.state, State::Running(_) | State::Built { published: false, .. });
        if held {
            return BTreeSet::new();
        }
        self.index.detach(&self.facts, key);
        let dependents: Vec<JobKey> = self.index.dependents(key).collect();
        for dependent in dependents {
            self.forget_input(dependent, key);
        }
        let Some(job) = self.facts.jobs.remove(&key) else { return BTreeSet::new() };
        self.index.remove_job(key, &job);
        // What a built job needed is built, and has no rank.
        if job.is_built() { BTreeSet::new() } else { job.inputs.iter().copied().collect() }
    }

    /// Cuts the edge to an input that leaves the farm. Only jobs without a build get here: a build holds its whole closure.
    fn forget_input(&mut self, key: JobKey, input: JobKey) {
        let was_built = self.job(input).is_built();
        self.index.detach(&self.facts, key);
        let job = self.facts.jobs.get_mut(&key).expect("a dependent is a live job");
        let inputs: Vec<JobKey> = job.inputs.iter().copied().filter(|other| *other != input).collect();
        job.inputs = inputs.into_boxed_slice();
        let links = self.index.links.entry(key).or_default();
        links.unbuilt -= u32::from(!was_built);
        self.index.links.entry(input).or_default().dependents.remove(&key);
        self.index.attach(&self.facts, key);
    }
}

pub(crate) use copy::OUTRUN;
pub(crate) use steer::PREEMPTED;

fn refuse(refused: Refused, fx: &mut Effects) {
    fx.push(Effect::Answer(Answer::Refused(refused)));
}

fn boxed<T>(items: impl IntoIterator<Item = T>) -> Box<[T]> {
    items.into_iter().collect()
}
