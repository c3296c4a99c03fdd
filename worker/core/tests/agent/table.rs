//! One line is one message or event, and what the agent does about it. Leases are written `job#attempt/epoch`.

use kiln_agent::{Action, Agent};
use kiln_wire::worker::{FromWorker, Lacking, Strain, ToWorker};
use kiln_wire::{Epoch, Leader, Lease, Resources};

use crate::facts::{assignment, built, drv, leader, lease, offer, out, worker};

/// Runs `steps` on a fresh agent of two slots, two cores and 1000 MiB, and compares what it does.
fn check(steps: &[(&str, &str)]) -> Agent {
    let mut agent = Agent::restore(worker("w1"), offer(2), Leader::default(), Vec::new());
    check_on(&mut agent, steps);
    agent
}

fn check_on(agent: &mut Agent, steps: &[(&str, &str)]) {
    for (step, expect) in steps {
        let actions: Vec<String> = run(agent, step).iter().map(text).collect();
        assert_eq!(actions.join(", "), *expect, "after `{step}`");
    }
}

/// `welcome TERM EPOCH [LEASE…]`, of an earlier release `old-welcome …` · `dispatch TERM LEASE [cores=N] [mem=N]` · `revoke TERM LEASE` · `acknowledge LEASE` ·
/// `started LEASE` · `wound LEASE` · `ended LEASE` · `strained WHY` · `relieved` · `disconnected` · `hello`
fn run(agent: &mut Agent, step: &str) -> Vec<Action> {
    let words: Vec<&str> = step.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    let option = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)).map(|value| value.parse().expect("a number"));
    match words[0] {
        "welcome" | "old-welcome" => {
            let keep = words[3..].iter().map(|word| read(word)).collect();
            let (leader, epoch, log_bytes) = (leader(number(1)), Epoch(number(2)), Default::default());
            agent.receive(ToWorker::Welcome {
                leader,
                epoch,
                keep,
                log_bytes,
                hears_strain: words[0] == "welcome",
                hears_winding: words[0] == "welcome",
            })
        }
        "dispatch" => {
            let cores = u32::try_from(option("cores=").unwrap_or(1)).expect("small");
            let resources = Resources { cores, memory_mib: option("mem=").unwrap_or(0) };
            agent.receive(ToWorker::Dispatch(assignment(read(words[2]), number(1), resources)))
        }
        "revoke" => agent.receive(ToWorker::Revoke { leader: leader(number(1)), lease: read(words[2]) }),
        "acknowledge" => {
            let Lease { derivation, attempt, .. } = read(words[1]);
            agent.receive(ToWorker::Acknowledge { derivation, attempt })
        }
        "started" => agent.started(&read(words[1])),
        "ended" => agent.ended(&read(words[1]), built(read(words[1]).derivation.name())),
        "wound" => agent.wound(&read(words[1])),
        "disconnected" => {
            agent.disconnected();
            Vec::new()
        }
        "strained" => agent.strained(Some(Strain { lacks: Lacking::Disk, message: words[1].to_owned() })),
        "relieved" => agent.strained(None),
        "hello" => vec![Action::Send(FromWorker::Hello(agent.hello()))],
        other => panic!("no such step: {other}"),
    }
}

fn read(text: &str) -> Lease {
    let (job, rest) = text.split_once('#').expect("job#attempt/epoch");
    let (attempt, epoch) = rest.split_once('/').expect("job#attempt/epoch");
    lease(job, attempt.parse().expect("a number"), "w1", epoch.parse().expect("a number"))
}

fn name(lease: &Lease) -> String {
    format!("{}#{}/{}", lease.derivation.name(), lease.attempt, lease.epoch)
}

fn text(action: &Action) -> String {
    match action {
        Action::Start(assignment) => format!("start {}", name(&assignment.lease)),
        Action::Kill(lease) => format!("kill {}", name(lease)),
        Action::Send(FromWorker::Started(lease)) => format!("send started {}", name(lease)),
        Action::Send(FromWorker::Finished { lease, .. }) => format!("send finished {}", name(lease)),
        Action::Send(FromWorker::Hello(hello)) => {
            let strain = hello.strain.as_ref().map(|strain| format!(" {:?}", strain.lacks)).unwrap_or_default();
            format!(
                "send hello term={}{strain} [{}]",
                hello.leader_seen.term,
                hello.attempts.iter().map(name).collect::<Vec<_>>().join(" ")
            )
        }
        Action::Send(FromWorker::Admission(strain)) => format!("send lacks {:?}", strain.as_ref().map(|strain| strain.lacks)),
        Action::Send(FromWorker::Winding(lease)) => format!("send winding {}", name(lease)),
        Action::Send(FromWorker::Heartbeat | FromWorker::Log { .. }) => "send something else".to_owned(),
        Action::Keep { lease, .. } => format!("keep {}", name(lease)),
        Action::Forget(lease) => format!("forget {}", name(lease)),
        Action::Remember(leader) => format!("remember term {}", leader.term),
        Action::Disconnect(stale) => format!("disconnect: {stale}"),
    }
}

