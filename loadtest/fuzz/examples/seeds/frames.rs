//! Streams of messages: one with each variant of each type, whole; then streams that are broken as framing can be.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::client::{
    AttemptView, BuildState, BuildView, DerivationFile, Event, EventKind, FarmView, JobCounts, JobView, Refusal, RefusalKind, Request,
    Response, Submission, WorkerView,
};
use kiln_wire::frame::to_frame;
use kiln_wire::worker::{Assignment, FromWorker, Hello, Lacking, Offer, Strain, ToWorker};
use kiln_wire::{
    AttemptId, Blake3Hash, Blob, BuildId, BuiltOutput, ClusterRequest, ClusterView, DrvPath, Epoch, Failure, FailureClass, JobLimits,
    Leader, LeaderAt, Lease, MemberView, NodeId, NotLeader, Outcome, OutputName, PathInfo, Priority, RequestId, Resources, Root,
    Sha256Hash, StoreDir, StorePath, Timestamp, Urgency, Usage, WhoLeads, WorkerId,
};
use serde::Serialize;

/// Returns the seeds by name.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = streams("request", 0, &requests());
    seeds.extend(streams("response", 1, &responses()));
    seeds.extend(streams("from-worker", 2, &from_worker()));
    seeds.extend(streams("to-worker", 3, &to_worker()));
    let status = to_frame(&Request::Status).expect("small");
    let table = [
        ("two-messages", [&[0b100][..], &status, &status, &[0; 4]].concat()),
        ("no-mark", [&[0][..], &status].concat()),
        ("after-mark", [&[0][..], &status, &[0; 4], &status].concat()),
        ("cut", [&[0][..], &status[..status.len() - 1]].concat()),
        ("length-over-limit", vec![0, 0xff, 0xff, 0xff, 0xff]),
        ("length-claimed", vec![0, 0, 0, 0, 1]),
        ("sequence-claimed", vec![0, 13, 0, 0, 0, 0x81, 0xa7, b'M', b'i', b's', b's', b'i', b'n', b'g', 0xdd, 0xff, 0xff]),
        ("map-claimed", vec![0, 5, 0, 0, 0, 0xdf, 0xff, 0xff, 0xff, 0xff]),
        ("nested", [&[1, 64, 0, 0, 0][..], &[0x91; 64]].concat()),
    ];
    seeds.extend(table.map(|(name, bytes)| (name.to_owned(), bytes)));
    seeds
}

/// Streams with one message each and the end mark. The variant's name is the first word of what is printed of it.
fn streams<T: Serialize + std::fmt::Debug>(kind: &str, head: u8, messages: &[T]) -> Vec<(String, Vec<u8>)> {
    let stream = |(position, message): (usize, &T)| {
        let printed = format!("{message:?}");
        let variant = printed.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let frame = to_frame(message).expect("small");
        (format!("{kind}-{position:02}-{variant}"), [&[head][..], &frame, &[0; 4]].concat())
    };
    messages.iter().enumerate().map(stream).collect()
}

fn path() -> StorePath {
    StorePath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar").expect("a store path")
}

fn drv() -> DrvPath {
    DrvPath::parse("zc842j0rz61mjsp3h3wp5ly71ak6qgdn-bar.drv").expect("a derivation's path")
}

fn out() -> OutputName {
    OutputName::parse("out").expect("a name")
}

fn worker() -> WorkerId {
    WorkerId::parse("w1").expect("a name")
}

fn lease() -> Lease {
    Lease { derivation: drv(), attempt: AttemptId(7), worker: worker(), epoch: Epoch(3) }
}

fn leader_at() -> LeaderAt {
    LeaderAt { leader: leader(), link: "kiln-2.example:7420".into() }
}

fn leader() -> Leader {
    Leader { term: 2, node: NodeId(1) }
}

fn info() -> PathInfo {
    PathInfo {
        path: path(),
        nar_hash: Sha256Hash([1; 32]),
        nar_size_bytes: 120,
        references: [path()].into(),
        deriver: Some(drv()),
        content_address: Some("fixed:r:sha256:0000000000000000000000000000000000000000000000000000".to_owned()),
        blob: Blob { size_bytes: 60, blake3: Blake3Hash([2; 32]), sha256: Sha256Hash([3; 32]) },
    }
}

fn offer() -> Offer {
    Offer {
        systems: BTreeSet::from(["x86_64-linux".to_owned()]),
        features: BTreeSet::from(["kvm".to_owned()]),
        capacity: Resources { cores: 2, memory_mib: 4096 },
        slots: 2,
        guarantees: BTreeMap::from([("cgroup".to_owned(), "hybrid".to_owned())]),
        ..Offer::default()
    }
}

fn requests() -> Vec<Request> {
    let submission = Submission {
        request: RequestId(9),
        name: "night".to_owned(),
        roots: vec![Root { derivation: drv(), outputs: [out()].into() }],
        keep_going: true,
        urgency: Urgency { priority: Priority::from(-7), security: true, ..Urgency::default() },
        trace: None,
        evaluation: None,
    };
    vec![
        Request::Session,
        Request::Upload { lease: lease(), output: BuiltOutput { name: out(), info: info() } },
        Request::Import(info()),
        Request::FetchBlob { path: path(), offset_bytes: 16_384 },
        Request::Leader,
        Request::Missing(vec![path(), path()]),
        Request::AddDerivations(vec![DerivationFile { path: drv(), bytes: b"Derive(".to_vec() }]),
        Request::Submit(submission),
        Request::Watch(BuildId(5)),
        Request::Cancel(BuildId(5)),
        Request::Status,
        Request::Jobs,
        Request::Workers,
        Request::Log { derivation: drv(), attempt: Some(AttemptId(7)), follow: true },
        Request::PathInfos { paths: vec![path()], closure: true },
        Request::Cluster(ClusterRequest::Add { node: NodeId(2), link: leader_at().link }),
        Request::Narinfos(vec![path().hash_part().to_owned()]),
        Request::Derivations(vec![drv()]),
    ]
}

