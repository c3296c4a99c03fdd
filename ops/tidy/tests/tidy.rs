//! The style, as tests. Each lists every offence with its place, so that one run shows all there is to mend.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use kiln_tidy::{Source, root, sources};

const PURE_CRATES: [&str; 3] = ["shared/wire", "coordinator/core", "worker/core"];

fn check(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

fn rust() -> Vec<Source> {
    let files = sources(&[".rs"]);
    assert!(files.len() > 20, "the walk over the tree found {} files only", files.len());
    files
}

fn lines_with<'a>(file: &'a Source, needles: &'a [&'a str]) -> impl Iterator<Item = String> + 'a {
    let hit = |line: &str| needles.iter().any(|needle| line.contains(needle)) && !line.trim_start().starts_with("//");
    file.code_lines().filter(move |(_, line)| hit(line)).map(|(number, line)| format!("{}:{number}: {}", file.path, line.trim()))
}

#[test]
fn no_source_file_is_over_500_lines() {
    let long = |file: &Source| (file.text.lines().count() > 500).then(|| format!("{} ({})", file.path, file.text.lines().count()));
    check("a file can be read at one sitting", &rust().iter().filter(|f| !f.is_test()).filter_map(long).collect::<Vec<_>>());
}

#[test]
fn pure_crates_say_no_std_and_take_no_clock_file_socket_or_float() {
    let impure = ["std::", "HashMap", "HashSet", "f32", "f64", "tracing::", "SystemTime", "Instant::"];
    let mut offences = Vec::new();
    for pure in PURE_CRATES {
        let lib = fs::read_to_string(root().join(pure).join("src/lib.rs")).expect("every pure crate has a lib.rs");
        if !lib.contains("#![no_std]") {
            offences.push(format!("{pure}/src/lib.rs lacks #![no_std]"));
        }
        let inside = format!("{pure}/src/");
        let files = rust();
        offences.extend(
            files.iter().filter(|f| f.path.starts_with(&inside) && !f.is_test()).flat_map(|f| lines_with(f, &impure).collect::<Vec<_>>()),
        );
    }
    check("pure code takes values", &offences);
}

#[test]
fn every_wrapped_crate_is_named_in_one_module_only() {
    let homes = [
        ("openraft::", "coordinator/src/raft/"),
        ("quinn::", "shared/link/"),
        ("rustls::", "shared/link/"),
        ("rcgen::", "shared/link/"),
        ("bao_tree::", "shared/link/"),
        ("nix_derivation::", "shared/nix/"),
        ("nix_archive::", "shared/nix/"),
        ("nix_narinfo::", "shared/nix/"),
        ("object_store::", "shared/store/"),
        ("cgroups_rs::", "worker/src/cgroup/"),
        ("opentelemetry::", "shared/trace/"),
        ("opentelemetry_sdk::", "shared/trace/"),
        ("opentelemetry_otlp::", "shared/trace/"),
        ("tracing_opentelemetry::", "shared/trace/"),
    ];
    let mut offences = Vec::new();
    for file in rust().iter().filter(|file| !file.is_test()) {
        for (name, home) in homes {
            if !file.path.starts_with(home) {
                offences.extend(lines_with(file, &[name]).filter(|line| !line.contains(&format!("_{name}"))));
            }
        }
    }
    check("a crate behind a house of ours can be replaced", &offences);
}

#[test]
fn nothing_is_left_unfinished() {
    let needles = ["todo!(", "unimplemented!(", "dbg!("];
    let product = rust().into_iter().filter(|file| !file.path.starts_with("ops/tidy/"));
    let mut offences: Vec<String> = product.flat_map(|file| lines_with(&file, &needles).collect::<Vec<_>>()).collect();
    for file in sources(&[".rs", ".sh", ".nix", ".md", ".toml"]).iter().filter(|file| !file.path.starts_with("ops/tidy/")) {
        let marks = file
            .text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.split(|c: char| !c.is_alphanumeric()).any(|word| matches!(word, "FIXME" | "XXX" | "TODO")));
        offences.extend(marks.map(|(i, line)| format!("{}:{}: {}", file.path, i + 1, line.trim())));
    }
    check("what lands is finished", &offences);
}

#[test]
fn failure_is_expected_with_a_reason_or_returned() {
    let offences: Vec<String> =
        rust().iter().filter(|f| !f.is_test()).flat_map(|file| lines_with(file, &[".unwrap()"]).collect::<Vec<_>>()).collect();
    check("no unwrap outside tests", &offences);
}

#[test]
fn tests_neither_sleep_nor_hide() {
    let needles = ["thread::sleep", "#[ignore]"];
    let own = "ops/tidy/tests/tidy.rs";
    let tests: Vec<Source> = rust().into_iter().filter(|file| file.path != own && file.path.contains("/tests/")).collect();
    check(
        "a test waits for what it means",
        &tests.iter().flat_map(|file| lines_with(file, &needles).collect::<Vec<_>>()).collect::<Vec<_>>(),
    );
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent = |file: &&Source| !file.text.trim_start().starts_with("//!") && !file.text.trim_start().starts_with("#![");
    check("a module opens with its purpose", &rust().iter().filter(silent).map(|file| file.path.clone()).collect::<Vec<_>>());
}

#[test]
fn direct_dependencies_have_one_version() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("the workspace has a lock file");
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for name in lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')) {
        *versions.entry(name).or_default() += 1;
    }
    // Each of these is brought a second time by a crate that we cannot do without; the reasons stand in ops/adr.
    let doubled = ["nix", "thiserror", "base64", "sha2"];
    let section =
        manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).expect("it lists dependencies");
    let direct = section.lines().filter_map(|line| line.split_once(" = ").map(|(name, _)| name.trim()));
    let twice = direct.filter(|name| !doubled.contains(name) && versions.get(name).is_some_and(|count| *count > 1));
    check("one version of each direct dependency", &twice.map(str::to_owned).collect::<Vec<_>>());
}

#[test]
fn one_tls_provider_is_built() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let tree = Command::new(cargo).args(["tree", "--offline", "-e", "normal,build", "-i", "ring"]).current_dir(root()).output();
    let tree = String::from_utf8_lossy(&tree.expect("cargo runs").stdout).into_owned();
    assert!(tree.is_empty(), "two TLS providers panic at the first handshake; ring comes in through:\n{tree}");
}

#[test]
fn claims_and_commands_are_executable() {
    let mut offences = Vec::new();
    let mut files = vec![root().join("ops/test"), root().join("ops/quickstart"), root().join(".ci/run")];
    files.extend(
        fs::read_dir(root().join("ops/prove")).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_file()),
    );
    for file in files {
        let executable = fs::metadata(&file).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
        if !executable {
            offences.push(format!("{} is not executable", file.display()));
        }
    }
    check("a claim is a command", &offences);
}

#[test]
fn commit_subjects_fit_a_line() {
    let log = Command::new("git").args(["log", "--format=%s"]).current_dir(root()).output();
    let Ok(log) = log.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()) else { return };
    check(
        "a subject is at most 72 characters",
        &log.lines().filter(|subject| subject.chars().count() > 72).map(str::to_owned).collect::<Vec<_>>(),
    );
}
