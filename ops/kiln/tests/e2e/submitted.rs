//! Jobs in another form than expressions and `.drv` files: what Nix shows as JSON.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::farm::Place;

const SET: &str = r#"
rec {
  lib = drv "lib" "echo lib > $out" [ (builtins.toFile "source" "text") ];
  top = drv "top" "read line < $deps; echo $line, topped > $out" [ lib ];
  structured = derivation { name = "structured"; system = "x86_64-linux"; builder = "${boot}/busybox"; __structuredAttrs = true;
    args = [ "sh" "-c" ". ./.attrs.sh; echo $number $text > \${outputs[out]}" ]; number = 17; text = "a \"b\" é\n"; };
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
