//! Every kept input, through the target that it was kept for. An input that breaks a property fails the test and is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use kiln_fuzz::{TARGETS, Target, Verdict};

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a directory by path; none if the directory is not there.
fn inputs(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.expect("an entry of the directory").path());
    files.map(|path| (path.clone(), fs::read(&path).unwrap_or_else(|err| panic!("read `{}`: {err}", path.display())))).collect()
}

/// Runs the target on each input; returns how many were accepted and refused, and those that broke a property.
fn replay(target: &Target, inputs: &BTreeMap<PathBuf, Vec<u8>>) -> (usize, usize, Vec<PathBuf>) {
    let (mut accepted, mut refused, mut broken) = (0, 0, Vec::new());
    for (path, bytes) in inputs {
        match catch_unwind(|| target.check(bytes)) {
            Ok(Verdict::Accepted) => accepted += 1,
            Ok(Verdict::Refused) => refused += 1,
            Err(_) => broken.push(path.clone()),
        }
    }
    (accepted, refused, broken)
}

#[test]
fn every_kept_input_of_every_target_is_read_or_refused() {
    for target in &TARGETS {
        let (accepted, refused, broken) = replay(target, &inputs(&home().join("corpus").join(target.name)));
        assert!(broken.is_empty(), "{}: each of these breaks a property, see the panics above: {broken:#?}", target.name);
        assert!(accepted >= 5 && refused >= 5, "{}: a corpus has inputs of both kinds, this has {accepted} and {refused}", target.name);
    }
}

#[test]
fn what_nix_wrote_is_accepted() {
    for (name, least) in [("aterm", 5), ("hook", 4), ("shown", 12)] {
        let target = Target::named(name).expect("it is listed");
        let mut inputs = inputs(&home().join("corpus").join(name));
        inputs.retain(|path, _| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("real-")));
        let (accepted, refused, broken) = replay(target, &inputs);
        assert_eq!((accepted >= least, refused, broken), (true, 0, Vec::new()), "{name}");
    }
}

#[test]
fn every_past_finding_is_mended() {
    for target in &TARGETS {
        let (_, _, broken) = replay(target, &inputs(&home().join("findings").join(target.name)));
        assert!(broken.is_empty(), "{}: each of these breaks a property again: {broken:#?}", target.name);
    }
}

#[test]
fn every_kept_directory_and_dictionary_is_of_a_target() {
    for (dir, ending) in [("corpus", ""), ("findings", ""), ("dictionaries", ".dict")] {
        for entry in fs::read_dir(home().join(dir)).into_iter().flatten() {
            let name = entry.expect("an entry of the directory").file_name().to_string_lossy().into_owned();
            let target = name.strip_suffix(ending).and_then(Target::named);
            assert!(target.is_some() || name == "README.md", "{dir}/{name} is of no target");
        }
    }
}

#[test]
fn every_target_has_a_program_that_searches() {
    let programs = inputs(&home().join("libfuzzer/targets"));
    let names: BTreeSet<_> = programs.keys().filter_map(|path| path.file_stem()?.to_str()).collect();
    assert_eq!(names, TARGETS.iter().map(|target| target.name).collect::<BTreeSet<_>>());
    let manifest = fs::read_to_string(home().join("libfuzzer/Cargo.toml")).expect("the programs have a manifest");
    for (path, source) in &programs {
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a target's name");
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")), "{name} is in the manifest");
        assert!(String::from_utf8_lossy(source).contains(&format!("named(\"{name}\")")), "{name} runs the target of its name");
    }
}

/// The programs are a workspace of their own, whose lock file no other build reads.
#[test]
fn the_programs_are_locked_to_what_the_farm_is_made_of() {
    let root = home().ancestors().nth(2).expect("the tree's root");
    let table = |path: PathBuf| -> toml::Table {
        let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()));
        text.parse().unwrap_or_else(|err| panic!("read `{}`: {err}", path.display()))
    };
    let (ours, theirs) = (locked(&table(root.join("Cargo.lock"))), locked(&table(home().join("libfuzzer/Cargo.lock"))));
    let again = "take the lock file anew: cp Cargo.lock loadtest/fuzz/libfuzzer/ && cargo metadata --manifest-path loadtest/fuzz/libfuzzer/Cargo.toml";
    for (name, (versions, _)) in &theirs {
        let ours = ours.get(name).map_or(versions, |(versions, _)| versions);
        assert!(versions.is_subset(ours), "{name} is {versions:?} there and {ours:?} here; {again}");
    }
    let mut compared = 0;
    for member in table(root.join("Cargo.toml"))["workspace"]["members"].as_array().expect("members") {
        let manifest = table(root.join(member.as_str().expect("a path")).join("Cargo.toml"));
        let name = manifest["package"]["name"].as_str().expect("a name");
        let (Some((_, needed)), Some(wanted)) = (theirs.get(name), manifest.get("dependencies").and_then(toml::Value::as_table)) else {
            continue;
        };
        // What a feature brings that the programs do not have is not theirs.
        let optional = |needs: &toml::Value| needs.get("optional").is_some_and(|optional| optional.as_bool() == Some(true));
        let wanted = wanted.iter().filter(|(_, needs)| !optional(needs)).map(|(name, _)| name);
        let missing: Vec<_> = wanted.filter(|wanted| !needed.contains(*wanted)).collect();
        assert!(missing.is_empty(), "{name} needs {missing:?}; {again}");
        compared += 1;
    }
    assert!(compared >= 4, "only {compared} of our crates are in that lock file");
}

/// Versions and dependencies of each package in a lock file.
fn locked(lock: &toml::Table) -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let mut locked: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
    for package in lock["package"].as_array().expect("packages") {
        let (versions, needed) = locked.entry(package["name"].as_str().expect("a name").to_owned()).or_default();
        versions.insert(package["version"].as_str().expect("a version").to_owned());
        let names = package.get("dependencies").and_then(|names| names.as_array()).into_iter().flatten();
        needed.extend(names.map(|name| name.as_str().expect("a name").split(' ').next().unwrap_or_default().to_owned()));
    }
    locked
}

#[test]
fn a_corpus_is_small() {
    for target in &TARGETS {
        let inputs = inputs(&home().join("corpus").join(target.name));
        let bytes: usize = inputs.values().map(Vec::len).sum();
        assert!(inputs.len() <= 500 && bytes <= 1 << 20, "{}: {} inputs of {bytes} bytes; minimise it", target.name, inputs.len());
    }
}
