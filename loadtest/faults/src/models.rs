//! What the client API promises of one submission and of one derivation, as sequential objects.
//!
//! The farm itself moves between calls: jobs get done. So a read may see any later state, and never an earlier one than a read, or an
//! answered submission or cancellation, before it. Pure.

use std::collections::BTreeMap;

use kiln_wire::client::{BuildState, JobView};

use crate::linear::Model;

/// One submission, by the number that its client drew: which build it is, and how far that has come.
#[derive(Clone, Copy, Debug)]
pub struct Submission;

/// What was asked about a submission and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To submit it; the build's number, unless no answer came.
    Submit(Option<u64>),
    /// To see its build.
    See(u64, Seen),
    /// To cancel its build; whether it was live, unless no answer came.
    Cancel(Option<bool>),
}

/// A build, as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Nothing,
    /// It goes on, and so many of its jobs are done with.
    Active(u64),
    /// It ended.
    Ended(BuildState),
}

/// A submission's state: its build, if its number is known, and how far that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It was not submitted.
    Absent,
    /// Its build goes on, with so many jobs done with.
    Active(Option<u64>, u64),
    /// Its build ended: 0 built, 1 failed, 2 cancelled.
    Ended(Option<u64>, u8),
}

impl State {
    fn build(self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Active(build, _) | Self::Ended(build, _) => build,
        }
    }

    /// The same state of this build, if it can be this one.
    fn of(self, build: u64) -> Option<Self> {
        if self.build().is_some_and(|known| known != build) {
            return None;
        }
        Some(match self {
            Self::Absent => Self::Absent,
            Self::Active(_, done) => Self::Active(Some(build), done),
            Self::Ended(_, end) => Self::Ended(Some(build), end),
        })
    }
}

fn end_number(state: BuildState) -> Option<u8> {
    match state {
        BuildState::Active => None,
        BuildState::Built => Some(0),
        BuildState::Failed => Some(1),
        BuildState::Cancelled => Some(2),
    }
}

const CANCELLED: u8 = 2;

impl Model for Submission {
    type State = State;
    type Operation = Asked;

    fn start(&self) -> State {
        State::Absent
    }

    fn step(&self, state: &State, operation: &Asked) -> Option<State> {
        match *operation {
            // A submission that came before is the same build; its state does not change.
            Asked::Submit(answer) => {
                let submitted = if *state == State::Absent { State::Active(None, 0) } else { *state };
                answer.map_or(Some(submitted), |build| submitted.of(build))
            }
            Asked::See(build, seen) => see(state.of(build)?, build, seen),
            Asked::Cancel(answer) => match (*state, answer) {
                (State::Active(build, _), Some(true) | None) => Some(State::Ended(build, CANCELLED)),
                // It had ended, or was never submitted; or it was about to end by itself.
                (State::Absent | State::Ended(..), Some(false) | None) => Some(*state),
                (State::Active(build, _), Some(false)) => Some(State::Ended(build, ENDED_UNSEEN)),
                (State::Absent | State::Ended(..), Some(true)) => None,
            },
        }
    }
}

/// A build that ended by itself, nobody has seen how.
const ENDED_UNSEEN: u8 = 9;

fn see(state: State, build: u64, seen: Seen) -> Option<State> {
    match (state, seen) {
        (State::Absent, Seen::Nothing) => Some(state),
        (State::Active(_, done), Seen::Active(now)) if now >= done => Some(State::Active(Some(build), now)),
        // Whoever cancels it is a call of its own: by itself it ends as built or failed.
        (State::Active(..), Seen::Ended(end)) => {
            end_number(end).filter(|number| *number != CANCELLED).map(|number| State::Ended(Some(build), number))
        }
        (State::Ended(_, ENDED_UNSEEN), Seen::Ended(end)) => {
            end_number(end).filter(|number| *number != CANCELLED).map(|number| State::Ended(Some(build), number))
        }
        (State::Ended(_, known), Seen::Ended(end)) => (end_number(end) == Some(known)).then_some(state),
        (State::Absent, Seen::Active(_) | Seen::Ended(_))
        | (State::Active(..), Seen::Active(_) | Seen::Nothing)
        | (State::Ended(..), Seen::Active(_) | Seen::Nothing) => None,
    }
}

/// One derivation, as lists of jobs show it: it comes, gets attempts, and leaves with the last build that wants it.
#[derive(Clone, Copy, Debug)]
pub struct Derivation;

/// A job, as a client sees it. Later states are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// It is not in the list, and was not before.
    Unborn,
    /// It is in the list.
    Live(Progress),
    /// It is not in the list any more.
    Gone,
}

/// How far a job has come. Ordered by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress {
    /// The number of its last attempt; 0 before the first. Attempts' numbers only grow.
    pub attempt: u64,
    /// Whether that attempt has ended.
    pub ended: bool,
    /// Whether the job is built.
    pub built: bool,
}

impl Progress {
    /// Reads it from a list of jobs.
    pub fn of(job: &JobView) -> Self {
        let last = job.attempts.last();
        Self {
            attempt: last.map_or(0, |last| last.attempt.0),
            ended: last.is_some_and(|last| last.ended_at.is_some()),
            built: job.state == "built",
        }
    }
}

impl Model for Derivation {
    type State = Job;
    /// What a list showed; none where it was absent.
    type Operation = Option<Progress>;

    fn start(&self) -> Job {
        Job::Unborn
    }

    fn step(&self, state: &Job, operation: &Option<Progress>) -> Option<Job> {
        match (*state, *operation) {
            (Job::Unborn, None) => Some(Job::Unborn),
            (Job::Live(_) | Job::Gone, None) => Some(Job::Gone),
            (Job::Unborn, Some(now)) => Some(Job::Live(now)),
            (Job::Live(before), Some(now)) => (now >= before && (now.built || !before.built)).then_some(Job::Live(now)),
            (Job::Gone, Some(_)) => None,
        }
    }
}

