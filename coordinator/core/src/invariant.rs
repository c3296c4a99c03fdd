//! What must hold after every command. One function per invariant; none of them is needed by the code that it checks.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};

use kiln_wire::FailureClass;
use kiln_wire::limits::INFRASTRUCTURE_WORKERS_MAX;

use crate::build::Phase;
use crate::estimate::Expected;
use crate::farm::{Facts, Farm};
use crate::fleet::Free;
use crate::index::Index;
use crate::job::{Job, JobKey, Resolving, State};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {subject}")]
pub struct Violation {
    /// What must hold.
    pub invariant: &'static str,
    /// Where it does not.
    pub subject: String,
}

impl Farm {
    /// Checks every invariant. O(V+E); for tests, simulations and snapshots, not for each command of a farm at work.
    ///
    /// # Errors
    /// [`Violation`] names the first one that is broken.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        check_references(&self.facts)?;
        index_follows_from_facts(self)?;
        leases_fit_their_workers(self)?;
        leases_name_registered_workers(self)?;
        attempts_are_of_the_past(self)?;
        started_jobs_have_built_inputs(self)?;
        dependency_failures_have_a_cause(self)?;
        committed_outputs_are_the_declared_ones(self)?;
        ranks_cover_what_waits_behind(self)?;
        only_unwanted_leases_are_revoked(self)?;
        poisoned_jobs_have_failed(self)?;
        started_jobs_are_resolved(self)?;
        resolutions_hold_committed_paths(self)?;
        every_job_is_held(self)?;
        builds_go_on_while_jobs_are_open(self)?;
        submissions_are_one_thing(self)?;
        notices_wait_for_somebody(self)?;
        copies::two_leases_are_one_and_its_copy(self)?;
        copies::failures_are_remembered(self)
    }
}

/// Edges, builds and causes name jobs of the farm; inputs have lower keys (so that there is no cycle); lists are sorted.
pub(crate) fn check_references(facts: &Facts) -> Result<(), Violation> {
    const INVARIANT: &str = "references name jobs of the farm, in order";
    let mut paths = BTreeSet::new();
    for (key, job) in &facts.jobs {
        let cause = match job.state {
            State::DependencyFailed { cause } => Some(cause),
            State::Waiting | State::Running(_) | State::Built { .. } | State::Failed { .. } => None,
        };
        let inputs_exist = job.inputs.iter().chain(&cause).all(|input| facts.jobs.contains_key(input) && input < key);
        let numbered = key.0 < facts.job_next && is_sorted(&job.inputs);
        ensure(inputs_exist && numbered && paths.insert(&*job.derivation), INVARIANT, || job.derivation.to_string())?;
    }
    for (id, build) in &facts.builds {
        let jobs: BTreeSet<JobKey> = build.jobs.iter().copied().collect();
        let closed = jobs.iter().all(|key| facts.jobs.get(key).is_some_and(|job| job.inputs.iter().all(|input| jobs.contains(input))));
        ensure(closed && is_sorted(&build.jobs), INVARIANT, || format!("build {id}"))?;
    }
    Ok(())
}

fn index_follows_from_facts(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "the index is what the facts give";
    let Index {
        by_path,
        links,
        ready,
        delayed,
        grace,
        rests,
        loads,
        paths,
        requests,
        tallies,
        counts,
        topics,
        fleet,
        parties,
        held,
        copies,
        late,
        ends,
    } = Index::of(&farm.facts);
    let index = &farm.index;
    let table = [
        ("by_path", by_path == index.by_path),
        ("links", links == index.links),
        ("ready", ready == index.ready),
        ("delayed", delayed == index.delayed),
        ("grace", grace == index.grace),
        ("rests", rests == index.rests),
        ("loads", loads == index.loads),
        ("paths", paths == index.paths),
        ("requests", requests == index.requests),
        ("tallies", tallies == index.tallies),
        ("counts", counts == index.counts),
        ("topics", topics == index.topics),
        ("fleet", fleet == index.fleet),
        ("parties", parties == index.parties),
        ("held", held == index.held),
        ("copies", copies == index.copies),
        ("late", late == index.late),
        ("ends", ends == index.ends),
    ];
    table.into_iter().try_for_each(|(name, same)| ensure(same, INVARIANT, || name.to_string()))
}

