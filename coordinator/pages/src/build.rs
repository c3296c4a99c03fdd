//! Build: how far it is, what is on its critical path, what changed against the build of the same name before, all its jobs.

use kiln_wire::{BuildId, DrvPath, Timestamp, WorkerId};
use maud::{Markup, html};

use crate::frame::{Document, Section};
pub use crate::graph::{Graph, Node};
use crate::overview::{BuildLine, FailureLine, QueueLine, eta, failure_table, queue_table};
use crate::paint::{self, JobState, Tone};
use crate::words;

/// What the page of a build shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// The moment.
    pub now: Timestamp,
    /// The build.
    pub line: BuildLine,
    /// What is left of the longest chain, from what can go on now to the end; at most so many as a screen holds.
    pub critical: Vec<Step>,
    /// Jobs of that chain beyond those.
    pub critical_more: u64,
    /// Why its ready jobs wait.
    pub waiting: Vec<QueueLine>,
    /// What failed, that first which holds up most.
    pub failures: Vec<FailureLine>,
    /// Failures beyond those.
    pub failures_more: u64,
    /// How it differs from the one before it, if there is one; or why that is not known.
    pub changes: Result<Option<Changes>, String>,
    /// Its jobs; none once it has left the farm.
    pub jobs: Option<JobList>,
    /// A drawing of its jobs.
    pub graph: Option<Graph>,
    /// The wanted outputs that are realised: whose, which, where.
    pub outputs: Vec<(DrvPath, String, String)>,
    /// Outputs beyond those.
    pub outputs_more: u64,
    /// Attributes of its set that do not evaluate, with what the evaluator said.
    pub errors: Vec<(String, String)>,
    /// Attributes that do not evaluate beyond those.
    pub errors_more: u64,
}

/// A job of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub derivation: DrvPath,
    /// Its state.
    pub state: JobState,
    /// Milliseconds that it is expected to take.
    pub expected_ms: u64,
    /// Since when and where it runs.
    pub running: Option<(Timestamp, WorkerId)>,
}

/// What changed since the build of the same name before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The one before.
    pub before: BuildId,
    /// When that was submitted.
    pub before_at: Timestamp,
    /// Failed here and not there.
    pub newly: Vec<DrvPath>,
    /// Failed there and here.
    pub still: Vec<DrvPath>,
    /// Failed there, and built here.
    pub fixed: Vec<DrvPath>,
    /// Failed there, and neither failed nor built here: gone, or not reached so far.
    pub unreached: Vec<DrvPath>,
    /// Attributes: what they did or do, in words, with which; empty ones are not shown.
    pub attributes: Vec<(&'static str, Vec<String>)>,
}

/// A page of a list of jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobList {
    /// The jobs.
    pub rows: Vec<JobRow>,
    /// What names have to contain; empty for all.
    pub wanted: String,
    /// In which state; none for all.
    pub state: Option<JobState>,
    /// Where the next page begins; none if this is the last.
    pub next: Option<String>,
    /// This is not the first page.
    pub is_later: bool,
    /// The build has left the farm, and of its jobs those are kept that failed.
    pub is_kept: bool,
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    /// Which.
    pub derivation: DrvPath,
    /// Its state.
    pub state: JobState,
    /// Why it is in it.
    pub reason: String,
    /// Milliseconds from its start to the end of the longest chain that needs it.
    pub chain_ms: u64,
    /// How often it was tried.
    pub attempts: u64,
    /// The attributes that it is as a root of the build.
    pub attributes: Vec<String>,
}

