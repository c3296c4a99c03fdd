//! Pages of what the farm holds, for who asks piece by piece: each look takes a bounded time, however large the farm is.
//!
//! A cursor is the number of the last job or build that was looked at, so that a page follows on the one before. Builds keep their numbers;
//! jobs are numbered anew when a build that comes puts them in another order, after which a cursor may leave jobs out or name them again.
//! Who sees what is a [`Sight`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;

use kiln_wire::client::{BuildState, JobCounts, JobView};
use kiln_wire::{Account, BuildId, DrvPath, Evaluated, Root, TenantName, Timestamp, Traceparent, WorkerId};

use crate::build::Build;
use crate::fair::Party;
use crate::farm::Farm;
use crate::index::ReadyEntry;
use crate::job::{Job, JobKey, Needs, State};
use crate::report::{NOBODY, WaitReason};

/// Whose builds, and jobs of builds, somebody sees.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// Everybody's.
    All,
    /// Those of one tenant, and those of nobody.
    Of(TenantName),
}

impl Sight {
    /// Returns whether what is an account's is seen.
    pub fn sees(&self, account: &Account) -> bool {
        match (self, &account.tenant) {
            (Self::All, _) | (Self::Of(_), None) => true,
            (Self::Of(own), Some(tenant)) => own == tenant,
        }
    }
}

/// A live build without its jobs, or one that has ended and has not left the farm. Takes the same time however many jobs it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildGlance {
    /// Which.
    pub build: BuildId,
    /// What people call it.
    pub name: String,
    /// Who asked for it.
    pub account: Account,
    /// Whether it goes on, and how it ended if not.
    pub state: BuildState,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How many of its jobs are in which state.
    pub counts: JobCounts,
    /// How many attributes of its set do not evaluate.
    pub errors_count: u64,
}

/// Which jobs are wanted of which list.
#[derive(Clone, Copy, Debug)]
pub struct JobsWanted<'a> {
    /// Of this build; of all if none is named.
    pub build: Option<BuildId>,
    /// Those alone that are in this state, in one word.
    pub state: Option<&'a str>,
    /// Those alone that have this in their name, or in that of an attribute that they are; letters count the same in both cases.
    pub search: Option<&'a str>,
    /// Who asks.
    pub sight: &'a Sight,
}

/// A piece of a list of jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobPage {
    /// The jobs, in the order of their numbers: inputs before what needs them.
    pub jobs: Vec<JobView>,
    /// The last number that was looked at; none if the list is at its end.
    pub next: Option<u32>,
}

/// Why each class of ready jobs waits, taken at one moment for any number of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons(BTreeMap<Arc<Needs>, WaitReason>);

/// Ready jobs that wait for the same reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadyJobs {
    /// How many.
    pub count: u64,
    /// The systems that they need.
    pub systems: BTreeSet<String>,
    /// The most urgent ones of their lines that the asker sees.
    pub first: Vec<DrvPath>,
}

/// Work that is left of a build, as far as it was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkLeft {
    /// Milliseconds of the longest chain.
    pub chain_ms: u64,
    /// Milliseconds of all jobs.
    pub work_ms: u64,
    /// A job is left.
    pub any: bool,
}

impl Farm {
    /// Returns builds, newest first, that are older than `before`.
    pub fn builds_before<'a>(&'a self, before: BuildId, sight: &'a Sight) -> impl Iterator<Item = BuildGlance> + 'a {
        let older = self.facts.builds.range(..before).rev();
        older.filter(|(_, build)| sight.sees(build.account())).map(|(id, build)| self.glance(*id, build))
    }

    /// Returns a build that has not left the farm.
    pub fn build_glance(&self, id: BuildId) -> Option<BuildGlance> {
        self.facts.builds.get(&id).map(|build| self.glance(id, build))
    }

    /// Returns whose a build is that has not left the farm: a tenant's, or nobody's.
    pub fn tenant_of(&self, id: BuildId) -> Option<Option<&TenantName>> {
        self.facts.builds.get(&id).map(|build| build.account().tenant.as_ref())
    }

    /// Returns when a build was submitted that has not left the farm, and what its client does with it, if that is traced.
    pub fn trace_of(&self, id: BuildId) -> Option<(Timestamp, Option<Traceparent>)> {
        self.facts.builds.get(&id).map(|build| (build.submitted_at, build.asker.as_ref().and_then(|asker| asker.trace)))
    }

    /// Returns the first of the live builds that want a job: the one that its attempts are told with.
    pub fn first_build_of(&self, derivation: &DrvPath) -> Option<BuildId> {
        let (key, _) = self.find(derivation)?;
        self.live_builds_of(key).map(|(id, _)| id).min()
    }

    /// Returns the first of the builds that wanted a job to its end, some of which may have ended with it: its outputs are published for that one.
    pub fn first_build_served_by(&self, derivation: &DrvPath) -> Option<BuildId> {
        let (key, _) = self.find(derivation)?;
        let builds = self.index.links.get(&key)?.builds.iter();
        let stays = |id: &&BuildId| {
            let build = self.facts.builds.get(id);
            build.is_some_and(|build| build.record().is_none_or(|record| record.state != BuildState::Cancelled))
        };
        builds.filter(stays).min().copied()
    }

