//! What coordinators tell in their log lines about committed entries, kept for the checks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::Context;

/// Every line that any coordinator wrote about a committed entry.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<Vec<Line>>>);

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
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        if event.metadata().target() == "kiln_coordinator::raft::trace" {
            let mut line = Line::default();
            event.record(&mut line);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }
}
