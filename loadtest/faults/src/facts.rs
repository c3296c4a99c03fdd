//! What must hold of what all processes said together: nothing is committed twice, all coordinators applied the same, and no attempt on
//! an unharmed worker was in vain. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::hosts::Host;
use crate::lines::{Attempt, Entry, Fact};

/// Who said what, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Microseconds since the run began, by the machine's monotonic clock, when the line arrived.
    pub at_us: u64,
    /// Who.
    pub host: Host,
    /// What.
    pub fact: Fact,
}

/// A time in which a worker was harmed so that its attempts may be lost: it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Harm {
    /// Which.
    pub host: Host,
    /// When, in microseconds since the run began.
    pub at_us: u64,
}

/// What became of an attempt that a worker took up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Course {
    began: Vec<(u64, Host)>,
    stopped: bool,
    ended: Option<String>,
    committed: bool,
}

/// Everything that was said, by attempt and by entry.
#[derive(Clone, Debug, Default)]
pub struct Record {
    courses: BTreeMap<Attempt, Course>,
    /// Entries of each coordinator: what it was, for whom.
    entries: BTreeMap<u64, BTreeMap<(&'static str, Attempt), BTreeSet<Host>>>,
    commits: BTreeMap<String, BTreeSet<(u64, u64)>>,
}

impl Record {
    /// Reads what was said.
    pub fn of<'a>(said: impl IntoIterator<Item = &'a Said>) -> Self {
        let mut record = Self::default();
        for Said { at_us, host, fact } in said {
            match fact {
                Fact::Leased(entry) => record.applied("leased", *host, entry),
                Fact::Committed(entry) => {
                    record.applied("committed", *host, entry);
                    record.commits.entry(entry.attempt.derivation.clone()).or_default().insert((entry.index, entry.attempt.attempt));
                    record.course(&entry.attempt).committed = true;
                }
                Fact::Began(attempt, _) => record.course(attempt).began.push((*at_us, *host)),
                Fact::Stopped(attempt) => record.course(attempt).stopped = true,
                Fact::Ended(attempt, end) => record.course(attempt).ended = Some(end.clone()),
                Fact::Welcomed | Fact::Error(_) => {}
            }
        }
        record
    }

    fn course(&mut self, attempt: &Attempt) -> &mut Course {
        self.courses.entry(attempt.clone()).or_default()
    }

    fn applied(&mut self, what: &'static str, host: Host, entry: &Entry) {
        self.entries.entry(entry.index).or_default().entry((what, entry.attempt.clone())).or_default().insert(host);
    }

    /// How many derivations were committed.
    pub fn committed(&self) -> usize {
        self.commits.len()
    }

    /// How many attempts workers took up.
    pub fn begun(&self) -> usize {
        self.courses.values().filter(|course| !course.began.is_empty()).count()
    }

    /// Derivations whose outputs more than one entry committed.
    pub fn committed_twice(&self) -> Vec<String> {
        let twice = self.commits.iter().filter(|(_, commits)| commits.len() > 1);
        twice.map(|(derivation, commits)| format!("`{derivation}` was committed by the entries (index, attempt) {commits:?}")).collect()
    }

    /// Entries that were not the same on all coordinators.
    pub fn replicas_that_differ(&self) -> Vec<String> {
        let several = self.entries.iter().filter(|(_, kinds)| kinds.len() > 1);
        several.map(|(index, kinds)| format!("entry {index} was applied as {kinds:?}")).collect()
    }

    /// Attempts that a worker took up twice.
    pub fn begun_twice(&self) -> Vec<String> {
        let twice = self.courses.iter().filter(|(_, course)| course.began.len() > 1);
        twice
            .map(|(attempt, course)| format!("attempt {} at `{}` began at {:?}", attempt.attempt, attempt.derivation, course.began))
            .collect()
    }

    /// Attempts that a worker took up and that came to nothing although it was not killed; those of derivations that `excused` names,
    /// because somebody cancelled their builds, are left out. Each is work done again, or a running build lost.
    pub fn in_vain(&self, harms: &[Harm], excused: impl Fn(&str) -> bool) -> Vec<String> {
        let vain = self.courses.iter().filter(|(attempt, course)| {
            let Some((since, host)) = course.began.first() else { return false };
            let killed = harms.iter().any(|harm| harm.host == *host && harm.at_us >= *since);
            !course.committed && !killed && !excused(&attempt.derivation)
        });
        vain.map(|(attempt, course)| {
            let end = course.ended.as_deref().unwrap_or("never");
            let stopped = if course.stopped { ", was told to stop" } else { "" };
            format!(
                "attempt {} at `{}` began at {:?}{stopped}, ended: {end}, and was not committed",
                attempt.attempt, attempt.derivation, course.began
            )
        })
        .collect()
    }

