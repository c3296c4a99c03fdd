//! Spans that live while the work goes on: those of `tracing` with the target [`TARGET`], and what they belong to.

use kiln_wire::Traceparent;
use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use tracing::{Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::span::context;

/// The target of spans that are exported.
pub const TARGET: &str = "kiln_trace";

/// Makes a span a part of another, which may be on another machine. Before anything has entered it, and before it has parts itself.
pub fn belongs_to(span: &Span, parent: Option<Traceparent>) {
    if let Some(parent) = parent
        && let Err(error) = span.set_parent(Context::new().with_remote_span_context(context(parent, true)))
    {
        // Nothing is exported, or the span is not wanted.
        tracing::trace!(%error, "a span stays without its parent");
    }
}

/// Returns which span of a trace a live one is, if it is exported.
pub fn context_of(span: &Span) -> Option<Traceparent> {
    let context = span.context();
    let known = context.span().span_context().clone();
    known.is_valid().then(|| Traceparent { trace: known.trace_id().to_bytes(), span: known.span_id().to_bytes() })
}

/// Returns whether this is a span that is exported.
pub fn is_traced(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == TARGET
}
