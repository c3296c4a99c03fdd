//! Planted bugs: what a mistake in the product would do, done here on purpose, to see that an invariant catches it. None of them can
//! happen in the product, for none of them is there.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A voter votes for two candidates of one term.
    VotesTwice,
    /// A voter votes for a candidate that lacks entries which it has itself.
    VotesForAShorterLog,
    /// A follower stamps what it applies by its own clock.
    AppliesByItsOwnClock,
    /// A submission takes a job that runs for built: the job that needs it is not told to wait.
    RunningCountsAsBuilt,
    /// An upload is acknowledged and not stored.
    UploadIsNotKept,
    /// A report whose lease is over is taken for one of the live lease.
    LateReportCounts,
    /// All leases of a plan are one entry, so that they share a number.
    LeasesShareAnEntry,
    /// Outputs are published as soon as they are reported.
    PublishesBeforeCommit,
    /// A build is over although what it wants is committed only.
    CommittedCountsAsReadable,
    /// What is committed is published at once, whatever it refers to.
    PublishesOutOfOrder,
    /// A new leader charges what runs with the end of the last one.
    FailoverIsCharged,
    /// Only the first output of a set is published.
    PublishesInParts,
    /// A worker forgets to give back the share of what it killed.
    KilledKeepsItsShare,
    /// A worker says that a builder has exited which only begins.
    WindsBeforeItsEnd,
    /// A lost worker's jobs count as failed.
    LossIsFailure,
    /// A leader forgets how long a job was to wait.
    BackOffIsForgotten,
    /// Two derivations with the same output path count as one.
    KeyedByOutput,
    /// A plan's report leaves a reason out.
    ReportIsCutShort,
    /// What is published describes the worker's bytes although the store had others already.
    OwnBytesAreClaimed,
    /// Every sign of life leads to a plan.
    HeartbeatPlans,
    /// A worker's restart loses the results that nobody acknowledged.
    JournalLosesResults,
    /// One attempt's bad luck ends every build that waits for the job.
    JoinersShareBadLuck,
    /// A cancelled build's jobs are killed, whoever else wants them.
    CancelKillsForAll,
    /// What nobody wants is killed at once.
    GraceIsSkipped,
    /// A feature that a machine must have is taken for a hint.
    HardFeatureIsSoft,
    /// A feature that is a hint is taken for one that a machine must have.
    SoftFeatureIsHard,
    /// A worker counts its capacity in a second place, where it is more.
    CapacityIsMiscounted,
    /// What was committed leads to no plan.
    WakeUpIsLost,
    /// A worker that takes jobs again leads to no plan.
    ReliefIsUnheard,
    /// The end of an old session takes away its successor.
    OldEndClosesNew,
    /// A lease is dispatched as soon as it is proposed.
    DispatchesUncommitted,
    /// A worker's journal forgets the highest leader.
    JournalForgetsLeader,
    /// A submission asks for what is published.
    AsksForWhatExists,
    /// A job is sent to two workers, and the second does not look whose lease it is.
    TwoWorkersStart,
    /// Signs of life do not count.
    SilenceIsNotBroken,
    /// A leader plans by the clock.
    PollsForWork,
    /// A client is answered before its submission is committed.
    AnswersBeforeCommit,
    /// A client's second try is another submission.
    RetryIsANewBuild,
    /// A build leaves the farm before the archive has it.
    RetiresUnarchived,
    /// What fails on a worker is not held against it.
    FailuresAreForgotten,
    /// Every submission is taken for one of the security class.
    EverybodyIsUrgent,
    /// Every submission is taken for one of the same tenant.
    EverybodyIsOneTenant,
    /// Nobody tells the slower of two attempts to stop.
    OutrunRunsOn,
    /// The failure of one of two attempts counts for nothing.
    OneOfTwoIsForgiven,
    /// The outputs of the slower of two attempts are published.
    LoserIsPublished,
    /// A leader's task takes an input to be elsewhere than it was committed.
    ResolvesFromElsewhere,
}

