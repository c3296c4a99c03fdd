//! Builds keep what an evaluation says of them, and what receivers are to be told of them waits until it was.

use std::collections::BTreeMap;

use kiln_core::{BuildRecord, Command, Effect, Farm, JobsWanted, Limits, Reasons, Sight, What, plan};
use kiln_wire::client::BuildState;
use kiln_wire::{BuildId, Evaluation, FailureClass, LogIndex, RequestId, Timestamp};

use crate::facts::{built, drv, failed, offer, root, spec, worker};

const NOW: Timestamp = Timestamp(10);
const REQUEST: RequestId = RequestId(1);

struct Story {
    farm: Farm,
    archived: Vec<BuildRecord>,
}

impl Story {
    fn apply(&mut self, command: Command) {
        let index = LogIndex(self.farm.applied().map_or(1, |applied| applied.0 + 1));
        let effects = self.farm.apply(index, command);
        self.archived
            .extend(effects.into_iter().filter_map(|effect| if let Effect::Archive(record) = effect { Some(record) } else { None }));
        self.farm.check_invariants().expect("the farm is sound");
        let copy = Farm::from_snapshot(&self.farm.to_snapshot()).expect("a snapshot can be read");
        assert_eq!(copy, self.farm, "nothing is lost by a snapshot");
    }

    /// A worker, and a build of `a`, which fails, of `b`, which needs it, and of `c`, which is built.
    fn with(evaluation: Option<Evaluation>, receivers: &[&str]) -> Self {
        Self::on((3, true), evaluation, receivers)
    }

    /// The same on a worker with so many slots; it keeps going, or it does not.
    fn on((slots, keep_going): (u32, bool), evaluation: Option<Evaluation>, receivers: &[&str]) -> Self {
        let mut story = Self { farm: Farm::new(), archived: Vec::new() };
        let receivers = receivers.iter().map(|name| (*name).to_owned()).collect();
        story.apply(Command::Announce { receivers, now: NOW });
        story.apply(Command::Register { worker: worker("w1"), offer: offer(slots), attempts: vec![], since: None, judge: false, now: NOW });
        let jobs = vec![spec("a", &[]), spec("b", &["a"]), spec("c", &[])];
        story.apply(Command::Stage { request: REQUEST, jobs, now: NOW });
        if let Some(evaluation) = evaluation {
            story.apply(Command::Describe { request: REQUEST, evaluation, now: NOW });
        }
        let (roots, name) = (vec![root("b"), root("c")], "nightly".to_owned());
        story.apply(Command::Submit { request: REQUEST, name, roots, keep_going, asker: None, now: NOW });
        story
    }

    fn finish(&mut self) {
        let (planned, _) = plan(&self.farm, NOW, &Limits::STANDARD);
        self.apply(Command::Assign { placements: planned.placements, now: NOW });
        for (name, outcome) in [("a", failed(FailureClass::BuildFailure, "exit 1", 0)), ("c", built(&spec("c", &[]), 1))] {
            let lease = self.farm.live_lease(&drv(name)).expect("it runs");
            self.apply(Command::Finish { lease, outcome, learn: false, judge: false, now: NOW });
        }
        self.apply(Command::Publish { derivation: drv("c"), now: NOW });
    }

    fn build(&self) -> BuildId {
        self.farm.builds().next().expect("there is one")
    }
}

fn evaluation() -> Evaluation {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Evaluation {
        attributes: BTreeMap::from([(0, names(&["pkgs.b", "alias"])), (1, names(&["pkgs.c"]))]),
        errors: BTreeMap::from([("pkgs.broken".to_owned(), "no".to_owned())]),
        errors_more: 1,
        unbuilt: vec![0, 1],
        unreached: vec![0],
    }
}

