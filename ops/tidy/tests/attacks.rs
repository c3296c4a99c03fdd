//! `worker/ATTACKS.md` tells the truth about which test shows what: every test that it names is there, every test that is named after an
//! attack stands in that attack's row, and every attack has a test or the issue that will bring one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use kiln_tidy::{Source, root, sources};

const PAGE: &str = "worker/ATTACKS.md";
const ATTACKS: std::ops::RangeInclusive<u32> = 1..=42;

/// One row of the table: the tests that it names, and all of its text.
struct Row {
    tests: BTreeSet<(String, String)>,
    text: String,
}

fn rows() -> BTreeMap<u32, Row> {
    let page = fs::read_to_string(root().join(PAGE)).expect("the page is there");
    let mut rows = BTreeMap::new();
    for line in page.lines() {
        let Some(number) = line.strip_prefix("| A").and_then(|rest| rest.split_once(' ')).and_then(|(number, _)| number.parse().ok())
        else {
            continue;
        };
        let named = line.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::"));
        let tests = named.map(|(file, name)| (format!("{file}.rs"), name.to_owned())).collect();
        assert!(rows.insert(number, Row { tests, text: line.to_owned() }).is_none(), "A{number} stands twice in {PAGE}");
    }
    rows
}

/// The attacks that a test is named after: `a01_a02_…`.
fn numbers(name: &str) -> BTreeSet<u32> {
    let parts = name.split('_').map_while(|part| part.strip_prefix('a').filter(|digits| digits.len() == 2)?.parse().ok());
    parts.collect()
}

/// The functions of a file.
fn functions(file: &Source) -> impl Iterator<Item = &str> {
    file.text.lines().filter_map(|line| {
        let line = ["pub ", "async "].iter().fold(line.trim_start(), |line, word| line.strip_prefix(word).unwrap_or(line));
        line.strip_prefix("fn ")?.split(|c: char| !c.is_alphanumeric() && c != '_').next()
    })
}

#[test]
fn every_attack_has_a_test_that_exists_or_an_issue() {
    let rows = rows();
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), ATTACKS.collect::<Vec<_>>(), "the attacks of {PAGE}");
    let mut offences = Vec::new();
    for (number, Row { tests, text }) in &rows {
        for (file, name) in tests {
            let source = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !functions(&Source { path: file.clone(), text: source }).any(|function| function == name) {
                offences.push(format!("A{number}: there is no `{name}` in {file}"));
            }
        }
        if tests.is_empty() && !text.contains("issue ") {
            offences.push(format!("A{number} has neither a test nor an issue"));
        }
    }
    assert!(offences.is_empty(), "{PAGE} names what is not there:\n  {}", offences.join("\n  "));
}

#[test]
fn every_test_that_is_named_after_an_attack_stands_in_its_row() {
    let rows = rows();
    let mut seen = 0;
    let mut offences = Vec::new();
    for file in sources(&[".rs"]).iter().filter(|file| !file.path.starts_with("ops/tidy/")) {
        for name in functions(file) {
            for number in numbers(name) {
                seen += 1;
                let named = |row: &Row| row.tests.contains(&(file.path.clone(), name.to_owned()));
                if !rows.get(&number).is_some_and(named) {
                    offences.push(format!("A{number}: {}::{name}", file.path));
                }
            }
        }
    }
    assert!(seen > 30, "only {seen} tests are named after attacks");
    assert!(offences.is_empty(), "{PAGE} leaves out:\n  {}", offences.join("\n  "));
}

#[test]
fn numbers_are_read_from_names() {
    for (name, want) in [("a06_a_swap", &[6][..]), ("a01_a02_two_builds", &[1, 2]), ("a_20_byte", &[]), ("a1_x", &[]), ("all_a05_of", &[])]
    {
        assert_eq!(numbers(name).into_iter().collect::<Vec<_>>(), want, "{name}");
    }
}
