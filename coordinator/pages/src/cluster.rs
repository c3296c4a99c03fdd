//! Cluster: the coordinators, who leads, how far behind each is, and their disks.

use kiln_wire::Timestamp;
use maud::{Markup, html};

use crate::frame::{Document, Section};
use crate::paint::{self, Tone};
use crate::words;

/// What the page of the coordinators shows, as one of them sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The moment.
    pub now: Timestamp,
    /// The one that answers.
    pub node: u64,
    /// The one that leads, if one does.
    pub leader: Option<u64>,
    /// Raft's term.
    pub term: u64,
    /// Its last log entry.
    pub last: u64,
    /// The last entry that it has applied.
    pub applied: u64,
    /// The last entry that its snapshot covers.
    pub snapshot: u64,
    /// Bytes of its log.
    pub log_bytes: u64,
    /// What its disk has, and what of that is free.
    pub disk: Option<Disk>,
    /// Milliseconds that its disk takes to make an entry durable: half of them take less, and 99 of 100.
    pub sync_ms: Option<(u64, u64)>,
    /// The farm's version.
    pub version: String,
    /// What keeps it from taking part in full.
    pub trouble: Option<String>,
    /// The coordinators.
    pub members: Vec<Member>,
    /// Who is told by webhook: name, host, and how it does, in words, with whether it fails; known to the leader.
    pub receivers: Vec<Receiver>,
    /// How long ended builds are kept, in words.
    pub retention: String,
}

/// A receiver of webhooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receiver {
    /// What the configuration calls it.
    pub name: String,
    /// The host that it is at.
    pub host: String,
    /// Messages that it took.
    pub delivered: u64,
    /// Messages that it will never get.
    pub given_up: u64,
    /// Messages that wait for it.
    pub waiting: u64,
    /// How it fails to take the next one, and since when.
    pub failing: Option<(Timestamp, String)>,
}

/// A disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes in all.
    pub whole_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
}

/// One coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub node: u64,
    /// Where it is reached.
    pub link: String,
    /// Where its cache is.
    pub http: String,
    /// Whether it votes.
    pub votes: bool,
    /// Its last entry that equals the leader's; only a leader knows.
    pub matched: Option<u64>,
    /// Milliseconds since it last answered; only a leader knows.
    pub silent_ms: Option<u64>,
}

/// Returns the page.
pub fn page(model: &Cluster) -> Document {
    let body = html! {
        div class="head" { h1 { "Cluster" } p class="soft" { "As coordinator " (model.node) " sees it." @if model.leader != Some(model.node) { " Only the leader knows how far the others are." } } }
        div id="cluster" data-live {
            @if model.leader.is_none() { div class="notice bad" role="alert" { p { "No coordinator leads: nothing is started until one does. " code { "ops/runbooks" } " says what to do." } } }
            @if let Some(trouble) = &model.trouble { div class="notice bad" role="alert" { p { (trouble) } } }
            div class="grid" { (own(model)) (members(model)) @if !model.receivers.is_empty() { (receivers(model)) } }
        }
    };
    Document::new("Cluster", Section::Cluster, body)
}

fn own(model: &Cluster) -> Markup {
    html! {
        section class="panel w4" aria-labelledby="h-own" {
            header { h2 id="h-own" { "Coordinator " (model.node) } }
            dl class="facts" {
                dt { "Term" } dd { (words::count(model.term)) }
                dt { "Log" } dd { "entry " (words::count(model.last)) ", " (words::bytes(model.log_bytes)) }
                dt { "Applied" } dd { "entry " (words::count(model.applied)) @if model.applied < model.last { ", " (words::count(model.last - model.applied)) " to go" } }
                dt { "Snapshot" } dd { "up to entry " (words::count(model.snapshot)) }
                @if let Some((half, most)) = model.sync_ms { dt { "Disk sync" } dd { (half) " ms in the middle, " (most) " ms at the worst 1 %" } }
                @if let Some(disk) = model.disk {
                    @let used = disk.whole_bytes.saturating_sub(disk.free_bytes);
                    @let tone = if words::percent(used, disk.whole_bytes) >= 90 { Tone::Bad } else { Tone::Run };
                    dt { "Disk" }
                    dd {
                        (words::bytes(disk.free_bytes)) " free of " (words::bytes(disk.whole_bytes))
                        @if tone == Tone::Bad { " " (paint::badge(Tone::Bad, "warn", "nearly full")) }
                        (paint::bar(&format!("{} % of the disk in use", words::percent(used, disk.whole_bytes)), disk.whole_bytes, &[(tone, used)], "thin"))
                    }
                }
                dt { "Version" } dd { (model.version) }
                @if !model.retention.is_empty() { dt { "Kept" } dd { (model.retention) } }
            }
        }
    }
}

