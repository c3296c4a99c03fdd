//! What bounds a builtin that works on a thread: the word to stop, and the job's limits.

use std::time::{Duration, Instant};

use kiln_wire::{FailureClass, JobLimits};

use crate::stop::Stop;

/// Bounds of one run. The time runs from when this is made.
#[derive(Debug)]
pub struct Bounds {
    stop: Stop,
    limits: JobLimits,
    started: Instant,
}

/// A run that ended before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It was told to stop.
    #[error("the attempt was stopped because nobody wants it any more")]
    Stopped,
    /// It took too long.
    #[error("timed out: it ran longer than its limit of {} s", limit_ms / 1000)]
    Timeout {
        /// The limit.
        limit_ms: u64,
    },
}

impl Ended {
    /// Returns who is at fault.
    pub fn class(self) -> FailureClass {
        match self {
            Self::Stopped => FailureClass::Cancelled,
            Self::Timeout { .. } => FailureClass::LimitExceeded,
        }
    }
}

impl Bounds {
    /// Starts the clock.
    pub fn new(stop: Stop, limits: JobLimits) -> Self {
        Self { stop, limits, started: Instant::now() }
    }

    /// Says whether to go on. Cheap enough for every file.
    ///
    /// # Errors
    /// [`Ended`] says why not.
    pub fn check(&self) -> Result<(), Ended> {
        if self.stop.is_stopped() {
            return Err(Ended::Stopped);
        }
        let limit_ms = self.limits.wall_ms_max;
        if self.started.elapsed() > Duration::from_millis(limit_ms) {
            return Err(Ended::Timeout { limit_ms });
        }
        Ok(())
    }

    /// Returns the most bytes that the log may hold.
    pub fn log_bytes_max(&self) -> u64 {
        self.limits.log_bytes_max
    }

    /// Returns the most bytes that the output may hold.
    pub fn output_bytes_max(&self) -> u64 {
        self.limits.output_bytes_max
    }
}
