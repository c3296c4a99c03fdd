//! What is shown of the farm, for the API and for whoever else shows it: bounded looks at the state, and the archive.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kiln_api::{BuildState, BuildSummary, Builds, FarmSummary, Job, JobDetail, JobOutput, Jobs, Plan, WaitingJobs, Worker};
use kiln_core::{BuildGlance, JobsWanted, Reasons, Sight, WorkLeft};
use kiln_wire::client::FarmView;
use kiln_wire::limits::{
    API_EXAMPLES_MAX, API_INPUTS_MAX, API_JOBS_PER_LOOK_MAX, API_JOBS_PER_REQUEST_MAX, API_RECORDS_PER_REQUEST_MAX,
    API_RECORDS_READ_PER_REQUEST_MAX,
};
use kiln_wire::{Account, BuildId, DrvPath, StorePath, WorkerId};
use tokio::time::Instant;

use super::{Api, Refused};
use crate::parts::Parts;
use crate::views;

/// Which builds are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct BuildsWanted {
    /// Those alone whose name has this in it.
    pub(crate) name: Option<String>,
    /// Those alone that are in this state.
    pub(crate) state: Option<BuildState>,
    /// Those alone of this tenant.
    pub(crate) tenant: Option<String>,
    /// Those alone of this project.
    pub(crate) project: Option<String>,
}

impl BuildsWanted {
    fn takes(&self, build: &BuildSummary) -> bool {
        let has = |name: &String| build.name.to_ascii_lowercase().contains(&name.to_ascii_lowercase());
        self.name.as_ref().is_none_or(has)
            && self.state.is_none_or(|state| build.state == state)
            && self.tenant.as_ref().is_none_or(|tenant| build.tenant.as_ref() == Some(tenant))
            && self.project.as_ref().is_none_or(|project| build.project.as_ref() == Some(project))
    }
}

