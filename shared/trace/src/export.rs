//! Starts and ends the export of this process's spans.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanExporter};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Config, Endpoint, Service, StartError};
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
    let Some(endpoint) = config.endpoint(|name| std::env::var(name).ok())? else { return Ok(None) };
    let mut exporter = exporter(&endpoint)?;
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

fn exporter(endpoint: &Endpoint) -> Result<opentelemetry_otlp::SpanExporter, StartError> {
    let url = endpoint.url();
    let authorization = endpoint.authorization.iter().map(|value| ("authorization".to_owned(), value.clone())).collect();
    let builder = opentelemetry_otlp::SpanExporter::builder().with_http().with_timeout(SEND_MAX).with_endpoint(&url);
    builder.with_headers(authorization).build().map_err(|error| {
        let said = error.to_string();
        // A path and a query may be secret too.
        let reason = if said.contains(&url) { "nothing can be sent to this URL".to_owned() } else { said };
        StartError::Exporter { reason }
    })
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::time::SystemTime;

    use kiln_wire::Traceparent;

    use super::*;
    use crate::span::Span;

    /// Answers one request, well if it says who sends; returns where it listens.
    fn authenticating(wanted: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = listener.local_addr().expect("it is bound").port();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("somebody comes");
            let head: Vec<String> = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let is_known = head.iter().any(|line| {
                line.split_once(": ").is_some_and(|(name, value)| name.eq_ignore_ascii_case("authorization") && value == wanted)
            });
            let status = if is_known { "200 OK" } else { "401 Unauthorized" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            (&stream).write_all(answer.as_bytes()).expect("it hears");
        });
        port
    }

    #[tokio::test]
    async fn a_receiver_that_wants_a_password_gets_it() {
        for (user, is_taken) in [("me:s%20cret@", true), ("me:other@", false), ("", false)] {
            let port = authenticating("Basic bWU6cyBjcmV0");
            let config = Config { otlp_endpoint: Some(format!("http://{user}127.0.0.1:{port}")) };
            let endpoint = config.endpoint(|_| None).expect("it is a URL").expect("it is configured");
            let is = Traceparent { trace: [1; 16], span: [2; 8] };
            let span = Span::new("x", is, None, SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH).into_data();
            let sent = exporter(&endpoint).expect("it can be sent to").export(vec![span]).await;
            assert_eq!(sent.is_ok(), is_taken, "{user}: {sent:?}");
        }
    }
}
