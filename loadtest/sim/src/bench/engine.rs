//! The replay: an event heap on which jobs arrive, become ready, run where a policy puts them, and end.
//!
//! Decides nothing: what goes where is the policy's. Checks every placement: a job that is not ready, was placed before, or does not fit
//! is a bug of the policy and panics. A job may have two attempts on two workers: the first to end counts, the other ends with it. A step costs O(log n) and what the policy takes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use kiln_wire::Resources;

use super::cache::Caches;
use super::fleet::{Fleet, Free, WorkerNo, share};
use super::workload::{JobNo, Workload};

/// What the replay charges beside the builders' time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Costs {
    /// From a placement to the start of its builder.
    pub hop_ms: u64,
    /// At which workers fetch what they lack; without, that takes no time. What is moved is counted either way.
    pub bandwidth_bytes_s: Option<u64>,
    /// At which they upload what they made; without, that takes no time.
    pub upload_bytes_s: Option<u64>,
}

/// What a policy sees when it places.
pub(crate) struct View<'a> {
    pub load: &'a Workload,
    pub fleet: &'a Fleet,
    pub free: &'a [Free],
    pub caches: &'a Caches,
    pub now_ms: u64,
}

/// What a policy proposes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    /// A job, where it goes, and what it is given there.
    pub placements: Vec<(JobNo, WorkerNo, Resources)>,
    /// Second attempts, in the same way.
    pub copies: Vec<(JobNo, WorkerNo, Resources)>,
    /// Second attempts that end before anything is placed.
    pub stopped: Vec<(JobNo, WorkerNo)>,
    /// When to ask again although nothing happens.
    pub wake_ms: Option<u64>,
}

/// Decides what runs where.
pub(crate) trait Policy {
    /// A submission arrives: its jobs may run from here on, as their inputs end.
    fn arrive(&mut self, load: &Workload, submission: usize, now_ms: u64);
    /// Every input of a job that has arrived is built.
    fn ready(&mut self, load: &Workload, job: JobNo, now_ms: u64);
    /// A builder has exited; its outputs are being uploaded. Returns whether another job may have its place: else it is held until the end.
    fn exited(&mut self, _load: &Workload, _span: &Span, _now_ms: u64) -> bool {
        false
    }
    /// A job is built.
    fn ended(&mut self, load: &Workload, span: &Span, now_ms: u64);
    /// Says what starts now. Asked once for all that happens at one time.
    fn place(&mut self, view: &View<'_>) -> Placed;
}

/// The life of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub job: JobNo,
    pub worker: WorkerNo,
    pub given: Resources,
    /// Its last input was there.
    pub ready_ms: u64,
    /// It was placed.
    pub start_ms: u64,
    /// Its inputs were there and its builder began.
    pub build_ms: u64,
    /// Its builder exited.
    pub exit_ms: u64,
    /// Its outputs were there.
    pub end_ms: u64,
}

/// What came of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// By job.
    pub spans: Vec<Span>,
    pub makespan_ms: u64,
    pub moved_bytes: u64,
    /// How often the policy was asked.
    pub plans: u64,
    pub copies: Copies,
}

/// What second attempts came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copies {
    pub begun: u64,
    /// Those that made the job's outputs first.
    pub won: u64,
    /// How many ran at once at most.
    pub most: u64,
    /// Time for which they held slots.
    pub slot_ms: u64,
}

/// Replays a workload.
///
/// # Panics
/// If the policy places what it must not, or leaves jobs although nothing runs.
pub(crate) fn replay(load: &Workload, fleet: &Fleet, policy: &mut dyn Policy, costs: Costs) -> Run {
    let mut floor = Floor::new(load, fleet, costs);
    while let Some(now_ms) = floor.step(policy) {
        floor.place(policy, now_ms);
    }
    floor.finish()
}

/// What happens at a time, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Exit(JobNo, TryNo),
    End(JobNo, TryNo),
    Arrive(usize),
    Wake,
}

/// The number of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TryNo(usize);

/// An attempt.
struct Try {
    span: Span,
    is_copy: bool,
    /// It runs or uploads.
    lives: bool,
    /// It uploads and has given its place back.
    left: bool,
}

