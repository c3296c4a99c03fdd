//! Our own log lines and spans: lines human on a terminal, JSON otherwise, on standard error; spans to whoever is configured to receive them.
//!
//! `KILN_LOG` sets what is shown (`debug`, `kiln_core=trace`), `KILN_LOG_FORMAT` how (`human`, `json`).

use std::io::IsTerminal;

use kiln_trace::{Config, Exporting, Service};
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::words::bad_input;

/// Starts logging of a command that says only what goes wrong, or of a daemon that says what it does.
pub fn start(daemon: bool) {
    init(Registry::default().with(lines(daemon)));
}

/// Starts logging of a daemon that sends spans if that is configured; they begin to leave with [`Exporting::run`].
///
/// # Errors
/// If they cannot be sent as they are configured.
pub fn start_tracing(config: &Config, service: Service) -> anyhow::Result<Option<Exporting>> {
    let exporting = kiln_trace::prepare(config, service).map_err(|error| bad_input(error.to_string()))?;
    match &exporting {
        Some(exporting) => init(Registry::default().with(lines(true)).with(exporting.layer())),
        None => start(true),
    }
    Ok(exporting)
}

fn init(all: impl SubscriberInitExt) {
    if let Err(error) = all.try_init() {
        eprintln!("warning: log lines are off: {error}");
    }
}

fn lines<S: Subscriber + for<'span> LookupSpan<'span>>(daemon: bool) -> impl Layer<S> {
    let default = if daemon { "info,openraft=warn" } else { "error" };
    let filter = EnvFilter::try_from_env("KILN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if is_human() { lines.with_target(false).boxed() } else { lines.json().boxed() };
    lines.with_filter(filter)
}

fn is_human() -> bool {
    match std::env::var("KILN_LOG_FORMAT").as_deref() {
        Ok("human") => true,
        Ok("json") => false,
        Ok(_) | Err(_) => std::io::stderr().is_terminal(),
    }
}
