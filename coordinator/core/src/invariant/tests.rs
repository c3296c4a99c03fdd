//! Every invariant catches a bug that is planted for it.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use kiln_wire::worker::Offer;
use kiln_wire::{
    AttemptId, Blake3Hash, Blob, BuildId, BuiltOutput, DerivedInput, DrvPath, Epoch, Failure, FailureClass, JobKind, JobLimits, JobSpec,
    LogIndex, Outcome, OutputName, PathInfo, RequestId, Resources, Sha256Hash, StorePath, Timestamp, Usage, WorkerId,
};

use super::*;
use crate::command::{Command, Placement};
use crate::job::Running;

const HASH: &str = "00000000000000000000000000000000-";

fn drv(name: &str) -> DrvPath {
    DrvPath::parse(&format!("{HASH}{name}.drv")).expect("test names are valid")
}

fn worker(name: &str) -> WorkerId {
    WorkerId::parse(name).expect("test names are valid")
}

fn out() -> OutputName {
    OutputName::parse("out").expect("`out` is a name")
}

fn path(name: &str) -> StorePath {
    StorePath::parse(&format!("{HASH}{name}")).expect("test names are valid")
}

fn spec(name: &str, inputs: &[&str]) -> JobSpec {
    JobSpec {
        derivation: drv(name),
        system: "x86_64-linux".to_string(),
        required_features: BTreeSet::new(),
        outputs: BTreeMap::from([(out(), Some(path(name)))]),
        inputs: inputs.iter().map(|input| DerivedInput { derivation: drv(input), outputs: [out()].into() }).collect(),
        kind: JobKind::Ordinary,
        prefer_local: false,
        resources: Resources { cores: 1, memory_mib: 100 },
        limits: JobLimits::default(),
        resolve: false,
    }
}

/// A farm in which every state occurs: `gcc` is built, `lib` runs, `app` is blocked, `bad` failed and `user` with it, `tool` backs off,
/// `two` runs for a build that stops, `gone` runs for nobody.
struct Planted {
    farm: Farm,
    index: u64,
}

impl Planted {
    fn new() -> Self {
        let mut planted = Self { farm: Farm::new(), index: 0 };
        let offer = Offer {
            systems: BTreeSet::from(["x86_64-linux".to_string()]),
            features: BTreeSet::new(),
            capacity: Resources { cores: 8, memory_mib: 4096 },
            slots: 8,
            guarantees: BTreeMap::new(),
            ..Offer::default()
        };
        planted.apply(Command::Register { worker: worker("w1"), offer, attempts: vec![], since: None, judge: false, now: Timestamp(0) });
        let graph = vec![spec("gcc", &[]), spec("lib", &["gcc"]), spec("app", &["lib"]), spec("bad", &[]), spec("user", &["bad"])];
        planted.submit(1, true, graph.into_iter().chain([spec("tool", &[]), spec("more", &[])]).collect());
        planted.submit(2, false, vec![spec("one", &[]), spec("two", &[])]);
        planted.submit(3, false, vec![spec("gone", &[])]);
        for job in ["gcc", "bad", "tool", "one", "two", "gone"] {
            planted.assign(job);
        }
        planted.finish("gcc", None);
        planted.finish("bad", Some(FailureClass::BuildFailure));
        planted.finish("tool", Some(FailureClass::Infrastructure));
        planted.finish("one", Some(FailureClass::BuildFailure));
        planted.assign("lib");
        let build = planted.farm.builds().last().expect("three builds");
        planted.apply(Command::Cancel { build, now: Timestamp(0) });
        planted.farm.check_invariants().expect("nothing is planted yet");
        planted
    }

    fn apply(&mut self, command: Command) {
        self.index += 1;
        self.farm.apply(LogIndex(self.index), command);
    }