/// Counts from the leases alone, not from the index.
fn leases_fit_their_workers(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "live leases fit their worker's cores, memory and slots";
    let mut free: BTreeMap<_, Free> = farm.facts.workers.iter().map(|(id, worker)| (id, Free::whole(&worker.offer))).collect();
    for job in farm.facts.jobs.values() {
        for running in job.leases().filter(|running| !running.relieved) {
            let Some(left) = free.get_mut(&running.worker) else { continue };
            let share = if running.light { left.take_light(running.granted) } else { left.take(running.granted) };
            match share {
                Some(rest) => *left = rest,
                None => ensure(false, INVARIANT, || running.worker.to_string())?,
            }
        }
    }
    Ok(())
}

fn leases_name_registered_workers(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a live lease's worker is registered, at the lease's epoch or later";
    running(farm).try_for_each(|(job, running)| {
        let registered = farm.facts.workers.get(&running.worker).is_some_and(|worker| worker.epoch >= running.epoch);
        ensure(registered, INVARIANT, || job.derivation.to_string())
    })
}

fn attempts_are_of_the_past(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "attempts are numbered by applied entries, each once";
    let applied = farm.facts.applied.map_or(0, |index| index.0);
    for job in farm.facts.jobs.values() {
        let ended = job.tries.ended.iter().map(|attempt| attempt.attempt.0);
        let mut ids = BTreeSet::new();
        let holds = ended.chain(job.leases().map(|running| running.attempt.0)).all(|id| ids.insert(id) && id <= applied);
        ensure(holds, INVARIANT, || job.derivation.to_string())?;
    }
    Ok(())
}

fn started_jobs_have_built_inputs(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a job that was started has only built inputs";
    farm.facts.jobs.values().try_for_each(|job| {
        let cancelled = matches!(job.state, State::Failed { class: FailureClass::Cancelled, .. });
        let started = matches!(job.state, State::Running(_) | State::Built { .. } | State::Failed { .. }) && !cancelled;
        ensure(!started || job.inputs.iter().all(|input| farm.job(*input).is_built()), INVARIANT, || job.derivation.to_string())
    })
}

fn started_jobs_are_resolved(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "no worker has a job that is still to be resolved, and none is built";
    farm.facts.jobs.values().try_for_each(|job| {
        let started = matches!(job.state, State::Running(_) | State::Built { .. });
        ensure(!(started && job.is_unresolved()), INVARIANT, || job.derivation.to_string())
    })
}

/// Early cutoff stands on it: what a resolved derivation makes is what its recipe makes of the inputs that were committed.
fn resolutions_hold_committed_paths(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a resolved job was resolved from the committed outputs of its inputs";
    for job in farm.facts.jobs.values() {
        let Some(Resolving::Done { inputs, .. }) = job.resolving.as_deref() else { continue };
        for (key, output, path) in inputs.iter().filter(|(key, ..)| job.inputs.binary_search(key).is_ok()) {
            let committed = farm.job(*key).built_outputs().unwrap_or_default();
            let holds = committed.iter().any(|built| built.name == *output && built.info.path == *path);
            ensure(holds, INVARIANT, || job.derivation.to_string())?;
        }
    }
    Ok(())
}

fn dependency_failures_have_a_cause(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a job is dependency-failed just when an input failed, and names a job that failed itself";
    for job in farm.facts.jobs.values() {
        let input_failed = job.inputs.iter().any(|input| farm.job(*input).is_failed());
        let holds = match job.state {
            State::DependencyFailed { cause } => input_failed && matches!(farm.job(cause).state, State::Failed { .. }),
            // It was cancelled before it could be started, whatever became of its inputs.
            State::Failed { class: FailureClass::Cancelled, .. } => true,
            State::Waiting | State::Running(_) | State::Built { .. } | State::Failed { .. } => !input_failed,
        };
        ensure(holds, INVARIANT, || job.derivation.to_string())?;
    }
    Ok(())
}

