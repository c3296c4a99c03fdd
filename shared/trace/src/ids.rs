//! Ids that follow from what they are of. Pure.
//!
//! Invariant: two coordinators, or one before and after a restart, give a build, a job and an attempt the same ids.

use kiln_wire::{AttemptId, BuildId, DrvPath, Timestamp, Traceparent};

/// The trace that a build is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The span of the whole build.
    root: Traceparent,
    /// What its client did when it asked for it, in the same trace.
    parent: Option<[u8; 8]>,
}

impl Trace {
    /// Returns the trace of a build. `given` is its client's: the build belongs there. Another farm of the same name has a build of the same
    /// number, but not submitted in the same millisecond.
    pub fn of_build(farm: &str, build: BuildId, submitted_at: Timestamp, given: Option<Traceparent>) -> Self {
        let own = Hash::of("build").text(farm).number(build.0).number(submitted_at.0).bytes::<24>();
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        trace.copy_from_slice(&own[..16]);
        span.copy_from_slice(&own[16..]);
        let trace = given.map_or(trace, |given| given.trace);
        Self { root: Traceparent { trace, span }, parent: given.map(|given| given.span) }
    }

    /// Returns the span of the whole build.
    pub fn root(&self) -> Traceparent {
        self.root
    }

    /// Returns the span of the client that the whole build belongs to.
    pub fn parent(&self) -> Option<[u8; 8]> {
        self.parent
    }

    /// Returns the span of a job of the build.
    pub fn job(&self, derivation: &DrvPath) -> Traceparent {
        self.with(Hash::of("job").raw(&self.root.span).text(derivation.as_str()).bytes())
    }

    /// Returns the span of an attempt at a job of the build.
    pub fn attempt(&self, attempt: AttemptId) -> Traceparent {
        self.with(Hash::of("attempt").raw(&self.root.span).number(attempt.0).bytes())
    }

    fn with(&self, span: [u8; 8]) -> Traceparent {
        Traceparent { trace: self.root.trace, span }
    }
}

/// Returns a span below another. `number` tells those of the same name apart.
pub fn child(of: Traceparent, name: &str, number: u64) -> Traceparent {
    Traceparent { trace: of.trace, span: Hash::of("child").raw(&of.trace).raw(&of.span).text(name).number(number).bytes() }
}

/// Hashes things one after the other, each with its length before it.
struct Hash(blake3::Hasher);

impl Hash {
    fn of(kind: &str) -> Self {
        Self(blake3::Hasher::new_derive_key("kiln 2026 trace ids")).text(kind)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes()).update(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.raw(text.as_bytes())
    }

    fn number(self, number: u64) -> Self {
        self.raw(&number.to_le_bytes())
    }

    /// Returns the first bytes. Zeros, which would be no id, come out once in 2^64.
    fn bytes<const BYTES: usize>(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        self.0.finalize_xof().fill(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_follow_from_what_they_are_of_and_from_nothing_else() {
        let of = |farm: &str, build, at| Trace::of_build(farm, BuildId(build), Timestamp(at), None);
        assert_eq!(of("kiln", 7, 1_000), of("kiln", 7, 1_000));
        let roots = [of("kiln", 7, 1_000), of("kiln", 8, 1_000), of("kiln", 7, 1_001), of("kilt", 7, 1_000)].map(|trace| trace.root());
        assert_eq!(roots.iter().map(|root| root.trace).collect::<BTreeSet<_>>().len(), roots.len());
        // A change of these would tear the traces of a farm that is upgraded.
        assert_eq!(roots[0].to_string(), "00-87705aca6c2c076d6ad8f481dd190d9c-4bfb174c1ffbca8e-01");
    }

    #[test]
    fn everything_of_a_build_is_in_one_trace_under_ids_of_its_own() {
        let trace = Trace::of_build("kiln", BuildId(7), Timestamp(1_000), None);
        let drv = |name: &str| DrvPath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}.drv")).expect("a path");
        let spans = [
            trace.root(),
            trace.job(&drv("a")),
            trace.job(&drv("b")),
            trace.attempt(AttemptId(7)),
            trace.attempt(AttemptId(8)),
            child(trace.root(), "wait", 7),
            child(trace.root(), "wait", 8),
            child(trace.root(), "submit", 7),
        ];
        assert!(spans.iter().all(|span| span.trace == trace.root().trace));
        assert_eq!(spans.iter().map(|span| span.span).collect::<BTreeSet<_>>().len(), spans.len());
    }

    #[test]
    fn a_build_of_a_client_that_traces_belongs_to_its_trace() {
        let given = Traceparent { trace: [1; 16], span: [2; 8] };
        let of = |build| Trace::of_build("kiln", BuildId(build), Timestamp(1_000), Some(given));
        assert_eq!((of(7).root().trace, of(7).parent()), (given.trace, Some(given.span)));
        assert_ne!(of(7).root().span, of(8).root().span, "two builds of one trace");
    }
}