#[test]
fn a_build_keeps_the_names_of_its_roots_and_which_of_them_it_ended_without() {
    let mut story = Story::with(Some(evaluation()), &[]);
    assert_eq!(story.farm.job_view(&drv("b")).expect("a job").attributes, ["pkgs.b", "alias"]);
    assert_eq!(story.farm.job_view(&drv("a")).expect("a job").attributes, [""; 0], "it is no root");
    let found = |search: &str| {
        let wanted = JobsWanted { build: Some(story.build()), state: None, search: Some(search), sight: &Sight::All };
        let page = story.farm.jobs_after(wanted, None, (9, 9), &mut Reasons::default());
        page.jobs.iter().map(|job| job.derivation.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((found("PKGS.c"), found("alias"), found("pkgs")), (vec!["c".into()], vec!["b".into()], vec!["c".into(), "b".into()]));
    assert_eq!(story.farm.build_glance(story.build()).expect("a build").errors_count, 2);
    assert!(story.farm.evaluated(story.build()).expect("a build").unbuilt.is_empty(), "nothing is over yet");
    story.finish();
    // It has not left the farm yet, and says the same as its record.
    let ended = story.farm.evaluated(story.build()).expect("a build");
    let view = story.farm.build_view(story.build()).expect("a build");
    assert_eq!((ended.unbuilt.iter().collect::<Vec<_>>(), &ended), (vec![&drv("b")], &view.evaluated));
    assert_eq!(story.farm.build_glance(story.build()).expect("a build").errors_count, 2);
    assert_eq!(story.farm.job_view(&drv("b")).expect("a job").attributes, ["pkgs.b", "alias"]);
    let record = story.archived.last().expect("it ended");
    let kept = record.evaluated();
    assert_eq!(
        (record.state, kept.unbuilt.into_iter().collect::<Vec<_>>()),
        (BuildState::Failed, vec![drv("b")]),
        "the farm says it alone"
    );
    assert_eq!((record.names(&drv("c")), kept.errors.len(), kept.errors_more), (&["pkgs.c".to_owned()][..], 1, 1));
    assert!(record.failures.iter().all(|view| view.attributes.is_empty()), "the roots say it");
}

#[test]
fn what_is_said_of_other_roots_is_left_out_and_the_build_is_made_all_the_same() {
    for wrong in [
        Evaluation { attributes: BTreeMap::from([(2, vec!["x".to_owned()])]), ..Evaluation::default() },
        Evaluation { attributes: BTreeMap::from([(0, vec!["x".repeat(9_999)])]), ..Evaluation::default() },
    ] {
        let story = Story::with(Some(wrong), &[]);
        assert_eq!(story.farm.evaluated(story.build()).expect("a build"), Default::default());
    }
}

#[test]
fn receivers_are_told_of_a_build_once_the_archive_has_it_and_only_once() {
    let mut story = Story::with(Some(evaluation()), &["chat"]);
    story.finish();
    let build = story.build();
    let waiting = |farm: &Farm| farm.outbox().after(0).map(|(_, notice)| notice.what.clone()).collect::<Vec<_>>();
    assert_eq!(waiting(&story.farm), [], "its record cannot be read yet");
    story.apply(Command::Retire { build, now: NOW });
    story.apply(Command::Retire { build, now: NOW });
    assert_eq!(waiting(&story.farm), [What::Finished(build), What::Failing(build)]);
    story.apply(Command::Told { receiver: "chat".to_owned(), upto: 2, now: NOW });
    assert_eq!(waiting(&story.farm), []);
    let mut nobody = Story::with(None, &[]);
    nobody.finish();
    let build = nobody.build();
    nobody.apply(Command::Retire { build, now: NOW });
    assert!(nobody.farm.outbox().is_empty());
}

#[test]
fn what_a_build_did_not_reach_before_it_stopped_has_not_failed() {
    let mut story = Story::on((1, false), Some(evaluation()), &[]);
    let (planned, _) = plan(&story.farm, NOW, &Limits::STANDARD);
    story.apply(Command::Assign { placements: planned.placements, now: NOW });
    let lease = story.farm.live_lease(&drv("a")).expect("the longest chain is begun first");
    let outcome = failed(FailureClass::BuildFailure, "exit 1", 0);
    story.apply(Command::Finish { lease, outcome, learn: false, judge: false, now: NOW });
    let kept = story.archived.last().expect("it ended").evaluated();
    assert_eq!((kept.unbuilt, kept.unreached), ([drv("b"), drv("c")].into(), [drv("c")].into()));
}