/// A planted bug with the number in INVARIANTS.md that it breaks, if it has one, and the invariant that must catch it.
pub type Planted = (Bug, Option<u8>, &'static str);

/// What the liveness phase says if something never ends.
pub(crate) const ENDS: &str = "everything ends after faults are over";

impl Bug {
    /// Every planted bug.
    pub const TABLE: &'static [Planted] = &[
        (Self::VotesTwice, None, "a term has one leader"),
        (Self::VotesForAShorterLog, None, "a committed entry stays what it is"),
        (Self::AppliesByItsOwnClock, None, "coordinators that applied the same entries are in the same state"),
        (Self::AnswersBeforeCommit, None, "an acknowledged submission is a committed build, the same for ever"),
        (Self::RetryIsANewBuild, None, "an acknowledged submission is a committed build, the same for ever"),
        (Self::RetiresUnarchived, None, "a build leaves the farm only when the archive holds it"),
        (Self::RunningCountsAsBuilt, Some(1), "a lease is given only when every input is committed"),
        (Self::UploadIsNotKept, Some(2), "a worker finds every input of an attempt in the store"),
        (Self::CommittedCountsAsReadable, Some(2), "a build that is said to be built has every wanted output published"),
        (Self::PublishesOutOfOrder, Some(2), "what a published path refers to is published"),
        (Self::LateReportCounts, Some(3), "a success that is taken was made by the attempt that holds the lease"),
        (Self::LeasesShareAnEntry, Some(3), "an attempt's number is given once"),
        (Self::PublishesBeforeCommit, Some(4), "what is published is what was committed"),
        (Self::PublishesInParts, Some(4), "the whole output set of a derivation is published at once"),
        (Self::KilledKeepsItsShare, Some(5), ENDS),
        (Self::LossIsFailure, Some(6), "a derivation fails for good only by its own doing or on three workers"),
        (Self::BackOffIsForgotten, Some(7), "a job waits for its back-off, whoever leads"),
        (Self::KeyedByOutput, Some(9), "a lease is given only when every input is committed"),
        (Self::ReportIsCutShort, Some(11), "every ready job is planned or waits for a reason"),
        (Self::OwnBytesAreClaimed, Some(14), "a published narinfo describes the stored bytes"),
        (Self::HeartbeatPlans, Some(16), "a heartbeat leads to no plan"),
        (Self::JournalLosesResults, Some(17), "a worker that comes back names every result that was not acknowledged"),
        (Self::JoinersShareBadLuck, Some(18), "a build ends as its derivations do"),
        (Self::CancelKillsForAll, Some(19), "a worker is told to stop only what holds no lease"),
        (Self::GraceIsSkipped, Some(19), "an unwanted job runs on for its period of grace"),
        (Self::HardFeatureIsSoft, Some(20), "a job runs only where its features are"),
        (Self::SoftFeatureIsHard, Some(20), ENDS),
        (Self::CapacityIsMiscounted, Some(21), "what runs on a worker fits its slots, cores and memory"),
        (Self::WindsBeforeItsEnd, Some(21), "what runs on a worker fits its slots, cores and memory"),
        (Self::WakeUpIsLost, Some(22), "a leader at rest has nothing left to place"),
        (Self::ReliefIsUnheard, Some(22), "a leader at rest has nothing left to place"),
        (Self::OldEndClosesNew, Some(23), "an old session's end leaves its successor alone"),
        (Self::DispatchesUncommitted, Some(24), "a worker is told only of leases that are committed"),
        (Self::JournalForgetsLeader, Some(24), "a worker obeys no leader below the highest that it has obeyed"),
        (Self::AsksForWhatExists, Some(25), "a submission asks for nothing that is published"),
        (Self::TwoWorkersStart, Some(25), "no second worker starts what another holds the lease of"),
        (Self::FailuresAreForgotten, Some(26), "a worker on which everything fails gets nothing more for a while"),
        (Self::SilenceIsNotBroken, Some(27), "a worker is given up only after its whole silence"),
        (Self::FailoverIsCharged, Some(29), "trouble among coordinators repeats no work"),
        (Self::OutrunRunsOn, None, "what another attempt outran is told to stop"),
        (Self::OneOfTwoIsForgiven, Some(6), "what one of two attempts failed of is remembered as its worker said it"),
        (Self::LoserIsPublished, Some(4), "what is published is what was committed"),
        // The farm takes no such resolution, so that the job stays where it is.
        (Self::ResolvesFromElsewhere, None, ENDS),
        (Self::EverybodyIsUrgent, None, "only what is young makes room, for the security class, and seldom"),
        (Self::EverybodyIsOneTenant, None, "a tenant is said to hold what the leases of its builds come to"),
        (Self::PollsForWork, Some(30), "an idle farm neither proposes nor plans"),
    ];
}