    fn submit(&mut self, request: u64, keep_going: bool, jobs: Vec<JobSpec>) {
        let (request, now) = (RequestId(request), Timestamp(0));
        self.apply(Command::Stage { request, jobs, now });
        self.apply(Command::Submit { request, name: String::new(), roots: vec![], keep_going, asker: None, now });
    }

    fn assign(&mut self, job: &str) {
        let placement =
            Placement { derivation: drv(job), worker: worker("w1"), epoch: Epoch(1), resources: None, light: false, after: None };
        self.apply(Command::Assign { placements: vec![placement], now: Timestamp(0) });
    }

    fn finish(&mut self, job: &str, class: Option<FailureClass>) {
        let lease = self.farm.live_lease(&drv(job)).expect("the job runs");
        let usage = Usage::default();
        let outcome = match class {
            Some(class) => Outcome::Failed { failure: Failure { class, message: String::new() }, usage },
            None => Outcome::Built { outputs: vec![BuiltOutput { name: out(), info: info(path(job)) }], usage },
        };
        self.apply(Command::Finish { lease, outcome, learn: true, judge: false, now: Timestamp(0) });
    }
}

fn info(path: StorePath) -> PathInfo {
    PathInfo {
        path,
        nar_hash: Sha256Hash([1; 32]),
        nar_size_bytes: 1,
        references: BTreeSet::new(),
        deriver: None,
        content_address: None,
        blob: Blob { size_bytes: 1, blake3: Blake3Hash([1; 32]), sha256: Sha256Hash([1; 32]) },
    }
}

fn key(farm: &Farm, name: &str) -> JobKey {
    farm.key_of(&drv(name)).expect("the job is there")
}

fn job<'a>(farm: &'a mut Farm, name: &str) -> &'a mut Job {
    let key = key(farm, name);
    farm.facts.jobs.get_mut(&key).expect("the job is there")
}

fn lease<'a>(farm: &'a mut Farm, name: &str) -> &'a mut Running {
    match &mut job(farm, name).state {
        State::Running(running) => running,
        State::Waiting | State::Built { .. } | State::Failed { .. } | State::DependencyFailed { .. } => panic!("{name} runs"),
    }
}

/// Gives a running job a second attempt, on a worker that is registered for it.
fn copy<'a>(farm: &'a mut Farm, name: &str) -> &'a mut Running {
    let known = farm.facts.workers.values().next().expect("there is one").clone();
    farm.facts.workers.insert(worker("w2"), known);
    let first = lease(farm, name);
    let begun = Running::begun(AttemptId(1), (worker("w2"), first.epoch), first.granted, first.started_at);
    first.copy.insert(Box::new(begun))
}

fn build(farm: &mut Farm, at: usize) -> (BuildId, &mut crate::build::Build) {
    farm.facts.builds.iter_mut().nth(at).map(|(id, build)| (*id, build)).expect("three builds")
}

type Plant = fn(&mut Farm);

/// A bug in what is derived: the comparison finds it.
#[test]
fn a_planted_bug_in_the_index_is_caught() {
    let table: [(&str, Plant); 19] = [
        ("by_path", |farm| farm.index.by_path.clear()),
        ("links", |farm| farm.index.links.values_mut().for_each(|links| links.unbuilt += 1)),
        ("ready", |farm| farm.index.ready.clear()),
        ("delayed", |farm| farm.index.delayed.clear()),
        ("grace", |farm| farm.index.grace.clear()),
        ("loads", |farm| farm.index.loads.values_mut().for_each(|load| load.used.cores += 1)),
        ("paths", |farm| farm.index.paths.clear()),
        ("requests", |farm| farm.index.requests.clear()),
        ("tallies", |farm| farm.index.tallies.values_mut().for_each(|tally| tally.open += 1)),
        ("tallies", |farm| farm.index.tallies.values_mut().for_each(|tally| tally.counts.ready += 1)),
        ("counts", |farm| farm.index.counts.built += 1),
        ("topics", |farm| farm.index.topics.clear()),
        ("fleet", |farm| farm.index.fleet.seats.clear()),
        ("fleet", |farm| farm.index.fleet.whole.slots += 1),
        ("parties", |farm| farm.index.parties.clear()),
        ("held", |farm| farm.index.held.clear()),
        ("copies", |farm| farm.index.copies.extend([JobKey(0)])),
        ("late", |farm| farm.index.late.extend([(Timestamp(1), JobKey(0))])),
        ("ends", |farm| farm.index.ends.clear()),
    ];
    for (subject, plant) in table {
        let mut farm = Planted::new().farm;
        plant(&mut farm);
        let violation = farm.check_invariants().expect_err(subject);
        assert_eq!((violation.invariant, violation.subject.as_str()), ("the index is what the facts give", subject));
    }
}

