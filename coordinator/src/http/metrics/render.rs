//! A snapshot as a page: every family that there is, in the order of a look from jobs down to the process.

use kiln_wire::FailureClass;

use super::answers::{KINDS, RESULTS};
use super::page::{Page, of_ms, of_us};
use super::{Fleet, Raft, Snapshot, Traffic, Upstream};
use crate::process::{Disk, Process, TICKS_PER_SECOND};
use crate::raft::{BOUNDS_US, Latencies};
use crate::tally::{BOUNDS_MS, Counted, Durations};

impl Snapshot {
    /// Returns the snapshot in Prometheus's text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut page = Page::default();
        page.family("kiln_build_info", "gauge", "Always 1; the label says which release this coordinator is.");
        page.sample("kiln_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.jobs(&mut page);
        self.fleet.render(&mut page);
        self.counted.render(&mut page);
        // A summary without quantiles: its sum and count give the mean over any window.
        page.family("kiln_plan_duration_seconds", "summary", "Time that plans took; a coordinator plans while it leads.");
        page.sample("kiln_plan_duration_seconds_sum", &[], of_us(self.plan_us));
        page.sample("kiln_plan_duration_seconds_count", &[], self.plans);
        self.raft.render(&mut page);
        self.traffic.render(&mut page);
        self.cache(&mut page);
        self.upstream.render(&mut page);
        let help = "Messages to receivers of webhooks, by result; each failed try counts.";
        page.by(
            ("kiln_webhook_deliveries_total", "counter", help),
            "result",
            self.webhooks.iter().map(|(result, count)| (*result, *count)),
        );
        let help = "Spans of traces that nobody received, by whether there was no room for them or the receiver did not take them.";
        let lost = [("no_room", self.trace_spans_lost.0), ("not_taken", self.trace_spans_lost.1)];
        page.by(("kiln_trace_spans_lost_total", "counter", help), "reason", lost);
        page.counter("kiln_build_log_bytes_total", "Bytes of build logs that workers sent to this coordinator.", self.log_bytes);
        let help = "When a backup was last taken from this coordinator, in seconds since 1970; 0 if none ever was.";
        page.gauge("kiln_backup_timestamp_seconds", help, of_ms(self.backed_up_at_ms));
        self.disk.iter().for_each(|disk| disk.render(&mut page));
        self.process.iter().for_each(|process| process.render(&mut page));
        page.text
    }

    fn jobs(&self, page: &mut Page) {
        let states = [
            ("blocked", self.jobs.blocked),
            ("ready", self.jobs.ready),
            ("running", self.jobs.running),
            ("built", self.jobs.built),
            ("failed", self.jobs.failed),
        ];
        page.by(("kiln_jobs", "gauge", "Jobs of live builds, by state."), "state", states);
        let help = "Ready jobs that wait, by system, features that they need (with commas between), and why. Beyond 128 kinds: other.";
        page.family("kiln_queue_jobs", "gauge", help);
        for ((system, feature, reason), count) in &self.queue {
            page.sample("kiln_queue_jobs", &[("system", system), ("feature", feature), ("reason", reason)], count);
        }
        page.gauge("kiln_jobs_unplaceable", "Ready jobs that no worker could ever run.", self.jobs_unplaceable);
        let running = self.running.iter().map(|(system, count)| (system.as_str(), *count));
        page.by(("kiln_attempts_running", "gauge", "Attempts that run, by the system of their jobs."), "system", running);
        page.gauge("kiln_builds_active", "Builds that have not ended.", self.builds_active);
    }

    fn cache(&self, page: &mut Page) {
        let help = "Requests to this coordinator's binary cache, by what was asked for and whether it was there.";
        page.family("kiln_cache_requests_total", "counter", help);
        for (kind, results) in KINDS.iter().zip(&self.answers) {
            for (result, count) in RESULTS.iter().zip(results) {
                page.sample("kiln_cache_requests_total", &[("kind", kind), ("result", result)], count);
            }
        }
    }
}

