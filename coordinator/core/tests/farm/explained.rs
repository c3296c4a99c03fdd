//! What a farm says of one job: its reason, what workers are to it, and what holds it up.

use std::collections::BTreeSet;

use kiln_core::{Command, Farm, Limits, plan};
use kiln_wire::{
    AttemptId, Epoch, Explanation, FailureClass, JobSpec, Lease, LogIndex, Outcome, RequestId, Resources, Timestamp, WorkerId,
};

use crate::facts::{built, drv, failed, offer, spec, worker};

struct Place {
    farm: Farm,
    index: u64,
}

impl Place {
    /// A farm with workers and jobs that one build wants.
    fn new(workers: &[(&str, u32)], jobs: &[JobSpec]) -> Self {
        let mut place = Self { farm: Farm::new(), index: 0 };
        let (request, now) = (RequestId(1), Timestamp(0));
        for (name, slots) in workers {
            place.apply(Command::Register {
                worker: worker(name),
                offer: offer(*slots),
                attempts: Vec::new(),
                since: None,
                judge: false,
                now,
            });
        }
        place.apply(Command::Stage { request, jobs: jobs.to_vec(), now });
        place.apply(Command::Submit { request, name: String::new(), roots: Vec::new(), keep_going: true, asker: None, now });
        place
    }

    fn apply(&mut self, command: Command) {
        self.index += 1;
        self.farm.apply(LogIndex(self.index), command);
    }

    fn go(&mut self, now: u64) {
        let (plan, _) = plan(&self.farm, Timestamp(now), &Limits::STANDARD);
        for placement in plan.placements {
            self.apply(Command::Assign { placements: vec![placement], now: Timestamp(now) });
        }
    }

    fn finish(&mut self, name: &str, outcome: Outcome) {
        let lease = self.farm.live_lease(&drv(name)).expect("it runs");
        self.apply(Command::Finish { lease, outcome, learn: false, judge: false, now: Timestamp(50) });
    }

    fn explain(&self, name: &str, away: &[&str]) -> Explanation {
        let away: BTreeSet<WorkerId> = away.iter().map(|name| worker(name)).collect();
        self.farm.explanation(&drv(name), Timestamp(100), &away).expect("a job of the farm")
    }
}

/// What workers are to a job, how many, and the first of them.
type Group<'a> = (&'a str, u64, &'a str);

fn workers(explanation: &Explanation) -> Vec<Group<'_>> {
    explanation.workers.iter().map(|group| (group.what.as_str(), group.count, group.first[0].as_str())).collect()
}

fn way(explanation: &Explanation) -> Vec<(&str, &str)> {
    explanation.behind.iter().map(|step| (step.derivation.name(), step.state.as_str())).collect()
}

#[test]
fn the_way_to_what_holds_a_job_up_follows_what_is_built_last() {
    let fetch = JobSpec { kind: kiln_wire::JobKind::FixedOutput, ..spec("src", &[]) };
    let jobs = [fetch, spec("deep", &[]), spec("mid", &["deep"]), spec("app", &["src", "mid"]), spec("top", &["app"])];
    let mut place = Place::new(&[("w1", 1)], &jobs);
    place.go(10);
    let app = place.explain("app", &[]);
    assert_eq!(way(&app), [("mid", "blocked"), ("deep", "running")], "a chain of builds is longer than a fetch");
    assert_eq!(app.behind_ms, 2 * app.expected_ms - 90, "one of them has run for a while");
    assert_eq!((app.inputs_unbuilt, app.dependents, app.dependents_all, app.ahead), (2, 1, 1, None));

    let src = place.explain("src", &[]);
    assert_eq!((src.ahead, src.behind.len(), src.dependents, src.dependents_all), (Some(0), 0, 1, 2));
    assert_eq!(workers(&src), [("are full", 1, "w1")]);
    assert_eq!(place.explain("deep", &[]).running_ms, Some(90));

    place.finish("deep", built(&spec("deep", &[]), 1));
    assert_eq!(way(&place.explain("app", &[])), [("mid", "ready")], "what is built holds nobody up");
    place.go(60);
    place.finish("mid", failed(FailureClass::BuildFailure, "no", 0));
    let app = place.explain("app", &[]);
    assert_eq!(app.job.state, "dependency-failed");
    assert_eq!(way(&app), [("mid", "failed")]);
    assert!(place.farm.explanation(&drv("other"), Timestamp(0), &BTreeSet::new()).is_none());
}

#[test]
fn each_worker_is_something_to_a_ready_job() {
    let kvm = JobSpec { required_features: BTreeSet::from(["kvm".to_owned()]), ..spec("test", &[]) };
    let large = JobSpec { resources: Resources { cores: 1, memory_mib: 9_000 }, ..spec("large", &[]) };
    let other = JobSpec { system: "aarch64-linux".to_owned(), ..spec("arm", &[]) };
    let mut place = Place::new(&[("w1", 1), ("w2", 1), ("w3", 0)], &[kvm, large, other, spec("a", &[])]);
    let table: [(&str, &[&str], &[Group<'_>]); 5] = [
        ("a", &[], &[("have room", 2, "w1"), ("have 0 slots", 1, "w3")]),
        (
            "a",
            &["w1"],
            &[("have room", 1, "w2"), ("take nothing new at present, or are not connected", 1, "w1"), ("have 0 slots", 1, "w3")],
        ),
        ("test", &[], &[("lack kvm", 3, "w1")]),
        ("large", &[], &[("have too little memory", 3, "w1")]),
        ("arm", &[], &[("run other systems", 3, "w1")]),
    ];
    for (job, away, expect) in table {
        assert_eq!(workers(&place.explain(job, away)), expect, "{job} while {away:?} are away");
    }
    place.go(10);
    let lease = place.farm.live_lease(&drv("a")).expect("it runs");
    assert_eq!((lease.attempt, lease.epoch), (AttemptId(6), Epoch(1)), "{lease:?}");
    place.finish("a", failed(FailureClass::Infrastructure, "no disk", 0));
    assert_eq!(workers(&place.explain("a", &[]))[..2], [("have room", 1, "w2"), ("it failed there before", 1, "w1")]);
    let Lease { worker, .. } = lease;
    assert_eq!(worker.as_str(), "w1");
}
