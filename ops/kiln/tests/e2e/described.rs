//! The HTTP API holds what its OpenAPI document says: a program that knows nothing else asks everything, rightly and wrongly.

use std::process::{Command, Stdio};

use crate::farm::Place;

const SET: &str = r#"
rec {
  good = drv "good" "echo good > $out" [ ];
  bad = drv "bad" "echo it fails; exit 1" [ good ];
}
"#;

/// Installed by the script, pinned and checked by its hashes.
fn schemathesis() -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../lib/schemathesis");
    let installed = Command::new(script).stderr(Stdio::inherit()).output().expect("the script runs");
    assert!(installed.status.success(), "{script}: {:?}", installed.status);
    String::from_utf8(installed.stdout).expect("text").trim().to_owned()
}

#[test]
fn every_answer_of_the_api_is_as_its_document_says() {
    let place = Place::new(SET);
    let _farm = place.up();
    place.run(&["build", "-f", "set.nix", "-A", "good"]).expect_success();
    assert_eq!(place.run(&["build", "-f", "set.nix", "-A", "bad"]).code(), 1);
    let cache = place.beacon()["cache"].as_str().expect("an address").to_owned();
    let token = std::fs::read_to_string(place.path("farm/admin-token")).expect("kiln up writes it");
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance,unsupported_method,ignored_auth";
    let ran = Command::new(schemathesis())
        .args([
            "run",
            &format!("{cache}/api/v1/openapi.json"),
            "--checks",
            checks,
            "--header",
            &format!("Authorization: Bearer {}", token.trim()),
        ])
        // The stream of events has no end.
        .args(["--exclude-path", "/events", "--max-examples", "12", "--phases", "examples,coverage,fuzzing", "--generation-deterministic"])
        // One worker: what Hypothesis remembers of functions is no matter of two threads.
        .args(["--continue-on-failure", "--no-color", "--request-timeout", "20", "--workers", "1"])
        .current_dir(place.path("."))
        .output()
        .expect("runs");
    assert!(ran.status.success(), "{}\n{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
}