struct Floor<'a> {
    load: &'a Workload,
    fleet: &'a Fleet,
    costs: Costs,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    wakes: BTreeSet<u64>,
    free: Vec<Free>,
    caches: Caches,
    /// Inputs that are not built, by job; one more until the job has arrived.
    missing: Vec<u32>,
    ready_ms: Vec<u64>,
    spans: Vec<Option<Span>>,
    ended: usize,
    tries: Vec<Try>,
    /// By job, those that live.
    live: Vec<Vec<TryNo>>,
    copies: Copies,
    copies_now: u64,
    moved_bytes: u64,
    plans: u64,
}

impl<'a> Floor<'a> {
    fn new(load: &'a Workload, fleet: &'a Fleet, costs: Costs) -> Self {
        let arrivals = load.submissions.iter().enumerate().map(|(number, asked)| Reverse((asked.at_ms, Event::Arrive(number))));
        let missing = load.tasks.iter().map(|task| u32::try_from(task.inputs.len()).expect("a job has few inputs") + 1);
        Self {
            load,
            fleet,
            costs,
            events: arrivals.collect(),
            wakes: BTreeSet::new(),
            free: fleet.workers.iter().map(|worker| Free::whole(&worker.offer)).collect(),
            caches: Caches::new(load, fleet),
            missing: missing.collect(),
            ready_ms: vec![0; load.tasks.len()],
            spans: vec![None; load.tasks.len()],
            ended: 0,
            tries: Vec::new(),
            live: vec![Vec::new(); load.tasks.len()],
            copies: Copies::default(),
            copies_now: 0,
            moved_bytes: 0,
            plans: 0,
        }
    }

    /// Lets everything happen that happens next, which is all at one time. Returns that time.
    fn step(&mut self, policy: &mut dyn Policy) -> Option<u64> {
        let Reverse((now_ms, _)) = self.events.peek()?;
        let now_ms = *now_ms;
        while let Some(Reverse((_, event))) = self.events.peek().filter(|Reverse((at, _))| *at == now_ms) {
            let event = *event;
            self.events.pop();
            match event {
                Event::Exit(_, number) | Event::End(_, number) if !self.tries[number.0].lives => {}
                Event::Exit(_, number) => self.exit(policy, number, now_ms),
                Event::End(job, number) => self.end(policy, job, number, now_ms),
                Event::Arrive(submission) => {
                    policy.arrive(self.load, submission, now_ms);
                    for job in self.load.submissions[submission].jobs.clone().map(JobNo) {
                        self.one_less(policy, job, now_ms);
                    }
                }
                Event::Wake => {
                    self.wakes.remove(&now_ms);
                }
            }
        }
        Some(now_ms)
    }

    fn exit(&mut self, policy: &mut dyn Policy, number: TryNo, now_ms: u64) {
        let span = self.tries[number.0].span;
        if policy.exited(self.load, &span, now_ms) {
            self.tries[number.0].left = true;
            self.give_back(&span);
        }
    }

    fn give_back(&mut self, span: &Span) {
        let free = &mut self.free[span.worker.at()];
        *free = free.give(span.given);
    }

    /// Ends an attempt, whatever came of it.
    fn close(&mut self, number: TryNo, now_ms: u64) -> Span {
        let attempt = &mut self.tries[number.0];
        attempt.lives = false;
        let (span, is_copy, left) = (attempt.span, attempt.is_copy, attempt.left);
        self.live[span.job.at()].retain(|other| *other != number);
        if !left {
            self.give_back(&span);
        }
        if is_copy {
            self.copies_now -= 1;
            self.copies.slot_ms += now_ms - span.start_ms;
        }
        span
    }

    fn end(&mut self, policy: &mut dyn Policy, job: JobNo, number: TryNo, now_ms: u64) {
        let span = self.close(number, now_ms);
        self.copies.won += u64::from(self.tries[number.0].is_copy);
        // The first one to end is the one that counts.
        for other in std::mem::take(&mut self.live[job.at()]) {
            self.close(other, now_ms);
        }
        self.spans[job.at()] = Some(span);
        self.ended += 1;
        self.caches.hold(job, span.worker);
        policy.ended(self.load, &span, now_ms);
        for dependent in &self.load.task(job).dependents {
            self.one_less(policy, *dependent, now_ms);
        }
    }

