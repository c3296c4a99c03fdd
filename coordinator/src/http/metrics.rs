//! The farm in numbers, as Prometheus reads them. Rendered from a snapshot at scrape time: nothing is counted twice.

use std::collections::BTreeMap;
use std::fmt::Write;

use kiln_wire::FailureClass;
use kiln_wire::client::JobCounts;

use crate::raft::{BOUNDS_US, Latencies};

/// The farm in numbers, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Jobs of live builds, by state.
    pub jobs: JobCounts,
    /// Ready jobs that no worker of the farm, connected or not, could ever run.
    pub jobs_unplaceable: u64,
    /// Workers with a live session.
    pub workers_connected: u64,
    /// Registered workers that rest because jobs kept failing there.
    pub workers_resting: u64,
    /// Registered workers that have rested and get one job at a time.
    pub workers_on_probation: u64,
    /// Registered workers on which jobs failed after every rest.
    pub workers_quarantined: u64,
    /// Registered workers that an administrator drained.
    pub workers_drained: u64,
    /// Live leases.
    pub leases: u64,
    /// Slots of connected workers.
    pub slots: u64,
    /// Slots of connected workers that a lease holds.
    pub slots_used: u64,
    /// Builds that have not ended.
    pub builds_active: u64,
    /// Attempts that built their job, since this process started.
    pub attempts_built: u64,
    /// Attempts that failed, since this process started, by class.
    pub attempts_failed: BTreeMap<FailureClass, u64>,
    /// Second attempts that began, since this process started.
    pub copies_begun: u64,
    /// Those of them that made their job's outputs first.
    pub copies_won: u64,
    /// Attempts that were outrun and had made the same outputs.
    pub copies_same: u64,
    /// Attempts that were outrun and had made other outputs.
    pub copies_differing: u64,
    /// Highest log index that was applied.
    pub log_index: u64,
    /// Raft's term.
    pub term: u64,
    /// Whether this coordinator leads.
    pub is_leader: bool,
    /// Whether this coordinator votes.
    pub is_voter: bool,
    /// Whether a full disk keeps this coordinator from taking part in full.
    pub disk_full: bool,
    /// Members of the group.
    pub members: u64,
    /// Log entries that each other member lags behind, by its number; known to the leader only.
    pub member_lags: BTreeMap<u64, u64>,
    /// Milliseconds since each other member last answered, by its number; known to the leader only.
    pub member_silences_ms: BTreeMap<u64, u64>,
    /// Bytes of blobs that were verified and stored, since this process started.
    pub store_received_bytes: u64,
    /// Bytes of blobs that were sent, since this process started.
    pub store_served_bytes: u64,
    /// Plans made, since this process started.
    pub plans: u64,
    /// Time spent planning, since this process started, in microseconds.
    pub plan_us: u64,
    /// From proposals to their answers: committed, and applied here.
    pub commits: Latencies,
    /// Writes of the log with their sync; each may hold many entries.
    pub syncs: Latencies,
}

