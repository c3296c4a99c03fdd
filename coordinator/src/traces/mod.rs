//! Traces of builds, told by the leader: made of what applied entries say, and of what its own tasks took.
//!
//! Goals: no entry and no plan waits for it; after a fail-over the next leader goes on with the same spans, of which the log told it as well.
//! Non-goals: the spans of workers, which send their own. Source: ADR 0051.

mod tracker;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kiln_core::Farm;
use kiln_trace::{Span, Spans, Trace, child};
use kiln_wire::{AttemptId, BuildId, DrvPath, Lease, Traceparent};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Interval;

pub(crate) use self::tracker::PUBLISH;
use self::tracker::{Given, Tracker};
use crate::leading;
use crate::parts::Parts;
use crate::raft::Happened;

/// Where what happens is told, if anybody wants traces.
#[derive(Debug, Default)]
pub(crate) struct Traces(Option<On>);

#[derive(Debug)]
struct On {
    farm: String,
    spans: Spans,
    sender: mpsc::Sender<Told>,
    receiver: Mutex<Option<mpsc::Receiver<Told>>>,
}

/// What the tracker is told.
#[derive(Debug)]
enum Told {
    /// This leader made a build of a submission.
    Submitted { build: BuildId, from: SystemTime, to: SystemTime },
    /// A task of this leader ended.
    Part(Span),
    /// This coordinator stops: what is held is to go.
    Last(oneshot::Sender<()>),
}

/// A part of a job or of an attempt that goes on.
#[derive(Debug)]
pub(crate) struct Begun {
    of: Traceparent,
    from: SystemTime,
}

impl Traces {
    /// Returns what tells `spans` of the builds of a farm; without them nothing costs anything.
    pub(crate) fn new(farm: &str, spans: Option<Spans>) -> Self {
        Self(spans.map(|spans| {
            let (sender, receiver) = mpsc::channel(UNHEARD_MAX);
            On { farm: farm.to_owned(), spans, sender, receiver: Mutex::new(Some(receiver)) }
        }))
    }

    /// Returns how many spans nobody received: those that found no room, and those that the receiver did not take.
    pub(crate) fn lost(&self) -> (u64, u64) {
        self.0.as_ref().map_or((0, 0), |on| on.spans.lost())
    }

    /// Returns the moment at which something begins.
    pub(crate) fn begin(&self) -> Option<SystemTime> {
        self.0.as_ref().map(|_| SystemTime::now())
    }

    /// Tells that a submission became a build, if it did.
    pub(crate) fn submitted(&self, begun: Option<SystemTime>, build: Option<&BuildId>) {
        if let (Some(on), Some(from), Some(build)) = (&self.0, begun, build) {
            on.tell(Told::Submitted { build: *build, from, to: SystemTime::now() });
        }
    }

    /// Begins a part of a live job, or of an attempt at it.
    pub(crate) fn begin_part(&self, parts: &Parts, derivation: &DrvPath, attempt: Option<AttemptId>) -> Option<Begun> {
        let of = match attempt {
            Some(attempt) => self.trace(parts, |farm| farm.first_build_of(derivation))?.attempt(attempt),
            None => self.trace(parts, |farm| farm.first_build_served_by(derivation))?.job(derivation),
        };
        Some(Begun { of, from: SystemTime::now() })
    }

    /// Ends a part.
    pub(crate) fn end_part(&self, name: &'static str, begun: Option<Begun>) {
        if let (Some(on), Some(Begun { of, from })) = (&self.0, begun) {
            let number = from.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0));
            on.tell(Told::Part(Span::new(name, child(of, name, number), Some(of.span), from, SystemTime::now())));
        }
    }

    /// Returns the span of an attempt, which its worker's spans belong to.
    pub(crate) fn attempt(&self, parts: &Parts, lease: &Lease) -> Option<Traceparent> {
        Some(self.trace(parts, |farm| farm.first_build_of(&lease.derivation))?.attempt(lease.attempt))
    }

    /// Gives away what is held for a moment, for no other moment comes.
    pub(crate) async fn finish(&self) {
        let Some(on) = &self.0 else { return };
        let (done, told) = oneshot::channel();
        on.tell(Told::Last(done));
        if tokio::time::timeout(FINISH_MAX, told).await.is_err() {
            tracing::warn!("the last spans of this coordinator are lost");
        }
    }

    /// Returns the trace of a build.
    fn trace(&self, parts: &Parts, which: impl Fn(&Farm) -> Option<BuildId>) -> Option<Trace> {
        let on = self.0.as_ref()?;
        parts.farm(|farm| {
            let build = which(farm)?;
            let (at, given) = farm.trace_of(build)?;
            Some(Trace::of_build(&on.farm, build, at, given))
        })
    }
}

