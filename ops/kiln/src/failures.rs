//! What a person is told about a build that failed: each failure with its attempts, the tail of its log, and where all of it is.

use std::path::Path;

use kiln_wire::client::{AttemptView, BuildState, BuildView, JobView, Request, Response};

use crate::client::{AskError, Client, Leading, unexpected};
use crate::{tame, words};

/// Prints the failures of a build on standard error. `dir` is where an embedded farm keeps its logs.
pub async fn explain(client: &Client, view: &BuildView, dir: Option<&Path>) -> anyhow::Result<()> {
    if view.state == BuildState::Cancelled {
        eprintln!("build {} was cancelled", view.build);
    }
    let failed = &view.failures;
    for job in failed.iter().take(SHOWN_MAX) {
        explain_job(client, job, dir).await?;
    }
    if failed.len() > SHOWN_MAX {
        eprintln!("\nfailed too: {}", words::count((failed.len() - SHOWN_MAX) as u64, "more job"));
    }
    // The build counts both as failed, and lists only those that failed by themselves.
    let dependents = view.counts.failed.saturating_sub(failed.len() as u64);
    if dependents > 0 {
        eprintln!("\nnot built because something that they need failed: {}", words::count(dependents, "job"));
    }
    Ok(())
}

async fn explain_job(client: &Client, job: &JobView, dir: Option<&Path>) -> anyhow::Result<()> {
    eprintln!("\n{} failed: {}", job.derivation, tame::text(&job.reason));
    for attempt in &job.attempts {
        eprintln!("  attempt {} on {}: {}", attempt.attempt, attempt.worker, tame::text(&outcome(attempt, &job.reason)));
    }
    let tail = tail(client, job, TAIL_LINES).await.unwrap_or_default();
    if tail.lines.is_empty() {
        eprintln!("  it wrote no log");
        return Ok(());
    }
    eprintln!("  last {} of {} of its log:", tail.lines.len(), words::count(tail.of as u64, "line"));
    for line in &tail.lines {
        eprintln!("  | {line}");
    }
    match (dir, job.attempts.last()) {
        (Some(dir), Some(attempt)) => {
            let file = dir.join("logs").join(job.derivation.as_str()).join(format!("{}.log", attempt.attempt));
            eprintln!("  all of it: {}", file.display());
        }
        _ => eprintln!("  all of it: kiln log {}", job.derivation),
    }
    Ok(())
}

/// Returns how an attempt ended; what the job's own reason says already is not said twice.
fn outcome(attempt: &AttemptView, reason: &str) -> String {
    let Some((class, message)) = &attempt.failure else { return "ended".to_owned() };
    let whole = format!("{class}: {message}");
    if whole == reason { class.to_string() } else { whole }
}

/// The last lines of a log.
#[derive(Debug, Default)]
pub struct Tail {
    /// The lines, safe to show.
    pub lines: Vec<String>,
    /// How many lines the log has, as far as it was looked at.
    pub of: usize,
}

/// Returns the last lines of the log of a job's last attempt.
///
/// # Errors
/// If the log cannot be had; a builder that wrote nothing has none.
pub async fn tail(client: &Client, job: &JobView, lines_max: usize) -> anyhow::Result<Tail> {
    let log = log_of(client, job).await?;
    let lines: Vec<&[u8]> = log.split(|byte| *byte == b'\n').collect();
    let lines = lines.strip_suffix(&[&b""[..]]).unwrap_or(&lines);
    let last = &lines[lines.len().saturating_sub(lines_max)..];
    Ok(Tail { lines: last.iter().map(|line| printable(line)).collect(), of: lines.len() })
}

async fn log_of(client: &Client, job: &JobView) -> anyhow::Result<Vec<u8>> {
    let attempt = job.attempts.last().map(|attempt| attempt.attempt);
    let request = Request::Log { derivation: job.derivation.clone(), attempt, follow: false };
    let mut tries = client.tries();
    loop {
        match tail_of(&tries.leader().await?, &request).await {
            Ok(log) => return Ok(log),
            Err(error) => tries.failed(error).await?,
        }
    }
}

/// Returns the last bytes of a log.
async fn tail_of(leader: &Leading, request: &Request) -> Result<Vec<u8>, AskError> {
    let (_sender, mut answers) = leader.ask(request).await?;
    let mut log = Vec::new();
    while let Some(answer) = answers.next().await? {
        match answer {
            Response::Log(mut bytes) => log.append(&mut bytes),
            _ => return Err(unexpected("another kind")),
        }
        // Only the tail is shown.
        let surplus = log.len().saturating_sub(TAIL_BYTES_MAX);
        log.drain(..surplus);
    }
    Ok(log)
}

fn printable(line: &[u8]) -> String {
    tame::line(&String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)))
}

/// Failures that are told in full.
const SHOWN_MAX: usize = 10;
/// Lines of log that are shown.
const TAIL_LINES: usize = 25;
/// Bytes of log that are kept to find these lines in.
const TAIL_BYTES_MAX: usize = 1 << 20;
