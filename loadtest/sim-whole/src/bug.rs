//! Planted bugs: what a mistake in the product, or a machine that lies, would do, done here on purpose to see that a check catches it.

use std::sync::OnceLock;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A disk says that it has synced and has not.
    SyncsNothing,
    /// A disk forgets what files are called whose directory was synced.
    ForgetsNames,
    /// A coordinator leaves out one entry in forty.
    LeavesAnEntryOut,
    /// A coordinator counts attempts from another number than the others.
    CountsOtherwise,
    /// What is committed is told once more at a later entry.
    CommitsTwice,
    /// Two workers are sent the same attempt.
    SendsToTwo,
    /// A coordinator that has led goes on saying so in the terms of others.
    LeadsOn,
    /// A disk that has been full is never looked at again.
    StaysFull,
    /// A coordinator is not started again after a crash.
    StaysOff,
    /// A coordinator is switched off without being removed.
    GoesUnasked,
    /// A worker begins what needs the job that it was sent.
    BeginsEarly,
    /// A worker obeys what a leader said whose successor it knows.
    ObeysTheDeposed,
    /// A worker makes something else than the derivation says.
    BuildsAnother,
    /// A worker says that a build failed which did not.
    Fails,
    /// A worker says of every build that the machine failed it.
    BlamesTheMachine,
    /// A worker reports nothing.
    ReportsNothing,
    /// A client draws a new number when it asks again.
    RetryIsAnother,
    /// A client is told that its build is over once it is known.
    EndsEarly,
    /// The store loses an object.
    LosesAnObject,
    /// The store's objects rot.
    Rots,
}

impl Bug {
    /// Every planted bug and the check that must catch it, in the words that its message begins with.
    pub const TABLE: &'static [(Self, &'static str)] = &[
        (Self::SyncsNothing, "no coordinator fails"),
        (Self::ForgetsNames, "no coordinator fails"),
        (Self::LeavesAnEntryOut, "replicas are equal"),
        (Self::CountsOtherwise, "replicas apply the same"),
        (Self::CommitsTwice, "a job is committed once"),
        (Self::SendsToTwo, "an attempt is one worker's"),
        (Self::LeadsOn, "one leader a term"),
        (Self::StaysFull, "every coordinator takes part again"),
        (Self::StaysOff, "coordinators come in step"),
        (Self::GoesUnasked, "the group is whom the operator has left in it"),
        (Self::BeginsEarly, "inputs come first"),
        (Self::ObeysTheDeposed, "no deposed leader is obeyed"),
        (Self::BuildsAnother, "an output is what was built"),
        (Self::Fails, "a build ends built"),
        (Self::BlamesTheMachine, "a build ends built"),
        (Self::ReportsNothing, "everything ends once faults do"),
        (Self::RetryIsAnother, "one request is one build"),
        (Self::EndsEarly, "every job of an ended build is committed"),
        (Self::LosesAnObject, "an output of an ended build is published"),
        (Self::Rots, "the store can be read"),
    ];

    /// Returns the bug of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::TABLE.iter().map(|(bug, _)| *bug).find(|bug| format!("{bug:?}") == name)
    }

    /// Plants the bug in this process, which runs one seed.
    pub fn plant(self) {
        PLANTED.set(self).expect("one bug a run");
    }

    /// Returns whether this bug is planted.
    pub fn is_planted(self) -> bool {
        PLANTED.get() == Some(&self)
    }
}

static PLANTED: OnceLock<Bug> = OnceLock::new();
