//! Traces of a Kiln farm: which span something is, and the way of spans to whoever receives them over OTLP.
//!
//! Goals: whoever tells of a thing gives it the same ids, a worker, a leader and its successor alike, with nothing replicated for it ([`Trace`]);
//! nobody waits for a span to leave ([`Spans`]); without configuration there is nothing of all this in the way of the work.
//! Non-goals: metrics and logs. Source: ADR 0051.

mod config;
mod export;
mod ids;
mod live;
mod queue;
mod span;

pub use config::{Config, Service, StartError};
pub use export::{Exporting, flush, prepare, spans};
pub use ids::{Trace, child};
pub use live::{TARGET, belongs_to, context_of, is_traced};
pub use queue::Spans;
pub use span::{Attribute, Span};
