//! The replicated state machine of a Kiln farm, and its planner.
//!
//! Pure: no clock, no files, no network, no randomness, no logger; ordered maps; no floats in replicated state. Every way into the
//! state is a [`Command`], every way out an [`Effect`]. Does not talk to workers or stores: the shell does what effects say.
//!
//! Where to look: a submission enters in `apply/submit.rs`, [`plan`] places ready jobs, `apply/lease.rs` gives leases, `apply/copy.rs` second ones,
//! `apply/finish.rs` commits outputs and releases dependents, `apply/grow.rs` links what builders turn out to need, `apply/failure.rs` holds the failure policy, `apply/ending.rs` lets
//! builds end and leave. `lead.rs` is the leader's loop without the loop. `garbage/` says what of the store nobody keeps. `estimate/` is what builds are expected to take, `rank.rs` what that makes of the graph. `fair/` is whose turn it is. `index.rs` is what follows from the state; `invariant.rs` is what must always hold.
#![no_std]

extern crate alloc;

mod apply;
mod build;
mod clock;
mod command;
mod compare;
mod contacts;
mod effect;
mod estimate;
mod explain;
mod fair;
mod farm;
mod figures;
mod fleet;
pub mod garbage;
mod health;
mod index;
mod invariant;
mod job;
mod late;
mod lead;
mod notice;
mod outlook;
mod page;
mod plan;
mod pool;
mod rank;
mod report;
mod seen;
mod snapshot;
mod survey;
mod view;
mod wake;

pub use clock::{StampClock, Steady};
pub use command::{
    ANNOUNCING, CHECKING, COPYING, Command, DESCRIBING, FAIRNESS, GROWING, JUDGING, LEARNING, Placement, RESOLVING, Resolution,
    ResolvedInput, SUCCEEDING, TRACING,
};
pub use compare::{Attributes, Comparison, Failures, Made, package, unbuilt_between, unevaluated_between};
pub use contacts::Contacts;
pub use effect::{Answer, BuildRecord, Copied, Effect, Refused, RootOutputs};
pub use estimate::split_name;
pub use fair::Asker;
pub use farm::Farm;
pub use figures::{InputBytes, Queued, Spent};
pub use fleet::SYSTEM_BUILTIN;
pub use invariant::Violation;
pub use job::Needs;
pub use lead::{Lead, Turn};
pub use notice::{Courier, Fate, Notice, Outbox, Sending, Task, What, pause_ms};
pub use outlook::{CriticalPath, CriticalStep, FailedJob, Outlook, Sketch, SketchNode, Survey};
pub use page::{BuildGlance, JobPage, JobsWanted, ReadyJobs, Reasons, Sight, WorkLeft};
pub use plan::{Limits, Plan, plan, plan_beside, plan_without};
pub use report::{PlanReport, WaitReason, Waiting};
pub use snapshot::{SNAPSHOT_VERSION, SnapshotError};
pub use survey::Surveying;
pub use wake::WakeReason;