/// A bug in the facts, with everything that follows from them kept up to date: only the invariant itself can find it.
#[test]
fn a_planted_bug_in_the_facts_is_caught() {
    let references = "references name jobs of the farm, in order";
    let fit = "live leases fit their worker's cores, memory and slots";
    let registered = "a live lease's worker is registered, at the lease's epoch or later";
    let attempts = "attempts are numbered by applied entries, each once";
    let started = "a job that was started has only built inputs";
    let dependency = "a job is dependency-failed just when an input failed, and names a job that failed itself";
    let outputs = "committed outputs are the derivation's whole output set";
    let revoked = "a live lease has a time of revocation just when no build awaits the job";
    let poisoned = "a job that failed on the most workers it may is not tried again";
    let held = "a job stays only while a build, a lease or an unpublished output holds it";
    let goes_on = "a build that goes on has open jobs, and one that stops waits for running jobs of its own";
    let submission = "a submission is staged, dropped, a live build or a retired one, and only one of these";
    let unresolved = "no worker has a job that is still to be resolved, and none is built";
    let resolution = "a resolved job was resolved from the committed outputs of its inputs";
    let table: [(&str, Plant); 26] = [
        (unresolved, |farm| job(farm, "lib").resolving = Some(Box::new(Resolving::Due))),
        (resolution, |farm| {
            let inputs = [(key(farm, "gcc"), out(), path("other"))].into();
            job(farm, "lib").resolving = Some(Box::new(Resolving::Done { derivation: drv("resolved"), inputs }));
        }),
        (references, |farm| job(farm, "lib").inputs = [JobKey(999)].into()),
        (references, |farm| job(farm, "gcc").inputs = [key(farm, "lib")].into()),
        (references, |farm| build(farm, 0).1.jobs = [JobKey(999)].into()),
        (references, |farm| {
            let app = key(farm, "app");
            build(farm, 0).1.jobs = [app].into();
        }),
        (references, |farm| farm.facts.job_next = 1),
        (references, |farm| job(farm, "app").derivation = alloc::sync::Arc::new(drv("lib"))),
        (fit, |farm| lease(farm, "lib").granted.cores = 7),
        (fit, |farm| lease(farm, "lib").granted.memory_mib = 4000),
        (fit, |farm| farm.facts.workers.values_mut().for_each(|worker| worker.offer.slots = 2)),
        (registered, |farm| farm.facts.workers.clear()),
        (registered, |farm| lease(farm, "lib").epoch = Epoch(5)),
        (attempts, |farm| lease(farm, "lib").attempt = AttemptId(10_000)),
        (started, |farm| job(farm, "gcc").state = State::Waiting),
        (dependency, |farm| job(farm, "user").state = State::Waiting),
        (dependency, |farm| job(farm, "user").state = State::DependencyFailed { cause: JobKey(0) }),
        (outputs, |farm| job(farm, "gcc").outputs = [].into()),
        (outputs, |farm| job(farm, "gcc").outputs[0].path = Some(path("other"))),
        (fit, |farm| lease(farm, "lib").light = true),
        (revoked, |farm| lease(farm, "lib").revoke_at = Some(Timestamp(7))),
        (revoked, |farm| lease(farm, "gone").revoke_at = None),
        (poisoned, |farm| job(farm, "tool").tries.failed_on = ["w1", "w2", "w3"].map(worker).into()),
        (held, |farm| {
            let more = key(farm, "more");
            let jobs = &mut build(farm, 0).1.jobs;
            *jobs = jobs.iter().copied().filter(|key| *key != more).collect();
        }),
        (goes_on, |farm| {
            build(farm, 1).1.phase = Phase::Going;
        }),
        (submission, |farm| {
            let request = build(farm, 0).1.request;
            farm.facts.dropped.insert(request, Timestamp(0));
        }),
    ];
    check_plants(table);
}

