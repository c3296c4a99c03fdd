//! Shares, urgency, and what people do with builds and jobs that wait or run: on a farm of real processes, with a certificate for each.

use serde_json::{Value, json};

use crate::crashes::Daemons;
use crate::farm::{Process, Ran, wait_for};

/// `alien` runs nowhere, so that what needs it waits; what `gate` makes fail is in the outside world, so that a restart can mend it.
const SET: &str = r#"
rec {
  alien = derivation { name = "alien"; system = "mips-linux"; builder = "/nowhere"; };
  base = drv "base" "echo base > $out" [ ];
  waits = drv "waits" "cat $deps > $out" [ base alien ];
  above = drv "above" "cat $deps > $out" [ waits ];
  held = drv "held" "while :; do ${boot}/busybox sleep 1; done" [ ];
  behind = drv "behind" "cat $deps > $out" [ held ];
  beside = drv "beside" "echo beside > $out" [ ];
  cancelled = drv "all" "cat $deps > $out" [ behind beside ];
  good = drv "good" "echo good > $out" [ ];
  bad = drv "bad" "exit 1" [ good ];
  stays = drv "stays" "cat $deps > $out" [ bad alien ];
  keeps = [ bad stays ];
}
"#;

/// Two clients and an administrator of one farm.
struct Farm {
    daemons: Daemons,
    _processes: Vec<Process>,
}

impl Farm {
    fn start() -> Self {
        let daemons = Daemons::with(SET);
        for role in ["client/other", "admin/op"] {
            let out = format!("id/{role}");
            daemons.place.run(&["ca", "issue", "--dir", "ca", "--role", role, "--out", &out]).expect_success();
        }
        let processes = vec![daemons.start("coordinator"), daemons.start("worker")];
        daemons.wait_until_up();
        Self { daemons, _processes: processes }
    }

    fn words<'a>(&'a self, who: &'a str, words: &[&'a str]) -> Vec<&'a str> {
        [words, &["--farm", &self.daemons.url, "--identity", who]].concat()
    }

    /// Runs a command with somebody's certificate.
    fn run(&self, who: &str, words: &[&str]) -> Ran {
        self.daemons.place.run(&self.words(who, words))
    }

    fn build(&self, who: &str, attribute: &str, more: &[&str]) -> Process {
        let words = [&["build", "-f", "set.nix", "-A", attribute, "--json"], more].concat();
        Process::start(&mut self.daemons.place.kiln(&self.words(who, &words)))
    }

    /// The number of the newest build, once so many are live.
    fn number(&self, builds: usize) -> String {
        wait_for("the builds are submitted", || {
            let status = self.run(ME, &["status", "--json"]).expect_success().json();
            let live = status["builds"].as_array().filter(|live| live.len() == builds)?;
            live.iter().map(|build| build["build"].as_u64().expect("a number")).max().map(|number| number.to_string())
        })
    }

    /// What the farm says of a job.
    fn job(&self, name: &str) -> Option<Value> {
        let jobs = self.run(ME, &["jobs", "--json"]).expect_success().json();
        let ending = format!("-{name}.drv");
        jobs.as_array()?.iter().find(|job| job["derivation"].as_str().is_some_and(|path| path.ends_with(&ending))).cloned()
    }

    fn derivation(&self, name: &str) -> String {
        wait_for("the job is in the farm", || Some(self.job(name)?["derivation"].as_str()?.to_owned()))
    }
}

const ME: &str = "id/client/me";
const OTHER: &str = "id/client/other";
const ADMIN: &str = "id/admin/op";

/// The events of a build that ended, by kind and by the name of the job.
fn events(lines: &str) -> Vec<(String, String, Value)> {
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    let named = lines.filter_map(|event| {
        let name = event["derivation"].as_str()?.get(44..)?.trim_end_matches(".drv").to_owned();
        Some((event["event"].as_str()?.to_owned(), name, event))
    });
    named.collect()
}

