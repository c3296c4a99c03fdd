//! Clients that submit, look and cancel while things go wrong, and write down what they asked, what was answered, and when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use kiln_wire::client::{BuildState, BuildView, DerivationFile, RefusalKind, Request, Response, Submission};
use kiln_wire::{BuildId, DrvPath, RequestId, Root};
use tokio::task::JoinHandle;

use crate::hosts::Host;
use crate::linear::{Call, Verdict, check};
use crate::models::{self, Asked, Progress, Seen, by_object};
use crate::probe::{Line, Probe, Reply};
use crate::process::Book;
use crate::random::Random;

/// What clients do, and what they wrote down.
#[derive(Debug)]
pub struct History {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    book: Book,
    /// Derivations that nobody else builds: each is submitted once.
    spare: Vec<DerivationFile>,
    next: AtomicU64,
    stop: AtomicBool,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    submissions: Vec<(RequestId, Call<Asked>)>,
    lists: Vec<List>,
    /// Builds of submissions that were answered.
    builds: BTreeMap<RequestId, (BuildId, DrvPath)>,
    /// Submissions, answered or not.
    submitted: BTreeMap<RequestId, DrvPath>,
}

/// One list of jobs.
#[derive(Clone, Debug)]
struct List {
    called: u64,
    returned: u64,
    jobs: BTreeMap<DrvPath, Progress>,
}

/// What the check of a history found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Calls about submissions, with and without an answer.
    pub answered: usize,
    /// Of these, without.
    pub unanswered: usize,
    /// Lists of jobs that were read.
    pub lists: usize,
    /// Submissions and derivations.
    pub objects: usize,
    /// What cannot have happened one at a time.
    pub broken: Vec<String>,
}

impl History {
    /// Starts this many clients, each with lines to all coordinators.
    ///
    /// # Errors
    /// If a certificate cannot be used.
    pub fn start(probe: &Probe, book: &Book, coordinators: &[Host], spare: Vec<DerivationFile>, seed: u64) -> anyhow::Result<Self> {
        let shared =
            Arc::new(Shared { book: book.clone(), spare, next: AtomicU64::new(0), stop: AtomicBool::new(false), calls: Mutex::default() });
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let lines = coordinators.iter().map(|host| probe.line(*host)).collect::<anyhow::Result<Vec<_>>>()?;
            let client = Client { shared: shared.clone(), lines, leader: 0, random: Random::part(seed, 1000 + number) };
            clients.push(probe.spawn(client.run()));
        }
        Ok(Self { shared, clients })
    }

    /// Stops the clients and checks what they wrote down.
    ///
    /// # Errors
    /// If a client panicked.
    pub fn finish(self, probe: &Probe) -> anyhow::Result<Checked> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            probe.run(client).context("run a client")?;
        }
        let calls = std::mem::take(&mut *self.shared.calls());
        Ok(calls.check())
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    fn check(self) -> Checked {
        let unanswered = self.submissions.iter().filter(|(_, call)| call.returned.is_none()).count();
        let mut checked =
            Checked { answered: self.submissions.len() - unanswered, unanswered, lists: self.lists.len(), ..Checked::default() };
        let lists = self.lists.iter().flat_map(|list| {
            let call = |derivation: &DrvPath| Call {
                operation: list.jobs.get(derivation).copied(),
                called: list.called,
                returned: Some(list.returned),
            };
            self.submitted.values().map(move |derivation| (derivation.clone(), call(derivation)))
        });
        for (derivation, calls) in by_object(lists) {
            checked.note(&format!("derivation `{derivation}`"), &models::Derivation, &calls);
        }
        for (request, calls) in by_object(self.submissions) {
            checked.note(&format!("submission {request}"), &models::Submission, &calls);
        }
        checked
    }
}

impl Checked {
    fn note<M: crate::linear::Model>(&mut self, object: &str, model: &M, calls: &[Call<M::Operation>]) {
        self.objects += 1;
        match check(model, calls, CONFIGURATIONS_MAX) {
            Verdict::Linearizable(_) => {}
            Verdict::Broken { order, stuck } => {
                let told = order.iter().rev().take(3).rev().map(|call| format!("{:?}", calls[*call])).collect::<Vec<_>>().join(", then ");
                self.broken.push(format!("{object}: after {told}, this cannot follow: {:?}", calls[stuck]));
            }
            Verdict::Unknown => self.broken.push(format!("{object}: {} calls could not be checked within the bound", calls.len())),
        }
    }
}

struct Client {
    shared: Arc<Shared>,
    lines: Vec<Line>,
    /// Which line led last.
    leader: usize,
    random: Random,
}