    /// Returns what was asked for with a build that has not left the farm.
    pub fn roots_of(&self, id: BuildId) -> Option<&[Root]> {
        self.facts.builds.get(&id).map(|build| build.roots.as_slice())
    }

    /// Returns what is known of the evaluation that the roots of a build come from, if the farm has the build.
    pub fn evaluated(&self, id: BuildId) -> Option<Evaluated> {
        self.facts.builds.get(&id).map(|build| build.evaluated(true))
    }

    /// Returns the realised outputs of a build's roots.
    pub fn outputs_of_build(&self, id: BuildId) -> Option<crate::RootOutputs> {
        let build = self.facts.builds.get(&id)?;
        Some(build.record().map_or_else(|| self.outputs_by_root(build), |record| record.outputs.clone()))
    }

    fn glance(&self, id: BuildId, build: &Build) -> BuildGlance {
        let record = build.record();
        BuildGlance {
            build: id,
            name: build.name.clone(),
            account: build.account().clone(),
            state: record.map_or(BuildState::Active, |record| record.state),
            submitted_at: build.submitted_at,
            ended_at: record.map(|record| record.ended_at),
            counts: record.map_or_else(|| self.counts_of(id), |record| record.counts),
            errors_count: build.evaluation().map_or(0, |evaluation| evaluation.errors_count()),
        }
    }

    /// Returns why ready jobs wait. O(classes × workers).
    pub fn reasons(&self, away: &BTreeSet<WorkerId>) -> Reasons {
        Reasons(self.class_reasons(away))
    }

