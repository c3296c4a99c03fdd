//! Two builds of one set, side by side: `kiln diff`.

use serde_json::Value;

use crate::farm::{Place, Ran};

/// What the set is of a night: `drift` changes, `fixed` is mended, `broken` breaks, `still` fails both times.
const NIGHT: &str = r#"
let when = builtins.getEnv "NIGHT"; later = when == "2"; in
rec {
  same = drv "same-1.0" "echo same > $out" [ ];
  drift = drv "drift-1.${when}" "echo ${when} > $out" [ ];
  fixed = drv "fixed-1.${when}" (if later then "echo good > $out" else "exit 1") [ ];
  broken = drv "broken-1.${when}" (if later then "exit 1" else "echo good > $out") [ ];
  still = drv "still-1.${when}" "exit 1" [ ];
  all = [ same drift fixed broken still ];
}
"#;

#[test]
fn what_fails_newly_and_what_changed_is_told_from_one_build_to_the_next() {
    let place = Place::new(NIGHT);
    let _farm = place.up();
    let [first, second] = ["1", "2"].map(|night| build(&place, night));

    let compared = place.run(&["diff", &first, &second, "--json"]);
    assert_eq!(compared.code(), 1, "they differ: {}", compared.err());
    let told = compared.json();
    for (key, expected) in [
        ("newlyFailing", &["broken-1.2"][..]),
        ("stillFailing", &["still-1.2"]),
        ("failingNoMore", &["fixed-1.1"]),
        // What the second build found made already is not told of it.
        ("onlyBefore", &["broken-1.1", "same-1.0"]),
        ("onlyAfter", &["fixed-1.2"]),
    ] {
        assert_eq!(names(&told[key]), expected, "{key}: {told}");
    }
    let changed = &told["changed"][0];
    assert_eq!(names(&Value::from(vec![changed["before"].clone(), changed["after"].clone()])), ["drift-1.1", "drift-1.2"]);

    let shown = place.run(&["diff", &first, &second]).out();
    assert!(shown.contains("newly failing: 1\n  broken-1.2\n") && shown.contains("\n  drift-1.1 -> drift-1.2\n"), "{shown}");

    let itself = place.run(&["diff", &second, &second]);
    assert_eq!(itself.code(), 0, "nothing differs: {}", itself.out());
    let unknown = place.run(&["diff", &first, "999999"]);
    assert!(unknown.code() != 0 && unknown.err().contains("999999"), "{}", unknown.err());
}

/// Builds the set of a night; returns the build's number.
fn build(place: &Place, night: &str) -> String {
    let mut command = place.kiln(&["build", "-f", "set.nix", "-A", "all", "--keep-going", "--json"]);
    let ran = Ran(command.env("NIGHT", night).output().expect("the binary runs"));
    assert_eq!(ran.code(), 1, "some fail: {}", ran.err());
    let last: Value = ran.out().lines().last().and_then(|line| serde_json::from_str(line).ok()).expect("the build");
    last["build"].to_string()
}

fn names(jobs: &Value) -> Vec<String> {
    let path = |job: &Value| job.as_str().or(job["derivation"].as_str()).map(str::to_owned);
    let name = |path: String| path.trim_end_matches(".drv").split_once('-').map(|(_, name)| name.to_owned());
    jobs.as_array().into_iter().flatten().filter_map(|job| path(job).and_then(name)).collect()
}
