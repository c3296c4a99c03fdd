//! Derivations as paths that builders may read: an input source may be the file of a derivation, with all that it refers to.
//!
//! A farm keeps derivations as files of their own kind, without a narinfo. One that a builder is to see gets its archive and narinfo when a
//! job with it is submitted, as if a client had brought it.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::derivation::Derivation;
use kiln_nix::hash::{Algorithm, Hasher};
use kiln_nix::scan::Candidates;
use kiln_store::{Endorsed, Packer, Provenance, StoreError};
use kiln_wire::client::Refusal;
use kiln_wire::limits::JOBS_PER_SUBMISSION_MAX;
use kiln_wire::{DrvPath, PathInfo, StorePath};

use crate::derivations::DerivationError;
use crate::driver::Chain;
use crate::garbage::touch;
use crate::intake::{self, IntakeError};
use crate::leading;
use crate::parts::Parts;
use crate::refuse;

/// Makes derivations valid paths, with everything that they refer to. Returns what the farm lacks for that.
///
/// # Errors
/// A [`Refusal`] if one is none, or the store failed.
pub(crate) async fn make_valid(parts: &Parts, derivations: Vec<StorePath>) -> Result<Vec<StorePath>, Refusal> {
    let failed = |error: &StoreError| refuse::unavailable("submit", error);
    let mut missing = BTreeSet::new();
    let mut seen: BTreeSet<StorePath> = derivations.iter().cloned().collect();
    let mut steps: Vec<Step> = derivations.into_iter().map(Step::Enter).collect();
    while let Some(step) = steps.pop() {
        match step {
            Step::Leave(path, derivation) if missing.is_empty() => publish(parts, &path, &derivation).await?,
            Step::Leave(..) => {}
            Step::Enter(path) => {
                touch(parts, [&path]).await;
                if parts.store.path_info(&path).await.map_err(|error| failed(&error))?.is_some() {
                    continue;
                }
                let Ok(drv_path) = DrvPath::from_path(path.clone()) else {
                    missing.insert(path);
                    continue;
                };
                let derivation = match parts.derivations.get(&parts.store, &drv_path).await {
                    Ok(derivation) => derivation,
                    Err(DerivationError::Missing(_)) => {
                        missing.insert(path);
                        continue;
                    }
                    Err(error @ DerivationError::Store { .. }) => return Err(refuse::unavailable("submit", &error)),
                    Err(error) => return Err(refuse::invalid(format!("submit: {}", Chain(&error)))),
                };
                let references = derivation.references();
                steps.push(Step::Leave(drv_path, derivation));
                steps.extend(references.into_iter().filter(|path| seen.insert(path.clone())).map(Step::Enter));
                if seen.len() > JOBS_PER_SUBMISSION_MAX {
                    return Err(refuse::invalid(format!(
                        "submit: the derivations that builders are to read need over {JOBS_PER_SUBMISSION_MAX} paths"
                    )));
                }
            }
        }
    }
    Ok(missing.into_iter().collect())
}

enum Step {
    Enter(StorePath),
    /// After everything that it refers to.
    Leave(DrvPath, Arc<Derivation>),
}

async fn publish(parts: &Parts, path: &DrvPath, derivation: &Derivation) -> Result<(), Refusal> {
    let leader = leading::own(parts);
    let info = store(parts, path, derivation).await.map_err(|error| refuse::unavailable("submit", &error))?;
    match intake::publish(parts, leader, &Endorsed { info, signatures: Vec::new() }).await {
        Ok(()) => Ok(()),
        Err(error @ (IntakeError::Differs { .. } | IntakeError::Store(StoreError::MissingReference { .. }))) => {
            Err(refuse::invalid(format!("submit: {}", Chain(&error))))
        }
        Err(error) => Err(refuse::unavailable("submit", &error)),
    }
}

/// Stores the archive of a derivation's file.
async fn store(parts: &Parts, path: &DrvPath, derivation: &Derivation) -> Result<PathInfo, StoreError> {
    let bytes = derivation.print(&parts.store_dir);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(&bytes);
    let address = ContentAddress { method: Method::Text, hash: hasher.finish() };
    let packer = Packer { level: LEVEL, spool_dir: parts.store.spool_dir().to_path_buf() };
    let spooled = |err| StoreError::Directory { dir: parts.store.spool_dir().to_path_buf(), err };
    let packed = packer.pack_file(path.as_str(), &bytes, &Candidates::new([])).map_err(|err| spooled(std::io::Error::other(err)))?;
    let mut info = packed.path_info(path.as_path().clone(), None, Some(address.to_string()));
    info.references = derivation.references();
    let mut blob = Vec::new();
    packed.spool.into_bytes().reader().read_to_end(&mut blob).map_err(spooled)?;
    let mut receiver = parts.store.receive(info, Provenance::Imported)?;
    receiver.write(&blob)?;
    parts.store.finish_upload(receiver).await
}

/// zstd's level: they are small, and written once.
const LEVEL: i32 = 3;
