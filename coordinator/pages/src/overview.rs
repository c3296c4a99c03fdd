//! Overview: what runs, when it is done, how full the fleet is, why jobs wait, what failed in the last hour.

use kiln_wire::client::{BuildState, JobCounts};
use kiln_wire::{BuildId, DrvPath, FailureClass, Timestamp, WorkerId};
use maud::{Markup, html};

use crate::frame::{Document, Section};
use crate::paint::{self, JobState, Tone};
use crate::verdict::Signs;
use crate::words;

/// What the overview shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// The moment.
    pub now: Timestamp,
    /// What the answer at the top is made of.
    pub signs: Signs,
    /// Live builds, the most urgent first.
    pub builds: Vec<BuildLine>,
    /// Live builds beyond those.
    pub builds_more: u64,
    /// Builds that ended lately, the latest first; or why they are not known.
    pub ended: Result<Vec<BuildLine>, String>,
    /// The fleet in sum.
    pub fleet: FleetSum,
    /// Why ready jobs wait, most of them first.
    pub queue: Vec<QueueLine>,
    /// Jobs that wait for their inputs.
    pub blocked: u64,
    /// What failed in the last hour, the latest first.
    pub failures: Vec<FailureLine>,
    /// Failures of the last hour beyond those.
    pub failures_more: u64,
}

/// When something is expected to be done, from now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Eta {
    /// Most likely.
    pub likely_ms: u64,
    /// If all goes well.
    pub low_ms: u64,
    /// If one of the jobs that nobody has measured takes long.
    pub high_ms: u64,
    /// How many of the jobs that are left were measured before, in per cent.
    pub measured_percent: u64,
}

impl Eta {
    /// Says how sure it is, in one word.
    pub fn confidence(self) -> &'static str {
        match self.measured_percent {
            90.. => "sure",
            60..90 => "fair",
            _ => "rough",
        }
    }

    /// Returns whether all that is left takes longer than was expected of it.
    pub fn is_overdue(self) -> bool {
        self.likely_ms == 0
    }

    pub(crate) fn range_words(self, now: Timestamp) -> String {
        format!(
            "between {} and {}; {} % of what is left was measured before",
            words::clock(now, now.after_ms(self.low_ms)),
            words::clock(now, now.after_ms(self.high_ms)),
            self.measured_percent
        )
    }
}

/// A build in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildLine {
    /// Which.
    pub id: BuildId,
    /// What people call it.
    pub name: String,
    /// Whose it is; empty if nobody said.
    pub account: String,
    /// It is of the security class.
    pub is_security: bool,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When it ended, if it has and that is known.
    pub ended_at: Option<Timestamp>,
    /// How it stands.
    pub state: BuildState,
    /// How many jobs are in which state.
    pub counts: JobCounts,
    /// When it is expected to end.
    pub eta: Option<Eta>,
}

impl BuildLine {
    /// Returns how many jobs it has.
    pub fn total(&self) -> u64 {
        let JobCounts { blocked, ready, running, built, failed } = self.counts;
        [blocked, ready, running, built, failed].into_iter().fold(0, u64::saturating_add)
    }

    /// Returns its name, or what stands for one.
    pub fn title(&self) -> String {
        if self.name.is_empty() { format!("build {}", self.id) } else { self.name.clone() }
    }

    pub(crate) fn badge(&self) -> Markup {
        match self.state {
            BuildState::Active if self.counts.failed > 0 => paint::badge(Tone::Bad, "running", "running, with failures"),
            BuildState::Active => JobState::Running.badge(),
            BuildState::Built => JobState::Built.badge(),
            BuildState::Failed => JobState::Failed.badge(),
            BuildState::Cancelled => JobState::Cancelled.badge(),
        }
    }

    pub(crate) fn progress(&self, class: &str) -> Markup {
        let JobCounts { blocked, ready, running, built, failed } = self.counts;
        let parts = [(Tone::Ok, built), (Tone::Bad, failed), (Tone::Run, running), (Tone::Wait, ready), (Tone::Idle, blocked)];
        let says = format!("{built} built, {failed} failed, {running} running, {ready} ready, {blocked} blocked of {}", self.total());
        paint::bar(&says, self.total(), &parts, class)
    }

    /// Returns how much of it is settled, in per cent.
    pub(crate) fn settled_percent(&self) -> u64 {
        words::percent(self.counts.built.saturating_add(self.counts.failed), self.total())
    }
}

/// The fleet in sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetSum {
    /// Registered workers.
    pub workers: u64,
    /// Those with a session.
    pub connected: u64,
    /// Those that take nothing new: drained, resting, quarantined, or short of something.
    pub idle_by_force: u64,
    /// Slots of all workers.
    pub slots: u64,
    /// Slots in use.
    pub slots_used: u64,
    /// Cores of all workers.
    pub cores: u64,
    /// Cores in use.
    pub cores_used: u64,
    /// Memory of all workers in MiB.
    pub memory_mib: u64,
    /// Memory in use, as granted.
    pub memory_used_mib: u64,
}

/// Jobs that wait for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLine {
    /// Why, in words.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// No worker of the farm could ever run them.
    pub is_unplaceable: bool,
}

