//! Derivations as paths that builders may read: an input source may be the file of a derivation, with all that it refers to.
//!
//! A farm keeps derivations as files of their own kind, without a narinfo. One that a builder is to see gets its archive and narinfo when a
//! job with it is submitted, as if a client had brought it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use futures::TryStreamExt;
use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::derivation::Derivation;
use kiln_nix::hash::{Algorithm, Hasher};
use kiln_nix::scan::Candidates;
use kiln_store::{Endorsed, Packer, Provenance, StoreError};
use kiln_wire::client::Refusal;
use kiln_wire::limits::JOBS_PER_SUBMISSION_MAX;
use kiln_wire::{DrvPath, Leader, PathInfo, StorePath};

use crate::absent::Absent;
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
pub(crate) async fn make_valid(parts: &Parts, derivations: Vec<StorePath>) -> Result<Absent, Refusal> {
    let leader = leading::own(parts);
    let (files, absent) = load(parts, derivations).await?;
    if absent.is_empty() {
        let references = files.iter().map(|(path, derivation)| (path.clone(), derivation.references())).collect();
        for layer in layers(&references) {
            let publications = futures::stream::iter(layer.iter().map(Ok));
            publications.try_for_each_concurrent(PUBLICATIONS_MAX, |path| publish(parts, leader, path, &files[path])).await?;
        }
    }
    Ok(absent)
}

/// Derivations by their paths.
type Files = BTreeMap<StorePath, Arc<Derivation>>;

/// Loads derivations and those that they refer to, as far as they are no valid paths. Returns also what the farm lacks.
async fn load(parts: &Parts, derivations: Vec<StorePath>) -> Result<(Files, Absent), Refusal> {
    let (mut files, mut absent) = (Files::new(), Absent::default());
    let mut seen: BTreeSet<StorePath> = derivations.iter().cloned().collect();
    let mut open = derivations;
    while let Some(path) = open.pop() {
        touch(parts, [&path]).await;
        // Before the store is: what is published in between is there.
        let is_committed = parts.farm(|farm| farm.path_info(&path).is_some());
        if parts.store.path_info(&path).await.map_err(|error| refuse::unavailable("submit", &error))?.is_some() {
            continue;
        }
        if is_committed {
            absent.coming.insert(path);
            continue;
        }
        let Ok(drv_path) = DrvPath::from_path(path.clone()) else {
            absent.missing.insert(path);
            continue;
        };
        let derivation = match parts.derivations.get(parts, &drv_path).await {
            Ok(derivation) => derivation,
            Err(DerivationError::Missing(_)) => {
                absent.missing.insert(path);
                continue;
            }
            Err(error @ DerivationError::Store { .. }) => return Err(refuse::unavailable("submit", &error)),
            Err(error) => return Err(refuse::invalid(format!("submit: {}", Chain(&error)))),
        };
        open.extend(derivation.references().into_iter().filter(|path| seen.insert(path.clone())));
        files.insert(path, derivation);
        if seen.len() > JOBS_PER_SUBMISSION_MAX {
            return Err(refuse::invalid(format!(
                "submit: the derivations that builders are to read need over {JOBS_PER_SUBMISSION_MAX} paths"
            )));
        }
    }
    Ok((files, absent))
}

/// Divides paths into layers, each of which refers to those before it only, and to what is not among the paths.
fn layers(references: &BTreeMap<StorePath, BTreeSet<StorePath>>) -> Vec<BTreeSet<StorePath>> {
    let mut lacking: BTreeMap<&StorePath, usize> = BTreeMap::new();
    let mut referrers: BTreeMap<&StorePath, Vec<&StorePath>> = BTreeMap::new();
    for (path, refers_to) in references {
        let among = || refers_to.iter().filter(|other| *other != path && references.contains_key(*other));
        lacking.insert(path, among().count());
        among().for_each(|other| referrers.entry(other).or_default().push(path));
    }
    let mut layers = Vec::new();
    let mut layer: BTreeSet<StorePath> = lacking.iter().filter(|(_, count)| **count == 0).map(|(path, _)| (*path).clone()).collect();
    while !layer.is_empty() {
        let mut next = BTreeSet::new();
        for referrer in layer.iter().flat_map(|path| referrers.get(path).into_iter().flatten()) {
            let count = lacking.get_mut(referrer).expect("every path has a count");
            *count -= 1;
            if *count == 0 {
                next.insert((*referrer).clone());
            }
        }
        layers.push(std::mem::replace(&mut layer, next));
    }
    layers
}

async fn publish(parts: &Parts, leader: Option<Leader>, path: &StorePath, derivation: &Derivation) -> Result<(), Refusal> {
    let info = store(parts, path, derivation).await.map_err(|error| refuse::unavailable("submit", &error))?;
    match intake::publish(parts, leader, &Endorsed { info, signatures: Vec::new() }).await {
        Ok(()) => Ok(()),
        Err(error @ IntakeError::Differs { .. }) => Err(refuse::invalid(format!("submit: {}", Chain(&error)))),
        // Also if something that it refers to is gone again: whoever asks anew is told what is missing.
        Err(error) => Err(refuse::unavailable("submit", &error)),
    }
}

/// Stores the archive of a derivation's file.
async fn store(parts: &Parts, path: &StorePath, derivation: &Derivation) -> Result<PathInfo, StoreError> {
    let bytes = derivation.print(&parts.store_dir);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(&bytes);
    let address = ContentAddress { method: Method::Text, hash: hasher.finish() };
    let packer = Packer { level: LEVEL, spool_dir: parts.store.spool_dir().to_path_buf() };
    let spooled = |err| StoreError::Directory { dir: parts.store.spool_dir().to_path_buf(), err };
    let packed = packer.pack_file(path.as_str(), &bytes, &Candidates::new([])).map_err(|err| spooled(std::io::Error::other(err)))?;
    let mut info = packed.path_info(path.clone(), None, Some(address.to_string()));
    info.references = derivation.references();
    let mut blob = Vec::new();
    packed.spool.into_bytes().reader().read_to_end(&mut blob).map_err(spooled)?;
    let mut receiver = parts.store.receive(info, Provenance::Imported)?;
    receiver.write(&blob)?;
    parts.store.finish_upload(receiver).await
}

/// zstd's level: they are small, and written once.
const LEVEL: i32 = 3;
/// Derivations that are published at a time: each waits for the disk.
const PUBLICATIONS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn path(letter: char) -> StorePath {
        StorePath::parse(&format!("{}-x.drv", letter.to_string().repeat(32))).expect("a path")
    }

    #[test]
    fn what_is_referred_to_comes_first_whichever_way_it_is_reached() {
        // `a` refers to both others, and one of these to the other, in both orders of their names.
        for (low, high) in [('y', 'z'), ('z', 'y')] {
            let to = |letters: &[char]| letters.iter().copied().map(path).collect::<BTreeSet<_>>();
            let references = BTreeMap::from([(path('a'), to(&[low, high])), (path(high), to(&[low, 'q'])), (path(low), to(&['q']))]);
            assert_eq!(layers(&references), [to(&[low]), to(&[high]), to(&['a'])]);
        }
        assert_eq!(layers(&BTreeMap::new()), Vec::<BTreeSet<_>>::new());
    }
}
