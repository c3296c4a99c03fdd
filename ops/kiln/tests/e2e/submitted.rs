//! Jobs in other forms than expressions and `.drv` files: what Nix shows as JSON, and sets that were evaluated elsewhere.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::farm::Place;

const SET: &str = r#"
rec {
  lib = drv "lib" "echo lib > $out" [ (builtins.toFile "source" "text") ];
  top = drv "top" "read line < $deps; echo $line, topped > $out" [ lib ];
  structured = derivation { name = "structured"; system = "x86_64-linux"; builder = "${boot}/busybox"; __structuredAttrs = true;
    args = [ "sh" "-c" ". ./.attrs.sh; echo $number $text > \${outputs[out]}" ]; number = 17; text = "a \"b\" é\n"; };
  bad = drv "bad" "exit 1" [ ];
}
"#;

/// A store of Nix's in the place's directory, with the derivations of these attributes.
struct Evaluated {
    store: PathBuf,
    derivations: Vec<String>,
    root: String,
}

impl Evaluated {
    fn new(place: &Place, attributes: &[&str]) -> Self {
        let root = format!("local?root={}", place.path("other").display());
        let mut command = Command::new("nix-instantiate");
        command.args(["--store", &root]).arg(place.path("set.nix"));
        command.args(attributes.iter().flat_map(|attribute| ["-A", attribute]));
        let derivations = run(&mut command).lines().map(str::to_owned).collect();
        Self { store: place.path("other/nix/store"), derivations, root }
    }

    /// What `nix show-derivation -r` says of them, as a file beside them.
    fn shown(&self) -> String {
        let mut command = Command::new("nix");
        command.args(["--extra-experimental-features", "nix-command", "show-derivation", "--store", &self.root, "-r"]);
        let file = self.store.join("shown.json");
        std::fs::write(&file, run(command.args(&self.derivations))).expect("write");
        file.to_str().expect("text").to_owned()
    }
}

/// Returns the number of the build that ended last.
fn last_build(place: &Place) -> String {
    let kept = std::fs::read_dir(place.path("farm/builds")).expect("an archive").filter_map(Result::ok);
    let numbers = kept.filter_map(|file| file.file_name().to_str()?.strip_suffix(".build")?.parse::<u64>().ok());
    numbers.max().expect("a build ended").to_string()
}

fn run(command: &mut Command) -> String {
    let ran = command.output().expect("nix-bin is installed");
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("UTF-8")
}

#[test]
fn what_nix_shows_is_built_and_is_the_same_job_as_the_file() {
    let place = Place::new(SET);
    let evaluated = Evaluated::new(&place, &["top", "lib"]);
    let shown = evaluated.shown();
    let _farm = place.up();
    // Only the JSON: the farm must get every recipe from it.
    for derivation in std::fs::read_dir(&evaluated.store).expect("a store").filter_map(Result::ok) {
        if derivation.path().extension().is_some_and(|extension| extension == "drv") {
            std::fs::rename(derivation.path(), place.path("").join(derivation.file_name())).expect("move away");
        }
    }
    let built = place.run(&["build", &shown, "--json"]).expect_success();
    assert_eq!(built.events("built"), 2, "{}", built.out());
    let top = &evaluated.derivations[0];
    let file = place.path(top.strip_prefix("/nix/store/").expect("a path"));
    let again = place.run(&["build", file.to_str().expect("text"), "--to", "root"]).expect_success();
    let path = again.out().trim().to_owned();
    assert!(built.out().lines().last().expect("a line").contains(&path), "{path}");
    let content = std::fs::read_to_string(format!("{}{path}", place.path("root").display())).expect("it was brought");
    assert_eq!(content, "lib, topped\n");

    let ours = place.run(&["drv", "show", &shown]).expect_success().json();
    let theirs: Value = serde_json::from_str(&std::fs::read_to_string(&shown).expect("a file")).expect("JSON");
    assert_eq!(ours, theirs);
    let outputs = place.run(&["drv", "outputs", &shown]).expect_success().json();
    assert_eq!(outputs[top]["out"], path.as_str());
    let forged = std::fs::read_to_string(&shown).expect("a file").replace("topped", "forged");
    std::fs::write(place.path("forged.json"), forged).expect("write");
    let refused = place.run(&["build", "forged.json"]);
    assert_eq!(refused.code(), 2, "{}", refused.err());
    assert!(refused.err().contains("its content belongs at"), "{}", refused.err());
}

#[test]
fn structured_attributes_that_nix_shows_are_those_of_the_file() {
    let place = Place::new(SET);
    let evaluated = Evaluated::new(&place, &["structured"]);
    let shown = evaluated.shown();
    let outputs = place.run(&["drv", "outputs", &shown]).expect_success().json();
    assert_eq!(outputs.as_object().map(serde_json::Map::len), Some(1));
    assert!(outputs[&evaluated.derivations[0]]["out"].is_string(), "{outputs}");
}