/// Returns the page.
pub fn page(model: &Build) -> Document {
    let line = &model.line;
    let body = html! {
        div class="head" {
            h1 { (line.title()) }
            @if line.is_security { span class="tag sec" { "security" } }
            p class="soft" {
                "Build " (line.id) ", submitted " (words::ago(model.now, line.submitted_at))
                @if !line.account.is_empty() { " by " (line.account) }
            }
        }
        div class="grid" {
            (progress(model))
            (critical(model))
            (failures(model))
            (unevaluated(model))
            @match &model.changes {
                Ok(Some(changes)) => (compared(changes)),
                Ok(None) => (empty("changes", "Against the build before", "No build of its name came before it.")),
                Err(why) => (empty("changes", "Against the build before", &format!("It is not known at this moment. {why}"))),
            }
            @if model.waiting.is_empty() { (empty("waiting", "Why ready jobs wait", "No ready job of it is known to wait.")) } @else {
                section class="panel" id="waiting" aria-labelledby="h-waiting" data-live {
                    header { h2 id="h-waiting" { "Why ready jobs wait" } }
                    (queue_table("Why ready jobs wait", &model.waiting))
                }
            }
            @match &model.graph { Some(graph) => (drawn(graph)), None => (empty("graph", "Graph", "It has left the farm, and its graph with it.")) }
            (listed(model))
            (outputs(model))
        }
    };
    Document::new(line.title(), Section::Overview, body)
}

/// Returns a part of the page that has nothing to show so far: it is there for what comes.
fn empty(id: &str, title: &str, says: &str) -> Markup {
    html! {
        section class="panel" id=(id) aria-labelledby={ "h-" (id) } data-live {
            header { h2 id={ "h-" (id) } { (title) } }
            p class="empty" { (says) }
        }
    }
}

fn progress(model: &Build) -> Markup {
    let line = &model.line;
    let counts = line.counts;
    html! {
        section class="panel w7" id="progress" aria-labelledby="h-progress" data-live {
            header { h2 id="h-progress" { "Progress" } (line.badge()) }
            dl class="big" {
                div { dt { "settled" } dd { (line.settled_percent()) " %" } }
                div { dt { "jobs" } dd { (words::count(line.total())) } }
                @if let Some(at) = line.ended_at {
                    div { dt { "took" } dd { (words::duration(at.since_ms(line.submitted_at))) } }
                    div { dt { "ended" } dd { (words::ago(model.now, at)) } }
                } @else {
                    div { dt { "expected to end" } dd { (eta(model.now, line.eta)) } }
                    @if let Some(eta) = line.eta {
                        div { dt { "of what is left was measured before" } dd { (eta.measured_percent) " %" } }
                    }
                }
            }
            (line.progress(""))
            ul class="legend" {
                (paint::key(Tone::Ok, "built", counts.built))
                (paint::key(Tone::Bad, "failed", counts.failed))
                (paint::key(Tone::Run, "running", counts.running))
                (paint::key(Tone::Wait, "ready", counts.ready))
                (paint::key(Tone::Idle, "blocked", counts.blocked))
            }
        }
    }
}

fn critical(model: &Build) -> Markup {
    let sum = model.critical.iter().fold(0u64, |sum, step| sum.saturating_add(step.expected_ms));
    html! {
        section class="panel w5" id="critical" aria-labelledby="h-critical" data-live {
            header {
                h2 id="h-critical" { "Critical path" }
                @if model.critical_more == 0 && sum > 0 { span class="small soft" { (words::duration(sum)) " expected in all" } }
            }
            @if model.critical.is_empty() { p class="empty" { "Nothing is left to build." } } @else {
                ol class="chain" {
                    @for step in &model.critical { li {
                        span { (paint::job_link(&step.derivation)) " " (step.state.badge()) }
                        span class="nowrap small" { (words::duration(step.expected_ms)) }
                        @if let Some((since, worker)) = &step.running {
                            span class="under" { "runs for " (words::duration(model.now.since_ms(*since))) " on " a href={ "/ui/fleet#w-" (worker) } { (worker) } }
                        }
                    } }
                }
                @if model.critical_more > 0 { p class="small soft" { "and " (words::counted(model.critical_more, "job", "jobs")) " after them" } }
            }
        }
    }
}

fn failures(model: &Build) -> Markup {
    html! {
        section class="panel" id="failures" aria-labelledby="h-failures" data-live {
            header { h2 id="h-failures" { "Failures" } span class="small soft" { "with how many jobs each holds up" } }
            @if model.failures.is_empty() { p class="empty" { "None." } } @else { (failure_table("Failures", model.now, &model.failures)) }
            @if model.failures_more > 0 {
                p class="small soft" { "and " (words::count(model.failures_more)) " more: " a href={ "?state=failed#jobs" } { "list them" } }
            }
        }
    }
}

