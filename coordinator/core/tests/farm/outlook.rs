//! When builds are expected to end, and what a person is shown of their graphs.

use std::collections::BTreeSet;

use kiln_core::{Asker, Command, Farm, Limits, Outlook, Sight, Surveying, plan};
use kiln_wire::{Account, BuildId, FailureClass, JobSpec, LogIndex, Outcome, RequestId, TenantName, Timestamp};

use crate::facts::{built, drv, failed, offer, spec, worker};

struct Place {
    farm: Farm,
    index: u64,
}

impl Place {
    fn new(slots: u32) -> Self {
        let mut place = Self { farm: Farm::new(), index: 0 };
        let (attempts, since, judge) = (Vec::new(), None, false);
        place.apply(Command::Register { worker: worker("w1"), offer: offer(slots), attempts, since, judge, now: Timestamp(0) });
        place
    }

    fn apply(&mut self, command: Command) -> u64 {
        self.index += 1;
        self.farm.apply(LogIndex(self.index), command);
        self.index
    }

    /// Submits jobs as a build of their own, as `app<lib,gcc lib<gcc gcc`.
    fn submit(&mut self, graph: &str, security: bool) -> BuildId {
        self.submit_as(graph, security.then(|| Asker { security, ..Asker::default() }))
    }

    fn submit_as(&mut self, graph: &str, asker: Option<Asker>) -> BuildId {
        let request = RequestId(self.index + 100);
        let jobs: Vec<JobSpec> = graph.split(' ').map(job).collect();
        self.apply(Command::Stage { request, jobs, now: Timestamp(0) });
        BuildId(self.apply(Command::Submit { request, name: String::new(), roots: Vec::new(), keep_going: true, asker, now: Timestamp(0) }))
    }

    fn go(&mut self, now: u64) {
        let (plan, _) = plan(&self.farm, Timestamp(now), &Limits::STANDARD);
        for placement in plan.placements {
            self.apply(Command::Assign { placements: vec![placement], now: Timestamp(now) });
        }
    }

    fn finish(&mut self, name: &str, outcome: Outcome, now: u64) {
        let lease = self.farm.live_lease(&drv(name)).expect("it runs");
        self.apply(Command::Finish { lease, outcome, learn: false, judge: false, now: Timestamp(now) });
    }

    fn outlook(&self, id: BuildId, now: u64) -> Outlook {
        self.farm.survey(Timestamp(now)).outlooks.remove(&id).expect("the build has jobs left")
    }
}

fn job(text: &str) -> JobSpec {
    let (name, inputs) = text.split_once('<').unwrap_or((text, ""));
    spec(name, &inputs.split(',').filter(|input| !input.is_empty()).collect::<Vec<_>>())
}

/// What the farm expects of a job of which it knows nothing.
fn one_job_ms() -> u64 {
    let mut place = Place::new(1);
    let id = place.submit("a", false);
    place.outlook(id, 0).low_ms
}

#[test]
fn a_build_ends_between_its_longest_chain_or_all_its_work_and_both() {
    let one = one_job_ms();
    for (slots, graph, chain, work) in
        [(1, "c<b b<a a", 3, 3), (9, "c<b b<a a", 3, 3), (1, "a b c d", 1, 4), (2, "a b c d", 1, 4), (2, "z<a,b a b c", 2, 4)]
    {
        let mut place = Place::new(slots);
        let id = place.submit(graph, false);
        let outlook = place.outlook(id, 0);
        let (chain_ms, spread_ms) = (chain * one, work * one / u64::from(slots));
        assert_eq!(outlook.low_ms, chain_ms.max(spread_ms), "{graph} on {slots}");
        assert_eq!(outlook.likely_ms, outlook.low_ms + (chain_ms + spread_ms - outlook.low_ms) / 2, "{graph} on {slots}");
        assert!(outlook.high_ms >= chain_ms + spread_ms && outlook.likely_ms <= outlook.high_ms, "{graph} on {slots}: {outlook:?}");
        assert_eq!((outlook.open, outlook.measured), (work, 0), "{graph}: nothing is known of any");
    }
}

#[test]
fn what_a_job_has_run_for_is_no_longer_left() {
    let mut place = Place::new(1);
    let id = place.submit("b<a a", false);
    let before = place.outlook(id, 0);
    place.go(0);
    let past = before.low_ms / 4;
    assert_eq!(place.outlook(id, past).low_ms, before.low_ms - past);
    assert_eq!(place.outlook(id, u64::MAX).low_ms, before.low_ms / 2, "a job that takes longer than expected has nothing left to expect");
}

