//! Builds end and leave: the settling after each change, `Publish`, `Cancel`, `Retire`.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use kiln_wire::client::{BuildState, EventKind};
use kiln_wire::limits::{CANCEL_GRACE_MS, REQUESTS_REMEMBERED_MAX};
use kiln_wire::{BuildId, DrvPath, Evaluation, Timestamp};

use super::refuse;
use crate::build::{Build, Phase};
use crate::effect::{BuildRecord, Effect, Refused, RootOutputs};
use crate::farm::{Effects, Farm};
use crate::job::{Job, JobKey, State};

impl Farm {
    /// Ends those of `builds` that wait for nothing more, after the job `key`, if it is one job's doing, stopped running.
    pub(super) fn settle(&mut self, key: Option<JobKey>, builds: impl IntoIterator<Item = BuildId>, now: Timestamp, fx: &mut Effects) {
        for id in builds {
            let open = self.index.tallies.get(&id).map_or(0, |tally| tally.open);
            let Some(build) = self.facts.builds.get_mut(&id) else { continue };
            let over = match &mut build.phase {
                Phase::Going => open == 0,
                Phase::Stopping { draining, .. } => {
                    key.map(|key| draining.remove(&key));
                    draining.is_empty()
                }
                Phase::Ended(_) => false,
            };
            if over {
                self.end(id, None, now, fx);
            }
        }
    }

    /// Ends a build as `state`, or as its roots say.
    fn end(&mut self, id: BuildId, state: Option<BuildState>, now: Timestamp, fx: &mut Effects) {
        let Some(build) = self.facts.builds.get(&id) else { return };
        let (unbuilt, unreached) = self.unbuilt_of(build);
        let mut record = BuildRecord {
            build: id,
            request: build.request,
            name: build.name.clone(),
            roots: build.roots.clone(),
            submitted_at: build.submitted_at,
            ended_at: now,
            state: state.unwrap_or_else(|| self.state_by_roots(build)),
            counts: self.counts_of(id),
            outputs: self.outputs_by_root(build),
            failures: self.failures_of(build),
            account: None,
            evaluation: None,
        };
        self.change_build(id, |build| {
            let evaluation = build.evaluation.take();
            record.evaluation = evaluation.map(|evaluation| Box::new(Evaluation { unbuilt, unreached, ..*evaluation }));
            build.phase = Phase::Ended(Box::new(record));
        });
        fx.extend(self.archive_owed(id));
    }

    /// Returns the places of the named roots that a build ends without, and of those among them that did not fail, nor need what failed: the
    /// build ended before.
    fn unbuilt_of(&self, build: &Build) -> (Vec<u32>, Vec<u32>) {
        let (mut unbuilt, mut unreached) = (Vec::new(), Vec::new());
        for place in build.evaluation.iter().flat_map(|evaluation| evaluation.attributes.keys()) {
            let root = usize::try_from(*place).ok().and_then(|place| build.roots.get(place));
            let own = root.and_then(|root| self.find(&root.derivation)).filter(|(key, _)| build.jobs.binary_search(key).is_ok());
            let Some((_, job)) = own.filter(|(_, job)| !job.is_built()) else { continue };
            unbuilt.push(*place);
            let had_failed = match &build.phase {
                // Another build may have given it a new chance since.
                Phase::Stopping { failures, .. } => failures.iter().any(|view| view.derivation == *job.derivation),
                Phase::Going | Phase::Ended(_) => false,
            };
            if !job.is_failed() && !had_failed {
                unreached.push(*place);
            }
        }
        (unbuilt, unreached)
    }

    fn state_by_roots(&self, build: &Build) -> BuildState {
        // A root without a job of this build had its outputs when it was submitted, whatever another build makes of the derivation.
        let own = |derivation: &DrvPath| self.find(derivation).filter(|(key, _)| build.jobs.binary_search(key).is_ok());
        let missing = build.roots.iter().any(|root| own(&root.derivation).is_some_and(|(_, job)| !job.is_built()));
        if missing { BuildState::Failed } else { BuildState::Built }
    }

    /// Returns the wanted outputs that this farm built, by root.
    pub(crate) fn outputs_by_root(&self, build: &Build) -> RootOutputs {
        let mut by_root = RootOutputs::new();
        for root in &build.roots {
            let Some(outputs) = self.outputs_of(&root.derivation) else { continue };
            let wanted = outputs.iter().filter(|output| root.outputs.is_empty() || root.outputs.contains(&output.name));
            let paths = wanted.map(|output| (output.name.clone(), output.info.path.clone()));
            by_root.entry(root.derivation.clone()).or_default().extend(paths);
        }
        by_root
    }