#[test]
fn shares_are_set_by_administrators_and_listed_for_all() {
    let farm = Farm::start();
    for (who, words, code, said) in [
        (ME, &["share", "set", "me", "--weight", "9"][..], 1, "ask an administrator"),
        (ADMIN, &["share", "set", "me", "--weight", "0"], 2, "0"),
        (ADMIN, &["share", "set", "me", "--weight", "1001"], 2, "1001"),
        (ADMIN, &["share", "set", "a b", "--weight", "2"], 2, "a b"),
        (ADMIN, &["share", "set", "me/", "--weight", "2"], 2, "project"),
        (ADMIN, &["share", "remove", "me"], 2, "none is set"),
    ] {
        let ran = farm.run(who, words);
        assert_eq!(ran.code(), code, "{words:?}: {}", ran.err());
        assert!(ran.err().contains(said), "{words:?}: {}", ran.err());
    }
    assert_eq!(farm.run(ME, &["share", "list", "--json"]).expect_success().json(), json!([]), "what was refused changed nothing");
    farm.run(ADMIN, &["share", "set", "me", "--weight", "3", "--priority", "-10", "--may-use-security"]).expect_success();
    farm.run(ADMIN, &["share", "set", "me/web", "--weight", "2"]).expect_success();
    let listed = farm.run(OTHER, &["share", "list", "--json"]).expect_success().json();
    let share = |project: Value, weight: u32, priority: i32, security: bool| {
        json!({ "tenant": "me", "project": project, "weight": weight, "priority": priority, "mayUseSecurity": security, "isSet": true,
                "heldPpm": 0, "latelyPpm": 0 })
    };
    assert_eq!(listed, json!([share(Value::Null, 3, -10, true), share("web".into(), 2, 0, false)]));
    let table = farm.run(OTHER, &["share", "list"]).expect_success().out();
    assert!(table.contains("me/web") && table.contains("SECURITY"), "{table}");

    // Who may be of the security class is the tenant's share's to say, or an administrator is asked.
    for (who, more, code) in [(OTHER, "--security", 1), (ME, "--security", 0), (ADMIN, "--security", 0), (OTHER, "--priority=-5", 0)] {
        let ran = farm.run(who, &["build", "-f", "set.nix", "-A", "base", more, "--project", "fixes"]);
        assert_eq!(ran.code(), code, "{who} {more}: {}", ran.err());
        assert!(code == 0 || ran.err().contains("--may-use-security"), "{}", ran.err());
    }
    for refused in ["--priority=101", "--priority=x", "--project=a b"] {
        let ran = farm.run(ME, &["build", "-f", "set.nix", "-A", "base", refused]);
        assert_eq!(ran.code(), 2, "{refused}: {}", ran.err());
    }
    let _waiting = farm.build(ME, "alien", &["--project", "web"]);
    farm.number(1);
    farm.run(ADMIN, &["share", "remove", "me/web"]).expect_success();
    let listed = farm.run(ME, &["share", "list", "--json"]).expect_success().json();
    let web = listed.as_array().and_then(|shares| shares.iter().find(|share| share["project"] == "web")).expect("its build is live");
    assert_eq!((&web["isSet"], &web["weight"]), (&json!(false), &json!(1)));
}

#[test]
fn what_another_tenant_wants_is_steered_by_administrators_only() {
    let farm = Farm::start();
    let _mine = farm.build(ME, "above", &[]);
    let build = farm.number(1);
    let job = farm.derivation("waits");
    for (verb, subject) in [("bump", &build), ("bump", &job), ("restart", &build), ("restart", &job), ("cancel", &build), ("cancel", &job)]
    {
        let ran = farm.run(OTHER, &[verb, subject]);
        assert_eq!(ran.code(), 1, "{verb} {subject}: {}", ran.err());
        assert!(ran.err().contains("is wanted by `me`") && ran.err().contains("ask an administrator"), "{verb} {subject}: {}", ran.err());
    }
    assert_eq!(farm.number(1), build, "it goes on");
    for (words, code, said) in [
        (["bump", "999999", "--priority=3"], 2, "no live build 999999"),
        (["bump", &build, "--priority=101"], 2, "101"),
        (["bump", "bar", "--priority=3"], 2, "bar"),
        (["bump", "0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv", "--priority=3"], 2, "no live"),
        (["restart", &job, "--"], 2, "has not failed"),
    ] {
        let words = if words[2] == "--" { &words[..2] } else { &words[..] };
        let ran = farm.run(ME, words);
        assert_eq!(ran.code(), code, "{words:?}: {}", ran.err());
        assert!(ran.err().contains(said), "{words:?}: {}", ran.err());
    }
    for who in [ME, ADMIN] {
        for (subject, points) in [(&build, "100"), (&job, "-3")] {
            let out = farm.run(who, &["bump", subject, "--priority", points]).expect_success().out();
            assert!(out.contains(&format!("has priority {points}")), "{out}");
        }
    }

    // What both want is neither's to stop.
    let _theirs = farm.build(OTHER, "waits", &[]);
    farm.number(2);
    assert_eq!(farm.run(ME, &["cancel", &job]).code(), 1, "another wants it too");
    let above = farm.derivation("above");
    farm.run(ME, &["cancel", &above]).expect_success();
    farm.run(ADMIN, &["cancel", &job]).expect_success();
    wait_for("both builds end", || (farm.run(ME, &["jobs", "--json"]).expect_success().json() == json!([])).then_some(()));
}

