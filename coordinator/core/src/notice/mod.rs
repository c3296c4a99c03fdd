//! What people are told by webhook: notices that wait in replicated state, and who was told of them.
//!
//! Goals: every notice reaches every receiver that wants it at least once, in order, whichever coordinator leads meanwhile; a receiver that is
//! away costs a bounded amount of state and holds up nobody else. Non-goals: exactly once, which nobody can promise over HTTP; what a message
//! says, and how it is sent, which is the shell's.
//!
//! [`Outbox`] is replicated: commands add to it what happened, and take out what everybody was told. [`Courier`] is the leader's own: it says
//! what is sent to whom next, and when. Source: ADR 0052.

mod courier;
mod outbox;

pub use courier::{Courier, Fate, Sending, Task, pause_ms};
pub use outbox::{Notice, Outbox, What};
