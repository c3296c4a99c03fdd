//! What bad input gets: the right exit code, and words that name the operation, the subject and the rule.

use crate::farm::{Place, Process};

const SET: &str = r#"
{
  alien = derivation { name = "alien"; system = "mips-linux"; builder = "/nowhere"; };
  plain = drv "plain" "echo plain > $out" [ ];
  sourced = drv "sourced" "cat $deps > $out" [ (builtins.toFile "source" "text") ];
}
"#;

#[test]
fn every_kind_of_bad_input_is_named() {
    let place = Place::new(SET);
    let _farm = place.up();
    std::fs::write(place.path("0hm2f1psjpcwg8fijsmr4wwxrx59s092-torn.drv"), "Derive([(\"out\"").expect("write");
    std::fs::write(place.path("torn.nix"), "{ a = ").expect("write");
    let table: [(&[&str], &str); 6] = [
        (&["build", "nothing.drv"], "nothing.drv"),
        (&["build", "0hm2f1psjpcwg8fijsmr4wwxrx59s092-gone.drv"], "no such file"),
        (&["build", "0hm2f1psjpcwg8fijsmr4wwxrx59s092-torn.drv"], "0hm2f1psjpcwg8fijsmr4wwxrx59s092-torn"),
        (&["build", "-f", "torn.nix"], "torn.nix"),
        (&["build"], "nothing to build"),
        (&["path-info", "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar"], "not valid"),
    ];
    for (args, named) in table {
        let ran = place.run(args);
        assert_eq!(ran.code(), 2, "{args:?}: {}", ran.err());
        assert!(ran.err().contains(named), "{args:?}: `{named}` is missing in: {}", ran.err());
    }
}

#[test]
fn an_absent_farm_is_told_from_bad_input() {
    let place = Place::new(SET);
    let ran = place.run(&["status"]);
    assert_eq!(ran.code(), 3, "{}", ran.err());
    assert!(ran.err().contains("kiln up"), "{}", ran.err());
}

#[test]
fn a28_a_derivation_whose_source_is_gone_or_whose_output_path_is_wrong_is_refused() {
    let place = Place::new(SET);
    let _farm = place.up();
    place.run(&["build", "-f", "set.nix", "-A", "plain"]).expect_success();
    let store = place.path("farm/evaluation/nix/store");
    let ran = std::process::Command::new("nix-instantiate")
        .args(["--store", &format!("local?root={}", place.path("other").display())])
        .arg(place.path("set.nix"))
        .args(["-A", "sourced"])
        .output()
        .expect("nix-bin is installed");
    let drv = String::from_utf8_lossy(&ran.stdout).trim().replace("/nix/store", &format!("{}/nix/store", place.path("other").display()));
    let text = std::fs::read_to_string(&drv).expect("a derivation");
    for entry in std::fs::read_dir(place.path("other/nix/store")).expect("a store").filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().ends_with("-source") {
            std::fs::remove_file(entry.path()).expect("remove the source");
        }
    }
    let gone = place.run(&["build", &drv]);
    assert_eq!(gone.code(), 2, "{}", gone.err());
    assert!(gone.err().contains("missing") && gone.err().contains("-source"), "{}", gone.err());

    // The path of a .drv follows from its bytes, so a changed output path makes a file that is not where it belongs.
    let out = text.split("\"out\",\"/nix/store/").nth(1).expect("an output")[..32].to_owned();
    std::fs::write(store.join("0hm2f1psjpcwg8fijsmr4wwxrx59s092-sourced.drv"), text.replace(&out, &"0".repeat(32))).expect("write");
    let forged = place.run(&["build", store.join("0hm2f1psjpcwg8fijsmr4wwxrx59s092-sourced.drv").to_str().expect("text")]);
    assert_eq!(forged.code(), 2, "{}", forged.err());
    assert!(forged.err().contains("its content belongs at"), "{}", forged.err());
}

#[test]
fn a_job_that_no_worker_can_run_waits_with_a_reason_until_it_is_cancelled() {
    let place = Place::new(SET);
    let _farm = place.up();
    let waiting = Process::start(&mut place.kiln(&["build", "-f", "set.nix", "-A", "alien", "--json"]));
    let jobs = (0..200).map(|_| place.run(&["jobs", "--json"]).expect_success().out()).find(|jobs| jobs.contains("alien"));
    let jobs = jobs.expect("the job is submitted");
    assert!(jobs.contains("mips-linux"), "the reason names the system: {jobs}");
    let status: serde_json::Value = serde_json::from_str(&place.run(&["status", "--json"]).expect_success().out()).expect("JSON");
    let build = status["builds"][0]["build"].as_u64().expect("one build").to_string();
    place.run(&["cancel", &build]).expect_success();
    let (code, rest) = waiting.finish();
    assert_eq!(code, 1, "{rest}");
    assert!(rest.contains("\"state\":\"cancelled\""), "{rest}");
}