impl Client {
    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            // Submissions are few: the build that is measured needs the workers.
            match self.random.between(0, 99) {
                0 | 1 => self.submit().await,
                2..=5 => self.submit_again().await,
                6..=10 => self.cancel().await,
                11..=60 => self.see().await,
                _ => self.list().await,
            }
            tokio::time::sleep(Duration::from_millis(self.random.between(5, 60))).await;
        }
    }

    /// Asks the one that led last, and looks for another if it does not lead.
    async fn ask_leader(&mut self, request: &Request, last: fn(&Response) -> bool) -> Reply {
        let reply = self.lines[self.leader].ask(request, last).await;
        if matches!(reply, Reply::NotLeader | Reply::Unknown(_)) {
            self.leader = (self.leader + 1) % self.lines.len();
        }
        reply
    }

    /// Asks any of them: one that was deposed and does not know it must not answer.
    async fn ask_any(&mut self, request: &Request, last: fn(&Response) -> bool) -> Reply {
        let line = usize::try_from(self.random.number() % 16).unwrap_or(0).min(self.lines.len());
        match self.lines.get_mut(line) {
            Some(line) => line.ask(request, last).await,
            None => self.ask_leader(request, last).await,
        }
    }

    async fn submit(&mut self) {
        let next = usize::try_from(self.shared.next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
        let Some(file) = self.shared.spare.get(next).cloned() else { return };
        let derivation = file.path.clone();
        let mut known = false;
        while !known && !self.shared.stop.load(Ordering::Relaxed) {
            known = matches!(self.ask_leader(&Request::AddDerivations(vec![file.clone()]), |_| true).await, Reply::Answers(_));
        }
        if known {
            let request = RequestId(self.random.number());
            self.shared.calls().submitted.insert(request, derivation.clone());
            self.submit_as(request, derivation).await;
        }
    }

    async fn submit_again(&mut self) {
        let earlier = self.shared.calls().submitted.iter().map(|(request, derivation)| (*request, derivation.clone())).collect::<Vec<_>>();
        if !earlier.is_empty() {
            let (request, derivation) = self.random.of(&earlier).clone();
            self.submit_as(request, derivation).await;
        }
    }

    async fn submit_as(&mut self, request: RequestId, derivation: DrvPath) {
        let root = Root { derivation: derivation.clone(), outputs: Default::default() };
        let submission = Submission {
            request,
            name: format!("history {request}"),
            roots: vec![root],
            keep_going: false,
            urgency: Default::default(),
            trace: None,
            evaluation: None,
        };
        let called = self.shared.book.now_us();
        let reply = self.ask_leader(&Request::Submit(submission), |_| true).await;
        let build = match reply {
            Reply::Answers(answers) => answers.into_iter().find_map(|answer| match answer {
                Response::Submitted(build) => Some(build),
                _ => None,
            }),
            // Leadership may have been lost after it was proposed.
            Reply::Refused(_) | Reply::NotLeader | Reply::Unknown(_) => None,
        };
        if let Some(build) = build {
            self.shared.calls().builds.insert(request, (build, derivation));
        }
        self.note(request, called, Asked::Submit(build.map(|build| build.0)), build.is_some());
    }

    fn note(&self, request: RequestId, called: u64, operation: Asked, answered: bool) {
        let returned = answered.then(|| self.shared.book.now_us());
        self.shared.calls().submissions.push((request, Call { operation, called, returned }));
    }

    fn any_build(&mut self) -> Option<(RequestId, BuildId)> {
        let builds = self.shared.calls().builds.iter().map(|(request, (build, _))| (*request, *build)).collect::<Vec<_>>();
        // Mostly a late one: it may still be live.
        let late = builds.len().saturating_sub(6);
        let from = if self.random.between(0, 3) == 0 { 0 } else { late };
        (!builds.is_empty()).then(|| *self.random.of(&builds[from..]))
    }

    async fn cancel(&mut self) {
        let Some((request, build)) = self.any_build() else { return };
        let called = self.shared.book.now_us();
        let answer = match self.ask_leader(&Request::Cancel(build), |_| true).await {
            Reply::Answers(_) => Some(true),
            Reply::Refused(refusal) if refusal.kind == RefusalKind::NotFound => Some(false),
            Reply::Refused(_) | Reply::NotLeader | Reply::Unknown(_) => None,
        };
        self.note(request, called, Asked::Cancel(answer), answer.is_some());
    }

    async fn see(&mut self) {
        let Some((request, build)) = self.any_build() else { return };
        let called = self.shared.book.now_us();
        let seen = match self.ask_any(&Request::Watch(build), |answer| matches!(answer, Response::Build(_))).await {
            Reply::Answers(answers) => answers.into_iter().find_map(|answer| match answer {
                Response::Build(view) => Some(seen(&view)),
                _ => None,
            }),
            Reply::Refused(refusal) if refusal.kind == RefusalKind::NotFound => Some(Seen::Nothing),
            Reply::Refused(_) | Reply::NotLeader | Reply::Unknown(_) => None,
        };
        if let Some(seen) = seen {
            self.note(request, called, Asked::See(build.0, seen), true);
        }
    }

    async fn list(&mut self) {
        let called = self.shared.book.now_us();
        if let Reply::Answers(answers) = self.ask_any(&Request::Jobs, |_| false).await {
            let lists = answers.into_iter().filter_map(|answer| match answer {
                Response::Jobs(jobs) => Some(jobs),
                _ => None,
            });
            let jobs = lists.flatten().map(|job| (job.derivation.clone(), Progress::of(&job))).collect();
            let returned = self.shared.book.now_us();
            self.shared.calls().lists.push(List { called, returned, jobs });
        }
    }
}

fn seen(view: &BuildView) -> Seen {
    match view.state {
        BuildState::Active => Seen::Active(view.counts.built + view.counts.failed),
        ended @ (BuildState::Built | BuildState::Failed | BuildState::Cancelled) => Seen::Ended(ended),
    }
}

/// Clients at a time. More would make histories that no checker ends with, and these overlap as it is.
const CLIENTS: u64 = 4;
/// Configurations that the check of one object looks at before it gives up: histories of a round need some hundreds.
const CONFIGURATIONS_MAX: usize = 2_000_000;
