//! Shows a build as it goes: live lines on a terminal, one line per event elsewhere, one JSON object per event on request.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_wire::client::{BuildView, Event, EventKind, JobCounts};
use kiln_wire::{DrvPath, StoreDir};

use crate::{tame, words};

/// Shows one build on standard error; standard output is for results.
pub struct Progress {
    store_dir: StoreDir,
    started: Instant,
    built_nar_bytes: u64,
    face: Face,
}

enum Face {
    /// Live lines.
    Terminal(Box<Terminal>),
    /// One line per event, and one when nothing runs and jobs wait.
    Plain {
        /// Why jobs waited when it was last said.
        waiting: BTreeSet<String>,
    },
    /// One JSON object per event, on standard output.
    Json,
}

struct Terminal {
    lines: MultiProgress,
    summary: ProgressBar,
    /// Why jobs wait; there only while some do.
    waiting: Option<ProgressBar>,
    running: BTreeMap<DrvPath, ProgressBar>,
    hidden: u64,
}

impl Progress {
    /// Starts showing.
    pub fn new(json: bool, store_dir: StoreDir) -> Self {
        let face = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Face::Json,
            (false, true) => Face::Terminal(Box::new(Terminal::new())),
            (false, false) => Face::Plain { waiting: BTreeSet::new() },
        };
        Self { store_dir, started: Instant::now(), built_nar_bytes: 0, face }
    }

    /// Says one line about what is being done.
    pub fn say(&self, line: &str) {
        match &self.face {
            Face::Terminal(terminal) => terminal.say(line),
            Face::Plain { .. } => eprintln!("{line}"),
            Face::Json => {}
        }
    }

    /// Shows the build as it stands.
    pub fn view(&mut self, view: &BuildView) {
        let elapsed = self.started.elapsed();
        match &mut self.face {
            Face::Terminal(terminal) => {
                terminal.summary.set_message(summary(view, elapsed, self.built_nar_bytes));
                terminal.wait(&reasons(view));
                terminal.summary.set_length(total(view.counts).max(1));
                terminal.summary.set_position(view.counts.built + view.counts.failed);
                for job in &view.running {
                    let place = job.attempts.last().map_or_else(String::new, |attempt| attempt.worker.to_string());
                    terminal.start(&job.derivation, &place);
                }
            }
            Face::Plain { waiting } => {
                let now: BTreeSet<String> = view.waiting.keys().cloned().collect();
                if view.counts.running == 0 && view.counts.ready > 0 && now != *waiting {
                    eprintln!("{} · {}", summary(view, elapsed, self.built_nar_bytes), reasons(view));
                    *waiting = now;
                }
            }
            Face::Json => {}
        }
    }

    /// Shows one event.
    pub fn event(&mut self, event: &Event) {
        if let EventKind::Built { nar_bytes, .. } = event.kind {
            self.built_nar_bytes += nar_bytes;
        }
        match &mut self.face {
            Face::Json => println!("{}", event_json(event, &self.store_dir)),
            Face::Plain { .. } => {
                if let Some(line) = event_line(event) {
                    eprintln!("[{:>7}] {line}", words::duration(self.started.elapsed()));
                }
            }
            Face::Terminal(terminal) => terminal.event(event),
        }
    }

    /// Clears the live lines and says how it ended.
    pub fn finish(&mut self, view: &BuildView) {
        let line = match total(view.counts) {
            0 => "nothing to build: the farm has it all".to_owned(),
            _ => summary(view, self.started.elapsed(), self.built_nar_bytes),
        };
        match &mut self.face {
            Face::Terminal(terminal) => {
                terminal.clear();
                eprintln!("{line}");
            }
            Face::Plain { .. } => eprintln!("{line}"),
            Face::Json => {}
        }
    }
}

impl Terminal {
    fn new() -> Self {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let summary = lines.add(ProgressBar::new(1));
        summary.set_style(style("{bar:16.green/black} {wide_msg}"));
        Self { lines, summary, waiting: None, running: BTreeMap::new(), hidden: 0 }
    }

    fn say(&self, line: &str) {
        if let Err(error) = self.lines.println(line) {
            tracing::debug!(%error, "print a line");
        }
    }

