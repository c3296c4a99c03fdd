//! Fleet: each worker with what it has, what it runs, what it is short of, and why it is given nothing.

use kiln_wire::{DrvPath, Resources, Standing, Timestamp, WorkerId};
use maud::{Markup, html};

use crate::frame::{Document, Section, Viewer};
use crate::overview::FleetSum;
use crate::paint::{self, Tone};
use crate::words;

/// What the page of the fleet shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// The moment.
    pub now: Timestamp,
    /// All of it.
    pub sum: FleetSum,
    /// Workers, those first that want a look.
    pub workers: Vec<WorkerLine>,
    /// Workers of the farm that are on no page so far; where the next page begins.
    pub next: Option<WorkerId>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerLine {
    /// Which.
    pub worker: WorkerId,
    /// Whether it has a session.
    pub is_connected: bool,
    /// Platforms.
    pub systems: Vec<String>,
    /// Features.
    pub features: Vec<String>,
    /// All that it has.
    pub capacity: Resources,
    /// What its leases hold.
    pub used: Resources,
    /// Its slots.
    pub slots: u32,
    /// What it runs.
    pub running: Vec<DrvPath>,
    /// What it is short of: one word, and in its words.
    pub strain: Option<(&'static str, String)>,
    /// How the farm stands to it.
    pub standing: Standing,
    /// An administrator drained it.
    pub is_drained: bool,
    /// Infrastructure failures that count against it.
    pub failures: u32,
    /// The last of them, in words.
    pub message: String,
    /// What its sandbox guarantees.
    pub guarantees: Vec<(String, String)>,
    /// How fast it is, per mille of the standard.
    pub speed_per_mille: u32,
}

impl WorkerLine {
    fn badges(&self, now: Timestamp) -> Markup {
        html! {
            @match self.standing {
                Standing::Quarantined { since } => (paint::badge(Tone::Bad, "failed", &format!("quarantined since {}", words::clock(now, since)))),
                Standing::Resting { until } => (paint::badge(Tone::Wait, "clock", &format!("rests until {}", words::clock(now, until)))),
                Standing::Probation { since } => (paint::badge(Tone::Wait, "warn", &format!("on probation since {}", words::clock(now, since)))),
                Standing::Working => {}
            }
            " "
            @if self.is_drained { (paint::badge(Tone::Wait, "blocked", "drained")) " " }
            @if !self.is_connected { (paint::badge(Tone::Bad, "cancelled", "not connected")) }
            @else if let Some((lacks, _)) = &self.strain { (paint::badge(Tone::Wait, "warn", &format!("short of {lacks}"))) }
            @else if self.standing == Standing::Working && !self.is_drained { (paint::badge(Tone::Ok, "built", "well")) }
        }
    }

    /// Returns whether it is kept from taking anything new by what an administrator may lift.
    fn can_be_undrained(&self) -> bool {
        self.is_drained || matches!(self.standing, Standing::Quarantined { .. } | Standing::Resting { .. })
    }
}

/// Returns the page.
pub fn page(model: &Fleet, viewer: &Viewer) -> Document {
    let sum = &model.sum;
    let body = html! {
        div class="head" { h1 { "Fleet" } }
        section class="panel" id="fleet-sum" aria-label="In sum" data-live {
            dl class="big" {
                div { dt { "workers connected" } dd { (words::count(sum.connected)) " " small { "of " (words::count(sum.workers)) } } }
                div { dt { "take nothing new" } dd { (words::count(sum.idle_by_force)) } }
                div { dt { "slots in use" } dd { (words::count(sum.slots_used)) " " small { "of " (words::count(sum.slots)) } } }
                div { dt { "cores granted" } dd { (words::count(sum.cores_used)) " " small { "of " (words::count(sum.cores)) } } }
                div { dt { "memory granted" } dd { (words::bytes(sum.memory_used_mib.saturating_mul(1 << 20))) " " small { "of " (words::bytes(sum.memory_mib.saturating_mul(1 << 20))) } } }
            }
            (paint::bar(&format!("{} of {} slots in use", sum.slots_used, sum.slots), sum.slots, &[(Tone::Run, sum.slots_used)], ""))
        }
        section class="panel" id="workers" aria-labelledby="h-workers" data-live {
            header { h2 id="h-workers" { "Workers" } span class="small soft" { "those first that want a look" } }
            @if model.workers.is_empty() { p class="empty" { "No worker has registered. " code { "kiln worker --config FILE" } " starts one." } } @else {
                div class="scroll" id="workers-box" tabindex="0" role="group" aria-labelledby="h-workers" {
                    table {
                        thead { tr {
                            th scope="col" { "Worker" } th scope="col" { "State" } th scope="col" { "Slots" } th scope="col" class="n" { "Cores" }
                            th scope="col" class="n" { "Memory" } th scope="col" { "Runs" } th scope="col" { "Why, and what it is" }
                            @if viewer.is_admin { th scope="col" { "Change" } }
                        } }
                        tbody { @for worker in &model.workers { (row(model.now, worker, viewer)) } }
                    }
                }
            }
            @if let Some(next) = &model.next { p class="pager" { a href={ "?after=" (next) } { "Further workers" } } }
        }
    };
    Document::new("Fleet", Section::Fleet, body)
}

fn row(now: Timestamp, worker: &WorkerLine, viewer: &Viewer) -> Markup {
    let running = u64::try_from(worker.running.len()).unwrap_or(u64::MAX);
    let mib = |mib: u64| words::bytes(mib.saturating_mul(1 << 20));
    html! {
        tr id={ "w-" (worker.worker) } {
            th scope="row" { span class="mono" { (worker.worker) } div class="small soft" { (worker.systems.join(", ")) } }
            td { (worker.badges(now)) }
            td class="barcell" {
                (words::count(running)) " of " (worker.slots)
                (paint::bar(&format!("{running} of {} slots", worker.slots), u64::from(worker.slots), &[(Tone::Run, running)], "thin"))
            }
            td class="n" { (worker.used.cores) " / " (worker.capacity.cores) }
            td class="n" { (mib(worker.used.memory_mib)) " / " (mib(worker.capacity.memory_mib)) }
            td {
                @for job in worker.running.iter().take(RUNNING_MAX) { div { (paint::job_link(job)) } }
                @if worker.running.len() > RUNNING_MAX { span class="small soft" { "and " (worker.running.len() - RUNNING_MAX) " more" } }
                @if worker.running.is_empty() { span class="soft" { "nothing" } }
            }
            td class="why" {
                @if let Some((_, message)) = &worker.strain { div { (message) } }
                @if worker.failures > 0 { div { (words::counted(u64::from(worker.failures), "infrastructure failure", "infrastructure failures")) @if !worker.message.is_empty() { ", the last: " (paint::cut(&worker.message, 300)) } } }
                details id={ "d-" (worker.worker) } class="small" {
                    summary { "What it is" span class="hide" { " of " (worker.worker) } }
                    div { "features: " @if worker.features.is_empty() { "none" } @else { (worker.features.join(", ")) } }
                    div { "speed: " (worker.speed_per_mille / 10) " % of the standard" }
                    @for (name, value) in &worker.guarantees { div { (name) ": " (value) } }
                }
            }
            @if viewer.is_admin { td { (change(worker)) } }
        }
    }
}

fn change(worker: &WorkerLine) -> Markup {
    let (drain, word) = if worker.can_be_undrained() { ("no", "Undrain") } else { ("yes", "Drain") };
    html! {
        form method="post" action="/ui/fleet/drain" {
            input type="hidden" name="worker" value=(worker.worker);
            input type="hidden" name="drain" value=(drain);
            button { (word) span class="hide" { " " (worker.worker) } }
        }
    }
}

/// Jobs of a worker that are named.
const RUNNING_MAX: usize = 6;
