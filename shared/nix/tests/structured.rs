//! Structured attributes as a real Nix hands them to a builder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use kiln_nix::{Derivation, Modulo, drv_path_of};
use kiln_wire::{DrvPath, StoreDir};
use serde_json::Value;

/// Ends with `true`: were `cp` the last process, it would close its output before it exits, upon which Nix may kill it.
const RECIPE: &str = r##"
let dep = builtins.toFile "dep" "hello"; in
derivation {
  name = "sa"; system = builtins.currentSystem; builder = "/bin/bash"; __structuredAttrs = true; outputs = [ "out" "dev" ];
  args = [ "-c" ". ./.attrs.sh; /bin/mkdir \${outputs[out]} \${outputs[dev]}; /bin/cp .attrs.json .attrs.sh \${outputs[out]}/; true" ];
  a = "b" + "é"; f = 1.5e10; g = 0.1; big = 1.0e17; h = { z = "1"; b = "x'y"; }; l = [ 1 2 true null ]; n = null; t = true; i = -5;
  ctl = "\t\n\r\"\\/"; p = "${builtins.placeholder "dev"}/x"; nested = { a = [ 1 ]; }; mixed = [ "a" 1 ]; "bad-name" = "x";
  exportReferencesGraph = { closure = [ dep ]; };
}
"##;

#[test]
fn the_files_are_those_that_nix_writes() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let dir = |name: &str| temporary.path().join(name).to_string_lossy().into_owned();
    fs::write(dir("recipe.nix"), RECIPE).expect("a file");
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        for (variable, name) in [("NIX_STORE_DIR", "store"), ("NIX_STATE_DIR", "state"), ("NIX_LOG_DIR", "log"), ("NIX_CONF_DIR", "conf")] {
            command.env(variable, dir(name));
        }
        let output = command.env("HOME", dir("home")).env("NIX_REMOTE", "local").args(arguments).output().expect("Debian's nix-bin");
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    let drv = run("nix-instantiate", &[&dir("recipe.nix")]);
    let options = ["--option", "sandbox", "false", "--option", "build-users-group", "", "--option", "substitute", "false"];
    run("nix-store", &[&["--realise", &drv][..], &options].concat());

    let store_dir = StoreDir::parse(&dir("store")).expect("a store directory");
    let path = store_dir.strip(&drv).and_then(DrvPath::from_path).expect("a derivation's path");
    let bytes = fs::read(&drv).expect("the file");
    let derivation = Derivation::parse_canonical(&store_dir, path.name(), &bytes).expect("parses");
    // A store in another directory than /nix/store has other paths for the same recipe.
    assert_eq!(drv_path_of(&store_dir, path.name(), &bytes).as_ref(), Ok(&path));
    assert_eq!(Modulo::new(store_dir.clone()).check_outputs(&path, &derivation).expect("hashes"), vec![]);
    let outputs: BTreeMap<_, _> =
        derivation.outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.path()?.clone()))).collect();
    let made = outputs.iter().find(|(name, _)| name.as_str() == "out").map(|(_, path)| store_dir.join(path)).expect("an output");
    let theirs = ["json", "sh"].map(|suffix| fs::read_to_string(format!("{made}/.attrs.{suffix}")).expect("the builder copied it"));
    // What Nix knows of the exported closure is its store's business: it is taken from Nix's own file.
    let answers: BTreeMap<String, Value> = serde_json::from_str(&theirs[0]).expect("JSON");
    let graphs = answers.into_iter().filter(|(name, _)| name == "closure").collect::<BTreeMap<_, _>>();
    assert_eq!(graphs.len(), 1);
    let files = derivation.structured_files(&store_dir, &outputs, &graphs).expect("files").expect("structured");
    // Nix 2.8 cuts large numbers down to 32 bits in the shell's file, which later versions do not.
    let right = |line: &&str| !line.starts_with("declare big=") && !line.starts_with("declare f=");
    let sorted = |text: &str| text.lines().filter(right).map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(String::from_utf8(files.json).expect("UTF-8"), theirs[0]);
    assert_eq!(sorted(&String::from_utf8(files.shell).expect("UTF-8")), sorted(&theirs[1]));
}