impl Api {
    /// Returns the farm at a glance, without its builds.
    pub(crate) fn farm(&self) -> FarmSummary {
        let parts = self.parts();
        let counts = parts.farm(kiln_core::Farm::counts);
        FarmSummary::of(&FarmView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store_dir: parts.store_dir.clone(),
            public_key: parts.keys.trusted(),
            cache_url: parts.cache_url.clone(),
            leader: parts.consensus.leadership().borrow().leader,
            builds: Vec::new(),
            counts,
            workers_connected: u64::try_from(parts.sessions.connected().len()).unwrap_or(u64::MAX),
            receivers: Vec::new(),
            retention: None,
        })
    }

    /// Returns builds, newest first, that are older than `before`: live ones and ended ones.
    ///
    /// # Errors
    /// [`Refused`] if the archive cannot be read.
    pub(crate) async fn builds(&self, wanted: &BuildsWanted, sight: &Sight, before: Option<u64>, limit: usize) -> Result<Builds, Refused> {
        let before = BuildId(before.unwrap_or(u64::MAX));
        let parts = self.parts();
        let listed = self.0.ended.list(parts).await?;
        let live: Vec<BuildSummary> = parts.farm(|farm| farm.builds_before(before, sight).map(summary).collect());
        let known: BTreeSet<u64> = live.iter().map(|build| build.build).collect();
        let mut live = live.into_iter().peekable();
        // A list of its own, for what borrows may not be kept while a record is read.
        let ended: Vec<BuildId> = listed.iter().rev().filter(|id| **id < before && !known.contains(&id.0)).copied().collect();
        let mut ended = ended.into_iter().peekable();
        let (mut builds, mut looked, mut read, mut last) = (Vec::new(), 0, 0, None);
        loop {
            let more = live.peek().is_some() || ended.peek().is_some();
            let is_much = looked == API_RECORDS_PER_REQUEST_MAX || read == API_RECORDS_READ_PER_REQUEST_MAX;
            if !more || builds.len() == limit || is_much {
                return Ok(Builds { builds, next: last.filter(|_| more).map(|id: u64| id.to_string()) });
            }
            let live_first = live.peek().is_some_and(|build| ended.peek().is_none_or(|id| id.0 < build.build));
            if let Some(build) = live.next_if(|_| live_first) {
                last = Some(build.build);
                builds.extend(Some(build).filter(|build| wanted.takes(build)));
            } else if let Some(id) = ended.next() {
                (last, looked, read) = (Some(id.0), looked + 1, read + usize::from(!self.0.ended.remembers(id)));
                let found = self.0.ended.get(parts, id).await?.filter(|found| sight.sees(&found.account));
                builds.extend(found.map(|found| found.summary.clone()).filter(|build| wanted.takes(build)));
            }
        }
    }

    /// Returns one build with what was asked for and what is made of it; none if there is none, or it is another's.
    ///
    /// # Errors
    /// [`Refused`] if the archive cannot be read.
    pub(crate) async fn build(&self, build: BuildId, sight: &Sight) -> Result<Option<BuildSummary>, Refused> {
        let parts = self.parts();
        let live = parts.farm(|farm| {
            let glance = farm.build_glance(build)?;
            Some((glance, farm.roots_of(build)?.to_vec(), farm.outputs_of_build(build)?, farm.evaluated(build)?))
        });
        if let Some((glance, roots, outputs, evaluated)) = live {
            if !sight.sees(&glance.account) {
                return Ok(None);
            }
            let is_active = glance.ended_at.is_none();
            let remaining_ms = if is_active { self.remaining_ms(build).await } else { None };
            let roots = roots.iter().map(|root| parts.store_dir.join(root.derivation.as_path())).collect();
            let summary = BuildSummary { remaining_ms, roots, ..summary(glance) };
            return Ok(Some(summary.with_outputs(&outputs, &parts.store_dir).with_evaluation(&evaluated, &parts.store_dir)));
        }
        let record = parts.archive.get(build).await.map_err(|error| Refused::failed("read an ended build", &error))?;
        Ok(record.map(|record| (super::ended::EndedBuild::of(&record), record)).filter(|(ended, _)| sight.sees(&ended.account)).map(
            |(ended, record)| {
                let roots = record.roots.iter().map(|root| parts.store_dir.join(root.derivation.as_path())).collect();
                let summary = BuildSummary { roots, ..ended.summary }.with_outputs(&record.outputs, &parts.store_dir);
                summary.with_evaluation(&record.evaluated(), &parts.store_dir)
            },
        ))
    }

    /// Adds up what is left of a build, a piece at a time.
    async fn remaining_ms(&self, build: BuildId) -> Option<u64> {
        let (mut left, mut after) = (WorkLeft::default(), None);
        loop {
            after = self.parts().farm(|farm| farm.work_left(build, after, API_JOBS_PER_LOOK_MAX, &mut left));
            if after.is_none() {
                return self.parts().farm(|farm| farm.ms_of(left));
            }
            tokio::task::yield_now().await;
        }
    }

    /// Returns jobs of a build, or of all, that follow on a cursor. Looks at some at a time, for commands wait meanwhile.
    ///
    /// # Errors
    /// [`Refused`] if there is no such build, or it is another's, or the archive cannot be read.
    pub(crate) async fn jobs(&self, wanted: JobsWanted<'_>, cursor: Option<u64>, limit: usize) -> Result<Jobs, Refused> {
        let parts = self.parts();
        if let Some(build) = wanted.build {
            let account = parts.farm(|farm| farm.build_glance(build)).map(|glance| glance.account);
            match account {
                Some(account) if wanted.sight.sees(&account) => {}
                Some(_) => return Err(Refused::absent(format_args!("build {build}"))),
                None => return self.jobs_kept(build, wanted, cursor, limit).await,
            }
        }
        let mut after = cursor.map(|after| u32::try_from(after).unwrap_or(u32::MAX));
        let mut reasons = (*self.reasons()).clone();
        let (mut jobs, mut looked) = (Vec::new(), 0);
        loop {
            let bounds = (limit - jobs.len(), API_JOBS_PER_LOOK_MAX);
            let page = parts.farm(|farm| farm.jobs_after(wanted, after, bounds, &mut reasons));
            jobs.extend(page.jobs.iter().map(|job| Job::of(job, &parts.store_dir)));
            (after, looked) = (page.next, looked + API_JOBS_PER_LOOK_MAX);
            if after.is_none() || jobs.len() == limit || looked >= API_JOBS_PER_REQUEST_MAX {
                return Ok(Jobs { jobs, next: after.map(|after| after.to_string()), complete: true });
            }
            tokio::task::yield_now().await;
        }
    }

    /// Returns what was kept of an ended build's jobs: those that failed.
    async fn jobs_kept(&self, build: BuildId, wanted: JobsWanted<'_>, cursor: Option<u64>, limit: usize) -> Result<Jobs, Refused> {
        let parts = self.parts();
        let record = parts.archive.get(build).await.map_err(|error| Refused::failed("read an ended build", &error))?;
        let account = |record: &kiln_core::BuildRecord| record.account.clone().unwrap_or_default();
        let record = record.filter(|record| wanted.sight.sees(&account(record)));
        let Some(record) = record else { return Err(Refused::absent(format_args!("build {build}"))) };
        let search = wanted.search.map(str::to_ascii_lowercase);
        let takes = |job: &kiln_wire::client::JobView| {
            wanted.state.is_none_or(|state| job.state == state) && search.as_ref().is_none_or(|search| is_called(&record, job, search))
        };
        // A record does not change: its jobs are numbered by their places in it.
        let skipped = cursor.map_or(0, |last| usize::try_from(last).unwrap_or(usize::MAX).saturating_add(1));
        let mut found = record.failures.iter().enumerate().skip(skipped).filter(|(_, job)| takes(job)).peekable();
        let (mut jobs, mut last) = (Vec::new(), None);
        while let Some((at, job)) = found.next_if(|_| jobs.len() < limit) {
            let attributes = record.names(&job.derivation).to_vec();
            jobs.push(Job { builds: vec![build.0], attributes, ..Job::of(job, &parts.store_dir) });
            last = Some(at);
        }
        let next = last.filter(|_| found.peek().is_some()).map(|at| at.to_string());
        Ok(Jobs { jobs, next, complete: false })
    }

    /// Returns a job of the farm as somebody sees it.
    pub(crate) fn job(&self, derivation: &DrvPath, sight: &Sight) -> Option<JobDetail> {
        let (parts, mut reasons) = (self.parts(), (*self.reasons()).clone());
        let store_dir = &parts.store_dir;
        parts.farm(|farm| {
            let view = farm.job_seen(derivation, sight, &mut reasons)?;
            let built = farm.outputs_of(derivation);
            let outputs = match built {
                Some(built) => built.iter().map(|output| JobOutput::built(output, store_dir)).collect(),
                None => {
                    let unbuilt = |(name, path): (kiln_wire::OutputName, Option<StorePath>)| JobOutput {
                        name: name.to_string(),
                        path: path.map(|path| store_dir.join(&path)),
                        nar_bytes: None,
                    };
                    farm.outputs_declared(derivation).unwrap_or_default().into_iter().map(unbuilt).collect()
                }
            };
            let inputs = farm.inputs_of(derivation).unwrap_or_default();
            Some(JobDetail {
                job: Job::of(&view, store_dir),
                outputs,
                inputs_count: u64::try_from(inputs.len()).unwrap_or(u64::MAX),
                inputs: inputs.into_iter().take(API_INPUTS_MAX).map(|input| store_dir.join(input.as_path())).collect(),
                resolved: farm.resolved(derivation).map(|resolved| store_dir.join(resolved.as_path())),
            })
        })
    }

    /// Returns why ready jobs wait.
    pub(crate) fn plan(&self, sight: &Sight) -> Plan {
        let (parts, reasons) = (self.parts(), self.reasons());
        let (groups, delayed_count) = parts.farm(|farm| farm.waiting(sight, API_EXAMPLES_MAX, &reasons));
        let mut waiting: Vec<WaitingJobs> = groups
            .into_iter()
            .map(|((reason, unplaceable), jobs)| WaitingJobs {
                reason,
                count: jobs.count,
                unplaceable,
                systems: jobs.systems.into_iter().collect(),
                first: jobs.first.iter().map(|job| parts.store_dir.join(job.as_path())).collect(),
            })
            .collect();
        waiting.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
        let waiting_count = waiting.iter().map(|jobs| jobs.count).fold(delayed_count, u64::saturating_add);
        waiting.truncate(REASONS_MAX);
        Plan { waiting, waiting_count, delayed_count }
    }

    /// Returns workers by name; of what they run, what is seen.
    pub(crate) fn workers(&self, sight: &Sight) -> Vec<Worker> {
        let mut workers = views::workers(self.parts());
        if *sight != Sight::All {
            self.parts().farm(|farm| {
                for worker in &mut workers {
                    worker.running.retain(|job| farm.sees_job(job, sight) == Some(true));
                    // What a job said that failed there, whosever it was.
                    worker.ailing.iter_mut().for_each(|ailing| ailing.message.clear());
                }
            });
        }
        workers.iter().map(Worker::of).collect()
    }

    /// Returns why ready jobs wait, as of a moment ago: it is looked at once for all who ask.
    pub(super) fn reasons(&self) -> Arc<Reasons> {
        let mut known = self.0.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reasons)) = known.as_ref().filter(|(at, _)| at.elapsed() < REASONS_AGE_MAX) {
            return reasons.clone();
        }
        let reasons = Arc::new(self.parts().farm(|farm| farm.reasons(&away(self.parts(), farm))));
        *known = Some((Instant::now(), reasons.clone()));
        reasons
    }
}