#[test]
fn a_planted_bug_of_two_attempts_or_of_what_is_remembered_is_caught() {
    let attempts = "attempts are numbered by applied entries, each once";
    let two = "a job has two live leases only if the younger, on another worker, is a copy of the elder";
    let remembered = "what ended attempts failed of is counted, and decides once none is left that could make it good";
    let table: [(&str, Plant); 6] = [
        (two, |farm| copy(farm, "lib").worker = worker("w1")),
        (two, |farm| copy(farm, "lib").revoke_at = Some(Timestamp(7))),
        (attempts, |farm| {
            let first = lease(farm, "lib").attempt;
            copy(farm, "lib").attempt = first;
        }),
        (remembered, |farm| job(farm, "tool").tries.failed_on.clear()),
        (remembered, |farm| job(farm, "tool").tries.infrastructure_count = 0),
        (remembered, |farm| {
            // One of two attempts failed, and nothing is owed for it.
            let failed = job(farm, "bad").tries.ended.clone();
            job(farm, "lib").tries.ended = failed;
        }),
    ];
    check_plants(table);
}

fn check_plants<const COUNT: usize>(table: [(&str, Plant); COUNT]) {
    for (number, (invariant, plant)) in table.into_iter().enumerate() {
        let mut farm = Planted::new().farm;
        plant(&mut farm);
        if check_references(&farm.facts).is_ok() {
            farm.index = Index::of(&farm.facts);
        }
        let violation = farm.check_invariants().expect_err(invariant);
        assert_eq!(violation.invariant, invariant, "plant {number}: {violation}");
        assert!(Farm::from_snapshot(&farm.to_snapshot()).is_err(), "plant {number}: a broken farm must not come out of a snapshot");
    }
}

/// The index as a whole would show it too: this is the invariant's own look.
#[test]
fn a_rank_that_follows_from_nothing_is_caught() {
    for change in [1, -1] {
        let mut farm = Planted::new().farm;
        let lib = key(&farm, "lib");
        let links = farm.index.links.get_mut(&lib).expect("it is linked");
        links.rank_ms = links.rank_ms.saturating_add_signed(change);
        ranks_cover_what_waits_behind(&farm).expect_err("off by one");
    }
}

#[test]
fn damaged_snapshots_are_errors_or_sound_farms() {
    let snapshot = Planted::new().farm.to_snapshot();
    for length in (0..snapshot.len()).step_by(7) {
        assert!(Farm::from_snapshot(&snapshot[..length]).is_err(), "cut at {length}");
    }
    for at in 0..snapshot.len() {
        let mut damaged = snapshot.clone();
        damaged[at] ^= [0x01, 0x80, 0xff][at % 3];
        if let Ok(farm) = Farm::from_snapshot(&damaged) {
            farm.check_invariants().expect("what comes out of a snapshot keeps every invariant");
        }
    }
}

#[test]
fn a_snapshot_of_another_version_is_refused_by_its_number() {
    let bytes = kiln_wire::frame::to_bytes(&BTreeMap::from([("version", 77)])).expect("small");
    let error = Farm::from_snapshot(&bytes).expect_err("version 77");
    assert_eq!(error.to_string(), "read snapshot: version 77, this program reads 1");
}
