//! What `kiln status` says in words: how long things are kept, who is told what happens, and one build.

use std::time::Duration;

use kiln_wire::client::{BuildView, FarmView};
use kiln_wire::{ReceiverView, RetentionView};

use crate::{tables, tame, words};

/// Says what is true of the farm beside its jobs.
pub fn lines(view: &FarmView) -> Vec<String> {
    let kept = view.retention.as_ref().map(retention);
    kept.into_iter().chain(view.receivers.iter().map(receiver)).collect()
}

fn retention(of: &RetentionView) -> String {
    let RetentionView { keep_builds, keep_days, keep_builds_max, keep_log_days, every_hours } = of;
    let others = keep_builds_max.map_or_else(String::new, |most| format!(", {most} of those at most"));
    let logs = keep_log_days.map_or_else(String::new, |days| format!("; logs for {}", words::count(u64::from(days), "day")));
    let when = match every_hours {
        Some(hours) => format!("every {}", words::count(u64::from(*hours), "hour")),
        None => "when `kiln gc` is asked".to_owned(),
    };
    format!(
        "kept of ended builds: the last {keep_builds} of each name, and others for {}{others}{logs}; the rest is deleted {when}",
        words::count(u64::from(*keep_days), "day")
    )
}

fn receiver(of: &ReceiverView) -> String {
    let ReceiverView { name, host, delivered, given_up, waiting, failing } = of;
    let failing = failing.as_ref().map_or_else(String::new, |failing| {
        format!("; the next one was sent {} in vain: {}", words::count(u64::from(failing.tries), "time"), failing.error)
    });
    let given_up = if *given_up > 0 { format!(", {given_up} given up") } else { String::new() };
    // Where it is, is told to administrators.
    let at = if host.is_empty() { String::new() } else { format!(" at {host}") };
    format!("webhook {name}{at}: {delivered} delivered{given_up}, {waiting} waiting{failing}")
}

/// Prints one build: how far it is, what failed, and what of its set does not evaluate.
pub fn build(view: &BuildView) {
    let state = kiln_api::BuildState::from(view.state).word();
    let left = view.remaining_ms.map_or_else(String::new, |ms| format!(", {} left", words::duration(Duration::from_millis(ms))));
    println!("{}", tame::line(&format!("build {} of {}: {state}{left}", view.build, view.name)));
    let counts = view.counts;
    println!(
        "jobs: {} running, {} ready, {} blocked, {} built, {} failed",
        counts.running, counts.ready, counts.blocked, counts.built, counts.failed
    );
    let row = |job: &kiln_wire::client::JobView| vec![job.derivation.name().to_owned(), job.attributes.join(", "), job.reason.clone()];
    let rows: Vec<Vec<String>> = view.failures.iter().map(row).collect();
    if !rows.is_empty() {
        println!();
        tables::print(&["FAILED", "ATTRIBUTES", "WHY"], &rows);
    }
    let unbuilt = view.evaluated.unbuilt.iter().filter_map(|root| view.evaluated.attributes.get(root)).flatten();
    let unbuilt: Vec<Vec<String>> = unbuilt.map(|name| vec![name.clone()]).collect();
    if !unbuilt.is_empty() {
        println!();
        tables::print(&["ATTRIBUTES NOT BUILT"], &unbuilt);
    }
    let errors: Vec<Vec<String>> = view.evaluated.errors.iter().map(|(name, message)| vec![name.clone(), last_line(message)]).collect();
    if !errors.is_empty() {
        println!();
        tables::print(&["ATTRIBUTES NOT EVALUATED", "WHY"], &errors);
    }
    if view.evaluated.errors_more > 0 {
        println!("and {} more", words::count(view.evaluated.errors_more, "attribute"));
    }
}

/// Nix says at the end what is wrong, after how it came there.
fn last_line(message: &str) -> String {
    message.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use kiln_wire::{Failing, Timestamp};

    use super::*;

    #[test]
    fn retention_is_said_in_words() {
        let usual = RetentionView { keep_builds: 10, keep_days: 30, keep_builds_max: None, keep_log_days: None, every_hours: None };
        assert_eq!(
            retention(&usual),
            "kept of ended builds: the last 10 of each name, and others for 30 days; the rest is deleted when `kiln gc` is asked"
        );
        let strict = RetentionView { keep_days: 1, keep_builds_max: Some(500), keep_log_days: Some(7), every_hours: Some(24), ..usual };
        let said = retention(&strict);
        assert!(said.contains("for 1 day, 500 of those at most; logs for 7 days; the rest is deleted every 24 hours"), "{said}");
    }

    #[test]
    fn a_receiver_that_fails_says_how() {
        let failing = Some(Failing { since: Timestamp(0), tries: 3, error: "it answered with status 500".to_owned() });
        let view = ReceiverView { name: "chat".into(), host: "c:1".into(), delivered: 4, given_up: 1, waiting: 2, failing };
        let said = receiver(&view);
        assert_eq!(
            said,
            "webhook chat at c:1: 4 delivered, 1 given up, 2 waiting; the next one was sent 3 times in vain: it answered with status 500"
        );
    }

    #[test]
    fn of_what_nix_says_the_end_says_what_is_wrong() {
        assert_eq!(last_line("error:\n  … while evaluating x\n\n  error: undefined variable 'y'\n"), "error: undefined variable 'y'");
    }
}
