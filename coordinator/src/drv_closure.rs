//! The closure of a submission: every derivation that its roots need, from the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kiln_nix::Outline;
use kiln_wire::client::Refusal;
use kiln_wire::limits::JOBS_PER_SUBMISSION_MAX;
use kiln_wire::{DrvPath, Root};

use crate::derivations::DerivationError;
use crate::driver::Chain;
use crate::garbage::touch;
use crate::parts::Parts;
use crate::refuse;

/// The derivations of a closure, inputs before what needs them.
pub(crate) struct DrvClosure {
    pub(crate) ordered: Vec<DrvPath>,
    pub(crate) outlines: BTreeMap<DrvPath, Arc<Outline>>,
}

impl DrvClosure {
    /// Loads every derivation that the roots need, many at a time: one that was not used lately is a way to the store and back.
    ///
    /// # Errors
    /// A [`Refusal`] that names what is missing, or what is no derivation.
    pub(crate) async fn load(parts: &Parts, roots: &[Root]) -> Result<Self, Refusal> {
        let mut waiting: Vec<DrvPath> = roots.iter().map(|root| root.derivation.clone()).collect();
        let mut seen: BTreeSet<DrvPath> = waiting.iter().cloned().collect();
        let (mut lacking, mut loading) = (Vec::new(), FuturesUnordered::new());
        let mut outlines: BTreeMap<DrvPath, Arc<Outline>> = BTreeMap::new();
        let mut missing = BTreeSet::new();
        loop {
            // What is in memory costs one turn at the gate for each level of the graph.
            while !waiting.is_empty() {
                touch(parts, waiting.iter().map(DrvPath::as_path)).await;
                for path in std::mem::take(&mut waiting) {
                    match parts.derivations.known(&path) {
                        Some(outline) => {
                            waiting.extend(unseen(&outline, &mut seen));
                            outlines.insert(path, outline);
                        }
                        None => lacking.push(path),
                    }
                }
            }
            if outlines.len() > JOBS_PER_SUBMISSION_MAX {
                return Err(refuse::invalid(format!(
                    "submit: the closure has over {JOBS_PER_SUBMISSION_MAX} derivations; submit it in parts"
                )));
            }
            while let Some(path) = lacking.pop_if(|_| loading.len() < LOADS_MAX) {
                loading.push(async move { (parts.derivations.outline(parts, &path).await, path) });
            }
            match loading.next().await {
                Some((Ok(outline), path)) => {
                    waiting.extend(unseen(&outline, &mut seen));
                    outlines.insert(path, outline);
                }
                Some((Err(DerivationError::Missing(path)), _)) => {
                    missing.insert(path);
                }
                Some((Err(error), _)) => return Err(unreadable(&error)),
                None => break,
            }
        }
        if missing.is_empty() {
            return Ok(Self { ordered: ordered(&outlines, roots), outlines });
        }
        Err(refuse::missing("submit", "derivations", missing.iter().map(|path| path.as_path().clone()).collect()))
    }
}

/// Returns the inputs of a derivation that nobody has seen yet.
fn unseen(outline: &Outline, seen: &mut BTreeSet<DrvPath>) -> Vec<DrvPath> {
    outline.inputs().map(|(input, _)| input).filter(|input| seen.insert((*input).clone())).cloned().collect()
}

/// Returns the derivations of a whole closure, inputs before what needs them, by a walk without recursion.
fn ordered(outlines: &BTreeMap<DrvPath, Arc<Outline>>, roots: &[Root]) -> Vec<DrvPath> {
    enum Step<'a> {
        Enter(&'a DrvPath),
        Leave(&'a DrvPath),
    }
    let mut ordered = Vec::new();
    let mut entered = BTreeSet::new();
    let mut steps: Vec<Step<'_>> = roots.iter().map(|root| Step::Enter(&root.derivation)).collect();
    while let Some(step) = steps.pop() {
        match step {
            Step::Leave(path) => ordered.push(path.clone()),
            Step::Enter(path) if entered.insert(path) => {
                steps.push(Step::Leave(path));
                steps.extend(outlines[path].inputs().map(|(input, _)| Step::Enter(input)));
            }
            Step::Enter(_) => {}
        }
    }
    ordered
}

/// A file that is no derivation stays none; a store that fails may answer the next time.
pub(crate) fn unreadable(error: &DerivationError) -> Refusal {
    match error {
        DerivationError::Parse { .. } | DerivationError::NotOne { .. } | DerivationError::Missing(_) => {
            refuse::invalid(format!("submit: {}", Chain(error)))
        }
        DerivationError::Store { .. } => refuse::unavailable("submit", error),
    }
}

/// Derivations that are read from the store at the same time.
const LOADS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use kiln_store::StoreError;
    use kiln_wire::client::RefusalKind;

    use super::*;

    #[test]
    fn a_store_that_refuses_is_no_fault_of_the_submission() {
        let path = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        let source = StoreError::Directory { dir: "/spool".into(), err: std::io::ErrorKind::PermissionDenied.into() };
        let refusal = unreadable(&DerivationError::Store { path, source });
        assert_eq!(refusal.kind, RefusalKind::Unavailable);
    }
}