#[test]
fn an_attempt_that_only_uploads_makes_room_and_its_leader_hears_of_it() {
    check(&[
        ("welcome 1 5", "remember term 1"),
        ("dispatch 1 a#7/5 cores=2", "start a#7/5"),
        ("dispatch 1 b#8/5 cores=2", ""),
        ("wound a#7/5", "send winding a#7/5, start b#8/5"),
        ("wound b#8/5", "send winding b#8/5"),
        ("wound c#9/5", ""),
        ("disconnected", ""),
        ("hello", "send hello term=1 [a#7/5 b#8/5]"),
        ("welcome 1 6 a#7/5 b#8/5", "send winding a#7/5, send winding b#8/5"),
        ("ended a#7/5", "keep a#7/5, send finished a#7/5"),
        ("revoke 1 b#8/5", "kill b#8/5"),
        ("wound b#8/5", ""),
        ("disconnected", ""),
        ("old-welcome 1 7 a#7/5", "send finished a#7/5"),
        ("dispatch 1 d#9/7", "start d#9/7"),
        ("wound d#9/7", ""),
    ]);
    check(&[
        ("welcome 1 5", "remember term 1"),
        ("dispatch 1 a#7/5 cores=2", "start a#7/5"),
        ("wound a#7/5", "send winding a#7/5"),
        ("dispatch 1 b#8/5 cores=2", "start b#8/5"),
        ("wound b#8/5", "send winding b#8/5"),
        ("dispatch 1 c#9/5 cores=2", "start c#9/5"),
        ("wound c#9/5", ""),
        ("dispatch 1 d#10/5", ""),
        ("ended c#9/5", "keep c#9/5, send finished c#9/5, start d#10/5"),
    ]);
}

#[test]
fn an_attempt_runs_is_reported_and_is_forgotten() {
    check(&[
        ("hello", "send hello term=0 []"),
        ("welcome 1 5", "remember term 1"),
        ("dispatch 1 a#7/5", "start a#7/5"),
        ("started a#7/5", "send started a#7/5"),
        ("hello", "send hello term=1 [a#7/5]"),
        ("ended a#7/5", "keep a#7/5, send finished a#7/5"),
        ("hello", "send hello term=1 [a#7/5]"),
        ("acknowledge a#7/5", "forget a#7/5"),
        ("acknowledge a#7/5", ""),
        ("hello", "send hello term=1 []"),
    ]);
}

#[test]
fn a_leader_hears_of_a_strain_when_it_begins_and_ends_and_each_leader_anew() {
    check(&[
        ("strained 1-MiB-free", ""),
        ("hello", "send hello term=0 Disk []"),
        // It knows from the hello.
        ("welcome 1 5", "remember term 1"),
        ("strained 0-MiB-free", ""),
        // It was sent before the leader knew.
        ("dispatch 1 a#7/5", "start a#7/5"),
        ("relieved", "send lacks None"),
        ("relieved", ""),
        ("strained 0-MiB-free", "send lacks Some(Disk)"),
        ("disconnected", ""),
        ("hello", "send hello term=1 Disk [a#7/5]"),
        ("relieved", ""),
        ("welcome 2 6 a#7/5", "remember term 2, send lacks None"),
        ("welcome 2 7 a#7/5", ""),
    ]);
    check(&[("hello", "send hello term=0 []"), ("old-welcome 1 5", "remember term 1"), ("strained 1-MiB-free", ""), ("relieved", "")]);
}

#[test]
fn a_message_that_comes_twice_does_nothing_the_second_time() {
    check(&[
        ("welcome 1 5", "remember term 1"),
        ("dispatch 1 a#7/5", "start a#7/5"),
        ("dispatch 1 a#7/5", ""),
        ("welcome 1 5", ""),
        ("ended a#7/5", "keep a#7/5, send finished a#7/5"),
        ("dispatch 1 a#7/5", ""),
        ("ended a#7/5", ""),
        ("acknowledge a#7/5", "forget a#7/5"),
        ("dispatch 1 a#7/5", ""),
        ("revoke 1 a#7/5", ""),
    ]);
}

#[test]
fn a_deposed_leader_is_not_obeyed() {
    check(&[
        ("welcome 3 5", "remember term 3"),
        ("dispatch 3 a#7/5", "start a#7/5"),
        ("dispatch 2 b#8/5", "disconnect: obey leader of term 2: a leader of term 3 was seen"),
        ("revoke 2 a#7/5", "disconnect: obey leader of term 2: a leader of term 3 was seen"),
        ("welcome 2 9", "disconnect: obey leader of term 2: a leader of term 3 was seen"),
        ("dispatch 4 b#8/5", "remember term 4, start b#8/5"),
        ("revoke 3 a#7/5", "disconnect: obey leader of term 3: a leader of term 4 was seen"),
    ]);
}

