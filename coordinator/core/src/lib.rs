//! The replicated state machine of a Kiln farm, and its planner.
//!
//! Pure: no clock, no files, no network, no randomness, no logger; ordered maps; no floats in replicated state. Every way into the
//! state is a [`Command`], every way out an [`Effect`]. Does not talk to workers or stores: the shell does what effects say.
#![no_std]

extern crate alloc;

mod command;
mod effect;

pub use command::{Command, Placement};
pub use effect::{Answer, BuildRecord, Effect, Refused};
