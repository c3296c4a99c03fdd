//! A Kiln coordinator.

pub mod raft;