    /// Returns jobs that follow on `after`, at most `limit` of them; looks at `looked_max` at most.
    pub fn jobs_after(&self, wanted: JobsWanted<'_>, after: Option<u32>, bounds: (usize, usize), reasons: &mut Reasons) -> JobPage {
        match wanted.build {
            Some(id) => {
                let jobs = self.facts.builds.get(&id).map(|build| &*build.jobs).unwrap_or_default();
                let begin = after.map_or(0, |after| jobs.partition_point(|key| key.0 <= after));
                let keys = jobs.get(begin..).unwrap_or_default();
                self.page(wanted, keys.iter().map(|key| (*key, self.job(*key))), bounds, reasons)
            }
            None => {
                let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(JobKey(key)));
                let jobs = self.facts.jobs.range((from, Bound::Unbounded));
                self.page(wanted, jobs.map(|(key, job)| (*key, job)), bounds, reasons)
            }
        }
    }

    fn page<'a>(
        &'a self,
        wanted: JobsWanted<'_>,
        jobs: impl Iterator<Item = (JobKey, &'a Job)>,
        (limit, looked_max): (usize, usize),
        reasons: &mut Reasons,
    ) -> JobPage {
        let mut page = JobPage::default();
        for (looked, (key, job)) in jobs.enumerate() {
            if looked == looked_max || page.jobs.len() == limit {
                return page;
            }
            page.next = Some(key.0);
            let matches = wanted.state.is_none_or(|state| self.state_word(key, job) == state)
                && wanted.search.is_none_or(|search| contains(job.derivation.as_str(), search) || self.is_called(key, job, wanted, search));
            if matches && self.is_seen(key, wanted.sight) {
                page.jobs.push(self.seen_view(key, job, wanted.sight, reasons));
            }
        }
        page.next = None;
        page
    }

    /// Returns whether an attribute that a job is has this in its name: of the build that is asked about, or of any that is seen.
    fn is_called(&self, key: JobKey, job: &Job, wanted: JobsWanted<'_>, search: &str) -> bool {
        let builds = self.index.links.get(&key).map(|links| links.builds.as_slice()).unwrap_or_default();
        let asked = builds.iter().filter(|id| wanted.build.is_none_or(|build| build == **id)).filter_map(|id| self.facts.builds.get(id));
        let mut names = asked.filter(|build| wanted.sight.sees(build.account())).flat_map(|build| build.names(&job.derivation));
        names.any(|name| contains(name, search))
    }

    /// Returns a job of the farm as somebody sees it; none if it is not there, or only others want it.
    pub fn job_seen(&self, derivation: &DrvPath, sight: &Sight, reasons: &mut Reasons) -> Option<JobView> {
        let (key, job) = self.find(derivation).filter(|(key, _)| self.is_seen(*key, sight))?;
        Some(self.seen_view(key, job, sight, reasons))
    }

    /// Returns whether somebody sees a job; none if the farm has no such job.
    pub fn sees_job(&self, derivation: &DrvPath, sight: &Sight) -> Option<bool> {
        self.key_of(derivation).map(|key| self.is_seen(key, sight))
    }

    /// Returns those of a list of builds that somebody sees.
    pub fn builds_seen(&self, builds: &[BuildId], sight: &Sight) -> Vec<BuildId> {
        let sees = |id: &&BuildId| self.facts.builds.get(id).is_some_and(|build| sight.sees(build.account()));
        builds.iter().filter(sees).copied().collect()
    }

    pub(crate) fn is_seen(&self, key: JobKey, sight: &Sight) -> bool {
        match sight {
            Sight::All => true,
            Sight::Of(_) => {
                let builds = self.index.links.get(&key).map(|links| links.builds.as_slice()).unwrap_or_default();
                builds.iter().any(|id| self.facts.builds.get(id).is_some_and(|build| sight.sees(build.account())))
            }
        }
    }

    fn seen_view(&self, key: JobKey, job: &Job, sight: &Sight, reasons: &mut Reasons) -> JobView {
        if matches!(job.state, State::Waiting) && self.index.unbuilt(key) == 0 {
            // A class that came after the reasons were taken is looked at once, not for each of its jobs.
            let needs = self.index.needs_of(key, job);
            reasons.0.entry(needs).or_insert_with_key(|needs| self.class_reason(needs, self.kept(), &NOBODY));
        }
        let view = self.live_view(key, job, &reasons.0);
        let builds = self.builds_seen(&view.builds, sight);
        // What others call it is theirs.
        JobView { attributes: self.names_in(&builds, &view.derivation), builds, ..view }
    }

    /// Returns why ready jobs wait, in words, with whether any registered worker could ever run them; and how many wait a while after a
    /// failure. O(classes × parties), with `examples_max` jobs each.
    pub fn waiting(&self, sight: &Sight, examples_max: usize, reasons: &Reasons) -> (BTreeMap<(String, bool), ReadyJobs>, u64) {
        let mut groups: BTreeMap<(String, bool), ReadyJobs> = BTreeMap::new();
        for (needs, party, line, reason) in self.lines_waiting(reasons) {
            let group = groups.entry((reason.to_string(), reason.is_unplaceable())).or_default();
            group.count += u64::try_from(line.len()).unwrap_or(u64::MAX);
            group.systems.insert(needs.system.clone());
            group.first.extend(self.examples(party, line, sight, examples_max.saturating_sub(group.first.len())));
        }
        (groups, u64::try_from(self.index.delayed.len()).unwrap_or(u64::MAX))
    }

    /// Returns the lines of ready jobs, each with what its jobs need, whose they are, and why they wait.
    pub(crate) fn lines_waiting(
        &self,
        reasons: &Reasons,
    ) -> impl Iterator<Item = (&Arc<Needs>, &Arc<Party>, &BTreeSet<ReadyEntry>, WaitReason)> {
        self.index.ready.iter().flat_map(move |(needs, lines)| {
            let class = reasons.0.get(needs).cloned().unwrap_or_else(|| self.class_reason(needs, self.kept(), &NOBODY));
            lines.iter().map(move |(party, line)| {
                let others = class == WaitReason::Busy && lines.len() > 1 && self.others_first(party, lines);
                (needs, party, line, if others { WaitReason::OthersFirst } else { class.clone() })
            })
        })
    }

    fn examples(&self, party: &Party, line: &BTreeSet<ReadyEntry>, sight: &Sight, count: usize) -> Vec<DrvPath> {
        // Whose a line is, all its jobs are.
        let seen = party.members.iter().any(|member| sight.sees(&member.account));
        let line = line.iter().take(if seen { count } else { 0 });
        line.map(|(_, derivation, _)| (**derivation).clone()).collect()
    }

    /// Adds the work that is left of a build's jobs after `after` to what was found before, looking at `looked_max` at most; returns where
    /// to go on, if there is more.
    pub fn work_left(&self, id: BuildId, after: Option<u32>, looked_max: usize, left: &mut WorkLeft) -> Option<u32> {
        let jobs = self.facts.builds.get(&id).filter(|build| build.record().is_none()).map(|build| &*build.jobs).unwrap_or_default();
        let begin = after.map_or(0, |after| jobs.partition_point(|key| key.0 <= after));
        let rest = jobs.get(begin..).unwrap_or_default();
        for key in rest.iter().take(looked_max) {
            if !self.job(*key).is_final() {
                left.chain_ms = left.chain_ms.max(self.index.path_ms(*key));
                left.work_ms = left.work_ms.saturating_add(self.index.expected(*key).wall_ms);
                left.any = true;
            }
        }
        (rest.len() > looked_max).then(|| rest[looked_max - 1].0)
    }

    /// Returns the milliseconds that work takes which is left: the larger of its longest chain and of all of it spread over all slots.
    pub fn ms_of(&self, left: WorkLeft) -> Option<u64> {
        let slots: u64 = self.facts.workers.values().map(|worker| u64::from(worker.offer.slots)).sum();
        left.any.then(|| left.chain_ms.max(left.work_ms / slots.max(1)))
    }
}

/// Returns whether `text` has `part` in it, in whichever case.
fn contains(text: &str, part: &str) -> bool {
    part.is_empty() || text.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}
