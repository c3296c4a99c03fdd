//! Attacks on people and on the farm by what a worker or a build hands in (`worker/ATTACKS.md`).

use kiln_wire::client::{RefusalKind, Request, Response};
use kiln_wire::{AttemptId, BuiltOutput, DrvPath, Epoch, Lease, OutputName, PathInfo, WorkerId};

use crate::crashes::Daemons;
use crate::farm::{Place, Process, wait_for};
use crate::roles::{ask_as, store_path};

/// Writes control sequences, and leaves a file whose name is one.
const LOUD: &str = r#"
{
  loud = drv "loud" "printf '\\033]0;owned\\007\\033[2Jred: \\033[31mred\\n'; ${boot}/busybox mkdir $out
    ${boot}/busybox mkfifo $out/$(printf '\\033[2J')" [ ];
}
"#;

#[test]
fn a16_what_a_build_writes_and_names_does_not_steer_the_terminal() {
    let place = Place::new(LOUD);
    let _farm = place.up();
    let failed = place.run(&["build", "-f", "set.nix"]);
    assert_eq!(failed.code(), 1, "{}", failed.err());
    let said = failed.err();
    assert!(!said.contains('\u{1b}') && !said.contains('\u{7}'), "{said:?}");
    for shown in [r"| \u{1b}]0;owned\u{7}\u{1b}[2Jred: \u{1b}[31mred", r"\u{1b}[2J` has unsupported type `fifo`"] {
        assert!(said.contains(shown), "`{shown}` is missing in {said}");
    }
    let drv = said.lines().find_map(|line| line.split_once("-loud.drv failed:")).expect("names the derivation").0.trim().to_owned();
    let words = ["log", &format!("{drv}-loud.drv")];
    let file = place.run(&words).expect_success().out();
    assert_eq!(file, "\u{1b}]0;owned\u{7}\u{1b}[2Jred: \u{1b}[31mred\n", "a file gets the bytes");
    let terminal = place.on_a_terminal(&words).output().expect("`script` runs");
    assert_eq!(
        String::from_utf8_lossy(&terminal.stdout),
        "\\u{1b}]0;owned\\u{7}\\u{1b}[2Jred: \u{1b}[31mred\r\n",
        "a terminal gets colours"
    );
}

/// `held` runs until it is cancelled; `other` is in the farm and no output of it.
const HELD: &str = r#"
{
  other = drv "other" "echo other > $out" [ ];
  held = drv "held" "while :; do ${boot}/busybox sleep 1; done" [ ];
}
"#;

/// More than the registrations that this test sees.
const EPOCHS: u64 = 100;

#[test]
fn a26_a_worker_hands_in_outputs_of_its_live_leases_and_nothing_else() {
    let daemons = Daemons::with(HELD);
    let (place, farm) = (&daemons.place, daemons.farm());
    let kiln = |words: &[&str]| place.run(&[words, &farm[..]].concat()).expect_success();
    place.run(&["ca", "issue", "--dir", "ca", "--role", "worker/w2", "--out", "id/worker/w2"]).expect_success();
    let _coordinator = daemons.start("coordinator");
    let _worker = daemons.start("worker");
    daemons.wait_until_up();
    let other = store_path(kiln(&["build", "-f", "set.nix", "-A", "other"]).out().trim());
    let fetched = ask_as(&daemons, "client/me", &[Request::FetchBlob { path: other, offset_bytes: 0 }]).remove(0);
    let Response::Blob(other) = fetched else { panic!("the farm has it: {fetched:?}") };
    let mut held = Process::start(&mut place.kiln(&[&["build", "-f", "set.nix", "-A", "held", "--json"][..], &farm[..]].concat()));
    held.wait_for_line("\"event\":\"started\"");
    let job = kiln(&["jobs", "--json"]).json()[0].clone();
    let text = |value: &serde_json::Value| value.as_str().expect("text").rsplit('/').next().expect("a name").to_owned();
    let lease = |worker: &str, epoch: u64| Lease {
        derivation: DrvPath::parse(&text(&job["derivation"])).expect("a derivation"),
        attempt: AttemptId(job["attempts"][0]["attempt"].as_u64().expect("a number")),
        worker: WorkerId::parse(worker).expect("a name"),
        epoch: Epoch(epoch),
    };
    let refused = |role: &str, leases: &[Lease]| -> Vec<(RefusalKind, String)> {
        let uploads: Vec<Request> = leases.iter().map(|lease| upload(lease, &other)).collect();
        let answers = ask_as(&daemons, role, &uploads).into_iter().map(|answer| match answer {
            Response::Refused(refusal) => (refusal.kind, refusal.message),
            answer => panic!("{role} was answered {answer:?}"),
        });
        answers.collect()
    };
    // The worker's own number is among these. With it, the lease is right and the output is not; with any other, the lease is stale.
    let tried = refused("worker/w1", &(0..EPOCHS).map(|epoch| lease("w1", epoch)).collect::<Vec<_>>());
    let live: Vec<u64> = (0..).zip(&tried).filter(|(_, (kind, _))| *kind == RefusalKind::Invalid).map(|(epoch, _)| epoch).collect();
    let [epoch] = live[..] else { panic!("one epoch is the worker's: {tried:?}") };
    assert!(tried[usize::try_from(epoch).expect("small")].1.contains("is not output `out` of"), "{tried:?}");
    assert_eq!(tried.iter().filter(|(kind, _)| *kind == RefusalKind::StaleLease).count(), tried.len() - 1, "{tried:?}");

    let own = lease("w1", epoch);
    let stale = [
        Lease { attempt: AttemptId(own.attempt.0 + 1), ..own.clone() },
        Lease { derivation: other.deriver.clone().expect("it was built"), ..own.clone() },
    ];
    let kinds = |role: &str, leases: &[Lease]| refused(role, leases).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    assert_eq!(kinds("worker/w1", &stale), [RefusalKind::StaleLease; 2]);
    assert_eq!(kinds("worker/w2", &[own.clone(), lease("w2", epoch)]), [RefusalKind::Forbidden, RefusalKind::StaleLease]);
    assert_eq!(kinds("client/me", std::slice::from_ref(&own)), [RefusalKind::Forbidden]);

    let build = kiln(&["status", "--json"]).json()["builds"][0]["build"].to_string();
    kiln(&["cancel", &build]);
    wait_for("the lease ends", || (kinds("worker/w1", std::slice::from_ref(&own)) == [RefusalKind::StaleLease]).then_some(()));
}

fn upload(lease: &Lease, info: &PathInfo) -> Request {
    let output = BuiltOutput { name: OutputName::parse("out").expect("a name"), info: info.clone() };
    Request::Upload { lease: lease.clone(), output }
}
