//! What is counted of a farm: its queue by needs and reason, what runs, and how long jobs waited and ran.

use std::collections::BTreeSet;

use kiln_core::{Command, Farm, InputBytes, Limits, plan};
use kiln_wire::{AttemptId, FailureClass, JobSpec, LogIndex, Outcome, RequestId, Resources, Timestamp};

use crate::facts::{built, drv, failed, offer, spec, worker};

struct Place {
    farm: Farm,
    index: u64,
}

impl Place {
    fn new(workers: &[(&str, u32)]) -> Self {
        let mut place = Self { farm: Farm::new(), index: 0 };
        for (name, slots) in workers {
            let (worker, offer, attempts, since, judge) = (worker(name), offer(*slots), Vec::new(), None, false);
            place.apply(Command::Register { worker, offer, attempts, since, judge, now: Timestamp(0) });
        }
        place
    }

    fn apply(&mut self, command: Command) {
        self.index += 1;
        self.farm.apply(LogIndex(self.index), command);
    }

    fn submit(&mut self, jobs: &[JobSpec], now: u64) {
        let (request, now) = (RequestId(self.index + 100), Timestamp(now));
        self.apply(Command::Stage { request, jobs: jobs.to_vec(), now });
        self.apply(Command::Submit { request, name: String::new(), roots: Vec::new(), keep_going: true, asker: None, now });
    }

    fn go(&mut self, now: u64) {
        let (plan, _) = plan(&self.farm, Timestamp(now), &Limits::STANDARD);
        for placement in plan.placements {
            self.apply(Command::Assign { placements: vec![placement], now: Timestamp(now) });
        }
    }

    fn finish(&mut self, name: &str, outcome: Outcome, now: u64) {
        let lease = self.farm.live_lease(&drv(name)).expect("it runs");
        self.apply(Command::Finish { lease, outcome, learn: true, judge: false, now: Timestamp(now) });
    }

    /// The queue, as `system+features reason count`.
    fn queue(&self, delayed_max: usize) -> (Vec<String>, u64) {
        let (queue, beyond) = self.farm.queue(&self.farm.reasons(&BTreeSet::new()), delayed_max);
        let line = |(of, count): (kiln_core::Queued, u64)| {
            let features: Vec<&str> = of.features.iter().map(String::as_str).collect();
            let unplaceable = if of.is_unplaceable { " for ever" } else { "" };
            format!("{}+{} {} {count}{unplaceable}", of.system, features.join(","), of.reason)
        };
        (queue.into_iter().map(line).collect(), beyond)
    }

    fn waited(&self, name: &str) -> Option<u64> {
        let lease = self.farm.live_lease(&drv(name))?;
        self.farm.waited(&drv(name), lease.attempt).map(|spent| spent.ms)
    }

    fn ran(&self, name: &str, at: u64) -> Option<(&str, u64)> {
        self.farm.ran(&drv(name), Timestamp(at)).map(|spent| (spent.system, spent.ms))
    }
}

fn lost() -> Outcome {
    failed(FailureClass::Infrastructure, "no", 0)
}

#[test]
fn the_queue_is_counted_by_what_jobs_need_and_why_they_wait() {
    let elsewhere = |name: &str| JobSpec { system: "aarch64-linux".to_owned(), ..spec(name, &[]) };
    let special = JobSpec { required_features: ["big".to_owned(), "kvm".to_owned()].into(), ..spec("special", &[]) };
    let large = JobSpec { resources: Resources { cores: 1, memory_mib: 1 << 20 }, ..spec("large", &[]) };
    let mut place = Place::new(&[("w1", 1)]);
    assert_eq!(place.queue(9), (Vec::new(), 0));
    place.submit(&[spec("a", &[]), spec("b", &[]), spec("c", &[]), spec("behind", &["a"])], 0);
    place.submit(&[elsewhere("d"), elsewhere("e"), special, large], 0);
    assert_eq!(place.queue(9).0.len(), 4, "what waits for inputs does not wait for a worker: {:?}", place.queue(9));
    place.go(1);
    let expected = [
        "aarch64-linux+ lacks_system 2 for ever",
        "x86_64-linux+ busy 2",
        "x86_64-linux+ lacks_memory 1 for ever",
        "x86_64-linux+big,kvm lacks_features 1 for ever",
    ];
    assert_eq!(place.queue(9).0, expected);
    assert_eq!(place.farm.running_by_system().into_iter().collect::<Vec<_>>(), [("x86_64-linux", 1)]);
}

