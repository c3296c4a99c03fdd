//! What entries tell, and the spans that come of it, a line each.

use kiln_wire::NodeId;

use super::*;
use crate::raft::Asked;

/// Tells a tracker what happens, in milliseconds.
struct Telling {
    tracker: Tracker,
    index: u64,
}

impl Telling {
    fn new() -> Self {
        Self::restarted_after(0)
    }

    /// Begins as one whose disk holds so many entries.
    fn restarted_after(entries: u64) -> Self {
        Self { tracker: Tracker::new("kiln".to_owned(), LogIndex(entries)), index: 0 }
    }

    fn tell(&mut self, facts: Vec<Fact>) {
        self.index += 1;
        let happened = Happened { index: LogIndex(self.index), after_gap: false, facts, published: None };
        self.tracker.happened(&happened, Some(leader(1)), |_| None, Span::at(Timestamp(0)));
    }

    fn submits(&mut self, build: u64, at: u64) {
        let asked = Asked { name: format!("b{build}"), account: Account::default(), at: Timestamp(at), trace: None };
        self.tell(vec![Fact::Submitted(BuildId(build), Some(Box::new(asked)))]);
    }

    fn event(&mut self, builds: &[u64], at: u64, name: &str, kind: EventKind) {
        let event = Event { at: Timestamp(at), derivation: drv(name), kind };
        self.tell(vec![Fact::Job(builds.iter().copied().map(BuildId).collect(), event)]);
    }

    fn publishes(&mut self, name: &str, at: u64) {
        self.index += 1;
        let published = Some((drv(name), Timestamp(at)));
        let happened = Happened { index: LogIndex(self.index), after_gap: false, facts: Vec::new(), published };
        self.tracker.happened(&happened, Some(leader(1)), |_| None, Span::at(Timestamp(0)));
    }

    fn ends(&mut self, build: u64, at: u64) {
        self.tell(vec![Fact::Ended(BuildId(build), BuildState::Built, None, Timestamp(at))]);
    }

    /// Returns everything that is over, as `NAME PARENT FROM-TO END` with the names of parents, in the order of their beginnings.
    fn spans(&mut self) -> Vec<String> {
        let mut spans = self.tracker.due(Span::at(Timestamp(1_000_000)));
        spans.sort_by_key(|span| (span.from, std::cmp::Reverse(span.to)));
        let names: BTreeMap<[u8; 8], String> = spans.iter().map(|span| (span.is.span, title(span))).collect();
        let parent = |span: &Span| span.parent.map_or("-".to_owned(), |parent| names.get(&parent).cloned().unwrap_or("?".to_owned()));
        let ms = |moment: SystemTime| moment.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_millis();
        let line = |span: &Span| format!("{} of {} {}-{}{}", title(span), parent(span), ms(span.from), ms(span.to), end(span));
        spans.iter().map(line).collect()
    }
}

fn attribute(span: &Span, wanted: &str) -> Option<String> {
    let found = span.attributes.iter().find(|(name, _)| *name == wanted)?;
    Some(match &found.1 {
        kiln_trace::Attribute::Text(text) => text.clone(),
        kiln_trace::Attribute::Number(number) => number.to_string(),
    })
}

fn title(span: &Span) -> String {
    let number = ["kiln.attempt", "kiln.build"].iter().find_map(|name| attribute(span, name)).map(|number| format!("#{number}"));
    format!("{}{}", span.name, number.unwrap_or_default())
}

fn end(span: &Span) -> String {
    let end = attribute(span, "kiln.end").map(|end| format!(" {end}")).unwrap_or_default();
    format!("{end}{}", span.failure.as_ref().map(|failure| format!(" ({failure})")).unwrap_or_default())
}

fn leader(term: u64) -> Leader {
    Leader { term, node: NodeId(1) }
}

fn drv(name: &str) -> DrvPath {
    DrvPath::parse(&format!("00000000000000000000000000000000-{name}.drv")).expect("a path")
}

fn started(attempt: u64) -> EventKind {
    EventKind::Started { attempt: AttemptId(attempt), worker: WorkerId::parse("w1").expect("a name") }
}

fn built() -> EventKind {
    EventKind::Built { wall_ms: 1, nar_bytes: 1 }
}

