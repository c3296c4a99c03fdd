//! States as an icon, a word and a colour; bars; names of derivations. What all pages share.

use kiln_wire::DrvPath;
use maud::{Markup, PreEscaped, html};

use crate::words;

/// What a colour says. Never the only one to say it: an icon and a word stand beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    /// Good.
    Ok,
    /// Broken.
    Bad,
    /// Under way.
    Run,
    /// Waits, or wants a look.
    Wait,
    /// Nothing to say.
    Idle,
}

impl Tone {
    /// Returns its class in the stylesheet.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Bad => "bad",
            Self::Run => "run",
            Self::Wait => "wait",
            Self::Idle => "idle",
        }
    }

    /// Returns the icon that stands for it where no better one does.
    pub(crate) fn icon(self) -> &'static str {
        match self {
            Self::Ok => "built",
            Self::Bad => "failed",
            Self::Run => "running",
            Self::Wait => "warn",
            Self::Idle => "blocked",
        }
    }
}

/// A job's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobState {
    /// It failed.
    Failed,
    /// An input of it failed.
    DependencyFailed,
    /// A worker has it.
    Running,
    /// It could run.
    Ready,
    /// It waits for inputs.
    Blocked,
    /// Its outputs are committed.
    Built,
    /// Nobody wants it.
    Cancelled,
}

impl JobState {
    /// All of them, those first that people look for.
    pub const ALL: [Self; 7] =
        [Self::Failed, Self::DependencyFailed, Self::Running, Self::Ready, Self::Blocked, Self::Built, Self::Cancelled];

    /// Returns the state of this word; none if there is none.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }

    /// Returns its word, as the API has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::DependencyFailed => "dependency-failed",
            Self::Running => "running",
            Self::Ready => "ready",
            Self::Blocked => "blocked",
            Self::Built => "built",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn tone(self) -> Tone {
        match self {
            Self::Failed | Self::DependencyFailed => Tone::Bad,
            Self::Running => Tone::Run,
            Self::Ready => Tone::Wait,
            Self::Blocked | Self::Cancelled => Tone::Idle,
            Self::Built => Tone::Ok,
        }
    }

    fn icon(self) -> &'static str {
        match self {
            Self::DependencyFailed => "chain",
            Self::Failed | Self::Running | Self::Ready | Self::Blocked | Self::Built | Self::Cancelled => self.word(),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::DependencyFailed => "dependency failed",
            Self::Failed | Self::Running | Self::Ready | Self::Blocked | Self::Built | Self::Cancelled => self.word(),
        }
    }

    /// Returns it for a reader.
    pub(crate) fn badge(self) -> Markup {
        badge(self.tone(), self.icon(), self.label())
    }

    /// Returns its icon alone, for drawings that have its word in their title.
    pub(crate) fn mark(self) -> &'static str {
        self.icon()
    }
}

/// Returns an icon, which says nothing by itself.
pub(crate) fn icon(name: &str) -> Markup {
    html! { svg class="i" viewBox="0 0 16 16" aria-hidden="true" { use href={ "#i-" (name) } {} } }
}

/// Returns an icon and words in a colour.
pub(crate) fn badge(tone: Tone, name: &str, words: &str) -> Markup {
    html! { span class={ "state " (tone.class()) } { (icon(name)) (words) } }
}

/// Returns a bar of parts of a whole, and says in words what it shows.
pub(crate) fn bar(says: &str, whole: u64, parts: &[(Tone, u64)], class: &str) -> Markup {
    let mut at = 0u64;
    let places: Vec<(Tone, u64, u64)> = parts
        .iter()
        .map(|(tone, part)| {
            let from = at;
            at = at.saturating_add(*part);
            (*tone, per_mille(from, whole), per_mille(at, whole))
        })
        .collect();
    html! {
        svg class={ "bar " (class) } viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label=(says) {
            @for (tone, from, to) in places {
                @if to > from { rect class={ "f-" (tone.class()) } x=(from) y="0" width=(to - from) height="10" {} }
            }
        }
    }
}

fn per_mille(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part.min(whole)) * 1000 / u128::from(whole.max(1))).unwrap_or(1000)
}

/// Returns where a job's page is.
pub(crate) fn job_href(derivation: &DrvPath) -> String {
    // Names of store paths have letters, digits and `+-._?=`; of these a query begins with one.
    format!("/ui/jobs/{}", derivation.as_str().replace('?', "%3F"))
}

/// Returns a derivation's name, which leads to its page.
pub(crate) fn job_link(derivation: &DrvPath) -> Markup {
    html! { a class="drv" href=(job_href(derivation)) title=(derivation.as_str()) { (short(derivation)) } }
}

/// Returns a derivation's name without its hash and its ending.
pub(crate) fn short(derivation: &DrvPath) -> &str {
    let name = derivation.as_path().name();
    name.strip_suffix(".drv").unwrap_or(name)
}

/// Returns text cut at a character's edge, with an ellipsis if any was cut.
pub(crate) fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Returns a legend's row: colour, word, number.
pub(crate) fn key(tone: Tone, words: &str, number: u64) -> Markup {
    html! { li { span class={ "key k-" (tone.class()) } {} (words) " " strong { (words::count(number)) } } }
}

/// The drawings of all icons, once in each page.
pub(crate) fn sprite() -> Markup {
    let icons = [
        ("built", r#"<path d="M3 8.5l3.2 3.2L13 5"/>"#),
        ("failed", r#"<path d="M4 4l8 8M12 4l-8 8"/>"#),
        ("chain", r#"<circle cx="4" cy="8" r="2"/><path d="M6 8h3M10 5.5l4 5M14 5.5l-4 5"/>"#),
        ("running", r#"<path d="M5 3.5v9l7-4.5z" fill="currentColor"/>"#),
        ("ready", r#"<circle cx="8" cy="8" r="5.5"/><path d="M8 5v3l2 1.5"/>"#),
        ("blocked", r#"<path d="M6 4v8M10 4v8"/>"#),
        ("cancelled", r#"<circle cx="8" cy="8" r="5.5"/><path d="M4.2 11.8l7.6-7.6"/>"#),
        ("warn", r#"<path d="M8 2.5l6 11H2zM8 7v3M8 12v.1"/>"#),
        ("clock", r#"<circle cx="8" cy="8" r="5.5"/><path d="M8 5v3l2 1.5"/>"#),
        ("shield", r#"<path d="M8 2l5 2v4c0 3-2 5-5 6-3-1-5-3-5-6V4z"/>"#),
        ("leader", r#"<path d="M3 12h10M3 12L2.5 5l3 2.5L8 3.5l2.5 4 3-2.5L13 12"/>"#),
    ];
    html! {
        svg width="0" height="0" class="hide" aria-hidden="true" focusable="false" {
            @for (name, drawing) in icons {
                symbol id={ "i-" (name) } viewBox="0 0 16 16" { (PreEscaped(drawing)) }
            }
        }
    }
}