impl On {
    /// What nobody has time to hear is lost: the spans that it is of are then incomplete.
    fn tell(&self, told: Told) {
        if self.sender.try_send(told).is_err() {
            self.spans.lose(1);
        }
    }
}

/// Makes spans of what is told, until this coordinator stops.
pub(crate) async fn run(parts: Arc<Parts>) {
    let heard = parts.consensus.heard_for_traces();
    let (Some(on), Some(mut heard)) = (&parts.traces.0, heard) else { return };
    let Some(mut told) = on.receiver.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let mut tracker = Tracker::new(on.farm.clone(), parts.consensus.held_at_start());
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while let Some(News { happened, told }) = News::next(&mut heard, &mut told, &mut tick).await {
        let (mut until, mut last) = (SystemTime::now(), None);
        happened.iter().for_each(|happened| hear(&parts, &mut tracker, happened));
        for told in told {
            match told {
                Told::Submitted { build, from, to } => tracker.submitted(build, from, to),
                Told::Part(span) => tracker.part(span),
                Told::Last(done) => {
                    until = SystemTime::now() + tracker::HELD;
                    last = Some(done);
                }
            }
        }
        let leads = leading::own(&parts).is_some();
        // Followers have heard the same, and lack the same.
        let (due, lost) = (tracker.due(until), tracker.take_lost());
        if leads {
            due.into_iter().for_each(|span| on.spans.give(span));
            on.spans.lose(lost);
        }
        if let Some(done) = last {
            // Whoever asked may not wait any more.
            let _ = done.send(());
        }
    }
}

/// What came since it was last looked: some of both, so that neither waits for the other.
struct News {
    happened: Vec<Happened>,
    told: Vec<Told>,
}

impl News {
    /// Waits for something, or for the next tick. Nothing if nothing can come any more.
    async fn next(heard: &mut mpsc::Receiver<Happened>, told: &mut mpsc::Receiver<Told>, tick: &mut Interval) -> Option<Self> {
        let mut news = Self { happened: Vec::new(), told: Vec::new() };
        tokio::select! {
            taken = heard.recv_many(&mut news.happened, TOGETHER_MAX) => if taken == 0 { return None },
            taken = told.recv_many(&mut news.told, TOGETHER_MAX) => if taken == 0 { return None },
            _ = tick.tick() => {}
        }
        let more = TOGETHER_MAX - news.told.len();
        news.told.extend(std::iter::from_fn(|| told.try_recv().ok()).take(more));
        // What was applied before a task ended is heard before that: a job is built before it is published.
        let waiting = heard.len();
        news.happened.extend(std::iter::from_fn(|| heard.try_recv().ok()).take(waiting));
        Some(news)
    }
}

fn hear(parts: &Parts, tracker: &mut Tracker, happened: &Happened) {
    let known = |build| {
        parts.farm(|farm| {
            let (at, given) = farm.trace_of(build)?;
            Some(Given { at, given, glance: farm.build_glance(build) })
        })
    };
    tracker.happened(happened, parts.consensus.leader().map(|(leader, _)| leader), known, SystemTime::now());
}

/// How often it is looked whether what is held may go.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Ends of tasks that are looked at together.
const TOGETHER_MAX: usize = 1_024;
/// How long a coordinator that stops waits for its own task.
const FINISH_MAX: Duration = Duration::from_secs(2);
/// Entries and ends of tasks that wait to be heard, some hundred bytes each.
const UNHEARD_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use kiln_wire::LogIndex;

    use super::*;

    #[tokio::test]
    async fn however_much_happens_the_ends_of_tasks_are_heard_with_it_and_after_it() {
        let ((happens, mut heard), (tells, mut told)) = (mpsc::channel(UNHEARD_MAX), mpsc::channel(UNHEARD_MAX));
        for index in 0..UNHEARD_MAX {
            let index = LogIndex(u64::try_from(index).expect("few"));
            happens.try_send(Happened { index, after_gap: false, facts: Vec::new(), published: None }).expect("there is room");
        }
        let moment = SystemTime::UNIX_EPOCH;
        tells.try_send(Told::Submitted { build: BuildId(1), from: moment, to: moment }).expect("there is room");
        let mut tick = tokio::time::interval(LOOK_EVERY);
        for kind in ["the first", "nothing"] {
            let news = News::next(&mut heard, &mut told, &mut tick).await.expect("both go on");
            let expect = if kind == "nothing" { (0, 0) } else { (UNHEARD_MAX, 1) };
            assert_eq!((news.happened.len(), news.told.len()), expect, "{kind}");
        }
    }
}
