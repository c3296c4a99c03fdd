//! Spans that are told of when they are over, with their times: what applied entries say, whoever was there when it began.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use kiln_wire::{Timestamp, Traceparent};
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanLinks};

/// A span that is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What it is called.
    pub name: Cow<'static, str>,
    /// Which it is.
    pub is: Traceparent,
    /// The span of the same trace that it is a part of.
    pub parent: Option<[u8; 8]>,
    /// When it began.
    pub from: SystemTime,
    /// When it ended; not before it began.
    pub to: SystemTime,
    /// What there is to know about it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Spans of other traces that it counts for too.
    pub links: Vec<Traceparent>,
    /// What went wrong, in words.
    pub failure: Option<String>,
}

/// Something to know about a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// In words.
    Text(String),
    /// A number.
    Number(u64),
}

impl Span {
    /// Returns a span without any attributes.
    pub fn new(name: impl Into<Cow<'static, str>>, is: Traceparent, parent: Option<[u8; 8]>, from: SystemTime, to: SystemTime) -> Self {
        let (attributes, links) = (Vec::new(), Vec::new());
        Self { name: name.into(), is, parent, from, to: to.max(from), attributes, links, failure: None }
    }

    /// Adds what there is to know.
    pub fn with(mut self, name: &'static str, attribute: impl Into<Attribute>) -> Self {
        self.attributes.push((name, attribute.into()));
        self
    }

    /// Returns a moment of replicated state as a clock has it.
    pub fn at(moment: Timestamp) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(moment.0)
    }

    pub(crate) fn into_data(self) -> SpanData {
        let links = self.links.into_iter().map(|link| Link::new(context(link, true), Vec::new(), 0)).collect();
        SpanData {
            span_context: context(self.is, false),
            parent_span_id: self.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: self.name,
            start_time: self.from,
            end_time: self.to,
            attributes: self.attributes.into_iter().map(|(name, value)| KeyValue::new(name, Value::from(value))).collect(),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: links_of(links),
            status: self.failure.map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::builder(SCOPE).build(),
        }
    }
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Attribute {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<Attribute> for Value {
    fn from(attribute: Attribute) -> Self {
        match attribute {
            Attribute::Text(text) => Value::from(text),
            // OTLP's numbers have a sign.
            Attribute::Number(number) => Value::from(i64::try_from(number).unwrap_or(i64::MAX)),
        }
    }
}

/// Returns a context as OpenTelemetry has it.
pub(crate) fn context(of: Traceparent, is_remote: bool) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(of.trace), SpanId::from_bytes(of.span));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, is_remote, TraceState::default())
}

fn links_of(links: Vec<Link>) -> SpanLinks {
    let mut all = SpanLinks::default();
    all.links = links;
    all
}

/// What spans say that they were made by.
pub(crate) const SCOPE: &str = "kiln";
