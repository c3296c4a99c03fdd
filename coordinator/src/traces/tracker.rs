//! From what applied entries tell to spans. Pure: moments come in as values.
//!
//! | span | of | from | to |
//! |---|---|---|---|
//! | `build` | the client's, if it traces | the submission | the last of it is published |
//! | `submit` | `build` | the request | its answer |
//! | `job` | `build` | every input is realised | the end of its last part |
//! | `wait` | `job` | it may begin | an attempt begins |
//! | `attempt` | `job` | the lease | it ends, or the end of its last part |
//! | `commit` | `attempt` | the report comes | its outputs are committed |
//! | `publish` | `job` | the outputs are committed | they can be fetched |
//!
//! A job that several builds want is told with the first of them; with the others a `job` that leads there. What has ended is held for a moment,
//! so that parts which end with it are within it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use kiln_core::BuildGlance;
use kiln_trace::{Span, Trace, child};
use kiln_wire::client::{BuildState, Event, EventKind};
use kiln_wire::{Account, AttemptId, BuildId, DrvPath, FailureClass, Leader, LogIndex, Timestamp, Traceparent, WorkerId};

use crate::raft::{Fact, Happened};

/// What the farm knows of a build.
pub(super) struct Given {
    pub(super) at: Timestamp,
    pub(super) given: Option<Traceparent>,
    pub(super) glance: Option<BuildGlance>,
}

/// What goes on.
pub(super) struct Tracker {
    farm: String,
    /// The last entry that was there before this process: what it and those before it did is remembered, and was told by whoever led then.
    old: LogIndex,
    /// What is heard is of such an entry.
    is_old: bool,
    leader: Option<Leader>,
    builds: BTreeMap<BuildId, Build>,
    /// When and for how long a submission was looked at whose build is not heard of yet.
    submits: BTreeMap<BuildId, (SystemTime, SystemTime)>,
    jobs: BTreeMap<DrvPath, Job>,
    /// Ends of what others are parts of, by these.
    ends: BTreeMap<[u8; 8], SystemTime>,
    /// Jobs whose outputs are committed and not published, as far as it was told; and with which build they are told.
    published_soon: BTreeMap<DrvPath, (BuildId, Span)>,
    /// What has ended, and until when it waits for its parts: always equally long, parts before the whole.
    held: VecDeque<Held>,
    ready: Vec<Span>,
    /// Spans that there was no room for, or that a gap took: at least so many.
    lost: u64,
}

struct Held {
    until: SystemTime,
    span: Span,
    /// The build that is forgotten with it.
    ends: Option<BuildId>,
}

struct Build {
    trace: Trace,
    name: String,
    account: Account,
    submitted_at: Timestamp,
    from: SystemTime,
}

struct Job {
    /// The build that it is told with, once an attempt has begun. It may end before the job.
    told_with: Option<(BuildId, Trace)>,
    /// When it could begin first.
    ready_at: Option<Timestamp>,
    /// Since when it waits for another attempt.
    waits_since: Option<Timestamp>,
    attempts: BTreeMap<AttemptId, Attempt>,
}

struct Attempt {
    worker: WorkerId,
    from: Timestamp,
    term: u64,
}

/// How something ended.
struct End<'a> {
    at: Timestamp,
    word: &'static str,
    failure: Option<(FailureClass, &'a str)>,
}

impl Tracker {
    pub(super) fn new(farm: String, old: LogIndex) -> Self {
        let (builds, submits, jobs, ends, published_soon) = Default::default();
        let (held, ready) = Default::default();
        Self { farm, old, is_old: false, leader: None, builds, submits, jobs, ends, published_soon, held, ready, lost: 0 }
    }