impl Snapshot {
    /// Returns the snapshot in Prometheus's text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut page = Page::default();
        let states = [
            ("blocked", self.jobs.blocked),
            ("ready", self.jobs.ready),
            ("running", self.jobs.running),
            ("built", self.jobs.built),
            ("failed", self.jobs.failed),
        ];
        page.family("kiln_jobs", "gauge", "Jobs of live builds, by state.");
        states.iter().for_each(|(state, count)| page.labelled("kiln_jobs", "state", state, *count));
        page.gauge("kiln_jobs_unplaceable", "Ready jobs that no worker could ever run.", self.jobs_unplaceable);
        page.gauge("kiln_workers_connected", "Workers with a live session.", self.workers_connected);
        page.family("kiln_workers_ailing", "gauge", "Workers that get less than they have room for, by reason.");
        let reasons = [
            ("resting", self.workers_resting),
            ("probation", self.workers_on_probation),
            ("quarantined", self.workers_quarantined),
            ("drained", self.workers_drained),
        ];
        reasons.iter().for_each(|(reason, count)| page.labelled("kiln_workers_ailing", "reason", reason, *count));
        page.gauge("kiln_leases", "Live leases.", self.leases);
        page.gauge("kiln_slots", "Slots of connected workers.", self.slots);
        page.gauge("kiln_slots_used", "Slots of connected workers that a lease holds.", self.slots_used);
        page.gauge("kiln_builds_active", "Builds that have not ended.", self.builds_active);
        page.family("kiln_attempts_finished_total", "counter", "Attempts that ended, by outcome.");
        page.labelled("kiln_attempts_finished_total", "outcome", "built", self.attempts_built);
        for class in CLASSES {
            let count = self.attempts_failed.get(&class).copied().unwrap_or_default();
            page.labelled("kiln_attempts_finished_total", "outcome", class_label(class), count);
        }
        page.counter("kiln_copies_started_total", "Second attempts at jobs that took far longer than their like.", self.copies_begun);
        page.counter("kiln_copies_won_total", "Second attempts that made their job's outputs first.", self.copies_won);
        page.family("kiln_copies_compared_total", "counter", "Outputs of the slower of two attempts, beside those of the faster.");
        page.labelled("kiln_copies_compared_total", "result", "same", self.copies_same);
        page.labelled("kiln_copies_compared_total", "result", "differs", self.copies_differing);
        page.gauge("kiln_raft_log_index", "Highest log index that was applied.", self.log_index);
        page.gauge("kiln_raft_term", "Raft's term.", self.term);
        page.gauge("kiln_raft_leader", "1 if this coordinator leads, else 0.", u64::from(self.is_leader));
        page.gauge("kiln_raft_voter", "1 if this coordinator votes, else 0.", u64::from(self.is_voter));
        page.gauge("kiln_raft_members", "Coordinators of the farm, as this one knows them.", self.members);
        page.gauge("kiln_raft_disk_full", "1 if the log finds no room on this coordinator's disk, else 0.", u64::from(self.disk_full));
        page.family("kiln_raft_lag_entries", "gauge", "Log entries that a coordinator lags behind; known to the leader.");
        self.member_lags.iter().for_each(|(node, lag)| page.labelled("kiln_raft_lag_entries", "node", &node.to_string(), *lag));
        page.family("kiln_raft_silence_milliseconds", "gauge", "Time since a coordinator last answered; known to the leader.");
        self.member_silences_ms.iter().for_each(|(node, ms)| {
            page.labelled("kiln_raft_silence_milliseconds", "node", &node.to_string(), *ms);
        });
        page.counter("kiln_store_received_bytes_total", "Bytes of blobs that were verified and stored.", self.store_received_bytes);
        page.counter("kiln_store_served_bytes_total", "Bytes of blobs that were sent.", self.store_served_bytes);
        // A summary without quantiles: its sum and count give the mean over any window.
        page.family("kiln_plan_duration_seconds", "summary", "Time that plans took.");
        page.line(format_args!("kiln_plan_duration_seconds_sum {}", seconds(self.plan_us)));
        page.line(format_args!("kiln_plan_duration_seconds_count {}", self.plans));
        page.histogram("kiln_raft_commit_seconds", "Time from a proposal to its answer, committed and applied.", &self.commits);
        page.histogram("kiln_raft_sync_seconds", "Time of one write and sync of the log.", &self.syncs);
        page.text
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.line(format_args!("{name} {value}"));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.line(format_args!("{name} {value}"));
    }

    fn labelled(&mut self, name: &str, label: &str, of: &str, value: u64) {
        self.line(format_args!("{name}{{{label}=\"{of}\"}} {value}"));
    }

    fn histogram(&mut self, name: &str, help: &str, seen: &Latencies) {
        self.family(name, "histogram", help);
        let mut below = 0;
        for (bound_us, count) in BOUNDS_US.iter().zip(&seen.buckets) {
            below += count;
            self.line(format_args!("{name}_bucket{{le=\"{}\"}} {below}", seconds(*bound_us)));
        }
        self.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {}", seen.count));
        self.line(format_args!("{name}_sum {}", seconds(seen.sum_us)));
        self.line(format_args!("{name}_count {}", seen.count));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a String takes any text");
    }
}

/// Writes microseconds as seconds.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// Every class, so that each has a series from the start.
const CLASSES: [FailureClass; 5] = [
    FailureClass::BuildFailure,
    FailureClass::OutOfMemory,
    FailureClass::LimitExceeded,
    FailureClass::Infrastructure,
    FailureClass::Cancelled,
];

fn class_label(class: FailureClass) -> &'static str {
    match class {
        FailureClass::BuildFailure => "build_failure",
        FailureClass::OutOfMemory => "out_of_memory",
        FailureClass::LimitExceeded => "limit_exceeded",
        FailureClass::Infrastructure => "infrastructure",
        FailureClass::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_its_help_and_type_before_it() {
        let snapshot = Snapshot {
            jobs: JobCounts { ready: 7, ..JobCounts::default() },
            attempts_failed: BTreeMap::from([(FailureClass::OutOfMemory, 3)]),
            member_lags: BTreeMap::from([(2, 17)]),
            plan_us: 1_250_001,
            plans: 9,
            copies_won: 4,
            commits: Latencies { count: 3, sum_us: 2_500_300, buckets: [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] },
            ..Snapshot::default()
        };
        let text = snapshot.render();
        let mut typed = Vec::new();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                typed.push(declared.split(' ').next().expect("a name"));
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let (sample, value) = line.split_once(' ').expect("a name and a value");
            let name = sample.split('{').next().expect("a name");
            let family = name.trim_end_matches("_sum").trim_end_matches("_count").trim_end_matches("_bucket");
            assert_eq!(typed.last(), Some(&family), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
        for line in [
            "kiln_jobs{state=\"ready\"} 7",
            "kiln_attempts_finished_total{outcome=\"out_of_memory\"} 3",
            "kiln_attempts_finished_total{outcome=\"cancelled\"} 0",
            "kiln_copies_won_total 4",
            "kiln_copies_compared_total{result=\"differs\"} 0",
            "kiln_raft_lag_entries{node=\"2\"} 17",
            "kiln_plan_duration_seconds_sum 1.250001",
            "kiln_plan_duration_seconds_count 9",
            "kiln_raft_commit_seconds_bucket{le=\"0.000050\"} 2",
            "kiln_raft_commit_seconds_bucket{le=\"2.000000\"} 2",
            "kiln_raft_commit_seconds_bucket{le=\"+Inf\"} 3",
            "kiln_raft_commit_seconds_sum 2.500300",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
