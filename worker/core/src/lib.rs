//! The worker's side of leases: what runs, what waits for room, what was made and is not acknowledged.
//!
//! Pure: no clock, no files, no network, no randomness, no logger. Messages and events go in, [`Action`]s come out; the shell does
//! what they say. Does not run builders, does not keep the journal (the shell does, see [`Action::Keep`]), does not open sessions.
//!
//! Invariants: an attempt is started at most once; a stopped attempt reports nothing; a result is kept until it is acknowledged or
//! revoked; a leader below the highest one seen is never obeyed.
#![no_std]

extern crate alloc;

mod action;
mod admission;
mod agent;
mod attempt;

pub use action::{Action, StaleLeader};
pub use admission::{Admission, Bounds, Pressure, Vitals};
pub use agent::{Agent, ENDED_REMEMBERED_MAX};