    /// Takes in what an entry did. `known` says of a build that was not heard of what the farm still has; `leader` leads as far as this
    /// coordinator knows.
    pub(super) fn happened(
        &mut self,
        happened: &Happened,
        leader: Option<Leader>,
        known: impl Fn(BuildId) -> Option<Given>,
        now: SystemTime,
    ) {
        self.is_old = happened.index <= self.old;
        if happened.after_gap {
            self.forget(&known, now);
        }
        self.leader = self.leader.or(leader);
        if let Some((derivation, at)) = &happened.published
            && let Some((_, mut job)) = self.published_soon.remove(derivation)
        {
            job.to = job.to.max(Span::at(*at));
            self.hold(job, now);
        }
        for fact in &happened.facts {
            match fact {
                Fact::Leads(leader) => self.leader = Some(*leader),
                Fact::Submitted(build, Some(asked)) if self.has_room() => {
                    self.build(*build, asked.at, asked.trace, (asked.name.clone(), asked.account.clone()));
                }
                Fact::Job(builds, event) => {
                    for build in builds.iter().filter(|build| !self.builds.contains_key(build)).copied().collect::<Vec<_>>() {
                        if self.has_room()
                            && let Some(Given { at, given, glance }) = known(build)
                        {
                            let about = glance.map(|glance| (glance.name, glance.account)).unwrap_or_default();
                            self.build(build, at, given, about);
                        }
                    }
                    self.event(builds, event, now);
                }
                Fact::Ended(build, state, _, at) => self.ended(*build, *state, *at, now),
                Fact::Submitted(..) | Fact::Registered(_) | Fact::Lost(_) | Fact::Judged(..) => {}
            }
        }
        self.is_old = false;
    }

    /// Notes when this leader looked at a submission.
    pub(super) fn submitted(&mut self, build: BuildId, from: SystemTime, to: SystemTime) {
        self.submits.insert(build, (from, to));
        if self.submits.len() > BUILDS_MAX {
            self.submits.pop_first();
        }
        if let Some(known) = self.builds.get_mut(&build) {
            known.from = known.from.min(from);
            self.submit(build);
        }
    }

    /// Takes a part of something whose end this leader saw itself.
    pub(super) fn part(&mut self, span: Span) {
        self.emit(span);
    }

    /// Returns what is over and waits for no part any more.
    pub(super) fn due(&mut self, now: SystemTime) -> Vec<Span> {
        while let Some(Held { mut span, ends, .. }) = self.held.pop_front_if(|held| held.until <= now) {
            if let Some(build) = ends {
                self.builds.remove(&build);
            }
            let last = self.ends.remove(&span.is.span);
            span.to = last.map_or(span.to, |last| last.max(span.to));
            self.emit(span);
        }
        std::mem::take(&mut self.ready)
    }

    /// Returns how many spans were lost since it was last asked.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Returns whether another build can be told of. Those that are told of stay: what has begun of them is to end.
    fn has_room(&mut self) -> bool {
        let has_room = self.builds.len() < BUILDS_MAX;
        self.lost += u64::from(!has_room);
        has_room
    }

    /// After a gap: what ran is not known to run on, and what was to end may have ended.
    fn forget(&mut self, known: &impl Fn(BuildId) -> Option<Given>, now: SystemTime) {
        let attempts = std::mem::take(&mut self.jobs).values().map(|job| job.attempts.len()).sum::<usize>();
        let held: BTreeSet<BuildId> = self.held.iter().filter_map(|held| held.ends).collect();
        let builds = self.builds.len();
        self.builds.retain(|build, _| held.contains(build) || known(*build).is_some());
        self.lost += u64::try_from(attempts + builds - self.builds.len()).unwrap_or(u64::MAX);
        std::mem::take(&mut self.published_soon).into_values().for_each(|(_, job)| self.hold(job, now));
    }

    fn build(&mut self, id: BuildId, at: Timestamp, given: Option<Traceparent>, (name, account): (String, Account)) {
        let trace = Trace::of_build(&self.farm, id, at, given);
        let from = self.submits.get(&id).map_or(Span::at(at), |(from, _)| Span::at(at).min(*from));
        self.builds.insert(id, Build { trace, name, account, submitted_at: at, from });
        self.submit(id);
    }

    /// Tells of the submission of a build that is known, if this leader saw it.
    fn submit(&mut self, id: BuildId) {
        if let (Some(build), Some((from, to))) = (self.builds.get(&id), self.submits.remove(&id)) {
            let root = build.trace.root();
            self.emit(Span::new("submit", child(root, "submit", id.0), Some(root.span), from, to).with("kiln.build", id.0));
        }
    }

