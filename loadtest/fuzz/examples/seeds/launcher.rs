//! What a worker and its launcher say: each variant, a policy, and streams that are broken.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_wire::{Failure, FailureClass, OutputName, Resources, StoreDir, StorePath, WorkerId, frame};
use kiln_worker::launcher::{Answer, Ask, Claim, Owner, Policy, Reach, Task, write_message};
use kiln_worker::{Config, cgroup, sandbox};
use serde::Serialize;
use serde_bytes::ByteBuf;

/// Returns the seeds by name.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let path = StorePath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar").expect("a store path");
    let out = OutputName::parse("out").expect("a name");
    let task = |reach| Task {
        name: "7-bar".to_owned(),
        slot: 1,
        store_dir: StoreDir::default(),
        system: "x86_64-linux".to_owned(),
        builder: ByteBuf::from("/bin/sh"),
        args: vec![ByteBuf::from("-c"), ByteBuf::from("echo")],
        env: vec![(ByteBuf::from("out"), ByteBuf::from("/nix/store/x"))],
        files: vec![(ByteBuf::from(".attrs.sh"), ByteBuf::from("declare a=1\n"))],
        inputs: vec![path.clone()],
        reach,
        dev_kvm: false,
        uid_range: false,
        resources: cgroup::Policy { memory_mib: 1024, swap_bytes_max: 0, pids_max: 100, cpu_quota: true }.of(Resources::default()),
        limits: sandbox::Limits { wall: Duration::from_secs(60), silence: Duration::from_millis(1500), log_bytes: 1 << 20 },
    };
    let climbing = Task { name: "../../etc".to_owned(), files: vec![(ByteBuf::from("../x"), ByteBuf::new())], ..task(Reach::Itself) };
    let outside = Reach::Outside { denied: vec!["10.0.0.0/8".parse().expect("a network")] };
    let claim = Claim { outputs: BTreeMap::from([(out, path.clone())]), bytes_max: 1 << 30 };
    let failure = Failure { class: FailureClass::LimitExceeded, message: "too much".to_owned() };
    let mut asks = stream(0, &Ask::Run(Box::new(task(Reach::Itself))));
    asks.extend_from_slice(&stream(0, &Ask::Claim(claim.clone()))[1..]);
    let config = Config::new(WorkerId::parse("w1").expect("a name"), "/var/lib/kiln".into(), vec!["farm.example.org:7420".to_owned()]);
    let policy = Policy::new(&config, Owner { uid: 1, gid: 1 });
    let policy = [vec![2], frame::to_bytes(&policy).expect("small")].concat();
    let stop = stream(0, &Ask::Stop);
    vec![
        ("run".to_owned(), stream(0, &Ask::Run(Box::new(task(outside))))),
        ("run-climbing".to_owned(), stream(0, &Ask::Run(Box::new(climbing)))),
        ("run-and-claim".to_owned(), asks.clone()),
        ("stop".to_owned(), stop.clone()),
        ("claim".to_owned(), stream(0, &Ask::Claim(claim))),
        ("log".to_owned(), stream(1, &Answer::Log(ByteBuf::from("checking")))),
        ("not-run".to_owned(), stream(1, &Answer::NotRun("why".to_owned()))),
        ("claimed".to_owned(), stream(1, &Answer::Claimed("/var/lib/kiln/x".to_owned()))),
        ("refused".to_owned(), stream(1, &Answer::Refused(failure))),
        ("policy-cut".to_owned(), policy[..policy.len() / 2].to_vec()),
        ("policy".to_owned(), policy),
        ("cut".to_owned(), asks[..asks.len() - 1].to_vec()),
        ("other-way".to_owned(), [&[1], &stop[1..]].concat()),
        ("length-over-limit".to_owned(), vec![0, 0xff, 0xff, 0xff, 0xff]),
        ("length-claimed".to_owned(), vec![0, 0, 0, 0, 9, 1]),
        ("sequence-claimed".to_owned(), vec![0, 12, 0, 0, 0, 0x81, 0xa3, b'R', b'u', b'n', 0x9d, 0xdd, 0xff, 0xff, 0xff, 0xff, 0]),
        ("map-claimed".to_owned(), vec![0, 5, 0, 0, 0, 0xdf, 0xff, 0xff, 0xff, 0xff]),
    ]
}

fn stream<T: Serialize>(head: u8, message: &T) -> Vec<u8> {
    let mut stream = vec![head];
    write_message(&mut stream, message).expect("small");
    stream
}