#[test]
fn the_work_of_others_goes_before_a_build_unless_it_is_of_the_security_class() {
    let alone = |security| {
        let mut place = Place::new(1);
        let id = place.submit("a", security);
        place.outlook(id, 0).high_ms
    };
    let beside = |security| {
        let mut place = Place::new(1);
        place.submit("x y z", false);
        let id = place.submit("a", security);
        place.outlook(id, 0).high_ms
    };
    assert_eq!(beside(true), alone(true));
    assert_eq!(beside(false), alone(false) + 3 * one_job_ms());
}

#[test]
fn the_critical_path_says_what_was_built_of_it_and_what_is_on_it_now() {
    let mut place = Place::new(4);
    let id = place.submit("top<app,doc app<lib lib<gcc,sh gcc sh doc<sh", false);
    place.go(0);
    place.finish("sh", built(&spec("sh", &[]), 1), 40);
    place.finish("gcc", built(&spec("gcc", &[]), 2), 90);
    place.go(100);
    let outlook = place.outlook(id, 100);
    assert_eq!(outlook.head, Some(drv("lib")));
    let path = place.farm.critical_path(&outlook, 10);
    assert_eq!(path.past, [drv("gcc")], "gcc was built last of what lib needs");
    let left: Vec<_> = path.left.iter().map(|step| (step.derivation.name(), step.state, step.running.is_some())).collect();
    assert_eq!(left, [("lib", "running", true), ("app", "blocked", false), ("top", "blocked", false)]);
    assert_eq!(place.farm.critical_path(&outlook, 1).left.len(), 1);
    assert_eq!(place.farm.critical_path(&Outlook::default(), 9).left.len(), 0);
}

#[test]
fn a_failure_says_how_many_jobs_it_holds_up() {
    let mut place = Place::new(4);
    let id = place.submit("top<app app<lib lib other<sh sh", false);
    place.go(0);
    place.finish("lib", failed(FailureClass::BuildFailure, "no", 0), 70);
    let survey = place.farm.survey(Timestamp(80));
    let failed: Vec<_> = survey.failed.iter().map(|job| (job.derivation.name(), job.class, job.at, job.holds_up)).collect();
    assert_eq!(failed, [("lib", FailureClass::BuildFailure, Some(Timestamp(70)), 2)]);
    assert_eq!(survey.failed[0].builds, [id]);
    assert_eq!(survey.outlooks[&id].open, 2, "what can be built is left");
}

