//! The disk that raft's files lie on, and the threads that wait for it.
//!
//! In a simulation they are those of a simulated host: what was not synced is gone after a crash, and nothing runs on a thread of its
//! own. The product has the machine's.

#[cfg(feature = "simulation")]
pub mod ill;
#[cfg(not(feature = "simulation"))]
mod machine;
#[cfg(feature = "simulation")]
mod simulated;

#[cfg(not(feature = "simulation"))]
pub use machine::*;
#[cfg(feature = "simulation")]
pub use simulated::*;