impl Fleet {
    fn render(&self, page: &mut Page) {
        page.gauge("kiln_workers_registered", "Workers that are registered.", self.registered);
        page.gauge("kiln_workers_connected", "Workers with a live session; the leader knows them alone.", self.connected);
        let ailing = ["resting", "probation", "quarantined", "drained"].map(|why| (why, self.ailing.get(why).copied().unwrap_or_default()));
        page.by(("kiln_workers_ailing", "gauge", "Workers that get less than they have room for, by reason."), "reason", ailing);
        let strained = ["disk", "memory", "cpu", "io"].map(|lacks| (lacks, self.strained.get(lacks).copied().unwrap_or_default()));
        let help = "Workers that take nothing new, by what their machine is short of; the leader knows them alone.";
        page.by(("kiln_workers_strained", "gauge", help), "lacks", strained);
        page.gauge("kiln_leases", "Live leases.", self.leases);
        page.gauge("kiln_slots", "Slots of connected workers.", self.slots);
        page.gauge("kiln_slots_used", "Slots of connected workers that a lease holds.", self.slots_used);
    }
}

/// What every coordinator counts from what it applies.
macro_rules! applied {
    ($help:literal) => {
        concat!($help, " Counted by every coordinator from what it applies since its start: take one of them, not their sum.")
    };
}

impl Counted {
    fn render(&self, page: &mut Page) {
        let failed = CLASSES.map(|class| (class_label(class), self.failed.get(&class).copied().unwrap_or_default()));
        let outcomes = [("built", self.built)].into_iter().chain(failed);
        page.by(
            (
                "kiln_attempts_finished_total",
                "counter",
                applied!("Attempts that began and built their job or failed, by outcome; those that were stopped with their builds aside."),
            ),
            "outcome",
            outcomes,
        );
        let help = applied!("Second attempts at jobs that took far longer than their like.");
        page.counter("kiln_copies_started_total", help, self.copies_begun);
        let help = applied!("Second attempts that made their job's outputs first.");
        page.counter("kiln_copies_won_total", help, self.copies_won);
        let help = applied!("Outputs of the slower of two attempts, beside those of the faster.");
        let results = [("same", self.copies_same), ("differs", self.copies_differing)];
        page.by(("kiln_copies_compared_total", "counter", help), "result", results);
        let help = applied!("Time from when a job could begin (wanted, inputs built, last attempt ended) to when it did, by system.");
        page.family("kiln_job_wait_seconds", "histogram", help);
        self.waits.iter().for_each(|(system, of)| durations(page, "kiln_job_wait_seconds", system, of));
        page.family("kiln_attempt_run_seconds", "histogram", applied!("Time of attempts, however they ended, by system."));
        self.runs.iter().for_each(|(system, of)| durations(page, "kiln_attempt_run_seconds", system, of));
        let help = applied!(
            "Bytes of what begun attempts need of other jobs, as NARs: what their worker had, and what not. Outputs below 4 MiB aside."
        );
        let places = [("worker", self.inputs.had), ("elsewhere", self.inputs.lacked)];
        page.by(("kiln_input_bytes_total", "counter", help), "at", places);
    }
}

fn durations(page: &mut Page, name: &str, system: &str, of: &Durations) {
    page.histogram(name, &[("system", system)], BOUNDS_MS.into_iter().map(of_ms), &of.buckets, of_ms(of.sum_ms));
}

impl Raft {
    fn render(&self, page: &mut Page) {
        page.gauge("kiln_raft_log_index", "Highest log index that was applied.", self.log_index);
        page.gauge("kiln_raft_log_size_bytes", "Bytes of the log on disk.", self.log_bytes);
        page.gauge("kiln_raft_log_segments", "Files of the log on disk.", self.log_segments);
        page.gauge("kiln_raft_term", "Raft's term.", self.term);
        page.gauge("kiln_raft_leader", "1 if this coordinator leads, else 0.", u64::from(self.is_leader));
        page.gauge(
            "kiln_raft_has_leader",
            "1 if this coordinator knows of one that leads and has spoken lately, else 0.",
            u64::from(self.has_leader),
        );
        let help = "Leaderships that this coordinator has heard of since its start.";
        page.counter("kiln_raft_leader_changes_total", help, self.leader_changes);
        let help = "When it last heard of another leadership, in seconds since 1970; 0 if it has of none.";
        page.gauge("kiln_raft_leader_change_timestamp_seconds", help, of_ms(self.leader_changed_at_ms));
        page.gauge("kiln_raft_voter", "1 if this coordinator votes, else 0.", u64::from(self.is_voter));
        page.gauge("kiln_raft_members", "Coordinators of the farm, as this one knows them.", self.members);
        page.gauge("kiln_raft_voters", "Those of them that vote.", self.voters);
        page.gauge("kiln_raft_disk_full", "1 if the log finds no room on this coordinator's disk, else 0.", u64::from(self.disk_full));
        page.family("kiln_raft_lag_entries", "gauge", "Log entries that a coordinator lags behind; known to the leader.");
        for (node, lag) in &self.member_lags {
            page.sample("kiln_raft_lag_entries", &[("node", &node.to_string())], lag);
        }
        page.family(
            "kiln_raft_silence_seconds",
            "gauge",
            "Time since a coordinator last answered the leader, or since that leads if it never has; known to the leader.",
        );
        for (node, ms) in &self.member_silences_ms {
            page.sample("kiln_raft_silence_seconds", &[("node", &node.to_string())], of_ms(*ms));
        }
        page.family("kiln_raft_member_voter", "gauge", "1 if another coordinator votes, else 0, as this one knows them.");
        for (node, votes) in &self.member_votes {
            page.sample("kiln_raft_member_voter", &[("node", &node.to_string())], u64::from(*votes));
        }
        page.gauge("kiln_raft_proposals", "Proposals that wait for their answer.", self.proposals);
        let help = "Time from a proposal to its answer, committed and applied; known to who led.";
        latencies(page, "kiln_raft_commit_seconds", help, &self.commits);
        latencies(page, "kiln_raft_sync_seconds", "Time of one write and sync of the log.", &self.syncs);
    }
}