    /// Returns the archive effect of a build that has ended and whose outputs are all published.
    pub(super) fn archive_owed(&self, id: BuildId) -> Option<Effect> {
        let record = self.facts.builds.get(&id)?.record()?;
        let published = self.index.tallies.get(&id).is_none_or(|tally| tally.unpublished == 0);
        published.then(|| Effect::Archive(record.clone()))
    }

    /// Returns the publish effect of a job whose outputs are committed, not published, and refer to nothing that is not: who reads a
    /// narinfo finds those of everything that the path refers to.
    pub(super) fn publish_owed(&self, key: JobKey) -> Option<Effect> {
        let unpublished = |job: &Job| matches!(job.state, State::Built { published: false, .. });
        let job = self.job(key);
        if !unpublished(job) || job.inputs.iter().any(|input| unpublished(self.job(*input))) {
            return None;
        }
        let outputs = job.built_outputs()?.iter().map(|output| output.info.clone()).collect();
        Some(Effect::Publish { derivation: (*job.derivation).clone(), outputs })
    }

    pub(super) fn publish(&mut self, derivation: &DrvPath, fx: &mut Effects) {
        let Some((key, job)) = self.find(derivation).filter(|(_, job)| job.is_built()) else {
            return refuse(Refused::NoSuchJob(derivation.clone()), fx);
        };
        if matches!(job.state, State::Built { published: true, .. }) {
            return;
        }
        self.change(key, |job| {
            if let State::Built { published, .. } = &mut job.state {
                *published = true;
            }
        });
        // Those whose turn it was to wait for this one's narinfos.
        let dependents: Vec<JobKey> = self.index.dependents(key).collect();
        fx.extend(dependents.into_iter().filter_map(|dependent| self.publish_owed(dependent)));
        let builds = self.index.links.get(&key).map(|links| links.builds.clone()).unwrap_or_default();
        fx.extend(builds.into_iter().filter_map(|id| self.archive_owed(id)));
        self.drop_if_unheld(key);
    }

    /// Ends a build at once. Those of its jobs that run and that nobody else awaits get a period of grace.
    pub(super) fn cancel(&mut self, id: BuildId, now: Timestamp, fx: &mut Effects) {
        let Some(build) = self.facts.builds.get(&id).filter(|build| build.record().is_none()) else {
            return refuse(Refused::NoSuchBuild(id), fx);
        };
        let awaited: Vec<JobKey> =
            build.jobs.iter().copied().filter(|key| build.awaits(*key) && self.job(*key).running().is_some()).collect();
        let others = |key: JobKey| self.live_builds_of(key).any(|(other, build)| other != id && build.awaits(key));
        let unwanted: Vec<JobKey> = awaited.into_iter().filter(|key| !others(*key)).collect();
        for key in &unwanted {
            self.notify(*key, now, EventKind::Cancelled, fx);
        }
        self.end(id, Some(BuildState::Cancelled), now, fx);
        for key in unwanted {
            self.change(key, |job| {
                if let State::Running(running) = &mut job.state {
                    running.revoke_at = Some(now.after_ms(CANCEL_GRACE_MS));
                }
            });
        }
    }

    /// Lets a build leave that the archive holds, which whoever is told by webhook can be told of from here on: what it made is published.
    pub(super) fn retire(&mut self, id: BuildId, now: Timestamp, fx: &mut Effects) {
        let build = match self.facts.builds.get(&id) {
            None => return refuse(Refused::NoSuchBuild(id), fx),
            Some(build) if build.record().is_none() => return refuse(Refused::NotEnded(id), fx),
            Some(build) => build.clone(),
        };
        if let Some(record) = build.record() {
            self.facts.outbox.ended(record, now);
        }
        for key in &build.jobs {
            self.index.detach(&self.facts, *key);
        }
        self.facts.builds.remove(&id);
        self.index.remove_build(id, &build);
        for key in &build.jobs {
            self.index.attach(&self.facts, *key);
        }
        // Highest first: a job leaves before its inputs, so that no edge is left to cut.
        let mut freed = BTreeSet::new();
        for key in build.jobs.iter().rev() {
            freed.extend(self.drop_unheld(*key));
        }
        self.index.rerank(&self.facts, freed);
        self.facts.retired.insert(id, build.request);
        if self.facts.retired.len() > REQUESTS_REMEMBERED_MAX {
            self.facts.retired.pop_first();
        }
    }
}