fn members(model: &Cluster) -> Markup {
    html! {
        section class="panel w8" aria-labelledby="h-members" {
            header { h2 id="h-members" { "Coordinators" } }
            div class="scroll" tabindex="0" role="group" aria-labelledby="h-members" {
                table {
                    thead { tr { th scope="col" class="n" { "Number" } th scope="col" { "Role" } th scope="col" { "Address" } th scope="col" { "Cache" } th scope="col" class="n" { "Behind" } th scope="col" { "Answered" } } }
                    tbody { @for member in &model.members { (row(model, member)) } }
                }
            }
        }
    }
}

fn receivers(model: &Cluster) -> Markup {
    html! {
        section class="panel" aria-labelledby="h-receivers" {
            header { h2 id="h-receivers" { "Webhooks" } span class="small soft" { "since this coordinator leads" } }
            div class="scroll" tabindex="0" role="group" aria-labelledby="h-receivers" {
                table {
                    thead { tr { th scope="col" { "Receiver" } th scope="col" { "Host" } th scope="col" class="n" { "Delivered" } th scope="col" class="n" { "Waiting" } th scope="col" class="n" { "Given up" } th scope="col" { "State" } } }
                    tbody { @for receiver in &model.receivers { tr {
                        th scope="row" { (receiver.name) }
                        td class="mono" { (receiver.host) }
                        td class="n" { (words::count(receiver.delivered)) }
                        td class="n" { (words::count(receiver.waiting)) }
                        td class="n" { (words::count(receiver.given_up)) }
                        td {
                            @match &receiver.failing {
                                Some((since, error)) => { (paint::badge(Tone::Bad, "warn", "fails")) " began " (words::ago(model.now, *since)) ": " (paint::cut(error, ERROR_CHARS_MAX)) },
                                None => (paint::badge(Tone::Ok, "built", "takes what it is sent")),
                            }
                        }
                    } } }
                }
            }
        }
    }
}

fn row(model: &Cluster, member: &Member) -> Markup {
    let is_leader = model.leader == Some(member.node);
    html! {
        tr {
            th scope="row" class="n" { (member.node) }
            td {
                @if is_leader { (paint::badge(Tone::Ok, "leader", "leads")) }
                @else if member.votes { (paint::badge(Tone::Idle, "built", "votes")) }
                @else { (paint::badge(Tone::Wait, "clock", "catches up")) }
            }
            td class="mono" { (member.link) }
            td class="mono" { (member.http) }
            td class="n" { @match member.matched { Some(matched) => (words::counted(model.last.saturating_sub(matched), "entry", "entries")), None => "–" } }
            td class="nowrap" {
                @match member.silent_ms {
                    Some(ms) if ms >= SILENT_MS && !is_leader => (paint::badge(Tone::Bad, "warn", &format!("silent for {}", words::duration(ms)))),
                    Some(ms) => { (words::duration(ms)) " ago" },
                    None if member.node == model.node => "this one",
                    None => "–",
                }
            }
        }
    }
}

/// Characters of an error.
const ERROR_CHARS_MAX: usize = 200;
/// Milliseconds after which a coordinator that does not answer is shown as silent.
pub const SILENT_MS: u64 = 5_000;