#[test]
fn a_sketch_of_a_large_build_has_the_critical_path_what_runs_and_what_is_asked_for() {
    let mut place = Place::new(2);
    let many: Vec<String> = (0..40).map(|at| format!("leaf{at}")).collect();
    let graph = format!("c<b b<a a {}", many.join(" "));
    let id = place.submit(&graph, false);
    place.go(0);
    let outlook = place.outlook(id, 0);
    let whole = place.farm.sketch(id, Some(&outlook), &[], 100).expect("the build is live");
    assert_eq!((whole.nodes.len(), whole.left_out), (43, 0));
    let part = place.farm.sketch(id, Some(&outlook), &[drv("leaf39")], 8).expect("the build is live");
    let names: BTreeSet<&str> = part.nodes.iter().map(|node| node.derivation.name()).collect();
    assert!(["a", "b", "c", "leaf39"].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(part.nodes.iter().any(|node| node.state == "running"));
    assert_eq!(u64::try_from(part.nodes.len()).expect("few") + part.left_out, 43);
    let edges: Vec<_> = part.nodes.iter().filter(|node| node.is_critical).map(|node| node.inputs.len()).collect();
    assert_eq!(edges, [0, 1, 1]);
    assert!(place.farm.sketch(BuildId(9_999), None, &[], 8).is_none());
}

#[test]
fn a_build_waits_for_its_own_jobs_and_not_for_what_others_build_with_them() {
    let one = one_job_ms();
    let mut place = Place::new(9);
    let own = place.submit("app<lib lib", false);
    let other = place.submit("x<lib lib y<x z<y top<z", false);
    assert_eq!(place.outlook(own, 0).low_ms, 2 * one);
    assert_eq!(place.outlook(other, 0).low_ms, 5 * one);
    let left = |id| {
        let path = place.farm.critical_path(&place.outlook(id, 0), 10);
        path.left.into_iter().map(|step| step.derivation.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(left(own), ["lib", "app"]);
    assert_eq!(left(other), ["lib", "x", "y", "z", "top"]);
}

#[test]
fn a_walk_in_pieces_finds_what_one_in_one_go_does() {
    let mut place = Place::new(2);
    place.submit("top<app app<lib lib other<sh sh", false);
    place.submit("c<b b<lib lib d", true);
    place.go(0);
    place.finish("lib", failed(FailureClass::BuildFailure, "no", 0), 70);
    let whole = place.farm.survey(Timestamp(80));
    for looked_max in [1, 2, 3, 7] {
        let (mut walk, mut pieces) = (Surveying::default(), 0);
        while walk.go_on(&place.farm, Timestamp(80), looked_max) {
            pieces += 1;
        }
        assert!(pieces > 4, "{looked_max}");
        assert_eq!(walk.end(), whole, "{looked_max}");
    }
}

#[test]
fn a_failure_holds_up_what_waits_for_another_one_too() {
    let mut place = Place::new(4);
    place.submit("top<a,b,c a b c", false);
    place.go(0);
    place.finish("a", failed(FailureClass::BuildFailure, "no", 0), 70);
    place.finish("b", failed(FailureClass::BuildFailure, "no", 0), 71);
    for name in ["a", "b"] {
        assert_eq!(place.farm.held_up(&drv(name), &Sight::All, 9), Some(1), "{name}");
    }
    assert_eq!(place.farm.held_up(&drv("a"), &Sight::All, 1), None, "there may be more than was looked at");
    assert_eq!(place.farm.held_up(&drv("top"), &Sight::All, 1), Some(0));
    assert_eq!(place.farm.held_up(&drv("none"), &Sight::All, 9), None);
}

#[test]
fn who_builds_what_with_a_shared_job_is_told_its_owner_alone() {
    let mut place = Place::new(1);
    let tenant = |name: &str| TenantName::parse(name).expect("a name");
    let asker = |name: &str| Asker { account: Account { tenant: Some(tenant(name)), project: None }, ..Asker::default() };
    place.submit_as("ours<lib lib", Some(asker("a")));
    place.submit_as("theirs<lib more<theirs lib urgent", Some(asker("b")));
    let (own, other) = (Sight::Of(tenant("a")), Sight::Of(tenant("b")));
    for (sight, names, all) in [(&own, vec!["ours"], 1), (&other, vec!["theirs"], 2), (&Sight::All, vec!["ours", "theirs"], 3)] {
        let [_, (dependents, more)] = place.farm.neighbours(&drv("lib"), 9, sight).expect("it is there");
        let dependents: Vec<_> = dependents.iter().map(|(job, _)| job.name()).collect();
        assert_eq!((dependents, more), (names.clone(), 0), "{sight:?}");
        let [_, (named, more)] = place.farm.neighbours(&drv("lib"), 1, sight).expect("it is there");
        assert_eq!((named.len(), more), (1, u64::try_from(names.len()).expect("few") - 1), "{sight:?}");
        let told = place.farm.explanation_seen(&drv("lib"), Timestamp(0), &BTreeSet::new(), sight).expect("they see it");
        assert_eq!((told.dependents_all, told.dependents), (all, u64::try_from(names.len()).expect("few")), "{sight:?}");
    }
    assert!(place.farm.explanation_seen(&drv("urgent"), Timestamp(0), &BTreeSet::new(), &own).is_none());
}

#[test]
fn of_packages_those_are_told_that_a_build_has_built_in_whichever_pieces_one_looks() {
    let mut place = Place::new(4);
    let id = place.submit("top<lib lib sh other", false);
    place.go(0);
    place.finish("lib", built(&spec("lib", &[]), 1), 40);
    place.finish("other", built(&spec("other", &[]), 2), 41);
    let wanted: BTreeSet<String> = ["lib", "sh", "top", "gone"].map(str::to_owned).into();
    for looked_max in [1, 2, 9] {
        let (mut found, mut after) = (BTreeSet::new(), None);
        loop {
            after = place.farm.packages_built(id, after, looked_max, &wanted, &mut found);
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, BTreeSet::from(["lib".to_owned()]), "{looked_max}");
    }
}
