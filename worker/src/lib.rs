//! A Kiln worker: fetches the inputs of an attempt, runs its builder in a sandbox, imports and uploads what it made.
//!
//! A thin shell: which attempt runs and what is reported is decided by `kiln-agent`. Does not schedule, does not sign, listens on no
//! port. [`Worker::start`] runs one inside another process, [`run`] is the daemon, after [`settle`] has split its process in two.
//!
//! The way of an attempt: [`session`] → [`shell`] → [`attempt`] → [`inputs`] (into the [`cache`]) → [`launcher`] (what to run is
//! said by [`builder`]) → [`sandbox`], in the launcher's process → [`outputs`] → [`upload`] → the shell's [`journal`] → session.

mod admission;
mod attempt;
mod attempt_log;
pub mod builder;
mod builtin;
pub mod cache;
pub mod cgroup;
pub mod config;
mod confine;
mod failure;
mod inputs;
mod journal;
pub mod launcher;
mod outputs;
mod pipe;
pub mod sandbox;
mod scratch;
mod session;
mod shell;
mod slots;
mod spans;
mod stop;
pub mod trash;
mod uplink;
mod upload;
mod worker;
mod workshop;

pub use admission::Config as AdmissionConfig;
pub use config::{Config, ConfigError, DefaultLimits, FixedOutputNetwork, NetworkMode, WorkerUser};
pub use confine::{SettleError, settle};
pub use outputs::unpack_canonical;
pub use worker::{Worker, WorkerError, run};
pub use workshop::WorkshopError;