fn latencies(page: &mut Page, name: &str, help: &str, seen: &Latencies) {
    page.family(name, "histogram", help);
    page.histogram(name, &[], BOUNDS_US.into_iter().map(of_us), &seen.buckets, of_us(seen.sum_us));
}

impl Traffic {
    fn render(&self, page: &mut Page) {
        let split = |workers: u64, others: u64| [("worker", workers), ("other", others)];
        let help = "Compressed bytes of archives that this coordinator verified and stored, by who sent them.";
        let received = split(self.from_workers_bytes, self.from_others_bytes);
        page.by(("kiln_store_received_bytes_total", "counter", help), "from", received);
        let help = "Compressed bytes of archives that this coordinator sent, by who asked.";
        page.by(("kiln_store_served_bytes_total", "counter", help), "to", split(self.to_workers_bytes, self.to_others_bytes));
        let help = "Compressed bytes of archives that nobody had to send: the store had them when they were offered.";
        page.counter("kiln_store_spared_bytes_total", help, self.spared_bytes);
    }
}

impl Upstream {
    fn render(&self, page: &mut Page) {
        let help = "Paths that upstream caches were asked for, by whether one had them.";
        let asked = [("hit", self.found), ("miss", self.absent)];
        page.by(("kiln_upstream_questions_total", "counter", help), "result", asked);
        let help = "Paths that were to be taken from upstream caches, by whether they came.";
        let taken = [("taken", self.taken), ("failed", self.failed)];
        page.by(("kiln_upstream_paths_total", "counter", help), "result", taken);
        let help = "Bytes, as NARs, that were taken from upstream caches.";
        page.counter("kiln_upstream_taken_bytes_total", help, self.taken_bytes);
    }
}

impl Disk {
    fn render(&self, page: &mut Page) {
        let help =
            "Bytes that are free on the disk of the coordinator's directory: log, logs of builds, and the store, unless that is a bucket.";
        page.gauge("kiln_disk_free_bytes", help, self.free_bytes);
        page.gauge("kiln_disk_size_bytes", "Bytes of that disk.", self.size_bytes);
    }
}

impl Process {
    fn render(&self, page: &mut Page) {
        let seconds = |ticks: u64| of_ms(ticks.saturating_mul(1_000 / TICKS_PER_SECOND));
        page.counter("process_cpu_seconds_total", "Processor time of user and kernel.", seconds(self.cpu_ticks));
        page.gauge("process_resident_memory_bytes", "Memory in use.", self.resident_bytes);
        page.gauge("process_virtual_memory_bytes", "Memory that is mapped.", self.virtual_bytes);
        page.gauge("process_start_time_seconds", "When the process started, in seconds since 1970.", seconds(self.started_ticks));
        page.gauge("process_open_fds", "Open files and sockets.", self.open_fds);
        page.gauge("process_max_fds", "How many there may be.", self.max_fds);
    }
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
    use std::collections::BTreeMap;

    use kiln_wire::client::JobCounts;

    use super::*;

