//! How long a job is expected to run. Simple guesses by kind, until durations are learnt.
//!
//! Sources: Debian's 2006 rebuild has a median of 27 s; packages marked `big-parallel` take about 40 minutes on few cores; the rest
//! are guesses.

use kiln_wire::JobKind;

use crate::job::Job;

/// The feature that marks long builds with many cores.
const FEATURE_BIG_PARALLEL: &str = "big-parallel";

const ORDINARY_MS: u64 = 27_000;
const FIXED_OUTPUT_MS: u64 = 3_000;
const BUILTIN_MS: u64 = 2_000;
const PREFER_LOCAL_MS: u64 = 300;
const BIG_PARALLEL_MS: u64 = 40 * 60_000;

/// Returns the expected milliseconds from a job's start to its end.
pub(crate) fn duration_ms(job: &Job) -> u64 {
    match job.kind {
        JobKind::Builtin => BUILTIN_MS,
        JobKind::FixedOutput => FIXED_OUTPUT_MS,
        JobKind::Ordinary if job.prefer_local => PREFER_LOCAL_MS,
        JobKind::Ordinary if job.needs.features.contains(FEATURE_BIG_PARALLEL) => BIG_PARALLEL_MS,
        JobKind::Ordinary => ORDINARY_MS,
    }
}
