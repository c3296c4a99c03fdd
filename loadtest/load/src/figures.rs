//! Figures: what was measured, per job, and how it is printed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kiln_faults::report::Claims;

use crate::client::{Client, Ended};
use crate::farm::Farm;
use crate::host::{Metrics, Usage};
use crate::run::Submitted;
use crate::tally::Quantiles;

/// What a stretch of time cost the coordinators.
#[derive(Clone, Debug)]
pub struct Cost {
    begin: Instant,
    /// How long it was; zero until it ends.
    pub wall: Duration,
    leader: usize,
    usages: Vec<Usage>,
    ends: Vec<Usage>,
    metrics: Metrics,
    /// The leader's metrics at its end.
    ends_metrics: Metrics,
}

impl Cost {
    /// Begins to measure.
    ///
    /// # Errors
    /// If a coordinator is gone.
    pub async fn begin(farm: &Farm, client: &Client) -> anyhow::Result<Self> {
        let leader = farm.leader(client).await?;
        let metrics = farm.metrics(leader).await?;
        let usages = farm.usage()?;
        let (begin, ends, ends_metrics) = (Instant::now(), usages.clone(), metrics.clone());
        Ok(Self { begin, wall: Duration::ZERO, leader, usages, ends, metrics, ends_metrics })
    }

    /// Ends measuring.
    ///
    /// # Errors
    /// If a coordinator is gone, or another leads.
    pub async fn end(mut self, farm: &Farm, client: &Client) -> anyhow::Result<Self> {
        self.wall = self.begin.elapsed();
        self.ends = farm.usage()?;
        let leader = farm.leader(client).await?;
        anyhow::ensure!(leader == self.leader, "another coordinator leads: the figures would be of two");
        self.ends_metrics = farm.metrics(leader).await?;
        Ok(self)
    }

    /// Ends measuring, and begins with the same look: nothing is in neither.
    ///
    /// # Errors
    /// As [`Cost::end`].
    pub async fn then(self, farm: &Farm, client: &Client) -> anyhow::Result<(Self, Self)> {
        let ended = self.end(farm, client).await?;
        let (usages, metrics) = (ended.ends.clone(), ended.ends_metrics.clone());
        let begin = ended.begin + ended.wall;
        let next = Self {
            begin,
            wall: Duration::ZERO,
            usages: usages.clone(),
            metrics: metrics.clone(),
            ends: usages,
            ends_metrics: metrics,
            ..ended.clone()
        };
        Ok((ended, next))
    }

    fn cpu(&self, place: usize) -> Duration {
        self.ends[place].cpu.saturating_sub(self.usages[place].cpu)
    }

    /// Returns the leader's processor time.
    pub fn leader_cpu(&self) -> Duration {
        self.cpu(self.leader)
    }

    /// Returns the processor time of the one follower that took most; none if the leader is alone.
    pub fn follower_cpu(&self) -> Option<Duration> {
        (0..self.usages.len()).filter(|place| *place != self.leader).map(|place| self.cpu(place)).max()
    }

    /// Returns by how many bytes the leader's resident memory grew.
    pub fn leader_grew_bytes(&self) -> u64 {
        self.grew(self.leader)
    }

    /// Returns by how many bytes the resident memory of the follower grew whose memory grew most; none if the leader is alone.
    pub fn follower_grew_bytes(&self) -> Option<u64> {
        (0..self.usages.len()).filter(|place| *place != self.leader).map(|place| self.grew(place)).max()
    }

    /// Tells what is resident before and after, and the most that was at any moment since the process began, of the leader and of the followers.
    pub fn tell_resident(&self, claims: &Claims) {
        for (place, (before, after)) in self.usages.iter().zip(&self.ends).enumerate() {
            let who = if place == self.leader { "the leader".to_owned() } else { format!("follower {place}") };
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let [before, after, peak] = [before.resident_bytes, after.resident_bytes, after.peak_bytes].map(mib);
            claims.tell("resident memory", format!("{who}: {before:.1} MiB before, {after:.1} after, {peak:.1} at most"));
        }
    }

    fn grew(&self, place: usize) -> u64 {
        self.ends[place].resident_bytes.saturating_sub(self.usages[place].resident_bytes)
    }

    /// Tells plans, commits and syncs of the leader's log.
    pub fn tell_leader(&self, claims: &Claims) {
        let (plan_ms, plans) = self.ends_metrics.mean_ms_since(&self.metrics, "kiln_plan_duration_seconds");
        claims.tell("planning", format!("{plans:.0} plans, {plan_ms:.3} ms each"));
        for (what, family) in [("commit latency", "kiln_raft_commit_seconds"), ("write and sync of the log", "kiln_raft_sync_seconds")] {
            let (mean, count) = self.ends_metrics.mean_ms_since(&self.metrics, family);
            let bound = |share| self.ends_metrics.bound_ms_since(&self.metrics, family, share).map_or(f64::NAN, |bound| bound);
            claims.tell(what, format!("mean {mean:.2} ms, p50 ≤ {} ms, p99 ≤ {} ms, {count:.0} of them", bound(0.5), bound(0.99)));
        }
    }

