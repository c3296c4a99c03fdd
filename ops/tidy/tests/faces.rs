//! The table of what a real Nix gets from a farm names tests that exist, each by its module and its name.

use std::fs;

use kiln_tidy::root;

const DIR: &str = "ops/kiln/tests/e2e";

#[test]
fn every_test_that_the_table_names_exists() {
    let page = fs::read_to_string(root().join(DIR).join("README.md")).expect("the page is there");
    let named: Vec<(&str, &str)> = page.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::")).collect();
    let is_there = |(module, name): &(&str, &str)| {
        let source = fs::read_to_string(root().join(DIR).join(format!("{module}.rs"))).unwrap_or_default();
        source.contains(&format!("#[test]\nfn {name}()"))
    };
    let absent: Vec<String> = named.iter().filter(|test| !is_there(test)).map(|(module, name)| format!("{module}::{name}")).collect();
    assert!(named.len() > 30, "only {} tests are named", named.len());
    assert!(absent.is_empty(), "{DIR}/README.md names what is not there:\n  {}", absent.join("\n  "));
}
