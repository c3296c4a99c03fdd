//! What stands around every page: head, navigation, foot.

use kiln_wire::Timestamp;
use maud::{DOCTYPE, Markup, html};

use crate::ansi;
use crate::assets::{ICON, SCRIPT, STYLE};
use crate::paint;
use crate::words;

/// Who reads a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Viewer {
    /// Who it is; none if nobody has said.
    pub name: Option<String>,
    /// Whether they may change the farm. The farm checks it again when they do.
    pub is_admin: bool,
    /// Whether one can log in here at all.
    pub can_log_in: bool,
}

/// What every page knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shell {
    /// The moment at which the page is true.
    pub now: Timestamp,
    /// Who reads it.
    pub viewer: Viewer,
    /// The farm's name.
    pub farm: String,
    /// The program's version.
    pub version: String,
    /// Which coordinator answered, and whether it leads, in words.
    pub coordinator: String,
    /// Where one can be told of what happens; none if nowhere, and the page asks now and then.
    pub events: Option<&'static str>,
    /// What a reader must know of the coordinator that answers: that another one leads, and where. Words, and where to go.
    pub notice: Option<(String, Option<String>)>,
}

/// Which part of the dashboard a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The farm at a glance, and what leads on from it.
    Overview,
    /// Workers.
    Fleet,
    /// What ran where.
    Timeline,
    /// Coordinators.
    Cluster,
    /// Something else.
    Other,
}

/// One page.
#[derive(Debug)]
pub struct Document {
    /// What it is about.
    pub title: String,
    /// Where it belongs.
    pub section: Section,
    pub(crate) body: Markup,
}

impl Document {
    pub(crate) fn new(title: impl Into<String>, section: Section, body: Markup) -> Self {
        Self { title: title.into(), section, body }
    }

    /// Returns the whole page.
    pub fn page(&self, shell: &Shell) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="referrer" content="same-origin";
                    meta name="robots" content="noindex";
                    title { (self.title) " · Kiln" }
                    link rel="icon" type="image/svg+xml" href=(ICON.href());
                    link rel="stylesheet" href=(STYLE.href());
                    script src=(SCRIPT.href()) defer {}
                }
                body data-events=[shell.events] {
                    (paint::sprite())
                    a class="skip" href="#main" { "Skip to content" }
                    (top(shell, self.section))
                    main id="main" tabindex="-1" {
                        (notice(shell))
                        (self.body)
                    }
                    (foot(shell))
                }
            }
        };
        in_one_direction(page.0)
    }

    /// Returns what changes while a page is open: its content, and what is said of the coordinator around it.
    pub fn part(&self, shell: &Shell) -> String {
        let part = html! { (notice(shell)) (self.body) (coordinator(shell)) };
        in_one_direction(part.0)
    }
}

/// Returns a page in which no text turns around the text that follows it: what a builder or a client writes ends where it ends.
fn in_one_direction(page: String) -> String {
    if page.contains(ansi::turns_text) { page.replace(ansi::turns_text, "\u{fffd}") } else { page }
}

fn top(shell: &Shell, section: Section) -> Markup {
    let places = [
        (Section::Overview, "/ui/", "Overview"),
        (Section::Fleet, "/ui/fleet", "Fleet"),
        (Section::Timeline, "/ui/timeline", "Timeline"),
        (Section::Cluster, "/ui/cluster", "Cluster"),
    ];
    html! {
        header class="top" {
            a class="brand" href="/ui/" { img src=(ICON.href()) width="20" height="20" alt=""; "Kiln" }
            nav aria-label="Pages" {
                ul {
                    @for (place, href, name) in places {
                        li { a href=(href) aria-current=[(place == section).then_some("page")] { (name) } }
                    }
                }
            }
            div class="who" {
                @if let Some(name) = &shell.viewer.name {
                    span { (name) @if shell.viewer.is_admin { " (admin)" } }
                    form method="post" action="/ui/logout" class="line" {
                        button { "Log out" }
                    }
                } @else if shell.viewer.can_log_in {
                    a href="/ui/login" { "Log in" }
                }
            }
        }
    }
}

fn notice(shell: &Shell) -> Markup {
    html! {
        div id="notice" data-live {
            @if let Some((words, href)) = &shell.notice {
                p class="notice wait" { (words) @if let Some(href) = href { " " a href=(href) { "Ask it" } } }
            }
        }
    }
}

fn coordinator(shell: &Shell) -> Markup {
    html! { span id="coordinator" data-live { @if !shell.version.is_empty() { "Kiln " (shell.version) ", " } (shell.coordinator) } }
}

fn foot(shell: &Shell) -> Markup {
    html! {
        footer class="foot" {
            span { (shell.farm) }
            (coordinator(shell))
            span { "as of " time id="as-of" datetime=(words::machine(shell.now)) { (words::moment(shell.now)) " UTC" } }
            span id="live" role="status" { }
        }
    }
}

/// Returns the page for what is not there.
pub fn absent(what: &str) -> Document {
    let body = html! {
        div class="head" { h1 { "Not found" } }
        p { (what) }
        p class="pager" { a href="/ui/" { "To the overview" } }
    };
    Document::new("Not found", Section::Other, body)
}

/// Returns the page for what cannot be done, with the reason.
pub fn refused(title: &str, why: &str) -> Document {
    let body = html! {
        div class="head" { h1 { (title) } }
        div class="notice bad" { p { (why) } }
        p class="pager" { a href="/ui/" { "To the overview" } }
    };
    Document::new(title, Section::Other, body)
}
