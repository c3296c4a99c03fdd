//! Timers: what is due, and when to look again. Each wake-up says why.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Bound;

use kiln_wire::Timestamp;

use crate::command::Command;
use crate::farm::Farm;
use crate::job::JobKey;

/// Why the farm wants to be looked at again at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WakeReason {
    /// A job that nobody wants may be stopped: ask [`Farm::due`].
    CancelGrace,
    /// A job's back-off ends: plan again.
    RetryBackoff,
    /// A worker's rest ends: ask [`Farm::due`].
    RestOver,
    /// A job has run for so long that a second attempt may be worth while: plan again.
    Late,
}

impl fmt::Display for WakeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CancelGrace => "the grace period of a cancelled job ends",
            Self::RetryBackoff => "the back-off of a failed job ends",
            Self::Late => "a job has run for so long that a second attempt may be worth while",
            Self::RestOver => "the rest of a worker ends on which jobs kept failing",
        })
    }
}

impl Farm {
    /// Returns the commands that time alone has made necessary. They stay due until they are applied.
    pub fn due(&self, now: Timestamp) -> Vec<Command> {
        let over = self.index.grace.iter().take_while(|(at, _)| *at <= now);
        let revoke = over.filter_map(|(_, key)| self.job(*key).lease()).map(|lease| Command::Revoke { lease, now });
        let rested = self.index.rests.iter().take_while(|(until, _)| *until <= now);
        revoke.chain(rested.map(|(_, worker)| Command::Rouse { worker: worker.clone(), now })).collect()
    }

    /// Returns the first time after `now` at which [`Farm::due`] or a plan may say something new; none if only commands can change that.
    /// What is due already does not count: a leader that takes over asks [`Farm::due`] first.
    pub fn next_wake(&self, now: Timestamp) -> Option<(Timestamp, WakeReason)> {
        let later = |at: Timestamp| at > now;
        let grace = self.index.grace.iter().map(|(at, _)| *at).find(|at| later(*at)).map(|at| (at, WakeReason::CancelGrace));
        let retry = self.index.delayed.iter().map(|(at, _)| *at).find(|at| later(*at)).map(|at| (at, WakeReason::RetryBackoff));
        let rest = self.index.rests.iter().map(|(until, _)| *until).find(|until| later(*until)).map(|until| (until, WakeReason::RestOver));
        let late = self.index.late.range((Bound::Excluded((now, JobKey(u32::MAX))), Bound::Unbounded)).next();
        let late = late.map(|(at, _)| (*at, WakeReason::Late));
        grace.into_iter().chain(retry).chain(rest).chain(late).min()
    }
}
