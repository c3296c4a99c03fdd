//! Starts and ends the export of this process's spans.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanExporter};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Config, Endpoint, Service, StartError, host_of};
use crate::live::is_traced;
use crate::queue::{Outlet, Spans};
use crate::span::SCOPE;

/// An export that is configured and does not run yet.
pub struct Exporting {
    provider: SdkTracerProvider,
    exporter: opentelemetry_otlp::SpanExporter,
    spans: Spans,
    outlet: Outlet,
}

/// Where spans of this process go. One process sends to one place, as its log lines do.
static SPANS: OnceLock<Spans> = OnceLock::new();

/// Returns where spans go; nothing if nobody wants them.
pub fn spans() -> Option<&'static Spans> {
    SPANS.get()
}

/// Prepares the export, if one is configured.
///
/// # Errors
/// [`StartError`] says what of the configuration is wrong.
pub fn prepare(config: &Config, service: Service) -> Result<Option<Exporting>, StartError> {
    let Some(endpoint) = config.endpoint(|name| std::env::var(name).ok()) else { return Ok(None) };
    let builder = opentelemetry_otlp::SpanExporter::builder().with_http().with_timeout(SEND_MAX);
    let (builder, words) = match endpoint {
        Endpoint::Configured(url) => (builder.with_endpoint(&url), host_of(&url)),
        Endpoint::Environment => (builder, "what the environment says".to_owned()),
    };
    let mut exporter = builder.build().map_err(|error| StartError::Exporter { endpoint: words, reason: error.to_string() })?;
    let mut resource = Resource::builder();
    // The environment's name comes by the builder itself.
    if std::env::var("OTEL_SERVICE_NAME").map_or(true, |name| name.is_empty()) {
        resource = resource.with_service_name(service.name);
    }
    let instance = KeyValue::new("service.instance.id", service.instance);
    let resource = resource.with_attributes([instance, KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))]).build();
    exporter.set_resource(&resource);
    let (spans, outlet) = Spans::queue();
    let provider = SdkTracerProvider::builder().with_span_processor(spans.clone()).with_resource(resource).build();
    Ok(Some(Exporting { provider, exporter, spans, outlet }))
}

impl Exporting {
    /// Returns what makes spans of `tracing` to spans that are exported: those of our own target, and no log lines.
    pub fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(&self) -> impl Layer<S> + use<S> {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(SCOPE))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(is_traced))
    }

    /// Begins to send, on the runtime that this is called from.
    pub fn run(self) {
        if SPANS.set(self.spans).is_ok() {
            tokio::spawn(self.outlet.run(self.exporter));
        }
    }
}

/// Sends what waits, within a bounded time. For the end of a process; without an export it does nothing.
pub async fn flush() {
    if let Some(spans) = spans() {
        spans.flush(FLUSH_MAX).await;
    }
}

/// How long one request may take.
const SEND_MAX: Duration = Duration::from_secs(10);
/// How long a process that ends waits for its last spans to be taken.
const FLUSH_MAX: Duration = Duration::from_secs(5);
