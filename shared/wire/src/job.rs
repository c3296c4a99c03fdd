//! What a job is: one derivation to build, and what it asks of a worker.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{DrvPath, OutputName, OutputNames, StorePath};

/// One derivation to build, as a submission hands it to the farm. Facts only: the derivation's bytes stay in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The derivation. Jobs are keyed by it, never by an output path.
    pub derivation: DrvPath,
    /// The platform it must run on (`x86_64-linux`), or `builtin`, which every worker takes.
    pub system: String,
    /// Features that a worker must have.
    pub required_features: BTreeSet<String>,
    /// Its outputs, with their paths where these are known before the build.
    pub outputs: BTreeMap<OutputName, Option<StorePath>>,
    /// Outputs of other derivations that must be realised first. Inputs that the store has already are left out.
    pub inputs: Vec<DerivedInput>,
    /// What kind of builder runs.
    pub kind: JobKind,
    /// A hint that the build is short and not worth a transfer.
    pub prefer_local: bool,
    /// What it needs while it runs.
    pub resources: Resources,
    /// When it is stopped.
    pub limits: JobLimits,
    /// It needs outputs whose paths only their builds tell: once these are built, it is resolved before a worker gets it.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub resolve: bool,
}

/// Outputs of one derivation, needed by another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DerivedInput {
    /// The derivation that makes them.
    pub derivation: DrvPath,
    /// Which of its outputs.
    pub outputs: OutputNames,
}

/// What a client asked for: outputs of one derivation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Root {
    /// The derivation.
    pub derivation: DrvPath,
    /// The wanted outputs; empty means all of them.
    pub outputs: BTreeSet<OutputName>,
}

/// What kind of builder a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum JobKind {
    /// A program in the sandbox, without a network.
    Ordinary,
    /// A program in the sandbox, with a network: its output hash is known, or it is impure.
    FixedOutput,
    /// A builder that the worker itself brings (`builtin:fetchurl`).
    Builtin,
}

/// Capacity: what a job asks for, or what a worker offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resources {
    /// Processor cores.
    pub cores: u32,
    /// Memory in MiB. A job with 0 asks for none in particular: the worker's whole memory is its limit.
    pub memory_mib: u64,
}

/// When a running job is stopped. 0 means the worker's own limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLimits {
    /// Wall time in milliseconds.
    pub wall_ms_max: u64,
    /// Time without a byte of log, in milliseconds.
    pub silence_ms_max: u64,
    /// Log bytes.
    pub log_bytes_max: u64,
    /// Bytes of all outputs together, as NARs.
    pub output_bytes_max: u64,
}