    /// Returns how long the leader's plans took in milliseconds, in the mean, and how many it made.
    pub fn plan_ms(&self) -> (f64, f64) {
        self.ends_metrics.mean_ms_since(&self.metrics, "kiln_plan_duration_seconds")
    }

    /// Returns the mean commit latency in milliseconds.
    pub fn commit_ms(&self) -> f64 {
        self.ends_metrics.mean_ms_since(&self.metrics, "kiln_raft_commit_seconds").0
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Derivations.
    pub jobs: usize,
    /// What handing them over cost.
    pub submitted: Submitted,
    /// What it cost from the submission's answer until all was built and published, or had failed.
    pub doing: Cost,
    /// What all of it cost.
    pub all: Cost,
    /// From the submission's answer to the end of the build.
    pub wall: Duration,
    /// From the submission's answer until all that was built was published.
    pub published: Duration,
    /// Outputs that clients can fetch then.
    pub fetchable: usize,
    /// Jobs that workers received, and the time from the submission's answer to the last receipt.
    pub received: (usize, Duration),
    /// From the receipt of a job to its report.
    pub making: Option<Quantiles>,
    /// From the submission's answer to the last report.
    pub reported: Duration,
    /// How many jobs became ready in a second by the end of others.
    pub ready_per_second: Option<f64>,
    /// How often each job was received.
    pub receipts: Vec<u32>,
    /// From the report of a job's last input to its receipt.
    pub hops: Option<Quantiles>,
    /// How the build ended.
    pub ended: Ended,
    /// What went wrong at workers, with how often.
    pub troubles: BTreeMap<String, usize>,
}

impl Figures {
    /// Tells what every run has.
    pub fn tell(&self, claims: &Claims) {
        let per_job = |time: Duration| micros(time) / self.jobs as f64;
        let adding = &self.submitted.adding;
        claims.tell(
            "handing over the files",
            format!("{:.2} s, {:.1} µs of the leader a job", secs(adding.wall), per_job(adding.leader_cpu())),
        );
        let submitting = &self.submitted.submitting;
        claims
            .tell("submission", format!("{:.2} s, {:.1} µs of the leader a job", secs(submitting.wall), per_job(submitting.leader_cpu())));
        let per_second = |time: Duration| self.jobs as f64 / secs(time);
        let (ended, published) = (per_second(self.wall), per_second(self.published));
        claims.tell(
            "jobs a second, from the submission's answer",
            format!("{ended:.0} to the build's end, {published:.0} to the last publication"),
        );
        claims.tell("assignments a second", format!("{:.0}", self.assignments_per_second()));
        let follower = self.doing.follower_cpu().map_or(String::new(), |cpu| format!(", of the busiest follower {:.1}", per_job(cpu)));
        claims.tell(
            "processor time a job, from the submission's answer until all is published",
            format!("{:.1} µs of the leader{follower}", self.leader_us_per_job()),
        );
        let parts = [
            ("from the report of the last input to the worker that has the job", self.hops),
            ("from the receipt of a job to its report, uploads in it", self.making),
        ];
        for (what, of) in parts.into_iter().filter_map(|(what, of)| Some((what, of?))) {
            let ms = |time: Duration| micros(time) / 1000.0;
            let Quantiles { count, p50, p99, max } = of;
            claims.tell(what, format!("p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms, {count} of them", ms(p50), ms(p99), ms(max)));
        }
        let memory = |grew: u64| format!("{:.0} B", grew as f64 / self.jobs as f64);
        let follower = self.all.follower_grew_bytes().map_or(String::new(), |grew| format!(", of a follower {}", memory(grew)));
        claims.tell("resident memory a job, all told", format!("{} of the leader{follower}", memory(self.all.leader_grew_bytes())));
        self.doing.tell_leader(claims);
        for (trouble, count) in &self.troubles {
            claims.tell("a worker's trouble", format!("{count} times: {trouble}"));
        }
    }

    /// Returns assignments a second, from the submission's answer to the last receipt.
    pub fn assignments_per_second(&self) -> f64 {
        self.received.0 as f64 / secs(self.received.1).max(1e-6)
    }

    /// Returns the leader's processor time a job in microseconds, from the submission's answer until all is published.
    /// It is that of the leader's process alone, all threads of it, in the kernel too.
    pub fn leader_us_per_job(&self) -> f64 {
        micros(self.doing.leader_cpu()) / self.jobs as f64
    }
}

/// Returns a time in seconds.
pub fn secs(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