fn committed_outputs_are_the_declared_ones(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "committed outputs are the derivation's whole output set";
    farm.facts.jobs.values().try_for_each(|job| {
        let whole = job.built_outputs().is_none_or(|outputs| {
            outputs.len() == job.outputs.len()
                && outputs
                    .iter()
                    .zip(&*job.outputs)
                    .all(|(output, spec)| output.name == spec.name && spec.path.as_ref().is_none_or(|path| *path == output.info.path))
        });
        ensure(whole, INVARIANT, || job.derivation.to_string())
    })
}

fn ranks_cover_what_waits_behind(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "an unbuilt job's rank is what is expected of it and of what waits for it";
    for (key, job) in &farm.facts.jobs {
        let expected = if job.is_built() { Expected::default() } else { farm.facts.estimates.expected(job) };
        let ranks = farm.index.rank_now(&farm.facts, *key).unwrap_or_default();
        let holds = farm.index.expected(*key) == expected && (farm.index.rank_ms(*key), farm.index.path_ms(*key)) == ranks;
        ensure(holds, INVARIANT, || job.derivation.to_string())?;
    }
    Ok(())
}

fn only_unwanted_leases_are_revoked(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a live lease has a time of revocation just when no build awaits the job";
    farm.facts.jobs.iter().try_for_each(|(key, job)| {
        let holds = job.running().is_none_or(|running| running.revoke_at.is_some() != farm.is_awaited(*key));
        ensure(holds, INVARIANT, || job.derivation.to_string())
    })
}

fn poisoned_jobs_have_failed(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a job that failed on the most workers it may is not tried again";
    farm.facts.jobs.values().try_for_each(|job| {
        let poisoned = job.tries.failed_on.len() >= INFRASTRUCTURE_WORKERS_MAX;
        ensure(!poisoned || !matches!(job.state, State::Waiting | State::DependencyFailed { .. }), INVARIANT, || job.derivation.to_string())
    })
}

fn every_job_is_held(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a job stays only while a build, a lease or an unpublished output holds it";
    farm.facts.jobs.iter().try_for_each(|(key, job)| {
        let in_build = farm.index.links.get(key).is_some_and(|links| !links.builds.is_empty());
        let held = in_build || matches!(job.state, State::Running(_) | State::Built { published: false, .. });
        ensure(held, INVARIANT, || job.derivation.to_string())
    })
}

fn builds_go_on_while_jobs_are_open(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a build that goes on has open jobs, and one that stops waits for running jobs of its own";
    for (id, build) in &farm.facts.builds {
        let holds = match &build.phase {
            Phase::Going => {
                let failed = build.jobs.iter().any(|key| farm.job(*key).is_failed());
                build.jobs.iter().any(|key| !farm.job(*key).is_final()) && (build.keep_going || !failed)
            }
            Phase::Stopping { draining, .. } => {
                !draining.is_empty()
                    && draining.iter().all(|key| build.jobs.binary_search(key).is_ok() && farm.job(*key).running().is_some())
            }
            Phase::Ended(record) => record.build == *id,
        };
        ensure(holds, INVARIANT, || format!("build {id}"))?;
    }
    Ok(())
}

fn submissions_are_one_thing(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a submission is staged, dropped, a live build or a retired one, and only one of these";
    let facts = &farm.facts;
    let mut seen = BTreeSet::new();
    let all = facts.stages.keys().chain(facts.dropped.keys()).chain(facts.builds.values().map(|build| &build.request));
    for request in all.chain(facts.retired.values()) {
        ensure(seen.insert(request), INVARIANT, || request.to_string())?;
    }
    Ok(())
}

fn notices_wait_for_somebody(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "notices are the last ones without gaps, and each waits for somebody";
    ensure(farm.facts.outbox.is_sound(), INVARIANT, || String::from("the outbox"))
}

fn running(farm: &Farm) -> impl Iterator<Item = (&Job, &crate::job::Running)> {
    farm.facts.jobs.values().flat_map(|job| job.leases().map(move |running| (job, running)))
}

fn is_sorted<T: Ord>(items: &[T]) -> bool {
    items.windows(2).all(|pair| pair[0] < pair[1])
}

fn ensure(holds: bool, invariant: &'static str, subject: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { invariant, subject: subject() }) }
}

mod copies;
#[cfg(test)]
mod tests;
