//! What happens at the farm's own limits.

use kiln_core::{Answer, Command, Effect, Farm, Refused, Resolution};
use kiln_wire::limits::{ATTEMPTS_KEPT_MAX, FAILURE_MESSAGE_BYTES_MAX, JOBS_PER_ENTRY_MAX, STAGES_MAX};
use kiln_wire::{FailureClass, JobSpec, LogIndex, RequestId, Timestamp};

use crate::facts::{drv, failed, offer, root, spec, worker};

struct Log {
    farm: Farm,
    index: u64,
}

impl Log {
    fn apply(&mut self, command: Command) -> Vec<Effect> {
        self.index += 1;
        self.farm.apply(LogIndex(self.index), command)
    }
}

fn log() -> Log {
    Log { farm: Farm::new(), index: 0 }
}

fn is_refused(effects: &[Effect], refused: &Refused) -> bool {
    effects == [Effect::Answer(Answer::Refused(refused.clone()))]
}

#[test]
fn the_stage_that_was_left_alone_longest_makes_room() {
    let mut log = log();
    let stages_max = u64::try_from(STAGES_MAX).expect("small");
    for number in 0..=stages_max {
        let command = Command::Stage { request: RequestId(number), jobs: vec![spec("a", &[])], now: Timestamp(1000 - number) };
        assert_eq!(log.apply(command), []);
    }
    let submit = |request: u64| Command::Submit {
        request: RequestId(request),
        name: String::new(),
        roots: vec![root("a")],
        keep_going: false,
        asker: None,
        now: Timestamp(1000),
    };
    // The one before the last has the earliest time: it had to go when the last one came.
    let gone = stages_max - 1;
    assert!(is_refused(&log.apply(submit(gone)), &Refused::StageDropped(RequestId(gone))));
    assert!(matches!(log.apply(submit(0)).as_slice(), [Effect::Answer(Answer::Submitted { .. })]));
}

#[test]
fn an_entry_over_its_limit_drops_its_submission() {
    let mut log = log();
    let request = RequestId(1);
    let jobs: Vec<_> = (0..=JOBS_PER_ENTRY_MAX).map(|number| spec(&format!("j{number}"), &[])).collect();
    let count = |jobs: usize| u64::try_from(jobs).expect("small");
    let refused = Refused::TooManyJobs { request, jobs: count(jobs.len()), jobs_max: count(JOBS_PER_ENTRY_MAX) };
    assert!(is_refused(&log.apply(Command::Stage { request, jobs, now: Timestamp(0) }), &refused));
    let submit = Command::Submit { request, name: String::new(), roots: vec![], keep_going: false, asker: None, now: Timestamp(0) };
    assert!(is_refused(&log.apply(submit), &Refused::StageDropped(request)));
}

#[test]
fn an_entry_that_is_applied_again_changes_nothing() {
    let mut log = log();
    let register =
        Command::Register { worker: worker("w1"), offer: offer(1), attempts: vec![], since: None, judge: false, now: Timestamp(0) };
    assert_eq!(log.apply(register.clone()).len(), 1);
    let before = log.farm.clone();
    assert_eq!(log.farm.apply(LogIndex(log.index), register), []);
    assert_eq!(log.farm, before);
}

#[test]
fn a_job_keeps_few_attempts_and_short_messages_however_often_it_fails() {
    let mut log = log();
    let mut now = Timestamp(0);
    log.apply(Command::Register { worker: worker("w1"), offer: offer(1), attempts: vec![], since: None, judge: false, now });
    log.apply(Command::Stage { request: RequestId(1), jobs: vec![spec("a", &[])], now });
    log.apply(Command::Submit { request: RequestId(1), name: String::new(), roots: vec![root("a")], keep_going: false, asker: None, now });
    for _ in 0..ATTEMPTS_KEPT_MAX + 5 {
        now = now.after_ms(1_000_000);
        let (plan, _) = kiln_core::plan(&log.farm, now, &kiln_core::Limits::default());
        log.apply(Command::Assign { placements: plan.placements, now });
        let lease = log.farm.live_lease(&drv("a")).expect("the only worker takes it again after each back-off");
        let message = "é".repeat(FAILURE_MESSAGE_BYTES_MAX);
        log.apply(Command::Finish { lease, outcome: failed(FailureClass::Infrastructure, &message, 0), learn: false, judge: false, now });
        log.farm.check_invariants().expect("invariants hold");
    }
    let view = log.farm.job_view(&drv("a")).expect("the job is there");
    assert_eq!((view.attempts.len(), view.state.as_str()), (ATTEMPTS_KEPT_MAX, "ready"));
    let longest = view.attempts.iter().filter_map(|attempt| attempt.failure.as_ref()).map(|(_, message)| message.len()).max();
    assert_eq!(longest, Some(FAILURE_MESSAGE_BYTES_MAX));
}

#[test]
fn a_growth_that_is_refused_leaves_nothing_staged() {
    let mut log = log();
    let now = Timestamp(0);
    let unresolved = JobSpec { resolve: true, ..spec("unresolved", &[]) };
    let submit = |request, root| Command::Submit { request, name: String::new(), roots: vec![root], keep_going: false, asker: None, now };
    log.apply(Command::Stage { request: RequestId(1), jobs: vec![unresolved, spec("ready", &[])], now });
    log.apply(submit(RequestId(1), root("ready")));
    // What is to be resolved, what it is to need, and why that is refused.
    for (number, (name, need, refused)) in [
        ("nowhere", "part", Refused::NoSuchJob(drv("nowhere"))),
        ("ready", "part", Refused::NotUnresolved(drv("ready"))),
        ("unresolved", "other", Refused::WrongResolution(drv("unresolved"))),
    ]
    .into_iter()
    .enumerate()
    {
        let request = RequestId(10 + u64::try_from(number).expect("small"));
        log.apply(Command::Stage { request, jobs: vec![spec("part", &[])], now });
        let to = Resolution::Grow { request, needs: vec![drv(need)] };
        assert!(is_refused(&log.apply(Command::Resolve { derivation: drv(name), inputs: vec![], to, now }), &refused), "{name}");
        // Whatever is still staged would join now.
        log.apply(submit(request, root("part")));
        assert!(!log.farm.has_job(&drv("part")), "{name}");
    }
}
