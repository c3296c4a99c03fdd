//! The answer at the top of the overview: what is broken, since when, is it the packages or the farm, and when is the security rebuild done.
//!
//! A reader at three in the morning reads these four lines and knows whom to wake. Each is a sentence with its reason beside it.

use kiln_wire::{BuildId, Timestamp};
use maud::{Markup, html};

use crate::overview::Eta;
use crate::paint::{self, Tone};
use crate::words;

/// What the answer is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// From when on failures are known: a coordinator that started lately knows less than an hour.
    pub known_since: Timestamp,
    /// Jobs that failed for good in the last hour, by no fault of the farm.
    pub packages_failed: u64,
    /// When the first of these failed.
    pub packages_since: Option<Timestamp>,
    /// The one that holds up most, and how many jobs that is.
    pub worst: Option<(String, Option<u64>)>,
    /// Attempts that failed in the last hour and were the farm's fault.
    pub farm_failures: u64,
    /// When the first of these failed.
    pub farm_since: Option<Timestamp>,
    /// Workers on which they failed.
    pub farm_workers: u64,
    /// Workers that are quarantined, or rest after failures of their own.
    pub workers_ill: u64,
    /// Registered workers without a session.
    pub workers_lost: u64,
    /// Ready jobs that no worker of the farm could ever run.
    pub unplaceable: u64,
    /// There is a leader.
    pub has_leader: bool,
    /// Coordinators of which nothing was heard lately.
    pub coordinators_silent: u64,
    /// The security rebuild that ends last, if one runs: its name, which it is, and what is expected of it.
    pub security: Option<(BuildId, String, Option<Eta>)>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How good it is.
    pub tone: Tone,
    /// In one line.
    pub say: String,
    /// What it stands on.
    pub why: String,
}

impl Signs {
    /// Says what is broken.
    pub fn broken(&self) -> Answer {
        let farm = self.farm_words();
        let packages = words::counted(self.packages_failed, "package fails", "packages fail");
        let why = match &self.worst {
            Some((name, None)) => format!("{name} among them"),
            Some((name, Some(0))) => format!("{name} among them; nothing else waits for it"),
            Some((name, Some(held))) => format!("{name} holds up {}", words::counted(*held, "other job", "other jobs")),
            None => String::new(),
        };
        match (self.packages_failed, farm) {
            (0, None) => Answer { tone: Tone::Ok, say: "Nothing".to_owned(), why: self.quiet_words() },
            (0, Some(farm)) => Answer { tone: Tone::Bad, say: "The farm itself".to_owned(), why: farm },
            (_, None) => Answer { tone: Tone::Bad, say: packages, why },
            (_, Some(farm)) => Answer { tone: Tone::Bad, say: format!("{packages}, and the farm"), why: format!("{why}; {farm}") },
        }
    }

    /// Says since when.
    pub fn since(&self, now: Timestamp) -> Answer {
        let first = [self.packages_since, self.farm_since].into_iter().flatten().min();
        match first {
            Some(at) => Answer {
                tone: Tone::Bad,
                say: format!("{}, {} ago", words::clock(now, at), words::duration(now.since_ms(at))),
                why: format!("the first failure in the last hour{}", self.memory_words(now)),
            },
            None if self.farm_words().is_some() => Answer {
                tone: Tone::Wait,
                say: "Now".to_owned(),
                why: "no attempt failed for it in the last hour; see the fleet".to_owned(),
            },
            None => Answer { tone: Tone::Ok, say: "–".to_owned(), why: format!("no failure in the last hour{}", self.memory_words(now)) },
        }
    }

    /// Says whose fault it is.
    pub fn fault(&self) -> Answer {
        match (self.packages_failed, self.farm_words()) {
            (0, None) => Answer { tone: Tone::Ok, say: "Neither".to_owned(), why: "no package fails, and the farm is well".to_owned() },
            (0, Some(why)) => Answer { tone: Tone::Bad, say: "The farm".to_owned(), why },
            (_, None) => Answer {
                tone: Tone::Wait,
                say: "Us: the packages".to_owned(),
                why: "builders failed by themselves; no failure of the farm, no worker is ill".to_owned(),
            },
            (_, Some(_)) => Answer {
                tone: Tone::Bad,
                say: "Both".to_owned(),
                why: "packages fail by themselves, and the farm has failures of its own".to_owned(),
            },
        }
    }

    /// Says when the security rebuild is done.
    pub fn done(&self, now: Timestamp) -> Answer {
        match &self.security {
            None => {
                Answer { tone: Tone::Idle, say: "None is running".to_owned(), why: "no build of the security class is live".to_owned() }
            }
            Some((_, name, None)) => Answer {
                tone: Tone::Wait,
                say: "Not known".to_owned(),
                why: format!("{name}: nothing is left that can be built, or no worker is there to build it"),
            },
            Some((_, name, Some(eta))) if eta.is_overdue() => Answer {
                tone: Tone::Wait,
                say: "Overdue".to_owned(),
                why: format!("{name}: what is left of it takes longer than was expected"),
            },
            Some((_, name, Some(eta))) => Answer {
                tone: Tone::Run,
                say: format!("{}, in {}", words::clock(now, now.after_ms(eta.likely_ms)), words::duration(eta.likely_ms)),
                why: format!("{name}: {}", eta.range_words(now)),
            },
        }
    }