    fn one_less(&mut self, policy: &mut dyn Policy, job: JobNo, now_ms: u64) {
        let missing = &mut self.missing[job.at()];
        *missing -= 1;
        if *missing == 0 {
            self.ready_ms[job.at()] = now_ms;
            policy.ready(self.load, job, now_ms);
        }
    }

    fn place(&mut self, policy: &mut dyn Policy, now_ms: u64) {
        self.plans += 1;
        let view = View { load: self.load, fleet: self.fleet, free: &self.free, caches: &self.caches, now_ms };
        let placed = policy.place(&view);
        for (job, worker) in placed.stopped {
            let of = |number: &&TryNo| self.tries[number.0].span.worker == worker && self.tries[number.0].is_copy;
            let number = self.live[job.at()].iter().find(of).copied();
            self.close(number.expect("only a second attempt that lives is stopped"), now_ms);
        }
        for (job, worker, given) in placed.placements {
            self.start(job, worker, given, now_ms);
        }
        for (job, worker, given) in placed.copies {
            self.start(job, worker, given, now_ms);
        }
        if let Some(at_ms) = placed.wake_ms.filter(|at_ms| *at_ms > now_ms)
            && self.wakes.insert(at_ms)
        {
            self.events.push(Reverse((at_ms, Event::Wake)));
        }
        let idle = self.events.is_empty() && self.ended < self.load.tasks.len();
        assert!(!idle, "the policy leaves {} jobs although nothing runs", self.load.tasks.len() - self.ended);
    }

    fn start(&mut self, job: JobNo, worker: WorkerNo, given: Resources, now_ms: u64) {
        let task = self.load.task(job);
        let offer = &self.fleet.workers[worker.at()].offer;
        let others = &self.live[job.at()];
        let is_copy = !others.is_empty();
        assert!(self.missing[job.at()] == 0, "{} is placed and is not ready", task.name());
        assert!(self.spans[job.at()].is_none() && others.len() < 2, "{} is placed twice", task.name());
        assert!(others.iter().all(|other| self.tries[other.0].span.worker != worker), "{} is placed twice on one worker", task.name());
        assert!(self.fleet.is_able(worker, task.class), "{} is placed where it cannot run", task.name());
        let least = share(offer, task);
        // The bounds count what each asks for.
        let enough = given.cores >= least.cores && given.memory_mib >= least.memory_mib;
        assert!(enough, "{} is given {given:?}, it asks for {least:?}", task.name());
        let rest = self.free[worker.at()].take(given);
        self.free[worker.at()] = rest.unwrap_or_else(|| panic!("{} is placed where it does not fit", task.name()));
        let bytes = self.caches.fetch(self.load, job, worker);
        self.moved_bytes += bytes;
        let transfer_ms =
            |bytes: u64, bytes_s: Option<u64>| bytes_s.map_or(0, |bytes_s| bytes.saturating_mul(1000).div_ceil(bytes_s.max(1)));
        let build_ms = now_ms + self.costs.hop_ms + transfer_ms(bytes, self.costs.bandwidth_bytes_s);
        let exit_ms = self.fleet.workers[worker.at()].exit_ms(build_ms, task.duration_ms);
        let end_ms = exit_ms + transfer_ms(task.output_bytes, self.costs.upload_bytes_s);
        let ready_ms = self.ready_ms[job.at()];
        let number = TryNo(self.tries.len());
        let span = Span { job, worker, given, ready_ms, start_ms: now_ms, build_ms, exit_ms, end_ms };
        self.tries.push(Try { span, is_copy, lives: true, left: false });
        self.live[job.at()].push(number);
        if is_copy {
            self.copies_now += 1;
            (self.copies.begun, self.copies.most) = (self.copies.begun + 1, self.copies.most.max(self.copies_now));
        }
        if end_ms > exit_ms {
            self.events.push(Reverse((exit_ms, Event::Exit(job, number))));
        }
        self.events.push(Reverse((end_ms, Event::End(job, number))));
    }

    fn finish(self) -> Run {
        let spans: Vec<Span> = self.spans.into_iter().map(|span| span.expect("every job ended")).collect();
        let makespan_ms = spans.iter().map(|span| span.end_ms).max().unwrap_or(0);
        Run { spans, makespan_ms, moved_bytes: self.moved_bytes, plans: self.plans, copies: self.copies }
    }
}