    fn event(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Started { worker, .. } => self.start(&event.derivation, worker.as_str()),
            EventKind::Ready => {}
            EventKind::Built { .. } | EventKind::DependencyFailed { .. } | EventKind::Cancelled => self.end(&event.derivation),
            EventKind::Retried { .. } | EventKind::Failed { .. } => {
                self.end(&event.derivation);
                if let Some(line) = event_line(event) {
                    self.say(&line);
                }
            }
        }
    }

    fn wait(&mut self, reasons: &str) {
        if reasons.is_empty() {
            if let Some(line) = self.waiting.take() {
                line.finish_and_clear();
                self.lines.remove(&line);
            }
            return;
        }
        let line = self.waiting.get_or_insert_with(|| {
            let line = self.lines.insert_after(&self.summary, ProgressBar::new_spinner());
            line.set_style(style("  {wide_msg}"));
            line
        });
        line.set_message(reasons.to_owned());
    }

    fn start(&mut self, derivation: &DrvPath, place: &str) {
        if self.running.contains_key(derivation) {
            return;
        }
        if self.running.len() >= RUNNING_LINES_MAX {
            self.hidden += 1;
            return;
        }
        let line = self.lines.add(ProgressBar::new_spinner());
        line.set_style(style("  {spinner} {elapsed:>5} {wide_msg}"));
        line.set_message(format!("{} on {place}", derivation.name()));
        line.enable_steady_tick(TICK);
        self.running.insert(derivation.clone(), line);
    }

    fn end(&mut self, derivation: &DrvPath) {
        match self.running.remove(derivation) {
            Some(line) => {
                line.finish_and_clear();
                self.lines.remove(&line);
            }
            None => self.hidden = self.hidden.saturating_sub(1),
        }
    }

    fn clear(&mut self) {
        for line in std::mem::take(&mut self.running).into_values() {
            line.finish_and_clear();
        }
        self.wait("");
        self.summary.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}

fn total(counts: JobCounts) -> u64 {
    counts.blocked + counts.ready + counts.running + counts.built + counts.failed
}

/// Returns the line that sums a build up: `3 of 12 built, 2 running, 4 ready, 3 blocked · about 40 s left · 12 s · 4.1 MiB`.
fn summary(view: &BuildView, elapsed: Duration, built_nar_bytes: u64) -> String {
    let counts = view.counts;
    let mut parts = vec![format!("{} of {} built", counts.built, total(counts))];
    let named = [(counts.running, "running"), (counts.ready, "ready"), (counts.blocked, "blocked"), (counts.failed, "failed")];
    parts.extend(named.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")));
    let mut line = parts.join(", ");
    if let Some(remaining_ms) = view.remaining_ms.filter(|ms| *ms > 0) {
        line.push_str(&format!(" · about {} left", words::duration(Duration::from_millis(remaining_ms))));
    }
    line.push_str(&format!(" · {}", words::duration(elapsed)));
    if built_nar_bytes > 0 {
        line.push_str(&format!(" · {}", words::size(built_nar_bytes)));
    }
    line
}

/// Returns why jobs wait: `36 wait: every worker that could run it is full`.
fn reasons(view: &BuildView) -> String {
    let waiting = view.waiting.iter().map(|(reason, count)| format!("{count} wait: {reason}"));
    waiting.collect::<Vec<_>>().join(" · ")
}

/// Returns an event as one line; none for what nobody wants to read.
fn event_line(event: &Event) -> Option<String> {
    let name = event.derivation.name();
    match &event.kind {
        EventKind::Ready => None,
        EventKind::Started { worker, .. } => Some(format!("building {name} on {worker}")),
        EventKind::Built { wall_ms, nar_bytes } => {
            Some(format!("built {name} in {} ({})", words::duration(Duration::from_millis(*wall_ms)), words::size(*nar_bytes)))
        }
        EventKind::Retried { class, message } => Some(format!("{name}: {class}, tried again: {}", tame::text(message))),
        EventKind::Failed { class, message } => Some(format!("{name}: {class}: {}", tame::text(message))),
        EventKind::DependencyFailed { cause } => Some(format!("{name}: not built, because {} failed", cause.name())),
        EventKind::Cancelled => Some(format!("{name}: cancelled")),
    }
}

fn event_json(event: &Event, store_dir: &StoreDir) -> serde_json::Value {
    let full = |drv: &DrvPath| store_dir.join(drv.as_path());
    let (kind, more) = match &event.kind {
        EventKind::Ready => ("ready", serde_json::json!({})),
        EventKind::Started { attempt, worker } => ("started", serde_json::json!({ "attempt": attempt, "worker": worker })),
        EventKind::Built { wall_ms, nar_bytes } => ("built", serde_json::json!({ "wallMs": wall_ms, "narBytes": nar_bytes })),
        EventKind::Retried { class, message } => ("retried", serde_json::json!({ "class": class.to_string(), "message": message })),
        EventKind::Failed { class, message } => ("failed", serde_json::json!({ "class": class.to_string(), "message": message })),
        EventKind::DependencyFailed { cause } => ("dependency-failed", serde_json::json!({ "cause": full(cause) })),
        EventKind::Cancelled => ("cancelled", serde_json::json!({})),
    };
    let mut line = serde_json::json!({ "event": kind, "at": event.at, "derivation": full(&event.derivation) });
    if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object()) {
        line.extend(more.clone());
    }
    line
}

/// Live lines for running jobs; a terminal is about this high.
const RUNNING_LINES_MAX: usize = 16;
/// How often a live line's clock moves.
const TICK: Duration = Duration::from_millis(200);
