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
    assert_eq!(touched.topics, [PackageKey::of("gcc", "x86_64-linux", false).into()]);
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
