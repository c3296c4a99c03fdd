//! The load test: a real farm of one or three coordinators, up to thousands of simulated workers that speak the real protocol over real
//! QUIC, and real graphs, submitted as a client does.
//!
//! Goals: what a farm costs for each job (time, processor time, memory) in figures that a prover can hold against goals; coordinators are
//! processes of their own, so that their processor time is theirs alone. Non-goals: builds (a simulated worker makes a small file at once,
//! or after a drawn time), sandboxes, faults (`kiln-faults` has them). Everything is bounded in number and time, and on loopback.

pub mod browsers;
pub mod client;
pub mod crew;
pub mod farm;
pub mod figures;
pub mod host;
pub mod output;
pub mod presets;
pub mod recipe;
pub mod run;
pub mod shape;
pub mod tally;
pub mod watched;
mod worker;
