//! What coordinators tell in their log lines about committed entries, kept for the checks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::Context;

/// Every line that any coordinator wrote about a committed entry, and how often it told of something that faults are to bring about.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    lines: Vec<Line>,
    seen: BTreeMap<&'static str, usize>,
}

/// What shows that a fault had an effect: what a coordinator writes, and how a report says it.
const SIGNS: &[(&str, &str)] = &[
    ("the disk is full: there is no room for the log's next segment", "logs without room"),
    ("the disk is full: there is no room for a snapshot; tried again in 5s", "snapshots without room"),
    ("the disk is full: another coordinator leads", "leaders stepped down for want of room"),
    ("there is room for the log again", "logs with room again"),
    ("cut a torn tail off the log", "torn logs"),
    ("wrote a snapshot", "snapshots written"),
    ("installed a snapshot", "snapshots installed"),
    ("changed the group", "changes of the group ended by a leader"),
    ("worker is silent: its leases are lost", "workers given up as silent"),
    ("retried", "attempts retried"),
];

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// `leased`, `committed`, …
    pub what: String,
    /// Everything else, by name.
    pub fields: BTreeMap<String, String>,
}

impl Told {
    pub fn lines(&self) -> Vec<Line> {
        self.kept().lines.clone()
    }

    /// Returns what coordinators said that they went through, and how often.
    pub fn seen(&self) -> BTreeMap<&'static str, usize> {
        self.kept().seen.clone()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.what = text,
            name => drop(self.fields.insert(name.to_owned(), text)),
        }
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Told {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let mut kept = self.kept();
        if let Some((_, sign)) = SIGNS.iter().find(|(what, _)| *what == line.what) {
            *kept.seen.entry(sign).or_default() += 1;
        }
        if event.metadata().target() == "kiln_coordinator::raft::trace" {
            kept.lines.push(line);
        }
    }
}