/// Splits calls by the object that each is about.
pub fn by_object<Key: Ord, Call>(calls: impl IntoIterator<Item = (Key, Call)>) -> BTreeMap<Key, Vec<Call>> {
    let mut objects: BTreeMap<Key, Vec<Call>> = BTreeMap::new();
    for (key, call) in calls {
        objects.entry(key).or_default().push(call);
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{Call, Verdict, check};

    /// Reads `submit=7 0-1, see=7:active:2 2-3, cancel=yes 4-5, see=7:cancelled 6-7`; no answer: `submit=? 0-?`, `cancel=? 0-?`.
    fn submission(text: &str) -> bool {
        let call = |word: &str| {
            let (what, when) = word.trim().split_once(' ').expect("a call and its times");
            let (verb, answer) = what.split_once('=').expect("a verb and its answer");
            let operation = match verb {
                "submit" => Asked::Submit(answer.parse().ok()),
                "cancel" => Asked::Cancel(match answer {
                    "yes" => Some(true),
                    "no" => Some(false),
                    _ => None,
                }),
                "see" => {
                    let parts: Vec<&str> = answer.split(':').collect();
                    let seen = match parts[1..] {
                        ["nothing"] => Seen::Nothing,
                        ["active", done] => Seen::Active(done.parse().expect("a number")),
                        ["built"] => Seen::Ended(BuildState::Built),
                        ["failed"] => Seen::Ended(BuildState::Failed),
                        ["cancelled"] => Seen::Ended(BuildState::Cancelled),
                        _ => panic!("`{answer}`"),
                    };
                    Asked::See(parts[0].parse().expect("a number"), seen)
                }
                _ => panic!("`{verb}`"),
            };
            let (called, returned) = when.split_once('-').expect("from-to");
            Call { operation, called: called.parse().expect("a time"), returned: returned.parse().ok() }
        };
        let calls: Vec<_> = text.split(',').map(call).collect();
        match check(&Submission, &calls, 100_000) {
            Verdict::Linearizable(_) => true,
            Verdict::Broken { .. } => false,
            Verdict::Unknown => panic!("`{text}` is small"),
        }
    }

    #[test]
    fn what_a_farm_may_answer_passes() {
        for text in [
            "submit=7 0-1, see=7:active:0 2-3, see=7:active:2 4-5, see=7:built 6-7, see=7:built 8-9",
            "submit=7 0-1, submit=7 2-3, see=7:failed 4-5, submit=7 6-7",
            // The first submission's answer was lost; it took effect all the same.
            "submit=? 0-?, submit=7 2-3, see=7:active:0 4-5",
            "submit=7 0-1, cancel=yes 2-3, see=7:cancelled 4-5, cancel=no 6-7",
            // A cancellation without an answer took effect between two looks, or never.
            "submit=7 0-1, cancel=? 2-?, see=7:active:1 4-5, see=7:cancelled 6-7",
            "submit=7 0-1, cancel=? 2-?, see=7:active:1 4-5, see=7:built 6-7",
            // It ended by itself just before.
            "submit=7 0-1, cancel=no 2-3, see=7:built 4-5",
            // Seen before its submission is answered.
            "submit=7 0-10, see=7:active:0 2-3",
        ] {
            assert!(submission(text), "{text}");
        }
    }

    #[test]
    fn what_a_farm_must_never_answer_is_refused() {
        for text in [
            // Stale reads: of a coordinator that did not know what another one had answered.
            "submit=7 0-1, see=7:nothing 2-3",
            "submit=7 0-1, see=7:active:2 2-3, see=7:active:1 4-5",
            "submit=7 0-1, cancel=yes 2-3, see=7:active:0 4-5",
            "submit=7 0-1, see=7:built 2-3, see=7:active:3 4-5",
            "submit=7 0-1, see=7:built 2-3, see=7:nothing 4-5",
            // One submission that became two builds.
            "submit=7 0-1, submit=8 2-3",
            "submit=? 0-?, submit=7 2-3, submit=8 4-5",
            // An accepted cancellation that was forgotten, or one that nobody asked for.
            "submit=7 0-1, cancel=yes 2-3, see=7:built 4-5",
            "submit=7 0-1, see=7:cancelled 2-3",
            "submit=7 0-1, cancel=no 2-3, see=7:active:0 4-5",
            "submit=7 0-1, cancel=no 2-3, see=7:cancelled 4-5",
            // Seen before anybody submitted it.
            "see=7:active:0 0-1, submit=7 2-3",
        ] {
            assert!(!submission(text), "{text}");
        }
    }

    #[test]
    fn a_job_never_goes_back() {
        let seen = |attempt, ended, built| Some(Progress { attempt, ended, built });
        let table = [
            (vec![None, seen(0, false, false), seen(5, false, false), seen(5, true, true), None, None], true),
            (vec![seen(5, false, false), seen(5, true, false), seen(9, false, false), seen(9, true, true)], true),
            (vec![seen(9, false, false), seen(5, true, false)], false),
            (vec![seen(5, true, true), seen(5, false, false)], false),
            (vec![seen(5, true, true), seen(9, false, false)], false),
            (vec![seen(5, false, false), None, seen(5, true, true)], false),
        ];
        for (reads, holds) in table {
            let calls: Vec<_> =
                (0u64..).zip(&reads).map(|(at, read)| Call { operation: *read, called: at * 2, returned: Some(at * 2 + 1) }).collect();
            let verdict = check(&Derivation, &calls, 1000);
            assert_eq!(matches!(verdict, Verdict::Linearizable(_)), holds, "{reads:?}: {verdict:?}");
        }
    }
}