#[test]
fn an_evaluated_set_is_one_build_and_what_does_not_evaluate_is_told() {
    let place = Place::new(SET);
    let evaluated = Evaluated::new(&place, &["top", "lib"]);
    let _farm = place.up();
    let job = |attribute: &str, drv: &str| json!({ "attr": attribute, "attrPath": [attribute], "drvPath": drv, "name": attribute, "system": "x86_64-linux", "outputs": { "out": null } });
    let (top, lib) = (&evaluated.derivations[0], &evaluated.derivations[1]);
    let jobs = [job("top", top), job("lib", lib), job("alias", top)].map(|line| line.to_string()).join("\n");
    let error = json!({ "attr": "broken", "attrPath": ["broken"], "error": "error: \u{1b}[31mundefined variable\u{1b}[0m 'x'" });
    let inputs = evaluated.store.to_str().expect("text").to_owned();

    std::fs::write(place.path("jobs"), format!("{jobs}\n{error}\n")).expect("write");
    let told = place.run(&["submit", "--name", "nightly", "--eval-jobs", "jobs", "--inputs", &inputs]);
    assert_eq!(told.code(), 1, "{}", told.err());
    for wanted in ["broken does not evaluate", "undefined variable", "built top", "errors in the evaluation: 1 attribute"] {
        assert!(told.err().contains(wanted), "`{wanted}` is missing in {}", told.err());
    }
    assert_eq!(told.out().lines().count(), 2, "the others are built: {}", told.out());
    // The build keeps what its jobs are called, and what could not be evaluated.
    let kept = place.run(&["status", "--json", &last_build(&place)]).expect_success().json();
    assert_eq!((&kept["attributes"][top], &kept["attributes"][lib]), (&json!(["top", "alias"]), &json!(["lib"])), "{kept}");
    assert_eq!(kept["evaluationErrors"], json!({ "broken": "error: undefined variable 'x'" }));
    let shown = place.run(&["status", &last_build(&place)]).expect_success().out();
    assert!(shown.contains("of nightly: built") && shown.contains("broken") && shown.contains("undefined variable"), "{shown}");
    let first = last_build(&place);

    let mut piped = place.kiln(&["submit", "--name", "nightly", "--eval-jobs", "-", "--inputs", &inputs, "--json"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary runs");
    piped.stdin.take().expect("a pipe").write_all(jobs.as_bytes()).expect("write");
    let ran = piped.wait_with_output().expect("it ends");
    let last: Value =
        serde_json::from_slice(ran.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).expect("a line")).expect("JSON");
    assert_eq!((ran.status.code(), &last["name"], last["paths"].as_array().map(Vec::len)), (Some(0), &json!("nightly"), Some(2)), "{last}");
    let compared = place.run(&["diff", &last["build"].to_string(), &first, "--json"]);
    assert_eq!((compared.code(), &compared.json()["attributesNewlyUnevaluated"]), (1, &json!(["broken"])), "{}", compared.out());

    std::fs::write(place.path("errors"), error.to_string()).expect("write");
    let told = place.run(&["submit", "--name", "nightly", "--eval-jobs", "errors", "--json"]);
    assert_eq!((told.code(), &told.json()["event"], &told.json()["attr"]), (1, &json!("evaluation-failed"), &json!("broken")));
    for (text, rule) in [("", "has no jobs"), ("{}", "line 1"), (&jobs, "missing")] {
        std::fs::write(place.path("none"), text).expect("write");
        let refused = place.run(&["submit", "--name", "nightly", "--eval-jobs", "none", "--inputs", "."]);
        // The farm has the derivations of the last one by now, and the client reads them all the same.
        assert_eq!(refused.code(), 2, "{text}: {}", refused.err());
        assert!(refused.err().contains(rule), "{text}: {}", refused.err());
    }
}

#[test]
fn a_job_that_fails_keeps_no_other_of_the_set_from_being_built() {
    let place = Place::new(SET);
    let evaluated = Evaluated::new(&place, &["bad", "lib"]);
    let lines: Vec<String> = evaluated.derivations.iter().map(|drv| json!({ "attr": drv, "drvPath": drv }).to_string()).collect();
    std::fs::write(place.path("jobs"), lines.join("\n")).expect("write");
    let _farm = place.up();
    let failed = place.run(&["submit", "--name", "set", "--eval-jobs", "jobs", "--inputs", evaluated.store.to_str().expect("text")]);
    assert_eq!(failed.code(), 1, "{}", failed.err());
    assert!(failed.err().contains("built lib") && failed.err().contains("-bad.drv failed"), "{}", failed.err());
}