#[test]
fn a_revoked_attempt_reports_nothing() {
    check(&[
        ("welcome 1 5", "remember term 1"),
        ("dispatch 1 a#7/5", "start a#7/5"),
        ("revoke 1 a#7/5", "kill a#7/5"),
        ("revoke 1 a#7/5", ""),
        ("hello", "send hello term=1 []"),
        ("started a#7/5", ""),
        ("ended a#7/5", "forget a#7/5"),
        // Revoked after it ended, and revoked before its dispatch came.
        ("dispatch 1 b#8/5", "start b#8/5"),
        ("ended b#8/5", "keep b#8/5, send finished b#8/5"),
        ("revoke 1 b#8/5", "forget b#8/5"),
        ("revoke 1 c#9/5", ""),
        ("dispatch 1 c#9/5", ""),
    ]);
}

#[test]
fn a_new_session_stops_what_the_farm_gave_up_and_says_again_what_ended() {
    check(&[
        ("welcome 1 5", "remember term 1"),
        ("dispatch 1 a#7/5", "start a#7/5"),
        ("dispatch 1 b#7/5", "start b#7/5"),
        ("disconnected", ""),
        ("ended a#7/5", "keep a#7/5"),
        ("dispatch 1 c#8/5", "start c#8/5"),
        ("hello", "send hello term=1 [a#7/5 b#7/5 c#8/5]"),
        ("welcome 2 9 a#7/5 c#8/5", "remember term 2, kill b#7/5, send finished a#7/5"),
        ("welcome 1 5 a#7/5", "disconnect: obey leader of term 1: a leader of term 2 was seen"),
        ("welcome 2 8", ""),
        ("dispatch 2 d#6/5", ""),
        ("ended b#7/5", "forget b#7/5"),
        ("disconnected", ""),
        ("welcome 2 12", "kill c#8/5, send finished a#7/5"),
        ("acknowledge a#7/5", "forget a#7/5"),
    ]);
}

#[test]
fn a_dispatch_waits_while_a_stopped_attempt_holds_its_share() {
    let agent = check(&[
        ("welcome 1 5", "remember term 1"),
        ("dispatch 1 a#7/5 cores=2", "start a#7/5"),
        ("revoke 1 a#7/5", "kill a#7/5"),
        ("dispatch 1 b#8/5 mem=600", ""),
        ("dispatch 1 c#8/5 mem=600", ""),
        ("dispatch 1 d#8/5", ""),
        ("revoke 1 d#8/5", "forget d#8/5"),
        ("hello", "send hello term=1 [b#8/5 c#8/5]"),
        ("ended a#7/5", "forget a#7/5, start b#8/5"),
        ("ended b#8/5", "keep b#8/5, send finished b#8/5, start c#8/5"),
        // More than the worker has: it runs alone.
        ("dispatch 1 e#9/5 cores=64", ""),
        ("ended c#8/5", "keep c#8/5, send finished c#8/5, start e#9/5"),
    ]);
    assert_eq!(agent.free(), (1, Resources { cores: 0, memory_mib: 1000 }));
}

#[test]
fn results_in_the_journal_are_reported_after_a_restart() {
    let finished = vec![(read("a#7/5"), built("a")), (read("b#8/5"), built("b"))];
    let mut agent = Agent::restore(worker("w1"), offer(2), leader(4), finished);
    assert_eq!(agent.leader_seen(), leader(4));
    check_on(
        &mut agent,
        &[
            ("hello", "send hello term=4 [a#7/5 b#8/5]"),
            ("welcome 3 9", "disconnect: obey leader of term 3: a leader of term 4 was seen"),
            ("welcome 4 9 a#7/5", "send finished a#7/5, send finished b#8/5"),
            ("acknowledge b#8/5", "forget b#8/5"),
            ("acknowledge a#6/5", ""),
            ("acknowledge a#7/5", "forget a#7/5"),
        ],
    );
}

#[test]
fn an_upload_goes_on_where_the_farm_has_it() {
    let mut agent = check(&[("welcome 1 5", "remember term 1"), ("dispatch 1 a#7/5", "start a#7/5")]);
    let lease = read("a#7/5");
    assert_eq!(lease.derivation, drv("a"));
    for (confirmed, expect) in [(16_384, 16_384), (65_536, 65_536), (16_384, 65_536)] {
        agent.uploaded(&lease, &out(), confirmed);
        assert_eq!(agent.upload_offset(&lease, &out()), expect);
    }
    check_on(&mut agent, &[("ended a#7/5", "keep a#7/5, send finished a#7/5")]);
    assert_eq!(agent.upload_offset(&lease, &out()), 0);
}
