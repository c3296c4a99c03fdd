//! What a snapshot keeps of shares and of what was used, for ever.

use kiln_core::{Asker, Command, Farm, Placement};
use kiln_wire::{
    Account, AttemptId, BuildId, Epoch, Lease, LogIndex, Priority, ProjectName, RequestId, Share, ShareKey, TenantName, Timestamp,
};

use crate::facts::{built, drv, offer, root, spec, worker};

/// A farm in which a build of somebody has come and gone, two shares are set, and another build waits.
fn farm() -> Farm {
    let (mut farm, mut index) = (Farm::new(), 0);
    let mut apply = |command| {
        index += 1;
        farm.apply(LogIndex(index), command)
    };
    let account = |tenant: &str, project: &str| Account {
        tenant: Some(TenantName::parse(tenant).expect("a name")),
        project: Some(ProjectName::parse(project).expect("a name")),
    };
    let mut submit = |request, job: &str, asker| {
        let (request, now) = (RequestId(request), Timestamp(1_000));
        apply(Command::Stage { request, jobs: vec![spec(job, &[])], now });
        apply(Command::Submit { request, name: job.into(), roots: vec![root(job)], keep_going: false, asker: Some(asker), now });
    };
    submit(1, "gone", Asker { account: account("ann", "web"), ..Asker::default() });
    submit(2, "waits", Asker { account: account("bob", "app"), priority: Priority::from(-7), security: true, trace: None });
    let (w1, now) = (worker("w1"), Timestamp(2_000));
    apply(Command::Register { worker: w1.clone(), offer: offer(2), attempts: vec![], since: None, judge: false, now });
    let placement = Placement { derivation: drv("gone"), worker: w1.clone(), epoch: Epoch(5), resources: None, light: false, after: None };
    apply(Command::Assign { placements: vec![placement], now });
    let lease = Lease { derivation: drv("gone"), attempt: AttemptId(6), worker: w1, epoch: Epoch(5) };
    let now = Timestamp(62_000);
    apply(Command::Finish { lease, outcome: built(&spec("gone", &[]), 1), learn: false, judge: false, now });
    apply(Command::Publish { derivation: drv("gone"), now });
    apply(Command::Retire { build: BuildId(2), now });
    for (key, share) in [("ann", Share { weight: 30, priority: Priority::from(20), may_use_security: true }), ("bob/app", Share::default())]
    {
        apply(Command::SetShare { key: ShareKey::parse(key).expect("a key"), share: Some(share), now });
    }
    farm
}

#[test]
fn shares_and_use_come_out_of_a_snapshot_as_they_went_in() {
    let farm = farm();
    let views = farm.share_views(Timestamp(62_000));
    let used = views.iter().find(|view| view.tenant.as_ref().is_some_and(|tenant| tenant.as_str() == "ann") && view.project.is_some());
    assert!(used.is_some_and(|view| view.lately_ppm > 0), "half of the fleet for a minute: {views:?}");
    let snapshot = farm.to_snapshot();
    let hex: String = snapshot.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/farm/snapshot-shares.hex");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &hex).expect("writes");
    }
    assert_eq!(hex, std::fs::read_to_string(path).expect("the golden file"));
    let read = Farm::from_snapshot(&snapshot).expect("it was just written");
    assert_eq!(read.share_views(Timestamp(62_000)), views);
    read.check_invariants().expect("every invariant holds");
}