    fn event(&mut self, builds: &[BuildId], event: &Event, now: SystemTime) {
        let Event { at, derivation, kind } = event;
        match kind {
            EventKind::Ready => {
                let Some(job) = self.job(derivation) else { return };
                job.ready_at.get_or_insert(*at);
                job.waits_since = Some(*at);
            }
            EventKind::Started { attempt, worker } => self.started(builds, derivation, *at, (*attempt, worker)),
            EventKind::Built { .. } => self.over(builds, derivation, &End { at: *at, word: BUILT, failure: None }, now),
            EventKind::Failed { class, message } => {
                self.over(builds, derivation, &End { at: *at, word: "failed", failure: Some((*class, message)) }, now);
            }
            EventKind::Cancelled => self.over(builds, derivation, &End { at: *at, word: "cancelled", failure: None }, now),
            EventKind::Retried { class, message } => {
                self.end_attempts(builds, derivation, &End { at: *at, word: "retried", failure: Some((*class, message)) }, now);
                if let Some(job) = self.job(derivation) {
                    job.waits_since = Some(*at);
                }
            }
            // Nothing was done for it.
            EventKind::DependencyFailed { .. } => drop(self.jobs.remove(derivation)),
        }
    }

    /// Returns a job. Where there is no room another one is forgotten that does not run; without such a one there is none.
    fn job(&mut self, derivation: &DrvPath) -> Option<&mut Job> {
        if self.jobs.len() >= JOBS_MAX && !self.jobs.contains_key(derivation) {
            self.lost += 1;
            let waits = self.jobs.iter().find(|(_, job)| job.attempts.is_empty()).map(|(waits, _)| waits.clone())?;
            self.jobs.remove(&waits);
        }
        let new = || Job { told_with: None, ready_at: None, waits_since: None, attempts: BTreeMap::new() };
        Some(self.jobs.entry(derivation.clone()).or_insert_with(new))
    }

    fn started(&mut self, builds: &[BuildId], derivation: &DrvPath, at: Timestamp, (attempt, worker): (AttemptId, &WorkerId)) {
        let first = builds.iter().filter(|build| self.builds.contains_key(build)).min().copied();
        let Some(first) = first else { return };
        let term = self.leader.map_or(0, |leader| leader.term);
        let Build { submitted_at, trace, .. } = self.builds[&first];
        let Some(job) = self.job(derivation) else { return };
        // Another one may have been told with a build that has ended since; what waits belongs to the first that is left.
        job.told_with = Some((first, trace));
        let ready_at = *job.ready_at.get_or_insert(submitted_at);
        let since = job.waits_since.take().or(job.attempts.is_empty().then_some(ready_at));
        job.attempts.insert(attempt, Attempt { worker: worker.clone(), from: at, term });
        let of = trace.job(derivation);
        if let Some(since) = since {
            let wait = Span::new("wait", child(of, "wait", attempt.0), Some(of.span), Span::at(since), Span::at(at));
            self.emit(wait.with("kiln.job", derivation.as_str()));
        }
    }

    /// Ends a job, and whatever runs of it.
    fn over(&mut self, builds: &[BuildId], derivation: &DrvPath, end: &End<'_>, now: SystemTime) {
        self.end_attempts(builds, derivation, end, now);
        let Some(job) = self.jobs.remove(derivation) else { return };
        let (Some((build, trace)), Some(ready_at)) = (job.told_with, job.ready_at) else { return };
        let is = trace.job(derivation);
        let span = Span::new("job", is, Some(trace.root().span), Span::at(ready_at), Span::at(end.at));
        let span = finished(Span { links: self.others(builds, build), ..span }.with("kiln.job", derivation.as_str()), end);
        let mut spans = Vec::new();
        for (id, other) in builds.iter().filter(|id| **id != build).filter_map(|id| Some((id, self.builds.get(id)?))) {
            let from = Span::at(ready_at.max(other.submitted_at));
            let shared = Span::new("job", other.trace.job(derivation), Some(other.trace.root().span), from, Span::at(end.at));
            let shared = shared.with("kiln.job", derivation.as_str()).with("kiln.build", id.0).with("kiln.told_with_build", build.0);
            spans.push(finished(Span { links: vec![is], ..shared }, end));
        }
        // It is over when its outputs are published, or with its build.
        let waits = end.word == BUILT && self.builds.contains_key(&build) && self.published_soon.len() < JOBS_MAX;
        spans.extend(match waits {
            true => self.published_soon.insert(derivation.clone(), (build, span)).map(|(_, earlier)| earlier),
            false => Some(span),
        });
        spans.into_iter().for_each(|span| self.hold(span, now));
    }