/// Something that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureLine {
    /// When; none if that is not known.
    pub at: Option<Timestamp>,
    /// Which job.
    pub derivation: DrvPath,
    /// Of which class.
    pub class: FailureClass,
    /// In words.
    pub message: String,
    /// Where.
    pub worker: Option<WorkerId>,
    /// The job is tried again.
    pub is_retried: bool,
    /// Jobs that cannot be built without it, near and far; none if that is not known.
    pub blast: Option<u64>,
}

impl FailureLine {
    /// Returns whether the farm is to blame, not the package.
    pub fn is_farms(&self) -> bool {
        matches!(self.class, FailureClass::Infrastructure)
    }

    pub(crate) fn row(&self, now: Timestamp) -> Markup {
        let (tone, whose) = if self.is_farms() { (Tone::Wait, "farm") } else { (Tone::Bad, "package") };
        html! {
            tr {
                td class="nowrap" { @if let Some(at) = self.at { (words::ago(now, at)) } @else { "–" } }
                th scope="row" { (paint::job_link(&self.derivation)) }
                td { (paint::badge(tone, tone.icon(), &self.class.to_string())) }
                td class="nowrap" { (whose) @if self.is_retried { ", retried" } }
                td class="n" { @match self.blast { Some(held) => (words::count(held)), None => "–" } }
                td class="why" {
                    (paint::cut(&self.message, MESSAGE_CHARS_MAX))
                    @if let Some(worker) = &self.worker { " " span class="nowrap" { "on " a href={ "/ui/fleet#w-" (worker) } { (worker) } } }
                }
                td { a href={ (paint::job_href(&self.derivation)) "#log" } { "log" span class="hide" { " of " (paint::short(&self.derivation)) } } }
            }
        }
    }
}

/// Returns a table of failures.
pub(crate) fn failure_table(caption: &str, now: Timestamp, failures: &[FailureLine]) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="group" aria-label=(caption) {
            table {
                caption class="hide" { (caption) }
                thead { tr {
                    th scope="col" { "When" } th scope="col" { "Job" } th scope="col" { "What" } th scope="col" { "Whose" }
                    th scope="col" class="n" { "Holds up" } th scope="col" { "Why" } th scope="col" { span class="hide" { "Log" } }
                } }
                tbody { @for failure in failures { (failure.row(now)) } }
            }
        }
    }
}

/// Returns the page.
pub fn page(model: &Overview) -> Document {
    let body = html! {
        h1 class="hide" { "Overview" }
        (model.signs.show(model.now))
        div class="grid" {
            (builds(model))
            (fleet(&model.fleet))
            (queue(model))
            (failures(model))
            (ended(model))
        }
    };
    Document::new("Overview", Section::Overview, body)
}

fn builds(model: &Overview) -> Markup {
    html! {
        section class="panel w8" id="builds" aria-labelledby="h-builds" data-live {
            header { h2 id="h-builds" { "Running builds" } }
            @if model.builds.is_empty() {
                p class="empty" { "Nothing is being built. " code { "kiln build FILE.drv" } " starts something." }
            } @else {
                div class="scroll" tabindex="0" role="group" aria-labelledby="h-builds" {
                    table {
                        thead { tr {
                            th scope="col" { "Build" } th scope="col" { "Expected to end" } th scope="col" { "Progress" }
                            th scope="col" class="n" { "Jobs" } th scope="col" class="n" { "Failed" } th scope="col" { "Started" }
                        } }
                        tbody { @for build in &model.builds { (build_row(model.now, build)) } }
                    }
                }
                @if model.builds_more > 0 { p class="small soft" { "and " (words::count(model.builds_more)) " more" } }
            }
        }
    }
}

fn build_row(now: Timestamp, build: &BuildLine) -> Markup {
    html! {
        tr {
            th scope="row" {
                a href={ "/ui/builds/" (build.id) } { (build.title()) }
                @if build.is_security { " " span class="tag sec" { "security" } }
                @if !build.account.is_empty() { div class="small soft" { (build.account) } }
            }
            td { (eta(now, build.eta)) }
            td class="barcell" { (build.progress("")) span class="small soft" { (build.settled_percent()) " % settled, " (words::count(build.counts.running)) " running" } }
            td class="n" { (words::count(build.total())) }
            td class="n" { (failed(build)) }
            td class="nowrap" { (words::ago(now, build.submitted_at)) }
        }
    }
}

fn failed(build: &BuildLine) -> Markup {
    match build.counts.failed {
        0 => html! { "0" },
        failed => paint::badge(Tone::Bad, "failed", &words::count(failed)),
    }
}

/// Returns when something is expected to end, in what range, and how sure that is.
pub(crate) fn eta(now: Timestamp, eta: Option<Eta>) -> Markup {
    html! {
        @if let Some(eta) = eta {
            span class="nowrap" { @if eta.is_overdue() { "overdue" } @else { "in " (words::duration(eta.likely_ms)) ", " (words::clock(now, now.after_ms(eta.likely_ms))) } }
            div class="small soft nowrap" title=(eta.range_words(now)) {
                (words::duration(eta.low_ms)) " – " (words::duration(eta.high_ms)) ", " (eta.confidence())
            }
        } @else { span class="soft" { "–" } }
    }
}