#[test]
fn a_build_is_told_from_its_submission_to_its_end_with_every_attempt() {
    let mut telling = Telling::new();
    telling.tracker.submitted(BuildId(1), Span::at(Timestamp(90)), Span::at(Timestamp(105)));
    telling.submits(1, 100);
    telling.event(&[1], 120, "a", started(7));
    let class = FailureClass::Infrastructure;
    telling.event(&[1], 130, "a", EventKind::Retried { class, message: "no disk".to_owned() });
    telling.event(&[1], 150, "a", started(8));
    // Its report is committed when the event says so, and whoever committed it sees that a little later.
    let of = Trace::of_build("kiln", BuildId(1), Timestamp(100), None).attempt(AttemptId(8));
    let commit = Span::new("commit", child(of, "commit", 1), Some(of.span), Span::at(Timestamp(165)), Span::at(Timestamp(172)));
    telling.tracker.part(commit);
    telling.event(&[1], 170, "a", built());
    telling.event(&[1], 170, "b", EventKind::Ready);
    telling.event(&[1], 180, "b", started(9));
    telling.event(&[1], 190, "b", EventKind::Failed { class: FailureClass::BuildFailure, message: "exit 1".to_owned() });
    telling.ends(1, 195);
    let expect = [
        "build#1 of - 90-195",
        "submit#1 of build#1 90-105",
        "job of build#1 100-172 built",
        "wait of job 100-120",
        "attempt#7 of job 120-130 retried (no disk)",
        "wait of job 130-150",
        "attempt#8 of job 150-172 built",
        "commit of attempt#8 165-172",
        "job of build#1 170-190 failed (exit 1)",
        "wait of job 170-180",
        "attempt#9 of job 180-190 failed (exit 1)",
    ];
    assert_eq!(telling.spans(), expect);
    assert!(telling.spans().is_empty(), "each once");
}

#[test]
fn a_job_lasts_until_it_is_published_or_its_build_is_over() {
    let mut telling = Telling::new();
    telling.submits(1, 100);
    for (attempt, name) in [(7, "a"), (8, "b")] {
        telling.event(&[1], 110, name, started(attempt));
        telling.event(&[1], 120, name, built());
    }
    let jobs = |spans: Vec<String>| spans.into_iter().filter(|span| span.starts_with("job")).collect::<Vec<_>>();
    assert!(jobs(telling.spans()).is_empty(), "however long it takes");
    let of = Trace::of_build("kiln", BuildId(1), Timestamp(100), None).job(&drv("a"));
    let publish = Span::new(PUBLISH, child(of, PUBLISH, 1), Some(of.span), Span::at(Timestamp(121)), Span::at(Timestamp(500)));
    telling.publishes("a", 490);
    telling.tracker.part(publish);
    assert_eq!(jobs(telling.spans()), ["job of ? 100-500 built"]);
    telling.ends(1, 600);
    assert_eq!(jobs(telling.spans()), ["job of build#1 100-120 built"], "nobody said that it is published");
}

#[test]
fn a_job_of_two_builds_is_told_with_the_first_and_the_other_leads_there() {
    let mut telling = Telling::new();
    telling.submits(1, 100);
    telling.submits(2, 110);
    telling.event(&[1, 2], 120, "a", started(7));
    telling.event(&[1, 2], 130, "a", built());
    telling.ends(1, 140);
    let spans = telling.tracker.due(Span::at(Timestamp(1_000_000)));
    let root = |build, at| Trace::of_build("kiln", BuildId(build), Timestamp(at), None);
    let (first, second) = (root(1, 100), root(2, 110));
    let of = |name: &str, trace: &Trace| spans.iter().find(|span| span.name == name && span.is.trace == trace.root().trace).cloned();
    let (attempt, job, shared) = (of("attempt", &first), of("job", &first), of("job", &second));
    assert_eq!(attempt.map(|span| (span.is, span.links)), Some((first.attempt(AttemptId(7)), vec![second.root()])));
    assert_eq!(job.map(|span| span.links), Some(vec![second.root()]));
    let shared = shared.expect("the other build has heard of it too");
    assert_eq!(
        (shared.links, shared.parent, shared.from),
        (vec![first.job(&drv("a"))], Some(second.root().span), Span::at(Timestamp(110)))
    );
    assert!(of("attempt", &second).is_none(), "it ran once");
}

#[test]
fn whoever_leads_next_tells_the_same_spans_of_what_began_before() {
    let told = || {
        let mut telling = Telling::new();
        telling.submits(1, 100);
        telling.event(&[1], 110, "a", started(7));
        telling
    };
    let (mut before, mut after) = (told(), told());
    // The one that led is gone before the attempt ends.
    let begun = before.tracker.due(Span::at(Timestamp(1_000_000)));
    assert_eq!(after.tracker.due(Span::at(Timestamp(1_000_000))), begun, "which the follower had heard, and kept to itself");
    after.tell(vec![Fact::Leads(leader(2))]);
    after.event(&[1], 130, "a", built());
    after.ends(1, 140);
    let spans = after.tracker.due(Span::at(Timestamp(1_000_000)));
    let trace = Trace::of_build("kiln", BuildId(1), Timestamp(100), None);
    let attempt = spans.iter().find(|span| span.name == "attempt").expect("it was heard to begin");
    assert_eq!((attempt.is, attempt.from), (trace.attempt(AttemptId(7)), Span::at(Timestamp(110))), "as its worker was told");
    assert!(begun.iter().all(|span| span.parent == Some(trace.job(&drv("a")).span)), "{begun:?}");
}