    fn snapshot() -> Snapshot {
        let mut durations = Durations { sum_ms: 4_200, ..Durations::default() };
        durations.buckets[3] = 2;
        Snapshot {
            jobs: JobCounts { ready: 7, ..JobCounts::default() },
            queue: BTreeMap::from([(("x86_64-linux".to_owned(), "big,kvm".to_owned(), "busy"), 4)]),
            running: BTreeMap::from([("i686-linux".to_owned(), 2)]),
            counted: Counted {
                failed: BTreeMap::from([(FailureClass::OutOfMemory, 3)]),
                copies_won: 4,
                waits: BTreeMap::from([("x86_64-linux".to_owned(), durations)]),
                ..Counted::default()
            },
            fleet: Fleet { strained: BTreeMap::from([("disk", 1)]), ..Fleet::default() },
            plan_us: 1_250_001,
            plans: 9,
            backed_up_at_ms: 1_760_000_000_123,
            raft: Raft {
                has_leader: true,
                member_lags: BTreeMap::from([(2, 17)]),
                member_silences_ms: BTreeMap::from([(2, 1_250)]),
                member_votes: BTreeMap::from([(2, true), (3, false)]),
                commits: Latencies { count: 3, sum_us: 2_500_300, buckets: [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] },
                ..Raft::default()
            },
            traffic: Traffic { from_others_bytes: 3, from_workers_bytes: 7, ..Traffic::default() },
            trace_spans_lost: (3, 2),
            disk: Some(Disk { free_bytes: 5, size_bytes: 50 }),
            process: Some(Process { cpu_ticks: 301, ..Process::default() }),
            ..Snapshot::default()
        }
    }

    #[test]
    fn every_sample_has_its_help_and_type_before_it() {
        let text = snapshot().render();
        let mut typed = Vec::new();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let name = declared.split(' ').next().expect("a name");
                assert!(!typed.contains(&name), "{name} is declared twice");
                typed.push(name);
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').expect("a name and a value");
            let name = sample.split('{').next().expect("a name");
            let family = name.trim_end_matches("_sum").trim_end_matches("_count").trim_end_matches("_bucket");
            assert_eq!(typed.last(), Some(&family), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }

    #[test]
    fn figures_stand_where_they_are_looked_for() {
        let text = snapshot().render();
        for line in [
            "kiln_jobs{state=\"ready\"} 7",
            "kiln_queue_jobs{system=\"x86_64-linux\",feature=\"big,kvm\",reason=\"busy\"} 4",
            "kiln_attempts_running{system=\"i686-linux\"} 2",
            "kiln_workers_strained{lacks=\"disk\"} 1",
            "kiln_workers_ailing{reason=\"quarantined\"} 0",
            "kiln_attempts_finished_total{outcome=\"out_of_memory\"} 3",
            "kiln_attempts_finished_total{outcome=\"cancelled\"} 0",
            "kiln_copies_won_total 4",
            "kiln_copies_compared_total{result=\"differs\"} 0",
            "kiln_job_wait_seconds_bucket{system=\"x86_64-linux\",le=\"1.000\"} 0",
            "kiln_job_wait_seconds_bucket{system=\"x86_64-linux\",le=\"3.000\"} 2",
            "kiln_job_wait_seconds_sum{system=\"x86_64-linux\"} 4.200",
            "kiln_raft_has_leader 1",
            "kiln_raft_lag_entries{node=\"2\"} 17",
            "kiln_raft_silence_seconds{node=\"2\"} 1.250",
            "kiln_raft_member_voter{node=\"3\"} 0",
            "kiln_plan_duration_seconds_sum 1.250001",
            "kiln_plan_duration_seconds_count 9",
            "kiln_raft_commit_seconds_bucket{le=\"0.000050\"} 2",
            "kiln_raft_commit_seconds_bucket{le=\"2.000000\"} 2",
            "kiln_raft_commit_seconds_bucket{le=\"+Inf\"} 3",
            "kiln_raft_commit_seconds_sum 2.500300",
            "kiln_store_received_bytes_total{from=\"worker\"} 7",
            "kiln_store_received_bytes_total{from=\"other\"} 3",
            "kiln_cache_requests_total{kind=\"narinfo\",result=\"miss\"} 0",
            "kiln_backup_timestamp_seconds 1760000000.123",
            "kiln_trace_spans_lost_total{reason=\"no_room\"} 3",
            "kiln_trace_spans_lost_total{reason=\"not_taken\"} 2",
            "kiln_disk_free_bytes 5",
            "process_cpu_seconds_total 3.010",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
