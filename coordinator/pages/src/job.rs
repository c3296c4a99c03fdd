//! Job: why it waits, its tries side by side, its log, what it took, what goes in and comes out, who waits for it.

use kiln_wire::{BuildId, DrvPath, FailureClass, Timestamp, Usage, WorkerId};
use maud::{Markup, html};

use crate::ansi::{Line, Style};
use crate::build::query;
use crate::frame::{Document, Section};
use crate::paint::{self, JobState, Tone};
use crate::words;

/// What the page of a job shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The moment.
    pub now: Timestamp,
    /// Which.
    pub derivation: DrvPath,
    /// Its state.
    pub state: JobState,
    /// Why it is in it, in words.
    pub reason: String,
    /// Builds that want it, with their names.
    pub builds: Vec<(BuildId, String)>,
    /// Facts in words: what it needs, what is expected of it, how many are ahead.
    pub facts: Vec<(&'static str, String)>,
    /// Workers that are the same to it: what they are to it, how many, the first of them.
    pub workers: Vec<(String, u64, Vec<WorkerId>)>,
    /// What holds it up, the nearest first.
    pub behind: Vec<Behind>,
    /// Its tries, the oldest first.
    pub attempts: Vec<Attempt>,
    /// What an attempt may take.
    pub limits: Limits,
    /// A part of the log.
    pub log: Option<Log>,
    /// What it needs of other jobs.
    pub inputs: Vec<(DrvPath, JobState)>,
    /// Inputs beyond those.
    pub inputs_more: u64,
    /// Its outputs.
    pub outputs: Vec<Output>,
    /// Jobs that name it as an input.
    pub dependents: Vec<(DrvPath, JobState)>,
    /// Such jobs beyond those.
    pub dependents_more: u64,
    /// Jobs that cannot be built without it, near and far.
    pub dependents_all: u64,
}

/// What is left of a job that has left the farm with its builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftFarm {
    /// Which.
    pub derivation: DrvPath,
    /// Why it failed, if it did and that is remembered.
    pub reason: Option<String>,
    /// A part of its log.
    pub log: Option<Log>,
    /// Its outputs, if it was built.
    pub outputs: Vec<Output>,
}

/// A job that holds another one up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Which.
    pub derivation: DrvPath,
    /// Its state.
    pub state: JobState,
    /// Why it is in it.
    pub reason: String,
    /// Milliseconds that it is expected to take.
    pub expected_ms: u64,
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number.
    pub attempt: u64,
    /// Where.
    pub worker: WorkerId,
    /// Since when.
    pub started_at: Timestamp,
    /// Until when; none while it runs.
    pub ended_at: Option<Timestamp>,
    /// How it failed, if it did.
    pub failure: Option<(FailureClass, String)>,
    /// What it took.
    pub usage: Option<Usage>,
}

/// What an attempt may take; none for no limit of the job's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Wall time in milliseconds.
    pub wall_ms: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Log bytes.
    pub log_bytes: Option<u64>,
}

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its path, if it is known.
    pub path: Option<String>,
    /// Bytes of its NAR, once it is built.
    pub nar_size_bytes: Option<u64>,
    /// Hash of its NAR.
    pub nar_hash: Option<String>,
    /// How many paths it refers to.
    pub references: u64,
}

/// A part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Whose.
    pub attempt: u64,
    /// Bytes of the whole log so far.
    pub size_bytes: u64,
    /// Its attempt goes on.
    pub is_live: bool,
    /// Lines by their numbers.
    pub lines: Vec<(u64, Line)>,
    /// What is searched for; empty for nothing.
    pub wanted: String,
    /// Lines that match, of which `lines` has the first.
    pub hits: u64,
    /// The phases of the build: their names and first lines.
    pub phases: Vec<Phase>,
    /// Where the part before this one begins, in bytes; none if this is the first.
    pub earlier: Option<u64>,
    /// Where the part after this one begins; none if this is the last.
    pub later: Option<u64>,
    /// Where the log goes on while it is written, and how text looks there.
    pub next: Option<(u64, u64, Style)>,
}

/// A phase of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Its first line.
    pub line: u64,
    /// Where that begins, in bytes.
    pub at: u64,
}