/// Returns the workers that take nothing new at present. A coordinator that does not lead hears of none.
pub(crate) fn away(parts: &Parts, farm: &kiln_core::Farm) -> BTreeSet<WorkerId> {
    match parts.consensus.leads() {
        Some(_) => parts.sessions.away(farm.registrations().map(|(worker, _)| worker)),
        None => BTreeSet::new(),
    }
}

/// Returns whether a job that a record keeps has this in its name, or in that of an attribute that it is; `search` is in small letters.
pub(crate) fn is_called(record: &kiln_core::BuildRecord, job: &kiln_wire::client::JobView, search: &str) -> bool {
    let mut names = record.names(&job.derivation).iter().map(String::as_str).chain([job.derivation.as_str()]);
    names.any(|name| name.to_ascii_lowercase().contains(search))
}

fn summary(glance: BuildGlance) -> BuildSummary {
    let Account { tenant, project } = glance.account;
    BuildSummary {
        build: glance.build.0,
        name: glance.name,
        state: glance.state.into(),
        tenant: tenant.map(|tenant| tenant.to_string()),
        project: project.map(|project| project.to_string()),
        submitted_at: glance.submitted_at.0,
        ended_at: glance.ended_at.map(|at| at.0),
        remaining_ms: None,
        jobs: glance.counts.into(),
        archived: false,
        roots: Vec::new(),
        outputs: Default::default(),
        evaluation_errors_count: glance.errors_count,
        evaluation_errors: Default::default(),
        attributes: Default::default(),
    }
}

/// How old what is known of waiting may be.
const REASONS_AGE_MAX: Duration = Duration::from_millis(500);
/// Reasons that a report names.
const REASONS_MAX: usize = 256;
