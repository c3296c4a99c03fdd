//! What an attempt takes, told as spans: those that live while something goes on, and those that are known once the builder has ended.
//!
//! Does not send them (`kiln-trace` does, if anybody wants them). The fields of the span of an attempt are in every log line about it.

use std::time::{Duration, SystemTime};

use kiln_trace::{Span as Told, TARGET, child, context_of, spans};
use kiln_wire::worker::Assignment;
use kiln_wire::{Outcome, Traceparent};
use tracing::Span;
use tracing::field::Empty;

/// Returns the span of what this worker does for an attempt.
pub fn attempt(assignment: &Assignment) -> Span {
    let Assignment { lease, leader, trace, .. } = assignment;
    let span = tracing::info_span!(
        target: TARGET,
        "run",
        job = %lease.derivation,
        attempt = lease.attempt.0,
        worker = %lease.worker,
        term = leader.term,
        otel.status_code = Empty,
        otel.status_description = Empty,
    );
    kiln_trace::belongs_to(&span, *trace);
    span
}

/// Notes how an attempt ended.
pub fn ended(span: &Span, outcome: &Outcome) {
    if let Outcome::Failed { failure, .. } = outcome {
        span.record("otel.status_code", "ERROR").record("otel.status_description", failure.message.as_str());
    }
}

/// The run of a builder: what comes before it, itself, and its phases.
pub struct Running(Option<Watching>);

struct Watching {
    within: Traceparent,
    from: SystemTime,
    phases: Vec<(String, SystemTime)>,
    line: Vec<u8>,
}

impl Running {
    /// Begins, within the present span. Where nobody wants spans it looks at nothing.
    pub fn begin() -> Self {
        let within = spans().and_then(|_| context_of(&Span::current()));
        Self(within.map(|within| Watching { within, from: SystemTime::now(), phases: Vec::new(), line: Vec::new() }))
    }

    /// Looks at more of the builder's log.
    pub fn log(&mut self, bytes: &[u8]) {
        if let Some(watching) = &mut self.0 {
            watching.log(bytes, SystemTime::now());
        }
    }

    /// Ends. `wall` is how long the builder itself ran; nothing if it never did.
    pub fn end(self, wall: Option<Duration>) {
        if let (Some(watching), Some(spans)) = (self.0, spans()) {
            watching.told(wall, SystemTime::now()).into_iter().for_each(|span| spans.give(span));
        }
    }
}

impl Watching {
    fn log(&mut self, bytes: &[u8], now: SystemTime) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            // What is longer begins no phase.
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let phase = kiln_nix::phase::begun(&self.line).filter(|_| self.phases.len() < PHASES_MAX);
                self.phases.extend(phase.map(|name| (name, now)));
                self.line.clear();
            }
        }
    }

    fn told(self, wall: Option<Duration>, to: SystemTime) -> Vec<Told> {
        let Self { within, from, phases, .. } = self;
        let began = wall.and_then(|wall| to.checked_sub(wall)).unwrap_or(to).clamp(from, to.max(from));
        let part = |name: &'static str, from, to| Told::new(name, child(within, name, 0), Some(within.span), from, to);
        let mut told = vec![part("sandbox", from, began)];
        if wall.is_some() {
            let build = part("build", began, to);
            let ends = phases.iter().skip(1).map(|(_, at)| *at).chain([to]);
            for (number, ((name, at), end)) in (0..).zip(phases.iter().zip(ends)) {
                let is = child(build.is, "phase", number);
                told.push(Told::new(name.clone(), is, Some(build.is.span), (*at).clamp(began, to), end.clamp(began, to)));
            }
            told.push(build);
        }
        told
    }
}

/// Bytes of a line that are looked at.
const LINE_BYTES_MAX: usize = 512;
/// Phases of one build: it has about ten.
const PHASES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    fn check(log: &[(u64, &str)], wall_ms: Option<u64>) -> Vec<String> {
        let within = Traceparent { trace: [1; 16], span: [2; 8] };
        let mut watching = Watching { within, from: at(100), phases: Vec::new(), line: Vec::new() };
        log.iter().for_each(|(ms, bytes)| watching.log(bytes.as_bytes(), at(*ms)));
        let told = watching.told(wall_ms.map(Duration::from_millis), at(200));
        let build = child(within, "build", 0);
        let ms = |moment: SystemTime| moment.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_millis();
        let of = |span: &Told| if span.parent == Some(build.span) { "build" } else { "run" };
        told.iter().map(|span| format!("{} of {} {}-{}", span.name, of(span), ms(span.from), ms(span.to))).collect()
    }

    #[test]
    fn a_run_is_told_with_the_phases_that_its_log_names() {
        let log = [
            (120, "Running pha"),
            (130, "se: unpackPhase\nx\n"),
            (150, "@nix {\"action\":\"setPhase\",\"phase\":\"buildPhase\"}\nRunning"),
        ];
        let expect = ["sandbox of run 100-110", "unpackPhase of build 130-150", "buildPhase of build 150-200", "build of run 110-200"];
        assert_eq!(check(&log, Some(90)), expect);
        assert_eq!(check(&[], Some(90)), ["sandbox of run 100-110", "build of run 110-200"]);
        assert_eq!(check(&[], None), ["sandbox of run 100-200"], "there was no builder");
        assert_eq!(check(&[(105, "Running phase: a\n")], Some(90))[1], "a of build 110-200", "within what it is a part of");
    }

    #[test]
    fn what_a_log_says_takes_bounded_memory() {
        let within = Traceparent { trace: [1; 16], span: [2; 8] };
        let mut watching = Watching { within, from: at(0), phases: Vec::new(), line: Vec::new() };
        watching.log(&vec![b'x'; 1 << 20], at(1));
        assert_eq!(watching.line.len(), LINE_BYTES_MAX);
        watching.log(&b"\nRunning phase: a".repeat(1_000), at(1));
        assert_eq!(watching.phases.len(), PHASES_MAX);
    }
}
