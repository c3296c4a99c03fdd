//! The JSON that the README documents: every field is there under its name, and has its type.

use serde_json::Value;

use crate::farm::{Place, Process};

const SET: &str = r#"
rec {
  good = drv "good" "echo good > $out" [ ];
  bad = drv "bad" "exit 1" [ good ];
  alien = derivation { name = "alien"; system = "mips-linux"; builder = "/nowhere"; };
}
"#;

/// Checks an object against `name:type` words; a `?` lets the value be null.
fn check(value: &Value, fields: &str) {
    for field in fields.split_whitespace() {
        let (name, kind) = field.split_once(':').expect("name:type");
        let found = value.get(name).unwrap_or_else(|| panic!("`{name}` is missing in {value}"));
        let holds = match kind.trim_start_matches('?') {
            "number" => found.is_u64(),
            "text" => found.is_string(),
            "truth" => found.is_boolean(),
            "list" => found.is_array(),
            "object" => found.is_object(),
            other => panic!("no type `{other}`"),
        };
        assert!(holds || (kind.starts_with('?') && found.is_null()), "`{name}` is no {kind} in {value}");
    }
    assert_eq!(value.as_object().map(serde_json::Map::len), Some(fields.split_whitespace().count()), "nothing undocumented: {value}");
}

const BUILD: &str = "build:number name:text state:text submittedAt:number remainingMs:?number jobs:object outputs:object failures:list \
                     attributes:object evaluationErrors:object evaluationErrorsCount:number";
const COUNTS: &str = "blocked:number ready:number running:number built:number failed:number";
const JOB: &str = "derivation:text state:text reason:text builds:list upwardRankMs:number attempts:list attributes:list";
const ATTEMPT: &str = "attempt:number worker:text startedAt:number endedAt:?number failureClass:?text failure:?text usage:?object";

#[test]
fn json_is_as_the_readme_says() {
    let place = Place::new(SET);
    let _farm = place.up();
    let built = place.run(&["build", "-f", "set.nix", "-A", "good", "--json"]).expect_success();
    let lines: Vec<Value> = built.out().lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect();
    let (last, events) = lines.split_last().expect("lines");
    check(last, &format!("{BUILD} paths:list"));
    check(&last["jobs"], COUNTS);
    let outputs = last["outputs"].as_object().expect("an object");
    let (derivation, made) = outputs.iter().next().expect("one derivation");
    assert_eq!(made["out"], last["paths"][0]);
    for event in events {
        assert_eq!(event["derivation"].as_str(), Some(derivation.as_str()));
        match event["event"].as_str().expect("a kind") {
            "ready" => check(event, "event:text at:number derivation:text"),
            "started" => check(event, "event:text at:number derivation:text attempt:number worker:text"),
            "built" => check(event, "event:text at:number derivation:text wallMs:number narBytes:number"),
            other => panic!("`{other}` in a build that went well"),
        }
    }
    assert!(events.iter().any(|event| event["event"] == "built"), "{events:?}");

    let failed = place.run(&["build", "-f", "set.nix", "-A", "bad", "--json"]);
    let last: Value = serde_json::from_str(failed.out().lines().last().expect("a last line")).expect("JSON");
    check(&last, BUILD);
    check(&last["failures"][0], JOB);
    check(&last["failures"][0]["attempts"][0], ATTEMPT);
    assert_eq!(last["failures"][0]["attempts"][0]["failureClass"], "build failure");
    let usage = "wallMs:number cpuMs:number cpuThrottledMs:?number memoryPeakBytes:number diskWriteBytes:?number logBytes:number";
    check(&last["failures"][0]["attempts"][0]["usage"], usage);

    let info =
        place.run(&["path-info", "--json", lines.last().expect("a line")["paths"][0].as_str().expect("a path")]).expect_success().json();
    check(&info[0], "path:text narHash:text narSize:number references:list deriver:?text ca:?text downloadSize:number");
    let path = place.beacon();
    check(&path, "pid:number link:text cache:text public_key:text identity:text");
}

#[test]
fn json_about_a_live_farm_is_as_the_readme_says() {
    let place = Place::new(SET);
    let _farm = place.up();
    let _waiting = Process::start(&mut place.kiln(&["build", "-f", "set.nix", "-A", "alien", "--json"]));
    let status = crate::farm::wait_for("the build is submitted", || {
        let status = place.run(&["status", "--json"]).expect_success().json();
        (status["builds"] != serde_json::json!([])).then_some(status)
    });
    check(
        &status,
        "version:text storeDir:text publicKey:text cacheUrl:text term:number leader:number workersConnected:number jobs:object builds:list \
         retention:object webhooks:list",
    );
    check(&status["retention"], "keepBuilds:number keepDays:number keepBuildsMax:?number keepLogDays:?number everyHours:?number");
    check(&status["jobs"], COUNTS);
    check(&status["builds"][0], BUILD);
    let job = place.run(&["jobs", "--json"]).expect_success().json()[0].clone();
    check(&job, JOB);
    let explained = place.run(&["explain", job["derivation"].as_str().expect("a path"), "--json"]).expect_success().json();
    let fields = "job:object expectedMs:number runningMs:?number system:text features:list cores:number memoryMiB:number memoryWishMiB:number \
                  workers:list ahead:?number inputsUnbuilt:number behind:list behindMs:number dependents:number dependentsAll:number";
    check(&explained, fields);
    check(&explained["workers"][0], "what:text count:number first:list");
    assert_eq!(explained["job"], job);
    assert_eq!(explained["workers"][0]["what"], "run other systems");
    let worker = "worker:text connected:truth systems:list features:list slots:number cores:number memoryMiB:number coresUsed:number \
                  memoryUsedMiB:number guarantees:object running:list strain:?text ailing:?object";
    check(&place.run(&["workers", "--json"]).expect_success().json()[0], worker);
}

#[test]
fn the_help_of_a_worker_says_what_signals_do() {
    let help = Place::new("{ }").run(&["worker", "--help"]).expect_success().out();
    assert!(help.contains("SIGTERM: takes nothing new") && help.contains("A second SIGTERM, or SIGINT (Ctrl-C)"), "{help}");
}