    /// How many attempts on killed workers came to nothing.
    pub fn lost_with_workers(&self, harms: &[Harm], excused: impl Fn(&str) -> bool) -> usize {
        let begun =
            self.courses.iter().filter(|(attempt, course)| !course.committed && !course.began.is_empty() && !excused(&attempt.derivation));
        begun.count() - self.in_vain(harms, excused).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `w1 began 5 a, c1 leased 5 a, c1 committed 9 5 a, w1 ended 5 a built`; a line's time is its place.
    fn record(text: &str) -> Record {
        let said = (1u64..).zip(text.split(',')).map(|(at_us, line)| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = words[0][1..].parse().expect("a number");
            let host = if words[0].starts_with('c') { Host::Coordinator(number) } else { Host::Worker(number) };
            let attempt = |at: usize| Attempt { attempt: words[at].parse().expect("a number"), derivation: words[at + 1].to_owned() };
            let fact = match words[1] {
                "leased" => Fact::Leased(Entry { index: attempt(2).attempt, attempt: attempt(2) }),
                "committed" => Fact::Committed(Entry { index: words[2].parse().expect("an index"), attempt: attempt(3) }),
                "began" => Fact::Began(attempt(2), 1),
                "stopped" => Fact::Stopped(attempt(2)),
                "ended" => Fact::Ended(attempt(2), words[4].to_owned()),
                other => panic!("`{other}`"),
            };
            Said { at_us, host, fact }
        });
        Record::of(&said.collect::<Vec<_>>())
    }

    fn nobody(_: &str) -> bool {
        false
    }

    #[test]
    fn a_run_in_which_all_went_well_has_no_fault() {
        let well = record(
            "c1 leased 5 a, w1 began 5 a, c2 leased 5 a, w1 ended 5 a built, c1 committed 9 5 a, c2 committed 9 5 a, c1 committed 9 5 a",
        );
        assert_eq!((well.committed(), well.begun()), (1, 1));
        assert_eq!(
            [well.committed_twice(), well.replicas_that_differ(), well.begun_twice(), well.in_vain(&[], nobody)],
            [const { Vec::<String>::new() }; 4]
        );
    }

    #[test]
    fn each_fault_is_seen() {
        assert_eq!(record("c1 committed 9 5 a, c1 committed 12 7 a").committed_twice().len(), 1);
        assert_eq!(record("c1 committed 9 5 a, c2 committed 9 7 b").replicas_that_differ().len(), 1);
        assert_eq!(record("c1 committed 9 5 a, c2 leased 9 a").replicas_that_differ().len(), 1);
        assert_eq!(record("w1 began 5 a, w1 began 5 a").begun_twice().len(), 1);
        assert_eq!(record("w1 began 5 a, w1 stopped 5 a").in_vain(&[], nobody).len(), 1);
        assert_eq!(record("w1 began 5 a, w1 ended 5 a built, w2 began 7 a, c1 committed 9 7 a").in_vain(&[], nobody).len(), 1);
    }

    #[test]
    fn what_a_killed_worker_ran_or_somebody_cancelled_is_not_in_vain() {
        let lost = record("w1 began 5 a, w2 began 7 a, c1 committed 9 7 a");
        let killed = |host, at_us| [Harm { host, at_us }];
        assert_eq!(lost.in_vain(&killed(Host::Worker(1), 2), nobody), Vec::<String>::new());
        assert_eq!(lost.lost_with_workers(&killed(Host::Worker(1), 2), nobody), 1);
        assert_eq!(lost.in_vain(&killed(Host::Worker(2), 2), nobody).len(), 1, "another worker's death does not excuse it");
        assert_eq!(lost.in_vain(&killed(Host::Worker(1), 0), nobody).len(), 1, "nor does one before it began");
        assert_eq!(lost.in_vain(&[], |derivation| derivation == "a"), Vec::<String>::new());
    }
}
