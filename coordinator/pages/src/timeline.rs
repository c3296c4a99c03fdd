//! Timeline: what ran where and when, with the critical path marked.

use kiln_wire::{DrvPath, Timestamp, WorkerId};
use maud::{Markup, html};

use crate::frame::{Document, Section};
use crate::gantt;
use crate::paint::Tone;
use crate::words;

/// What the timeline shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The moment.
    pub now: Timestamp,
    /// Its left end.
    pub from: Timestamp,
    /// Its right end.
    pub to: Timestamp,
    /// Its right end is now, and moves on.
    pub is_live: bool,
    /// From when on attempts are known.
    pub known_since: Timestamp,
    /// Whose critical path is marked: which build, and its name.
    pub critical_of: Option<(u64, String)>,
    /// A lane for each worker.
    pub lanes: Vec<Lane>,
    /// The worker after which the next page begins.
    pub next: Option<WorkerId>,
}

/// What ran on a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Which.
    pub worker: WorkerId,
    /// Its attempts.
    pub spans: Vec<Span>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its number.
    pub attempt: u64,
    /// Of which job.
    pub derivation: DrvPath,
    /// Since when.
    pub from: Timestamp,
    /// Until when; none while it runs.
    pub to: Option<Timestamp>,
    /// How it ended.
    pub end: SpanEnd,
    /// Its job is, or was when it ended, on a critical path.
    pub is_critical: bool,
}

impl Span {
    pub(crate) fn until(&self, now: Timestamp) -> Timestamp {
        self.to.unwrap_or(now).max(self.from)
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanEnd {
    /// It goes on.
    Running,
    /// It made the outputs.
    Built,
    /// It failed for good.
    Failed,
    /// It failed, and its job is tried again.
    Retried,
    /// It was given up: nobody wanted it, or another took its place.
    GivenUp,
}

impl SpanEnd {
    pub(crate) fn tone(self) -> Tone {
        match self {
            Self::Running => Tone::Run,
            Self::Built => Tone::Ok,
            Self::Failed => Tone::Bad,
            Self::Retried => Tone::Wait,
            Self::GivenUp => Tone::Idle,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Built => "built",
            Self::Failed => "failed",
            Self::Retried => "failed and tried again",
            Self::GivenUp => "given up",
        }
    }
}

/// Returns the page.
pub fn page(model: &Timeline) -> Document {
    let body = html! {
        div class="head" {
            h1 { "Timeline" }
            p class="soft" {
                (words::moment(model.from)) " to " (words::moment(model.to)) " UTC"
                @if model.known_since > model.from { "; this coordinator knows what ran since " (words::moment(model.known_since)) }
            }
        }
        section class="panel" id=[Some("timeline")] aria-label="What ran where" data-live[model.is_live] {
            (steering(model))
            ul class="legend" {
                @for end in [SpanEnd::Running, SpanEnd::Built, SpanEnd::Failed, SpanEnd::Retried, SpanEnd::GivenUp] {
                    li { span class={ "key k-" (end.tone().class()) } {} (end.word()) }
                }
                li { span class="key k-crit" {} "critical path" @if let Some((id, name)) = &model.critical_of { " of " a href={ "/ui/builds/" (id) } { (name) } } }
            }
            @if model.lanes.iter().all(|lane| lane.spans.is_empty()) { p class="empty" { "Nothing ran in this time, as far as this coordinator knows." } }
            @if !model.lanes.is_empty() { (gantt::draw(model)) }
            p class="small soft" { "A drag over the drawing zooms in; a bar leads to its job." }
            @if let Some(next) = &model.next { p class="pager" { a href={ "?from=" (model.from.0) "&to=" (model.to.0) "&after=" (next) } { "Further workers" } } }
        }
    };
    Document::new("Timeline", Section::Timeline, body)
}

fn steering(model: &Timeline) -> Markup {
    let (from, to) = (model.from.0, model.to.0);
    let span = to.saturating_sub(from).max(1);
    let href = |from: u64, to: u64| format!("?from={from}&to={to}");
    let quarter = span / 4;
    html! {
        nav aria-label="Stretch of time" { ul class="chips" {
            @for (name, ms) in [("15 min", 900_000u64), ("1 h", 3_600_000), ("6 h", 21_600_000), ("24 h", 86_400_000)] {
                li { a href={ "?last=" (ms) } aria-current=[(model.is_live && span == ms).then_some("true")] { "last " (name) } }
            }
            li { a href=(href(from.saturating_sub(span / 2), to.saturating_sub(span / 2))) { "← earlier" } }
            li { a href=(href(from.saturating_add(span / 2), to.saturating_add(span / 2))) { "later →" } }
            li { a href=(href(from.saturating_add(quarter), to.saturating_sub(quarter).max(from.saturating_add(quarter) + 1))) { "zoom in" } }
            li { a href=(href(from.saturating_sub(span / 2), to.saturating_add(span / 2))) { "zoom out" } }
        } }
    }
}
