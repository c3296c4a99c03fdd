//! What coordinators, workers and clients of a Kiln farm say to each other: typed ids, messages, framing, and every limit.
//!
//! Pure: no clock, no files, no network, no randomness, no logger. Does not open connections (`kiln-link` does) and does not
//! decide anything (`kiln-core` and `kiln-agent` do).
#![no_std]

extern crate alloc;

pub mod client;
mod cluster;
mod duration;
mod evaluation;
mod event;
mod explanation;
pub mod frame;
mod garbage;
mod hash;
mod health;
mod hold;
mod ids;
mod job;
mod leader;
pub mod limits;
mod names;
mod notice;
mod outcome;
mod path;
mod share;
mod text;
mod time;
mod trace;
mod version;
pub mod worker;

pub use cluster::{ClusterRequest, ClusterView, MemberView};
pub use duration::{Measured, PackageView};
pub use evaluation::{Evaluated, Evaluation};
pub use explanation::{Explanation, Step, WorkersFor};
pub use garbage::{Collect, Collected, GarbageAnswer, GarbageRequest};
pub use hash::{Blake3Hash, HashError, Sha256Hash};
pub use health::{Ailing, Standing};
pub use hold::{OutOfPatience, Patience};
pub use ids::{AttemptId, BuildId, Epoch, IdError, Leader, LogIndex, NodeId, OutputName, ProjectName, RequestId, TenantName, WorkerId};
pub use job::{DerivedInput, JobKind, JobLimits, JobSpec, Resources, Root};
pub use leader::{LeaderAt, NotLeader, WhoLeads};
pub use names::OutputNames;
pub use notice::{Failing, ReceiverView, RetentionView};
pub use outcome::{Blob, BuiltOutput, Failure, FailureClass, Lease, Outcome, PathInfo, Usage};
pub use path::{DrvPath, StoreDir, StorePath, StorePathError};
pub use share::{Account, Order, Priority, Share, ShareKey, ShareRequest, ShareView, Steering, Subject, Urgency};
pub use time::Timestamp;
pub use trace::{Traceparent, TraceparentError};
pub use version::{Program, Version};