#[test]
fn what_a_restart_applies_again_is_remembered_and_not_told_again() {
    let mut telling = Telling::restarted_after(7);
    telling.submits(1, 100);
    telling.event(&[1], 110, "a", started(7));
    telling.event(&[1], 120, "a", built());
    telling.ends(1, 130);
    telling.submits(2, 200);
    telling.event(&[2], 210, "b", started(8));
    telling.event(&[2], 215, "c", started(9));
    assert!(telling.spans().is_empty(), "whoever led then has told it");
    assert_eq!(telling.tracker.builds.len(), 1);
    telling.event(&[2], 220, "b", built());
    telling.ends(2, 230);
    assert_eq!(telling.spans(), ["build#2 of - 200-230", "job of build#2 200-220 built", "attempt#8 of job 210-220 built"]);
}

#[test]
fn whoever_only_hears_that_a_job_is_published_does_not_tell_it_later() {
    let mut telling = Telling::new();
    telling.submits(1, 100);
    telling.event(&[1], 110, "a", started(7));
    telling.event(&[1], 120, "a", built());
    telling.publishes("a", 130);
    // A follower drops them; the leader has told them.
    assert!(telling.spans().contains(&"job of ? 100-130 built".to_owned()));
    telling.tell(vec![Fact::Leads(leader(2))]);
    telling.ends(1, 140);
    assert_eq!(telling.spans(), ["build#1 of - 100-140"]);
    assert!(telling.tracker.published_soon.is_empty());
}

#[test]
fn what_began_before_anybody_heard_is_not_made_up() {
    let mut telling = Telling::new();
    telling.event(&[1], 130, "a", built());
    telling.submits(2, 100);
    telling.event(&[2], 110, "b", started(7));
    let gap = Happened { index: LogIndex(9), after_gap: true, facts: Vec::new(), published: None };
    telling.tracker.happened(&gap, None, |_| None, Span::at(Timestamp(0)));
    telling.event(&[2], 130, "b", built());
    assert_eq!(telling.spans(), ["wait of ? 100-110"]);
    assert_eq!(telling.tracker.take_lost(), 2, "the attempt and its build, of which the farm knows nothing");
    assert!(telling.tracker.builds.is_empty());
}

#[test]
fn attempts_carry_the_term_that_they_began_in() {
    let mut telling = Telling::new();
    telling.submits(1, 100);
    telling.event(&[1], 110, "a", started(7));
    telling.tell(vec![Fact::Leads(leader(4))]);
    telling.event(&[1], 120, "b", started(8));
    telling.event(&[1], 130, "a", built());
    telling.event(&[1], 130, "b", built());
    let spans = telling.tracker.due(Span::at(Timestamp(1_000_000)));
    let terms: Vec<_> = spans.iter().filter(|span| span.name == "attempt").filter_map(|span| attribute(span, "kiln.term")).collect();
    assert_eq!(terms, ["1", "4"]);
}

#[test]
fn memory_is_bounded_whatever_never_ends() {
    let mut telling = Telling::new();
    for build in 0..BUILDS_MAX as u64 + 10 {
        telling.submits(build + 1, 100);
        telling.tracker.submitted(BuildId(u64::MAX - build), Span::at(Timestamp(0)), Span::at(Timestamp(0)));
    }
    assert_eq!((telling.tracker.builds.len(), telling.tracker.submits.len()), (BUILDS_MAX, BUILDS_MAX));
    assert_eq!((telling.tracker.take_lost(), telling.tracker.take_lost()), (10, 0), "what there is no room for is counted");
}

#[test]
fn a_build_that_lives_is_told_to_its_end_however_many_have_ended_since() {
    let mut telling = Telling::new();
    telling.submits(1, 100);
    telling.event(&[1], 110, "a", started(7));
    telling.spans();
    for build in 2..BUILDS_MAX as u64 + 10 {
        telling.submits(build, 100);
        telling.ends(build, 120);
        assert_eq!(telling.spans().last().map(String::as_str), Some(format!("build#{build} of - 100-120").as_str()));
    }
    assert_eq!((telling.tracker.builds.len(), telling.tracker.take_lost()), (1, 0), "what is told is forgotten");
    telling.event(&[1], 130, "a", built());
    telling.ends(1, 140);
    assert_eq!(telling.spans(), ["build#1 of - 100-140", "job of build#1 100-130 built", "attempt#7 of job 110-130 built"]);
}

#[test]
fn an_attempt_outlasts_the_build_that_it_is_told_with() {
    let mut telling = Telling::new();
    telling.submits(1, 100);
    telling.submits(2, 100);
    telling.event(&[1, 2], 110, "a", started(7));
    telling.ends(1, 120);
    telling.spans();
    telling.event(&[2], 130, "a", built());
    let of = telling.spans();
    assert!(of.contains(&"attempt#7 of job 110-130 built".to_owned()), "{of:?}");
}

#[test]
fn what_waits_makes_room_for_what_runs() {
    let mut telling = Telling::new();
    telling.submits(1, 100);
    telling.event(&[1], 110, "0", started(7));
    for job in 1..JOBS_MAX + 10 {
        telling.event(&[1], 110, &format!("{job}"), EventKind::Ready);
    }
    telling.event(&[1], 120, "0", built());
    telling.ends(1, 130);
    assert!(telling.spans().contains(&"attempt#7 of job 110-120 built".to_owned()));
    assert_eq!(telling.tracker.take_lost(), 10, "and is counted");
}