    /// Returns what is wrong with the farm, in words; none if nothing is.
    fn farm_words(&self) -> Option<String> {
        let mut said = Vec::new();
        if !self.has_leader {
            said.push("no coordinator leads".to_owned());
        }
        if self.farm_failures > 0 {
            let on = words::counted(self.farm_workers, "worker", "workers");
            said.push(format!("{} on {on}", words::counted(self.farm_failures, "infrastructure failure", "infrastructure failures")));
        }
        if self.workers_ill > 0 {
            said.push(words::counted(self.workers_ill, "worker is quarantined or rests", "workers are quarantined or rest"));
        }
        if self.workers_lost > 0 {
            said.push(words::counted(self.workers_lost, "worker is not connected", "workers are not connected"));
        }
        if self.unplaceable > 0 {
            said.push(words::counted(self.unplaceable, "job fits no worker", "jobs fit no worker"));
        }
        if self.coordinators_silent > 0 {
            said.push(words::counted(self.coordinators_silent, "coordinator is silent", "coordinators are silent"));
        }
        (!said.is_empty()).then(|| said.join("; "))
    }

    fn quiet_words(&self) -> String {
        "no failure in the last hour, every worker is well".to_owned()
    }

    fn memory_words(&self, now: Timestamp) -> String {
        match now.since_ms(self.known_since) {
            known_ms if known_ms < HOUR_MS => format!(", of which this coordinator knows {}", words::duration(known_ms)),
            _ => String::new(),
        }
    }

    pub(crate) fn show(&self, now: Timestamp) -> Markup {
        let answers = [
            ("What is broken?", self.broken(), None),
            ("Since when?", self.since(now), None),
            ("Is it us or the farm?", self.fault(), None),
            ("When is the security rebuild done?", self.done(now), self.security.as_ref().map(|(id, _, _)| format!("/ui/builds/{id}"))),
        ];
        html! {
            section id="answer" aria-label="The answer" data-live {
                dl class="answer" {
                    @for (question, answer, href) in answers {
                        div class=(answer.tone.class()) {
                            dt { (question) }
                            dd class="say" {
                                (paint::icon(answer.tone.icon())) " "
                                @if let Some(href) = href { a href=(href) { (answer.say) } } @else { (answer.say) }
                            }
                            @if !answer.why.is_empty() { dd class="why" { (answer.why) } }
                        }
                    }
                }
            }
        }
    }
}

/// How far back the overview looks.
pub const HOUR_MS: u64 = 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_764_558_000_000);

    fn well() -> Signs {
        Signs { has_leader: true, ..Signs::default() }
    }

    #[test]
    fn the_answer_names_whose_fault_it_is() {
        let packages = Signs { packages_failed: 3, packages_since: Some(Timestamp(NOW.0 - 60_000)), ..well() };
        let farm = Signs { farm_failures: 2, farm_workers: 1, farm_since: Some(Timestamp(NOW.0 - 120_000)), ..well() };
        let both = Signs { packages_failed: 1, ..farm.clone() };
        for (signs, broken, fault) in [
            (well(), "Nothing", "Neither"),
            (packages, "3 packages fail", "Us: the packages"),
            (farm, "The farm itself", "The farm"),
            (both, "1 package fails, and the farm", "Both"),
            (Signs::default(), "The farm itself", "The farm"),
            (Signs { workers_ill: 1, ..well() }, "The farm itself", "The farm"),
            (Signs { workers_lost: 1, ..well() }, "The farm itself", "The farm"),
            (Signs { unplaceable: 4, ..well() }, "The farm itself", "The farm"),
            (Signs { coordinators_silent: 1, ..well() }, "The farm itself", "The farm"),
        ] {
            assert_eq!((signs.broken().say.as_str(), signs.fault().say.as_str()), (broken, fault), "{signs:?}");
        }
    }

    #[test]
    fn the_first_failure_says_since_when_and_a_short_memory_is_owned_up_to() {
        let failed = Signs { packages_failed: 1, packages_since: Some(Timestamp(NOW.0 - 19 * 60_000)), ..well() };
        assert_eq!(failed.since(NOW).say, "02:41 UTC, 19 min ago");
        let fresh = Signs { known_since: Timestamp(NOW.0 - 5 * 60_000), ..well() };
        assert_eq!(fresh.since(NOW).why, "no failure in the last hour, of which this coordinator knows 5 min");
    }

    #[test]
    fn a_security_rebuild_has_a_time_and_a_range() {
        assert_eq!(well().done(NOW).say, "None is running");
        let overdue = Signs { security: Some((BuildId(7), "openssl".to_owned(), Some(Eta::default()))), ..well() };
        assert_eq!(overdue.done(NOW).say, "Overdue");
        let eta = Eta { likely_ms: 72 * 60_000, low_ms: 60 * 60_000, high_ms: 120 * 60_000, measured_percent: 93 };
        let signs = Signs { security: Some((BuildId(7), "openssl".to_owned(), Some(eta))), ..well() };
        let answer = signs.done(NOW);
        assert_eq!(answer.say, "04:12 UTC, in 1 h 12 min");
        assert!(answer.why.contains("04:00 UTC") && answer.why.contains("05:00 UTC") && answer.why.contains("93 %"), "{}", answer.why);
    }
}
