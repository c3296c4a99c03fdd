//! The estimator by its levels.

use alloc::vec::Vec;

use super::*;

fn line(pname: &str, version: Option<&str>, seconds: u64) -> Measured {
    Measured {
        pname: pname.into(),
        version: version.map(Into::into),
        system: "x86_64-linux".into(),
        wall_ms: seconds * 1_000,
        ..Measured::default()
    }
}

#[test]
fn what_is_imported_comes_back_and_what_makes_no_sense_is_left_out() {
    let mut estimates = Estimates::default();
    assert!(estimates.is_empty());
    for measured in
        [line("", None, 5), line("a", None, 0), Measured { system: "".into(), ..line("a", None, 5) }, line(&"x".repeat(300), None, 5)]
    {
        assert_eq!(estimates.import(&measured), Touched::default(), "{measured:?}");
    }
    assert!(estimates.is_empty());
    let touched = estimates.import(&Measured { peak_memory_mib: Some(900), cpu_ms: Some(40_000), ..line("gcc", Some("13"), 100) });
    let system = "x86_64-linux";
    assert_eq!(touched.topics, [PackageKey::of("gcc", system, false).into(), Topic::of_version("gcc", system, false, "13")]);
    estimates.import(&line("hello", Some("2.12"), 3));
    let views = estimates.views(None);
    let names: Vec<&str> = views.iter().map(|view| view.measured.pname.as_str()).collect();
    assert_eq!(names, ["gcc", "hello"]);
    let gcc = &estimates.views(Some("gcc"))[0];
    assert!((95_000..125_000).contains(&gcc.expected_ms) && (1_000..2_000).contains(&gcc.memory_mib), "{gcc:?}");
    assert_eq!(gcc.measured.count, Some(16));
}

#[test]
fn a_snapshot_holds_what_was_learned() {
    let mut estimates = Estimates::default();
    for number in 0..50 {
        estimates.import(&line(&alloc::format!("p{number}"), Some("1"), 1 + number));
    }
    let bytes = kiln_wire::frame::to_bytes(&estimates).expect("encodes");
    assert_eq!(kiln_wire::frame::from_bytes::<Estimates>(&bytes).expect("decodes"), estimates);
}

#[test]
fn a_package_is_looked_at_again_only_if_something_else_is_expected_of_it() {
    let mut estimates = Estimates::default();
    let package = Topic::from(PackageKey::of("source", "x86_64-linux", false));
    let mut looks = |line: &Measured| (0..200).filter(|_| estimates.import(line).topics.contains(&package)).count();
    let first = looks(&line("source", None, 10));
    assert!((1..=10).contains(&first), "what comes again says nothing new: {first} looks");
    assert_eq!(looks(&line("source", None, 10)), 0);
    assert!(looks(&line("source", None, 100_000)) > 0, "and something else does");
    assert!(looks(&line("source", Some("2"), 10)) > 0, "as does a version of its own");
}
