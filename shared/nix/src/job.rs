//! A derivation as a job of the farm: what it asks of a worker.

use kiln_wire::{DerivedInput, DrvPath, JobKind, JobLimits, JobSpec, OutputName, Resources};

use crate::derivation::{AttributeError, Derivation, Output};

/// Why a derivation is no job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// An attribute that decides where it runs is of the wrong kind.
    #[error("make a job of `{derivation}`")]
    Attribute {
        /// Which derivation.
        derivation: DrvPath,
        /// Which attribute.
        #[source]
        err: AttributeError,
    },
    /// It needs outputs of a derivation that only a build will make.
    #[error("make a job of `{derivation}`: it needs a derivation that output `{output}` of `{input}` makes (xp-dyn-drv); build that first")]
    DynamicInput {
        /// Which derivation.
        derivation: DrvPath,
        /// The input.
        input: DrvPath,
        /// Its output that is a derivation.
        output: OutputName,
    },
    /// Its result depends on the world, so no two workers agree on it.
    #[error("make a job of `{derivation}`: output `{output}` is impure; build it where its result is used")]
    Impure {
        /// Which derivation.
        derivation: DrvPath,
        /// The output.
        output: OutputName,
    },
    /// It makes nothing.
    #[error("make a job of `{derivation}`: it has no outputs")]
    NoOutputs {
        /// Which derivation.
        derivation: DrvPath,
    },
}

/// Cores of a job that says nothing of parallel building: most spend their time in one process.
pub const CORES_SERIAL: u32 = 1;

/// Cores of a job that builds in parallel. Two, so that the smallest of workers can run it; a free worker gives it more.
pub const CORES_PARALLEL: u32 = 2;

/// Returns the job that builds `derivation`, with all of its inputs. Memory and limits are 0: the worker's own.
///
/// # Errors
/// [`JobError`] if the farm cannot build it.
pub fn spec(path: &DrvPath, derivation: &Derivation) -> Result<JobSpec, JobError> {
    let refuse = |err| JobError::Attribute { derivation: path.clone(), err };
    if derivation.outputs.is_empty() {
        return Err(JobError::NoOutputs { derivation: path.clone() });
    }
    if let Some((output, _)) = derivation.outputs.iter().find(|(_, output)| matches!(output, Output::Impure { .. })) {
        return Err(JobError::Impure { derivation: path.clone(), output: output.clone() });
    }
    let attributes = derivation.attributes().map_err(refuse)?;
    let mut required_features = attributes.required_system_features().map_err(refuse)?;
    if derivation.outputs.values().any(|output| output.path().is_none()) {
        // As Nix: a worker must know how to give such outputs their path.
        required_features.insert("ca-derivations".to_owned());
    }
    let parallel = attributes.enable_parallel_building().map_err(refuse)?;
    Ok(JobSpec {
        derivation: path.clone(),
        system: derivation.system.clone(),
        required_features,
        outputs: derivation.outputs.iter().map(|(name, output)| (name.clone(), output.path().cloned())).collect(),
        inputs: inputs(path, derivation)?,
        kind: kind(derivation),
        prefer_local: attributes.prefer_local_build().map_err(refuse)?,
        resources: Resources { cores: if parallel { CORES_PARALLEL } else { CORES_SERIAL }, memory_mib: 0 },
        limits: JobLimits::default(),
    })
}

fn kind(derivation: &Derivation) -> JobKind {
    if derivation.is_builtin() {
        JobKind::Builtin
    } else if derivation.is_fixed_output() {
        JobKind::FixedOutput
    } else {
        JobKind::Ordinary
    }
}

fn inputs(path: &DrvPath, derivation: &Derivation) -> Result<Vec<DerivedInput>, JobError> {
    let mut inputs = Vec::with_capacity(derivation.inputs.len());
    for (input, wanted) in &derivation.inputs {
        if let Some(output) = wanted.dynamic.keys().next() {
            return Err(JobError::DynamicInput { derivation: path.clone(), input: input.clone(), output: output.clone() });
        }
        inputs.push(DerivedInput { derivation: input.clone(), outputs: wanted.outputs.clone() });
    }
    Ok(inputs)
}