fn fleet(fleet: &FleetSum) -> Markup {
    let rows = [
        ("Slots", fleet.slots_used, fleet.slots, words::count as fn(u64) -> String),
        ("Cores", fleet.cores_used, fleet.cores, words::count),
        ("Memory", fleet.memory_used_mib, fleet.memory_mib, mebibytes),
    ];
    html! {
        section class="panel w4" id="fleet" aria-labelledby="h-fleet" data-live {
            header { h2 id="h-fleet" { "Fleet" } a class="more" href="/ui/fleet" { "All workers" } }
            p {
                strong { (words::count(fleet.connected)) } " of " (words::counted(fleet.workers, "worker", "workers")) " connected"
                @if fleet.idle_by_force > 0 { ", " (paint::badge(Tone::Wait, "warn", &format!("{} take nothing new", words::count(fleet.idle_by_force)))) }
            }
            @for (name, used, whole, show) in rows {
                p class="small" { (name) " " strong { (show(used)) } span class="soft" { " of " (show(whole)) " granted, " (words::percent(used, whole)) " %" } }
                (paint::bar(&format!("{name}: {} %", words::percent(used, whole)), whole, &[(Tone::Run, used)], "thin"))
            }
        }
    }
}

fn mebibytes(mib: u64) -> String {
    words::bytes(mib.saturating_mul(1 << 20))
}

fn queue(model: &Overview) -> Markup {
    let ready: u64 = model.queue.iter().map(|line| line.count).sum();
    html! {
        section class="panel" id="queue" aria-labelledby="h-queue" data-live {
            header {
                h2 id="h-queue" { "Queue by reason" }
                span class="small soft" { (words::count(ready)) " ready, " (words::count(model.blocked)) " wait for inputs" }
            }
            @if model.queue.is_empty() {
                p class="empty" { "No job that could run has to wait." }
            } @else { (queue_table("Queue by reason", &model.queue)) }
        }
    }
}

/// Returns a table of why jobs wait.
pub(crate) fn queue_table(caption: &str, queue: &[QueueLine]) -> Markup {
    let most = queue.iter().map(|line| line.count).max().unwrap_or_default();
    html! {
        div class="scroll" tabindex="0" role="group" aria-label=(caption) {
            table {
                caption class="hide" { (caption) }
                thead { tr { th scope="col" class="n" { "Jobs" } th scope="col" { span class="hide" { "Share" } } th scope="col" { "Why they wait" } } }
                tbody { @for line in queue {
                    @let tone = if line.is_unplaceable { Tone::Bad } else { Tone::Wait };
                    tr {
                        td class="n" { (words::count(line.count)) }
                        td class="barcell" { (paint::bar(&words::counted(line.count, "job", "jobs"), most, &[(tone, line.count)], "thin")) }
                        td { @if line.is_unplaceable { (paint::badge(Tone::Bad, "warn", "fits no worker")) " " } (line.reason) }
                    }
                } }
            }
        }
    }
}

fn failures(model: &Overview) -> Markup {
    html! {
        section class="panel" id="failures" aria-labelledby="h-failures" data-live {
            header { h2 id="h-failures" { "Failures of the last hour" } }
            @if model.failures.is_empty() { p class="empty" { "None." } }
            @else { (failure_table("Failures of the last hour", model.now, &model.failures)) }
            @if model.failures_more > 0 { p class="small soft" { "and " (words::count(model.failures_more)) " more" } }
        }
    }
}

fn ended(model: &Overview) -> Markup {
    html! {
        section class="panel" id="ended" aria-labelledby="h-ended" data-live {
            header { h2 id="h-ended" { "Ended lately" } }
            @match &model.ended {
            Err(why) => { p class="notice wait" { "They are not known at this moment: " (why) } }
            Ok(ended) if ended.is_empty() => { p class="empty" { "No build has ended yet." } }
            Ok(ended) => {
                div class="scroll" tabindex="0" role="group" aria-labelledby="h-ended" {
                    table {
                        thead { tr { th scope="col" { "Build" } th scope="col" { "How" } th scope="col" class="n" { "Jobs" } th scope="col" class="n" { "Failed" } th scope="col" { "When" } th scope="col" { "Took" } } }
                        tbody { @for build in ended { tr {
                            th scope="row" { a href={ "/ui/builds/" (build.id) } { (build.title()) } @if build.is_security { " " span class="tag sec" { "security" } } }
                            td { (build.badge()) }
                            td class="n" { (words::count(build.total())) }
                            td class="n" { (failed(build)) }
                            td class="nowrap" { @if let Some(at) = build.ended_at { (words::ago(model.now, at)) } @else { "–" } }
                            td class="nowrap" { @if let Some(at) = build.ended_at { (words::duration(at.since_ms(build.submitted_at))) } @else { "–" } }
                        } } }
                    }
                }
            } }
        }
    }
}

/// Characters of a failure's message in a table; its job's page has all of it.
const MESSAGE_CHARS_MAX: usize = 200;
