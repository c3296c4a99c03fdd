//! What makes room for the security class is young, of another class, and does so no more often than it may; and somebody urgent waits.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Answer, Command, Effect, Farm};
use kiln_wire::client::{BuildState, JobView};
use kiln_wire::limits::{PREEMPTED_MS_MAX, PREEMPTIONS_PER_JOB_MAX};
use kiln_wire::{BuildId, DrvPath, Lease, RequestId, Timestamp};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct OnlyTheYoungMakeRoom {
    /// Submissions of the security class, as their clients asked.
    asked: BTreeSet<RequestId>,
    /// What became of them.
    urgent: BTreeSet<BuildId>,
    given: BTreeMap<Lease, Timestamp>,
    times: BTreeMap<DrvPath, usize>,
}

impl OnlyTheYoungMakeRoom {
    fn is_urgent(&self, farm: &Farm, job: &JobView) -> bool {
        let is_live = |build: &BuildId| farm.build_view(*build).is_some_and(|view| view.state == BuildState::Active);
        job.builds.iter().any(|build| self.urgent.contains(build) && is_live(build))
    }

    fn check(&mut self, before: &Farm, lease: &Lease, now: Timestamp) -> Result<(), String> {
        let what = format!("attempt {} at `{}`", lease.attempt, lease.derivation);
        // A second attempt makes room for whatever is ready, however old it is: the first one goes on.
        if before.live_leases(&lease.derivation).get(1) == Some(lease) {
            let is_needed = before.jobs().any(|job| job.state == "ready");
            return if is_needed { Ok(()) } else { Err(format!("{what} makes room for nothing")) };
        }
        let ran_ms = self.given.get(lease).map(|given| now.since_ms(*given)).ok_or_else(|| format!("{what} was never given"))?;
        if ran_ms > PREEMPTED_MS_MAX {
            return Err(format!("{what} has run for {ran_ms} ms"));
        }
        if before.job_view(&lease.derivation).is_some_and(|job| self.is_urgent(before, &job)) {
            return Err(format!("{what} is of the security class itself"));
        }
        if !before.jobs().any(|job| job.state == "ready" && self.is_urgent(before, &job)) {
            return Err(format!("{what} makes room for nothing of the security class"));
        }
        let times = self.times.entry(lease.derivation.clone()).or_default();
        *times += 1;
        if *times > PREEMPTIONS_PER_JOB_MAX { Err(format!("{what} makes room for the {times}th time")) } else { Ok(()) }
    }
}

impl Invariant for OnlyTheYoungMakeRoom {
    fn name(&self) -> &'static str {
        "only what is young makes room, for the security class, and seldom"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        let (command, before, effects, farm) = match fact {
            Fact::Submits { submission } => {
                if submission.urgency.security {
                    self.asked.insert(submission.request);
                }
                return Ok(());
            }
            Fact::Applied { command, before, effects, farm, .. } => (command, before, effects, farm),
            _ => return Ok(()),
        };
        for effect in *effects {
            match effect {
                Effect::Answer(Answer::Submitted { request, build }) if self.asked.contains(request) => {
                    self.urgent.insert(*build);
                }
                Effect::Dispatch { lease, .. } => {
                    self.given.insert(lease.clone(), command.now());
                }
                Effect::Revoke(revoked) => {
                    if let Command::Preempt { lease, now } = command
                        && lease == revoked
                    {
                        self.check(before, lease, *now)?;
                    }
                }
                _ => {}
            }
        }
        // What begins anew, or has left the farm, may make room as often again.
        let begins = |derivation: &DrvPath| farm.job_view(derivation).is_some_and(|job| !job.attempts.is_empty());
        if matches!(command, Command::Steer { .. } | Command::Submit { .. } | Command::Retire { .. }) {
            self.times.retain(|derivation, _| begins(derivation));
        }
        Ok(())
    }
}
