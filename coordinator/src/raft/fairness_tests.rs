//! The golden payloads of what a farm keeps of shares and urgency, for ever.

use std::collections::BTreeSet;

use kiln_core::{Asker, Command};
use kiln_wire::{
    Account, AttemptId, BuildId, DrvPath, Epoch, Lease, Order, Priority, ProjectName, RequestId, Root, Share, ShareKey, Subject,
    TenantName, Timestamp, Traceparent, WorkerId,
};
use openraft::EntryPayload;

use super::record::Record;
use super::storage_tests::{check_golden, log_id};
use super::types::{Change, Entry};

const NOW: Timestamp = Timestamp(9);

fn derivation() -> DrvPath {
    DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path")
}

fn account() -> Account {
    Account { tenant: Some(TenantName::parse("ann").expect("a name")), project: Some(ProjectName::parse("web").expect("a name")) }
}

fn submit() -> Command {
    let roots = vec![Root { derivation: derivation(), outputs: BTreeSet::new() }];
    let asker = Some(Asker { account: account(), priority: Priority::from(-7), security: true, trace: None });
    Command::Submit { request: RequestId(7), name: "bar".into(), roots, keep_going: true, asker, now: NOW }
}

fn set_share(project: Option<ProjectName>, share: Option<Share>) -> Command {
    let tenant = TenantName::parse("ann").expect("a name");
    Command::SetShare { key: ShareKey { tenant, project }, share, now: NOW }
}

#[test]
fn a_build_of_a_client_that_traces_stays_readable() {
    let Command::Submit { request, name, roots, keep_going, asker, now } = submit() else { panic!("it is one") };
    let trace = Some(Traceparent { trace: [7; 16], span: [8; 8] });
    let asker = asker.map(|asker| Asker { trace, ..asker });
    let command = Command::Submit { request, name, roots, keep_going, asker, now };
    let entry = Entry { log_id: log_id(2, 8), payload: EntryPayload::Normal(Change::Command(command)) };
    check_golden(&Record::Entry(entry), 7, "-submit-traced");
}

#[test]
fn what_a_farm_is_told_of_shares_and_urgency_stays_readable() {
    let worker = WorkerId::parse("w1").expect("a name");
    let lease = Lease { derivation: derivation(), attempt: AttemptId(5), worker, epoch: Epoch(4) };
    let share = Share { weight: 30, priority: Priority::from(20), may_use_security: true };
    let (build, job) = (Subject::Build(BuildId(3)), Subject::Job(derivation()));
    let steer = |subject: &Subject, order| Command::Steer { subject: subject.clone(), order, by: "admin/op".into(), now: NOW };
    for (what, command) in [
        ("-submit", submit()),
        ("-share", set_share(account().project, Some(share))),
        ("-share-default", set_share(None, Some(Share::default()))),
        ("-share-none", set_share(None, None)),
        ("-bump-build", steer(&build, Order::Bump(Priority::MAX))),
        ("-bump-job", steer(&job, Order::Bump(Priority::MIN))),
        ("-restart", steer(&job, Order::Restart)),
        ("-cancel", steer(&job, Order::Cancel)),
        ("-preempt", Command::Preempt { lease, now: NOW }),
    ] {
        let entry = Entry { log_id: log_id(2, 8), payload: EntryPayload::Normal(Change::Command(command)) };
        check_golden(&Record::Entry(entry), 6, what);
    }
}