/// Returns the page.
pub fn page(model: &Job) -> Document {
    let name = paint::short(&model.derivation);
    let body = html! {
        div class="head" {
            h1 { (name) }
            span id="state" data-live { (model.state.badge()) }
            p class="mono soft" { (model.derivation.as_str()) }
            @if !model.builds.is_empty() {
                p class="small" { "wanted by "
                    @for (at, (id, name)) in model.builds.iter().take(BUILDS_MAX).enumerate() { @if at > 0 { ", " } a href={ "/ui/builds/" (id) } { (name) } }
                    @if model.builds.len() > BUILDS_MAX { " and " (model.builds.len() - BUILDS_MAX) " more" }
                }
            }
        }
        div class="grid" {
            (why(model))
            (needs(model))
            (attempts(model))
            @match &model.log { Some(log) => (logged(&model.derivation, log)), None => (unlogged()) }
            (outputs(&model.outputs))
            (related("inputs", "Inputs", &model.inputs, model.inputs_more, None))
            (related("dependents", "Who waits for it", &model.dependents, model.dependents_more, Some(model.dependents_all)))
        }
    };
    Document::new(name, Section::Overview, body)
}

/// Returns the page of a job of which the farm keeps a log or outputs alone.
pub fn left_page(model: &LeftFarm) -> Document {
    let name = paint::short(&model.derivation);
    let body = html! {
        div class="head" {
            h1 { (name) }
            p class="mono soft" { (model.derivation.as_str()) }
        }
        div class="grid" {
            section class="panel" id="why" aria-labelledby="h-why" data-live {
                header { h2 id="h-why" { "It has left the farm" } }
                p { "It left with the builds that wanted it; this is what is kept of it." }
                @if let Some(reason) = &model.reason { p { "The last that was heard of it: " (reason) } }
            }
            @if let Some(log) = &model.log { (logged(&model.derivation, log)) }
            (outputs(&model.outputs))
        }
    };
    Document::new(name, Section::Overview, body)
}

/// Returns the part of a page that only the end of a growing log is.
pub fn log_part(derivation: &DrvPath, log: &Log) -> Document {
    Document::new(paint::short(derivation), Section::Overview, lines(derivation, log))
}

fn why(model: &Job) -> Markup {
    let title = match model.state {
        JobState::Ready | JobState::Blocked | JobState::Cancelled => "Why it waits",
        JobState::Running => "Where it runs",
        JobState::Failed | JobState::DependencyFailed => "Why it failed",
        JobState::Built => "How it stands",
    };
    html! {
        section class="panel w7" id="why" aria-labelledby="h-why" data-live {
            header { h2 id="h-why" { (title) } }
            p { @if model.reason.is_empty() { (model.state.word()) } @else { (model.reason) } }
            @if !model.behind.is_empty() {
                h3 class="small soft" { "What holds it up, the nearest first" }
                ol class="chain" { @for step in &model.behind { li {
                    span { (paint::job_link(&step.derivation)) " " (step.state.badge()) }
                    span class="nowrap small" { (words::duration(step.expected_ms)) }
                    @if !step.reason.is_empty() { span class="under" { (paint::cut(&step.reason, 200)) } }
                } } }
            }
            @if !model.workers.is_empty() {
                h3 class="small soft" { "What the workers are to it" }
                ul class="small" { @for (what, count, first) in &model.workers { li {
                    strong { (words::count(*count)) } " " (what)
                    span class="soft" { ": " @for (at, worker) in first.iter().enumerate() { @if at > 0 { ", " } a href={ "/ui/fleet#w-" (worker) } { (worker) } } @if *count > u64::try_from(first.len()).unwrap_or(u64::MAX) { ", …" } }
                } } }
            }
        }
    }
}

fn needs(model: &Job) -> Markup {
    html! {
        section class="panel w5" id="needs" aria-labelledby="h-needs" data-live {
            header { h2 id="h-needs" { "What it needs" } }
            dl class="facts" { @for (name, value) in &model.facts { dt { (name) } dd { (value) } } }
        }
    }
}