#[test]
fn what_backs_off_is_looked_at_up_to_a_number_and_counted_beyond() {
    let mut place = Place::new(&[("w1", 3)]);
    place.submit(&[spec("a", &[]), spec("b", &[]), spec("c", &[])], 0);
    place.go(1);
    for name in ["a", "b", "c"] {
        place.finish(name, lost(), 2);
    }
    assert_eq!(place.queue(9), (vec!["x86_64-linux+ back_off 3".to_owned()], 0));
    assert_eq!(place.queue(1), (vec!["x86_64-linux+ back_off 1".to_owned()], 2));
}

#[test]
fn a_job_waits_from_when_it_could_begin() {
    let mut place = Place::new(&[("w1", 1), ("w2", 1)]);
    let first = spec("first", &[]);
    place.submit(&[first.clone(), spec("second", &["first"])], 100);
    place.go(130);
    assert_eq!((place.waited("first"), place.waited("second")), (Some(30), None), "since it was submitted; the other does not run");
    place.finish("first", built(&first, 1), 1_000);
    place.go(1_400);
    assert_eq!(place.waited("second"), Some(400), "since its input was built");
    let (lease, other) = (place.farm.live_lease(&drv("second")).expect("it runs"), AttemptId(9_999));
    assert_eq!(place.farm.waited(&drv("second"), other), None, "it is that attempt alone that has waited");
    let back_off = 600_000;
    place.finish("second", lost(), 2_000);
    place.go(2_000 + back_off);
    let again = place.farm.live_lease(&drv("second")).expect("it is tried again");
    assert!(again.attempt != lease.attempt && place.waited("second") == Some(back_off), "since its last attempt ended: {again:?}");
}

#[test]
fn an_attempt_ran_until_the_moment_at_which_it_ended() {
    let mut place = Place::new(&[("w1", 1)]);
    let job = spec("a", &[]);
    place.submit(std::slice::from_ref(&job), 0);
    place.go(100);
    assert_eq!(place.ran("a", 100), None, "it runs");
    place.finish("a", lost(), 350);
    assert_eq!((place.ran("a", 350), place.ran("a", 351)), (Some(("x86_64-linux", 250)), None), "no other event is its end");
    place.go(900_000);
    place.finish("a", built(&job, 1), 900_007);
    assert_eq!(place.ran("a", 900_007), Some(("x86_64-linux", 7)), "of a build that has ended with it too");
}

#[test]
fn inputs_that_a_worker_has_are_told_from_those_that_it_fetches() {
    let mut place = Place::new(&[("w1", 1)]);
    let large = spec("large", &[]);
    place.submit(&[large.clone(), spec("user", &["large"])], 0);
    place.go(1);
    let outcome = match built(&large, 1) {
        Outcome::Built { mut outputs, usage } => {
            outputs.iter_mut().for_each(|output| output.info.nar_size_bytes = 50 << 20);
            Outcome::Built { outputs, usage }
        }
        failed @ Outcome::Failed { .. } => failed,
    };
    place.finish("large", outcome, 2);
    let bytes = |name: &str| place.farm.input_bytes(&drv("user"), &worker(name));
    assert_eq!(bytes("w1"), InputBytes { had: 50 << 20, lacked: 0 });
    assert_eq!(bytes("w2"), InputBytes { had: 0, lacked: 50 << 20 });
    assert_eq!(place.farm.input_bytes(&drv("large"), &worker("w1")), InputBytes::default(), "it needs nothing");
}