fn job() -> JobView {
    JobView {
        derivation: drv(),
        state: "failed".to_owned(),
        reason: "why".to_owned(),
        builds: vec![BuildId(5)],
        attempts: vec![AttemptView {
            attempt: AttemptId(7),
            worker: worker(),
            started_at: Timestamp(1),
            ended_at: Some(Timestamp(2)),
            failure: Some((FailureClass::OutOfMemory, "too little".to_owned())),
            usage: Some(Usage { wall_ms: 3, cpu_ms: 4, ..Usage::default() }),
        }],
        upward_rank_ms: 1000,
        attributes: Vec::new(),
    }
}

fn build() -> BuildView {
    BuildView {
        build: BuildId(5),
        name: "night".to_owned(),
        submitted_at: Timestamp(1),
        state: BuildState::Active,
        counts: JobCounts { ready: 1, ..JobCounts::default() },
        remaining_ms: Some(60_000),
        outputs: BTreeMap::from([(drv(), BTreeMap::from([(out(), path())]))]),
        failures: vec![job()],
        running: Vec::new(),
        waiting: BTreeMap::from([("no worker".to_owned(), 1)]),
        evaluated: Default::default(),
    }
}

fn responses() -> Vec<Response> {
    let event = |kind| Response::Event(Event { at: Timestamp(1), derivation: drv(), kind });
    let farm = FarmView {
        version: "0.1.0".to_owned(),
        store_dir: StoreDir::default(),
        public_key: "farm-1:AAAA".to_owned(),
        cache_url: None,
        leader: leader(),
        builds: vec![build()],
        counts: JobCounts::default(),
        workers_connected: 1,
        receivers: Vec::new(),
        retention: None,
    };
    let workers = vec![WorkerView {
        worker: worker(),
        connected: true,
        offer: offer(),
        used: Resources::default(),
        running: vec![drv()],
        strain: None,
        ailing: None,
    }];
    let refusal = Refusal { kind: RefusalKind::Missing, message: "upload it first".to_owned(), paths: vec![path()] };
    vec![
        Response::Done,
        Response::Refused(refusal),
        Response::UploadAt(Some(0)),
        Response::Stored,
        Response::Blob(info()),
        Response::Leader(WhoLeads { is_self: false, leader: Some(leader()), coordinators: vec![leader_at().link] }),
        Response::NotLeader(NotLeader { leader: Some(leader_at()) }),
        Response::Paths(vec![path()]),
        Response::PathInfos(vec![info()]),
        Response::Submitted(BuildId(5)),
        Response::Build(build()),
        event(EventKind::Started { attempt: AttemptId(7), worker: worker() }),
        event(EventKind::Failed { class: FailureClass::BuildFailure, message: "exit 1".to_owned() }),
        Response::Status(farm),
        Response::Jobs(vec![job()]),
        Response::Workers(workers),
        Response::Log(b"checking for gcc... yes\n".to_vec()),
        Response::Cluster(ClusterView { leader: Some(leader()), members: vec![MemberView::default()], ..ClusterView::default() }),
        Response::Narinfos(vec!["StorePath: /nix/store/x\n".to_owned()]),
        Response::Derivations(vec![DerivationFile { path: drv(), bytes: b"Derive(".to_vec() }]),
    ]
}

fn from_worker() -> Vec<FromWorker> {
    let built = Outcome::Built { outputs: vec![BuiltOutput { name: out(), info: info() }], usage: Usage::default() };
    let failure = Failure { class: FailureClass::LimitExceeded, message: "its log is over 64 MiB".to_owned() };
    vec![
        FromWorker::Hello(Hello {
            worker: worker(),
            offer: offer(),
            leader_seen: leader(),
            attempts: vec![lease()],
            since: None,
            strain: None,
        }),
        FromWorker::Heartbeat,
        FromWorker::Admission(Some(Strain { lacks: Lacking::Disk, message: "its disk is full".to_owned() })),
        FromWorker::Admission(None),
        FromWorker::Winding(lease()),
        FromWorker::Started(lease()),
        FromWorker::Log { lease: lease(), offset_bytes: 0, bytes: b"unpacking".to_vec() },
        FromWorker::Finished { lease: lease(), outcome: built },
        FromWorker::Finished { lease: lease(), outcome: Outcome::Failed { failure, usage: Usage::default() } },
    ]
}

fn to_worker() -> Vec<ToWorker> {
    let assignment = Assignment {
        leader: leader(),
        lease: lease(),
        store_dir: StoreDir::default(),
        derivation: b"Derive(".to_vec(),
        inputs: vec![info()],
        input_outputs: BTreeMap::from([(drv(), BTreeMap::from([(out(), path())]))]),
        resources: Resources { cores: 1, memory_mib: 0 },
        limits: JobLimits::default(),
        resolved: None,
        trace: None,
    };
    vec![
        ToWorker::Welcome {
            leader: leader(),
            epoch: Epoch(3),
            keep: vec![lease()],
            log_bytes: [(AttemptId(7), 100)].into(),
            hears_strain: true,
            hears_winding: true,
        },
        ToWorker::NotLeader(NotLeader { leader: Some(leader_at()) }),
        ToWorker::Dispatch(assignment),
        ToWorker::Revoke { leader: leader(), lease: lease() },
        ToWorker::Acknowledge { derivation: drv(), attempt: AttemptId(7) },
    ]
}