fn attempts(model: &Job) -> Markup {
    html! {
        section class="panel" id="attempts" aria-labelledby="h-attempts" data-live {
            header { h2 id="h-attempts" { "Attempts" } span class="small soft" { "side by side, with what they took of what they may" } }
            @if model.attempts.is_empty() { p class="empty" { "It was not tried so far." } } @else {
                div class="scroll" id="attempts-box" tabindex="0" role="group" aria-labelledby="h-attempts" {
                    table {
                        thead { tr { td {} @for attempt in &model.attempts { th scope="col" { a href={ "?attempt=" (attempt.attempt) "#log" } { "Attempt " (attempt.attempt) } } } } }
                        tbody {
                            (across(model, "How", |attempt| html! { (how(attempt)) }))
                            (across(model, "Where", |attempt| html! { a class="mono" href={ "/ui/fleet#w-" (attempt.worker) } { (attempt.worker) } }))
                            (across(model, "When", |attempt| words::ago(model.now, attempt.started_at)))
                            (across(model, "Wall time", |attempt| taken(lasted(model.now, attempt), model.limits.wall_ms, words::duration)))
                            (across(model, "Processor time", |attempt| usage(attempt, |usage| html! { (words::duration(usage.cpu_ms)) })))
                            (across(model, "Memory at most", |attempt| usage(attempt, |usage| taken(usage.memory_peak_bytes, model.limits.memory_bytes, words::bytes))))
                            (across(model, "Log", |attempt| usage(attempt, |usage| taken(usage.log_bytes, model.limits.log_bytes, words::bytes))))
                            (across(model, "Written to disk", |attempt| usage(attempt, |usage| html! { @match usage.disk_write_bytes { Some(bytes) => (words::bytes(bytes)), None => "–" } })))
                            (across(model, "Held back by its quota", |attempt| usage(attempt, |usage| html! { @match usage.cpu_throttled_ms { Some(ms) => (words::duration(ms)), None => "–" } })))
                            (across(model, "Why it ended", |attempt| html! { span class="small" { @match &attempt.failure { Some((_, message)) => (paint::cut(message, 400)), None => "" } } }))
                        }
                    }
                }
            }
        }
    }
}

fn across(model: &Job, name: &str, show: impl Fn(&Attempt) -> Markup) -> Markup {
    html! { tr { th scope="row" class="soft nowrap" { (name) } @for attempt in &model.attempts { td { (show(attempt)) } } } }
}

fn how(attempt: &Attempt) -> Markup {
    match (&attempt.failure, attempt.ended_at) {
        (_, None) => JobState::Running.badge(),
        (None, Some(_)) => JobState::Built.badge(),
        (Some((class, _)), Some(_)) => {
            let tone = match class {
                FailureClass::Infrastructure | FailureClass::Cancelled => Tone::Wait,
                FailureClass::BuildFailure | FailureClass::OutOfMemory | FailureClass::LimitExceeded => Tone::Bad,
            };
            paint::badge(tone, tone.icon(), &class.to_string())
        }
    }
}

fn lasted(now: Timestamp, attempt: &Attempt) -> u64 {
    attempt.ended_at.unwrap_or(now).since_ms(attempt.started_at)
}

fn usage(attempt: &Attempt, show: impl Fn(&Usage) -> Markup) -> Markup {
    attempt.usage.as_ref().map_or_else(|| html! { "–" }, show)
}

/// Returns what was taken, and how much that is of what may be.
fn taken(taken: u64, limit: Option<u64>, show: fn(u64) -> String) -> Markup {
    html! {
        (show(taken))
        @if let Some(limit) = limit.filter(|limit| *limit > 0) {
            span class="soft" { " of " (show(limit)) }
            @let tone = if words::percent(taken, limit) >= 90 { Tone::Bad } else { Tone::Run };
            (paint::bar(&format!("{} % of the limit", words::percent(taken, limit)), limit, &[(tone, taken)], "thin"))
        }
    }
}

/// Returns the place for a log that is not there so far.
fn unlogged() -> Markup {
    html! {
        section class="panel" id="log" aria-labelledby="h-log" data-live {
            header { h2 id="h-log" { "Log" } }
            p class="empty" { "No attempt has written one that is here." }
        }
    }
}

fn logged(derivation: &DrvPath, log: &Log) -> Markup {
    let href = paint::job_href(derivation);
    let at = |at: u64| format!("{href}?attempt={}&at={at}#log", log.attempt);
    html! {
        section class="panel" id="log" aria-labelledby="h-log" {
            header {
                h2 id="h-log" { "Log" }
                span class="small soft" { "attempt " (log.attempt) ", " (words::bytes(log.size_bytes)) @if log.is_live { ", goes on" } }
                span class="more" { a href={ "/api/v1/jobs/" (paint::job_href(derivation).trim_start_matches("/ui/jobs/")) "/log?attempt=" (log.attempt) } { "as text" } }
            }
            form class="line" method="get" action={ (href) "#log" } role="search" {
                input type="hidden" name="attempt" value=(log.attempt);
                label for="q" { "Search the log" }
                input type="search" id="q" name="q" value=(log.wanted) size="28";
                button { "Search" }
                @if !log.wanted.is_empty() {
                    span class="small" role="status" { (words::counted(log.hits, "line matches", "lines match")) @if log.hits > u64::try_from(log.lines.len()).unwrap_or(u64::MAX) { ", the first " (log.lines.len()) " here" } }
                    a href={ (href) "?attempt=" (log.attempt) "#log" } { "whole log" }
                }
            }
            @if !log.phases.is_empty() {
                nav aria-label="Phases" { ul class="chips" {
                    @for phase in log.phases.iter().take(PHASES_MAX) {
                        @let is_here = log.wanted.is_empty() && log.lines.iter().any(|(number, _)| *number == phase.line);
                        li { @if is_here { a href={ "#L" (phase.line) } { (phase.name) } } @else { a href={ (href) "?attempt=" (log.attempt) "&at=" (phase.at) "#L" (phase.line) } { (phase.name) } } }
                    }
                } }
            }
            p class="pager" {
                @if let Some(earlier) = log.earlier { a href=(at(earlier)) { "Earlier" } a href=(at(0)) { "From the start" } }
                @if let Some(later) = log.later { a href=(at(later)) { "Later" } a href={ (href) "?attempt=" (log.attempt) "#log" } { "To the end" } }
            }
            (lines(derivation, log))
        }
    }
}