#[test]
fn a_cancelled_job_fails_with_what_needs_it_and_nothing_else() {
    let farm = Farm::start();
    let mut build = farm.build(ME, "cancelled", &["--keep-going"]);
    let started = build.wait_for_line("-held.drv");
    assert!(started.contains("ready") || started.contains("started"), "{started}");
    wait_for("the job runs", || farm.job("held").filter(|job| job["state"] == "running"));
    let held = farm.derivation("held");
    let out = farm.run(ME, &["cancel", &held]).expect_success().out();
    assert!(out.contains("is cancelled, and with it what needs it"), "{out}");
    let (code, rest) = build.finish();
    assert_eq!(code, 1, "{rest}");
    let rest: Vec<(String, String, Value)> = events(&rest);
    let of = |kind: &str, name: &str| rest.iter().find(|(other, job, _)| other == kind && job == name).map(|(.., event)| event.clone());
    let failed = of("failed", "held").expect("it failed");
    assert_eq!((&failed["class"], &failed["message"]), (&json!("cancelled"), &json!("cancelled by client/me")));
    for name in ["behind", "all"] {
        let failed = rest.iter().filter(|(kind, job, _)| kind == "dependency-failed" && job == name).count();
        assert_eq!(failed, 1, "{name}: {rest:?}");
    }
    assert_eq!(rest.iter().filter(|(kind, ..)| kind == "failed").count(), 1, "{rest:?}");
    let again = farm.run(ME, &["build", "-f", "set.nix", "-A", "beside", "--json"]).expect_success();
    assert_eq!(again.events("started"), 0, "what it did not need was built: {}", again.out());
}

#[test]
fn what_failed_is_tried_again_while_the_build_lives_and_after_it_has_ended() {
    let farm = Farm::start();
    let mut build = farm.build(ME, "keeps", &["--keep-going"]);
    build.wait_for_line("\"event\":\"failed\"");
    let bad = farm.derivation("bad");
    let number = farm.number(1);
    for subject in [&bad, &number] {
        let out = farm.run(ME, &["restart", subject]).expect_success().out();
        assert!(out.contains("waits again"), "{out}");
        let line = build.wait_for_line("\"event\":\"failed\"");
        assert!(line.contains("-bad.drv"), "it fails again, for it was tried again: {line}");
    }
    let job = wait_for("it has failed again", || farm.job("bad").filter(|job| job["state"] == "failed"));
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "as if it had never been tried: {job}");
    farm.run(ME, &["cancel", &number]).expect_success();
    assert_eq!(build.finish().0, 1);

    let ran = wait_for("the build has left the farm", || {
        Some(farm.run(ME, &["restart", &number])).filter(|ran| ran.out().contains("had ended; what it was is build "))
    });
    let words = ran.expect_success().out();
    let anew = words.trim().rsplit(' ').next().expect("a number").to_owned();
    assert_ne!(anew, number);
    wait_for("it is tried once more", || farm.job("bad").filter(|job| job["state"] == "failed"));
    assert_eq!(farm.number(1), anew);
    farm.run(ME, &["cancel", &anew]).expect_success();
}
