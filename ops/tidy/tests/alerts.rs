//! Alerts and dashboard hold together with what there is: each alert has its section in the runbook, each metric that a rule or a panel names is
//! one that `/metrics` gives, and Prometheus' own tool takes the rules and runs their tests.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use kiln_tidy::root;

const RULES: &str = "ops/alerts/kiln.yml";
const RULE_TESTS: &str = "ops/alerts/kiln_test.yml";
const DASHBOARD: &str = "ops/grafana/kiln.json";
const RUNBOOK: &str = "ops/runbooks/alerts.md";
/// Where all names of metrics stand.
const RENDERED: &str = "coordinator/src/http/metrics/render.rs";

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of alerts, in their order.
fn alerts(rules: &str) -> Vec<&str> {
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

/// The words of a text that are names of metrics.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("kiln_") || word.starts_with("process_")).collect()
}

/// What is counted by a family's samples.
fn family<'a>(name: &'a str, given: &BTreeSet<&str>) -> &'a str {
    let mut parts = ["_bucket", "_sum", "_count"].into_iter().filter_map(|part| name.strip_suffix(part));
    parts.find(|family| given.contains(family)).unwrap_or(name)
}

#[test]
fn every_alert_has_its_section_and_every_section_its_alert() {
    let (rules, runbook) = (read(RULES), read(RUNBOOK));
    let alerts = alerts(&rules);
    assert!(alerts.len() > 10, "{alerts:?}");
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, alerts.iter().copied().collect(), "{RUNBOOK} has a section for each alert of {RULES}, and no other");
    for (alert, rule) in alerts.iter().zip(rules.split("- alert: ").skip(1)) {
        let link = format!("runbook_url: {RUNBOOK}#{}\n", alert.to_lowercase());
        assert!(rule.contains(&link), "{alert} lacks `{}`", link.trim());
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(part), "{alert} has no {part}");
        }
    }
}

#[test]
fn every_alert_is_shown_to_fire_and_not_to() {
    let (rules, tests) = (read(RULES), read(RULE_TESTS));
    let cases: Vec<&str> = tests.split("- alertname: ").skip(1).collect();
    for alert in alerts(&rules) {
        let of: Vec<&&str> = cases.iter().filter(|case| case.starts_with(&format!("{alert}\n"))).collect();
        assert!(of.iter().any(|case| case.contains("exp_labels")), "{RULE_TESTS}: {alert} never fires");
    }
}

#[test]
fn rules_and_dashboard_name_metrics_that_there_are() {
    let rendered = read(RENDERED);
    let code = rendered.split("#[cfg(test)]").next().unwrap_or_default();
    let given = metrics(code);
    assert!(given.len() > 50, "{RENDERED} names {} metrics only", given.len());
    let mut strange = Vec::new();
    for path in [RULES, RULE_TESTS, DASHBOARD] {
        let text = read(path);
        let named = metrics(&text).into_iter().filter(|name| *name != "kiln_test" && !given.contains(family(name, &given)));
        strange.extend(named.map(|name| format!("{path}: {name}")));
    }
    assert!(strange.is_empty(), "no coordinator tells:\n  {}", strange.join("\n  "));
}

#[test]
fn prometheus_takes_the_rules_and_their_tests_pass() {
    for words in [["check", "rules", RULES], ["test", "rules", RULE_TESTS]] {
        let ran =
            Command::new("promtool").args(words).current_dir(root()).output().expect("`prometheus` is installed: `ops/test` does that");
        let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "promtool {}: {said}", words.join(" "));
    }
}