fn lines(derivation: &DrvPath, log: &Log) -> Markup {
    let next = log.next.map(|(at, line, style)| {
        format!("{}?part=log&attempt={}&at={at}&line={line}&style={}", paint::job_href(derivation), log.attempt, style.code())
    });
    let href = paint::job_href(derivation);
    html! {
        div class="log" id="log-lines" tabindex="0" role="group" aria-label="Log lines" data-next=[next] {
            @if log.lines.is_empty() && log.next.is_none() { p class="empty" { "  Nothing." } }
            ol {
                @for (number, line) in &log.lines {
                    @let is_phase = log.phases.iter().any(|phase| phase.line == *number);
                    li id={ "L" (number) } class=[is_phase.then_some("phase")] {
                        a href={ "#L" (number) } { (number) }
                        span { @if log.wanted.is_empty() { (line) } @else { (line.marked(&log.wanted)) } }
                    }
                }
            }
        }
        @if !log.wanted.is_empty() { p class="small soft" { a href={ (href) "?attempt=" (log.attempt) "&q=" (query(&log.wanted)) "#log" } { "link to this search" } } }
    }
}

fn outputs(outputs: &[Output]) -> Markup {
    html! {
        section class="panel" id="outputs" aria-labelledby="h-outputs" data-live {
            header { h2 id="h-outputs" { "Outputs" } }
            @if outputs.is_empty() { p class="empty" { "None are known." } } @else {
                div class="scroll" tabindex="0" role="group" aria-labelledby="h-outputs" {
                    table {
                        thead { tr { th scope="col" { "Output" } th scope="col" { "Path" } th scope="col" class="n" { "Size" } th scope="col" class="n" { "Refers to" } th scope="col" { "NAR hash" } } }
                        tbody { @for output in outputs { tr {
                            th scope="row" { (output.name) }
                            td class="mono" { @match &output.path { Some(path) => (path), None => { span class="soft" { "known once it is built" } } } }
                            td class="n" { @match output.nar_size_bytes { Some(bytes) => (words::bytes(bytes)), None => "–" } }
                            td class="n" { @if output.nar_hash.is_some() { (words::counted(output.references, "path", "paths")) } @else { "–" } }
                            td class="mono" { @match &output.nar_hash { Some(hash) => (hash), None => "–" } }
                        } } }
                    }
                }
            }
        }
    }
}

fn related(id: &str, title: &str, jobs: &[(DrvPath, JobState)], more: u64, all: Option<u64>) -> Markup {
    html! {
        section class="panel w6" id=(id) aria-labelledby={ "h-" (id) } data-live {
            header {
                h2 id={ "h-" (id) } { (title) }
                @if let Some(all) = all.filter(|all| *all > 0) { span class="small soft" { (words::counted(all, "job cannot", "jobs cannot")) " be built without it" } }
            }
            @if jobs.is_empty() { p class="empty" { "None." } } @else {
                ul class="small" { @for (job, state) in jobs { li { (paint::job_link(job)) " " (state.badge()) } } }
                @if more > 0 { p class="small soft" { "and " (words::count(more)) " more" } }
            }
        }
    }
}

/// Lines of a log on one page.
pub const LOG_LINES_MAX: usize = 1000;
/// Bytes of a log on one page: with the markup around the lines a page stays below 300 KiB.
pub const LOG_BYTES_SHOWN_MAX: usize = 96 << 10;
const BUILDS_MAX: usize = 8;
/// Phases that are linked: a build has about ten.
const PHASES_MAX: usize = 40;
