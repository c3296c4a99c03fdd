//! What must never happen in any run: one invariant in each file. Each sees every fact, and what it may look at besides.
//!
//! An invariant keeps what it needs to know by itself: it shares nothing with the code that it checks.

mod acknowledged_builds_exist;
mod archived_before_forgotten;
mod attempts_are_unique;
mod back_off_is_kept;
mod black_holes_rest;
mod blobs_are_what_they_say;
mod builds_end_as_they_must;
mod built_means_readable;
mod committed_stays;
mod failovers_cost_nothing;
mod failures_are_genuine;
mod failures_are_remembered;
mod farm_is_sound;
mod grace_is_given;
mod hard_features_gate;
mod heartbeats_plan_nothing;
mod idle_farms_rest;
mod inputs_can_be_fetched;
mod inputs_come_first;
mod leaders_only_rise;
mod no_wake_up_is_lost;
mod one_build_serves_all;
mod one_leader_a_term;
mod only_dead_leases_are_stopped;
mod only_the_young_make_room;
mod published_is_committed;
mod ready_jobs_wait_for_a_reason;
mod references_are_published_first;
mod replicas_agree;
mod results_are_kept;
mod results_are_the_holders;
mod sessions_end_alone;
mod sets_are_whole;
mod the_living_are_not_lost;
mod the_outrun_are_stopped;
mod use_is_what_leases_hold;
mod what_exists_is_not_built;
mod workers_are_not_overcommitted;
mod workers_hear_what_is_committed;

use kiln_core::Farm;

use crate::fact::Fact;
use crate::graph::Graph;
use crate::options::Options;
use crate::store::Store;

/// Something that must hold.
pub(crate) trait Invariant {
    /// Says in one sentence what must hold.
    fn name(&self) -> &'static str;

    /// Sees a fact.
    ///
    /// # Errors
    /// Where it does not hold.
    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String>;
}

/// What invariants may look at.
pub(crate) struct Look<'a> {
    pub now_us: u64,
    pub options: &'a Options,
    pub graph: &'a Graph,
    pub store: &'a Store,
    /// What follows from everything that is committed.
    pub farm: &'a Farm,
}

/// Returns every invariant, as of the start of a run.
pub(crate) fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(one_leader_a_term::OneLeaderATerm::default()),
        Box::new(committed_stays::CommittedStays),
        Box::new(replicas_agree::ReplicasAgree::default()),
        Box::new(farm_is_sound::FarmIsSound::default()),
        Box::new(leaders_only_rise::LeadersOnlyRise::default()),
        Box::new(published_is_committed::PublishedIsCommitted::default()),
        Box::new(sets_are_whole::SetsAreWhole),
        Box::new(results_are_the_holders::ResultsAreTheHolders::default()),
        Box::new(inputs_come_first::InputsComeFirst::default()),
        Box::new(inputs_can_be_fetched::InputsCanBeFetched),
        Box::new(workers_are_not_overcommitted::WorkersAreNotOvercommitted),
        Box::new(failures_are_genuine::FailuresAreGenuine),
        Box::new(built_means_readable::BuiltMeansReadable),
        Box::new(ready_jobs_wait_for_a_reason::ReadyJobsWaitForAReason),
        Box::new(blobs_are_what_they_say::BlobsAreWhatTheySay),
        Box::new(heartbeats_plan_nothing::HeartbeatsPlanNothing::default()),
        Box::new(results_are_kept::ResultsAreKept::default()),
        Box::new(builds_end_as_they_must::BuildsEndAsTheyMust),
        Box::new(only_dead_leases_are_stopped::OnlyDeadLeasesAreStopped),
        Box::new(grace_is_given::GraceIsGiven::default()),
        Box::new(hard_features_gate::HardFeaturesGate),
        Box::new(no_wake_up_is_lost::NoWakeUpIsLost),
        Box::new(sessions_end_alone::SessionsEndAlone),
        Box::new(workers_hear_what_is_committed::WorkersHearWhatIsCommitted::default()),
        Box::new(attempts_are_unique::AttemptsAreUnique::default()),
        Box::new(what_exists_is_not_built::WhatExistsIsNotBuilt),
        Box::new(one_build_serves_all::OneBuildServesAll::default()),
        Box::new(the_living_are_not_lost::TheLivingAreNotLost::default()),
        Box::new(failovers_cost_nothing::FailoversCostNothing::default()),
        Box::new(references_are_published_first::ReferencesArePublishedFirst),
        Box::new(idle_farms_rest::IdleFarmsRest::default()),
        Box::new(acknowledged_builds_exist::AcknowledgedBuildsExist::default()),
        Box::new(archived_before_forgotten::ArchivedBeforeForgotten),
        Box::new(back_off_is_kept::BackOffIsKept::default()),
        Box::new(only_the_young_make_room::OnlyTheYoungMakeRoom::default()),
        Box::new(use_is_what_leases_hold::UseIsWhatLeasesHold::default()),
        Box::new(black_holes_rest::BlackHolesRest::default()),
        Box::new(the_outrun_are_stopped::TheOutrunAreStopped::default()),
        Box::new(failures_are_remembered::FailuresAreRemembered::default()),
    ]
}