    fn end_attempts(&mut self, builds: &[BuildId], derivation: &DrvPath, end: &End<'_>, now: SystemTime) {
        let Some(job) = self.jobs.get_mut(derivation) else { return };
        let Some((build, trace)) = job.told_with else { return };
        let attempts = std::mem::take(&mut job.attempts);
        let links = self.others(builds, build);
        let of = trace.job(derivation);
        for (attempt, Attempt { worker, from, term }) in attempts {
            let span = Span::new("attempt", trace.attempt(attempt), Some(of.span), Span::at(from), Span::at(end.at))
                .with("kiln.job", derivation.as_str())
                .with("kiln.attempt", attempt.0)
                .with("kiln.worker", worker.as_str())
                .with("kiln.term", term)
                .with("kiln.build", build.0);
            self.hold(finished(Span { links: links.clone(), ..span }, end), now);
        }
    }

    /// Returns the spans of the builds that want a job beside the one that it is told with.
    fn others(&self, builds: &[BuildId], own: BuildId) -> Vec<Traceparent> {
        let others = builds.iter().filter(|build| **build != own);
        others.filter_map(|build| self.builds.get(build)).map(|build| build.trace.root()).take(LINKS_MAX).collect()
    }

    fn ended(&mut self, id: BuildId, state: BuildState, at: Timestamp, now: SystemTime) {
        let of_build: Vec<_> = self.published_soon.extract_if(.., |_, (build, _)| *build == id).map(|(_, (_, job))| job).collect();
        of_build.into_iter().for_each(|job| self.hold(job, now));
        let Some(Build { trace, name, account, from, .. }) = self.builds.get(&id) else { return };
        let mut span = Span::new("build", trace.root(), trace.parent(), *from, Span::at(at))
            .with("kiln.build", id.0)
            .with("kiln.build.name", name.as_str())
            .with("kiln.state", word(state))
            .with("kiln.term", self.leader.map_or(0, |leader| leader.term));
        if let Some(tenant) = &account.tenant {
            span = span.with("kiln.tenant", tenant.as_str());
        }
        span.failure = (state == BuildState::Failed).then(|| "jobs of it failed".to_owned());
        match self.is_old {
            true => drop(self.builds.remove(&id)),
            false => self.held.push_back(Held { until: now + HELD, span, ends: Some(id) }),
        }
    }

    fn hold(&mut self, span: Span, now: SystemTime) {
        if !self.is_old {
            self.held.push_back(Held { until: now + HELD, span, ends: None });
        }
    }

    /// Gives a span away, and notes its end for what it is a part of.
    fn emit(&mut self, span: Span) {
        if self.is_old {
            return;
        }
        if let Some(parent) = span.parent {
            let last = self.ends.entry(parent).or_insert(span.to);
            *last = span.to.max(*last);
            if self.ends.len() > JOBS_MAX {
                self.ends.pop_first();
            }
        }
        self.ready.push(span);
    }
}

fn finished(mut span: Span, end: &End<'_>) -> Span {
    if let Some((class, message)) = end.failure {
        span = span.with("kiln.failure_class", class.to_string());
        span.failure = Some(message.to_owned());
    }
    span.with("kiln.end", end.word)
}

fn word(state: BuildState) -> &'static str {
    match state {
        BuildState::Active => "active",
        BuildState::Built => BUILT,
        BuildState::Failed => "failed",
        BuildState::Cancelled => "cancelled",
    }
}

/// How long what has ended waits for its parts: they come by another way within some tenths of a second.
pub(super) const HELD: Duration = Duration::from_secs(2);
/// How a job ends whose outputs are there.
const BUILT: &str = "built";
/// The part of a job that comes after its last attempt.
pub(crate) const PUBLISH: &str = "publish";
/// Builds that live or have just ended, some hundred bytes each.
const BUILDS_MAX: usize = 4_096;
/// Jobs that wait or run, some hundred bytes each.
const JOBS_MAX: usize = 65_536;
/// Links of one span.
const LINKS_MAX: usize = 64;

#[cfg(test)]
mod tests;
