//! A derivation as a job of the farm: what it asks of a worker.

use std::collections::BTreeSet;

use kiln_wire::limits::DYNAMIC_DEPTH_MAX;
use kiln_wire::{DerivedInput, DrvPath, JobLimits, JobSpec, OutputNames, Resources};

use crate::derivation::AttributeError;
use crate::outline::{Asks, Need, Outline};

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
    /// It needs an output of a derivation that a derivation makes that a derivation makes, and so on, too often.
    #[error(
        "make a job of `{derivation}`: of `{input}` it needs what is {depth} derivations further, each made by the one before; at most {DYNAMIC_DEPTH_MAX} may be"
    )]
    TooDeep {
        /// Which derivation.
        derivation: DrvPath,
        /// The input.
        input: DrvPath,
        /// How many.
        depth: usize,
    },
    /// Its result would depend on the world, and nothing says so.
    #[error("make a job of `{derivation}`: it is pure and needs `{input}`, which is impure; only impure and fixed-output derivations may")]
    NeedsImpure {
        /// Which derivation.
        derivation: DrvPath,
        /// The impure one.
        input: DrvPath,
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

/// Returns the job that builds a derivation, with all of its inputs, whose outlines `input_of` returns. Memory and limits are 0: the worker's
/// own.
///
/// # Errors
/// [`JobError`] if the farm cannot build it.
pub fn spec<'a>(path: &DrvPath, outline: &Outline, input_of: impl Fn(&DrvPath) -> Option<&'a Outline>) -> Result<JobSpec, JobError> {
    if outline.outputs().is_empty() {
        return Err(JobError::NoOutputs { derivation: path.clone() });
    }
    let impure = outline.inputs().find(|(input, _)| outline.is_pure && input_of(input).is_some_and(Outline::is_impure));
    if let Some((input, _)) = impure {
        return Err(JobError::NeedsImpure { derivation: path.clone(), input: input.clone() });
    }
    let Asks { features, parallel, prefer_local } =
        outline.asks.as_ref().map_err(|err| JobError::Attribute { derivation: path.clone(), err: err.clone() })?;
    let is_unknown = |need: &Need| {
        let output = need.output.as_ref().filter(|_| need.is_direct);
        output.is_some_and(|name| input_of(&need.derivation).is_some_and(|input| input.output(name) == Some(None)))
    };
    let resolve = outline.resolves || outline.is_dynamic() || outline.needs().iter().any(is_unknown);
    let mut required_features: BTreeSet<String> = features.iter().cloned().collect();
    if resolve || outline.outputs().iter().any(|(_, path)| path.is_none()) {
        // As Nix: a worker must know how to give such outputs their path, and that it gets the resolved recipe of one that is leased.
        required_features.insert("ca-derivations".to_owned());
    }
    if let Some((input, depth)) = outline.too_deep.as_deref() {
        return Err(JobError::TooDeep { derivation: path.clone(), input: input.clone(), depth: *depth });
    }
    Ok(JobSpec {
        derivation: path.clone(),
        system: outline.system.as_ref().to_owned(),
        required_features,
        outputs: outline.outputs().iter().cloned().collect(),
        inputs: outline.inputs().filter_map(|(input, needs)| input_of_job(input, needs)).collect(),
        kind: outline.kind,
        prefer_local: *prefer_local,
        resources: Resources { cores: if *parallel { CORES_PARALLEL } else { CORES_SERIAL }, memory_mib: 0 },
        limits: JobLimits::default(),
        resolve,
    })
}

/// Of an input of which nothing is wanted nothing is built.
fn input_of_job(input: &DrvPath, needs: &[Need]) -> Option<DerivedInput> {
    let outputs: OutputNames = needs.iter().filter_map(|need| need.output.clone()).collect();
    (!outputs.is_empty()).then(|| DerivedInput { derivation: input.clone(), outputs })
}

#[cfg(test)]
mod tests {
    use kiln_wire::StoreDir;

    use super::*;
    use crate::derivation::Derivation;

    fn parsed(output: &str, inputs: &str) -> Outline {
        let head = if inputs.contains(",([") { "DrvWithVersion(\"xp-dyn-drv\"," } else { "Derive(" };
        let text = format!(r#"{head}[("out",{output})],[{inputs}],[],"s","b",[],[("out","")])"#);
        Outline::of(&Derivation::parse(&StoreDir::default(), "x", text.as_bytes()).expect("a derivation"))
    }

    #[test]
    fn what_follows_from_content_is_resolved_as_nix_does() {
        let drv = |letter: &str| DrvPath::parse(&format!("{}-x.drv", letter.repeat(32))).expect("a path");
        let input = |letter: &str, outputs: &str| format!(r#"("/nix/store/{}",[{outputs}])"#, drv(letter));
        let known = format!(r#""/nix/store/{}-x","","""#, "k".repeat(32));
        let (floating, impure, deferred) = (r#""","r:sha256","""#, r#""","r:sha256","impure""#, r#""","","""#);
        // `a` is known before it is built, `b` is not.
        let (a, b) = (parsed(&known, ""), parsed(floating, ""));
        let (of_a, of_b, none_of_b) = (input("a", r#""out""#), input("b", r#""out""#), input("b", ""));
        let dynamic_of_a = format!(r#"("/nix/store/{}",([],[("out",["dev"])]))"#, drv("a"));
        for (output, inputs, resolve, needed) in [
            (known.as_str(), "", false, 0),
            (known.as_str(), of_a.as_str(), false, 1),
            (known.as_str(), of_b.as_str(), true, 1),
            (floating, "", false, 0),
            (floating, of_a.as_str(), true, 1),
            (impure, "", false, 0),
            (impure, of_a.as_str(), true, 1),
            (deferred, of_a.as_str(), true, 1),
            (deferred, "", true, 0),
            // Nothing is wanted of it: nothing waits for it.
            (known.as_str(), none_of_b.as_str(), false, 0),
            // What is made of `a` is known as little as what `b` makes.
            (known.as_str(), dynamic_of_a.as_str(), true, 1),
        ] {
            let job = spec(&drv("c"), &parsed(output, inputs), |input| match input {
                input if *input == drv("a") => Some(&a),
                input if *input == drv("b") => Some(&b),
                _ => None,
            });
            let job = job.expect("a job");
            assert_eq!((job.resolve, job.inputs.len()), (resolve, needed), "{output} upon {inputs}");
        }
    }
    #[test]
    fn a_chain_of_derivations_that_are_made_has_an_end() {
        let drv = DrvPath::parse(&format!("{}-x.drv", "a".repeat(32))).expect("a path");
        for (depth, is_job) in [(1, true), (DYNAMIC_DEPTH_MAX, true), (DYNAMIC_DEPTH_MAX + 1, false)] {
            let (open, close) = (r#"([],[("out","#.repeat(depth), ")])".repeat(depth));
            let derivation = parsed(r#""","r:sha256","""#, &format!(r#"("/nix/store/{drv}",{open}["out"]{close})"#));
            let job = spec(&drv, &derivation, |_| None);
            assert_eq!(job.is_ok(), is_job, "{job:?}");
            if let Ok(job) = job {
                assert_eq!(job.inputs[0].outputs.len(), 1, "the derivation that is made first");
            }
        }
    }
}