fn unevaluated(model: &Build) -> Markup {
    if model.errors.is_empty() && model.errors_more == 0 {
        return html! {};
    }
    let count = u64::try_from(model.errors.len()).unwrap_or(u64::MAX).saturating_add(model.errors_more);
    html! {
        section class="panel" id="evaluation" aria-labelledby="h-evaluation" data-live {
            header {
                h2 id="h-evaluation" { "Not evaluated" }
                span class="small soft" { (words::counted(count, "attribute", "attributes")) " of its set" }
            }
            ul class="small" {
                @for (attribute, message) in model.errors.iter().take(ERRORS_MAX) {
                    li { b { (paint::cut(attribute, REASON_CHARS_MAX)) } ": " (paint::cut(message, ERROR_CHARS_MAX)) }
                }
            }
            @let more = count.saturating_sub(u64::try_from(model.errors.len().min(ERRORS_MAX)).unwrap_or(u64::MAX));
            @if more > 0 { p class="small soft" { "and " (words::count(more)) " more" } }
        }
    }
}

fn compared(changes: &Changes) -> Markup {
    let parts = [
        ("newly", "Newly failing", Tone::Bad, "failed", &changes.newly),
        ("still", "Still failing", Tone::Wait, "warn", &changes.still),
        ("fixed", "Fail no more", Tone::Ok, "built", &changes.fixed),
        ("unreached", "Gone, or not reached", Tone::Idle, "blocked", &changes.unreached),
    ];
    html! {
        section class="panel" id="changes" aria-labelledby="h-changes" data-live {
            header {
                h2 id="h-changes" { "Against the build before" }
                span class="small soft" { a href={ "/ui/builds/" (changes.before) } { "build " (changes.before) } " of " (words::moment(changes.before_at)) " UTC" }
            }
            div class="grid" {
                @for (title, names) in changes.attributes.iter().filter(|(_, names)| !names.is_empty()) {
                    div class="w4" {
                        h3 { (title) ": " (names.len()) }
                        ul class="small" { @for name in names.iter().take(CHANGES_MAX) { li { (paint::cut(name, REASON_CHARS_MAX)) } } }
                        @if names.len() > CHANGES_MAX { p class="small soft" { "and " (names.len() - CHANGES_MAX) " more" } }
                    }
                }
                @for (id, title, tone, icon, jobs) in parts {
                    div class="w4" {
                        h3 { (paint::badge(tone, icon, &format!("{title}: {}", jobs.len()))) }
                        @if !jobs.is_empty() {
                            details id={ "d-" (id) } open[jobs.len() <= OPEN_MAX] {
                                summary class="small" { (words::counted(u64::try_from(jobs.len()).unwrap_or(u64::MAX), "job", "jobs")) }
                                ul class="small" { @for job in jobs.iter().take(CHANGES_MAX) { li { (paint::job_link(job)) } } }
                                @if jobs.len() > CHANGES_MAX { p class="small soft" { "and " (jobs.len() - CHANGES_MAX) " more" } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn drawn(graph: &Graph) -> Markup {
    html! {
        section class="panel" id="graph" aria-labelledby="h-graph" data-live {
            header {
                h2 id="h-graph" { "Graph" }
                span class="small soft" { "inputs on the left; the critical path has thick " span class="nowrap" { "violet lines" } }
            }
            (graph.draw())
        }
    }
}

fn listed(model: &Build) -> Markup {
    html! {
        section class="panel" id="jobs" aria-labelledby="h-jobs" data-live {
            header { h2 id="h-jobs" { "Jobs" } }
            @if let Some(list) = &model.jobs {
                @if list.is_kept { p class="small soft" { "The build has left the farm; of its jobs the archive keeps those that failed." } }
                (search(list)) (table(list))
            } @else { p class="empty" { "Its jobs are not known." } }
        }
    }
}

fn search(list: &JobList) -> Markup {
    let link = |state: Option<JobState>| {
        let state = state.map(|state| format!("&state={}", state.word())).unwrap_or_default();
        format!("?q={}{state}#jobs", query(&list.wanted))
    };
    html! {
        ul class="chips" aria-label="States" {
            li { a href=(link(None)) aria-current=[list.state.is_none().then_some("true")] { "all" } }
            @for state in JobState::ALL {
                li { a href=(link(Some(state))) aria-current=[(list.state == Some(state)).then_some("true")] { (state.word()) } }
            }
        }
        form class="line" method="get" action="#jobs" role="search" {
            label for="q" { "Name or attribute contains" }
            input type="search" id="q" name="q" value=(list.wanted) size="28";
            @if let Some(state) = list.state { input type="hidden" name="state" value=(state.word()); }
            button { "Search" }
        }
    }
}

fn table(list: &JobList) -> Markup {
    let state = list.state.map(|state| format!("&state={}", state.word())).unwrap_or_default();
    html! {
        @if list.rows.is_empty() { p class="empty" { "No job matches." } } @else {
            div class="scroll" tabindex="0" role="group" aria-labelledby="h-jobs" {
                table {
                    thead { tr { th scope="col" { "Job" } th scope="col" { "State" } th scope="col" { "Why" } th scope="col" class="n" { "Tries" } th scope="col" class="n" { "To the end" } } }
                    tbody { @for row in &list.rows { tr {
                        th scope="row" {
                            (paint::job_link(&row.derivation))
                            @if !row.attributes.is_empty() { " " span class="small soft" { (paint::cut(&row.attributes.join(", "), REASON_CHARS_MAX)) } }
                        }
                        td { (row.state.badge()) }
                        td class="why" { (paint::cut(&row.reason, REASON_CHARS_MAX)) }
                        td class="n" { (row.attempts) }
                        td class="n" { @if row.chain_ms > 0 { (words::duration(row.chain_ms)) } @else { "–" } }
                    } } }
                }
            }
        }
        p class="pager" {
            @if list.is_later { a href={ "?q=" (query(&list.wanted)) (state) "#jobs" } { "To the first" } }
            @if let Some(next) = &list.next { a href={ "?q=" (query(&list.wanted)) (state) "&after=" (query(next)) "#jobs" } { "Further jobs" } }
        }
    }
}

fn outputs(model: &Build) -> Markup {
    html! {
        @if model.outputs.is_empty() { (empty("outputs", "Outputs", "None of those that are wanted is realised so far.")) } @else {
            section class="panel" id="outputs" aria-labelledby="h-outputs" data-live {
                header { h2 id="h-outputs" { "Outputs" } }
                ul class="small" {
                    @for (root, name, path) in &model.outputs { li { (paint::job_link(root)) " " (name) ": " code { (path) } } }
                }
                @if model.outputs_more > 0 { p class="small soft" { "and " (words::count(model.outputs_more)) " more" } }
            }
        }
    }
}

/// Returns text as a part of a query.
pub(crate) fn query(text: &str) -> String {
    let mut coded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => coded.push(char::from(byte)),
            _ => coded.push_str(&format!("%{byte:02X}")),
        }
    }
    coded
}

/// Jobs of a page of a list. With all that a page shows beside it, a page stays below 300 KiB.
pub const ROWS_MAX: usize = 100;
/// Jobs of a drawing: more are no drawing that a person reads.
pub const NODES_MAX: usize = 80;
/// Failures of a page.
pub const FAILURES_MAX: usize = 50;
/// Attributes that do not evaluate, of a page.
const ERRORS_MAX: usize = 30;
/// Characters of what an evaluator said, of a page.
const ERROR_CHARS_MAX: usize = 400;
/// Jobs of a list of changes that is open from the start.
const OPEN_MAX: usize = 12;
/// Jobs of a list of changes.
const CHANGES_MAX: usize = 200;
/// Characters of a reason in a list.
const REASON_CHARS_MAX: usize = 160;
