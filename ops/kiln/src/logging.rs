//! Our own log lines: human on a terminal, JSON otherwise, on standard error. `KILN_LOG` sets what is shown (`debug`, `kiln_core=trace`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging: daemons say what they do, other commands only what goes wrong.
pub fn start(daemon: bool) {
    let default = if daemon { "info,openraft=warn" } else { "error" };
    let filter = EnvFilter::try_from_env("KILN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if std::io::stderr().is_terminal() { lines.with_target(false).try_init() } else { lines.json().try_init() };
    if let Err(error) = started {
        eprintln!("warning: log lines are off: {error}");
    }
}
