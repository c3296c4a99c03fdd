//! Outputs whose paths follow from their content: built at scratch paths, hashed as if these were not known, moved to where they belong.
//!
//! Referred-to outputs come first, so that what refers to one is hashed with its final path in it. Source: Nix's `registerOutputs`
//! (`newInfoFromCA`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::derivation::{Output, output_path_name};
use kiln_nix::hash::{Algorithm, Hash};
use kiln_nix::nar::{self, NarError};
use kiln_nix::rewrite::Rewriter;
use kiln_nix::scan::Candidates;
use kiln_nix::self_hash::SelfHasher;
use kiln_store::{BlobBytes, NarReader};
use kiln_wire::{Failure, FailureClass, OutputName, PathInfo, StorePath};

use super::{Import, PackedOutput, PackedOutputs, about, order, pack_class};
use crate::failure::{caused, failure};

/// Scratch paths with the paths that took their place.
type Moved = BTreeMap<StorePath, StorePath>;

/// Gives outputs whose paths follow from their content these paths; others stay as they are.
///
/// # Errors
/// The attempt's failure, in words for people.
pub(super) fn address(import: &Import<'_>, mut packed: PackedOutputs) -> Result<PackedOutputs, Failure> {
    let found: BTreeMap<OutputName, PathInfo> =
        packed.iter().map(|(name, one)| (name.clone(), PathInfo { references: one.found.clone(), ..one.info.clone() })).collect();
    if !import.derivation.outputs.values().any(is_addressed) {
        return Ok(packed);
    }
    let ordered = order::order(&found).map_err(|err| caused(FailureClass::BuildFailure, &about(import), &err))?;
    let mut moved = Moved::new();
    let mut addressed = PackedOutputs::new();
    for name in ordered {
        let one = packed.remove(&name).expect("every ordered output is packed");
        let one = match &import.derivation.outputs[&name] {
            Output::Floating { method, algorithm } | Output::Impure { method, algorithm } => {
                let scratch = one.info.path.clone();
                let one = at_its_place(import, &name, one, &moved, (*method, *algorithm))?;
                moved.insert(scratch, one.info.path.clone());
                one
            }
            Output::InputAddressed(_) | Output::Fixed { .. } | Output::Deferred => one,
        };
        addressed.insert(name, one);
    }
    Ok(addressed)
}

fn is_addressed(output: &Output) -> bool {
    matches!(output, Output::Floating { .. } | Output::Impure { .. })
}

fn at_its_place(
    import: &Import<'_>,
    name: &OutputName,
    one: PackedOutput,
    moved: &Moved,
    (method, algorithm): (Method, Algorithm),
) -> Result<PackedOutput, Failure> {
    let build_failure = |err: &dyn std::error::Error| caused(FailureClass::BuildFailure, &about(import), err);
    let scratch = one.info.path.clone();
    let rewrites: Moved = moved.iter().filter(|(from, _)| one.found.contains(*from)).map(|(from, to)| (from.clone(), to.clone())).collect();
    let hash = hash_of(import, &one, &rewrites, method, algorithm)?;
    let final_of = |path: &StorePath| moved.get(path).cloned().unwrap_or_else(|| path.clone());
    let others: BTreeSet<StorePath> = one.info.references.iter().filter(|path| **path != scratch).map(final_of).collect();
    let refers_to_itself = one.info.references.contains(&scratch);
    check_self(name, &one.found, &one.info.references, &scratch)
        .map_err(|text| failure(FailureClass::BuildFailure, &format!("{}: {text}", about(import))))?;
    let address = ContentAddress { method, hash };
    let store_dir = &import.assignment.store_dir;
    let path = address.path(store_dir, &output_path_name(&import.derivation.name, name), &others, refers_to_itself);
    let path = path.map_err(|err| build_failure(&err))?;
    let mut references = others;
    references.extend(refers_to_itself.then(|| path.clone()));
    let content_address = Some(address.to_string());
    if rewrites.is_empty() && !one.found.contains(&scratch) {
        let renamed = std::fs::rename(import.dir.join(scratch.as_str()), import.dir.join(path.as_str()));
        renamed.map_err(|err| caused(FailureClass::Infrastructure, &about(import), &err))?;
        let info = PathInfo { path, references, content_address, ..one.info };
        return Ok(PackedOutput { info, ..one });
    }
    let rewrites = rewrites.iter().chain([(&scratch, &path)]);
    let nar = Rewriter::new(nar_of(import, &one)?, rewrites);
    let packed = import.packer.pack_nar(path.name(), nar, &Candidates::new(BTreeSet::new()));
    let packed = packed.map_err(|err| caused(pack_class(&err), &about(import), &err))?;
    let mut info = packed.path_info(path, one.info.deriver.clone(), content_address);
    info.references = references;
    Ok(PackedOutput { info, body: packed.spool.into_bytes(), found: one.found, in_place: false })
}

/// Refuses an output that holds its own path and is to forget it: whoever has it could not tell its content address from its content.
fn check_self(name: &OutputName, found: &BTreeSet<StorePath>, kept: &BTreeSet<StorePath>, scratch: &StorePath) -> Result<(), String> {
    if found.contains(scratch) && !kept.contains(scratch) {
        return Err(format!(
            "output `{name}` refers to itself, and `unsafeDiscardReferences` has that forgotten; a path that follows from content must keep it: \
             leave the output out of `unsafeDiscardReferences`, or its own path out of it"
        ));
    }
    Ok(())
}

/// Returns the hash of an output with the final paths of others in it, blind for its own scratch path.
fn hash_of(import: &Import<'_>, one: &PackedOutput, rewrites: &Moved, method: Method, algorithm: Algorithm) -> Result<Hash, Failure> {
    let mut nar = Rewriter::new(nar_of(import, one)?, rewrites);
    let mut hasher = SelfHasher::new(algorithm, &one.info.path);
    match method {
        Method::Nar => {
            let copied = std::io::copy(&mut nar, &mut hasher).map(drop);
            copied.map_err(|err| caused(FailureClass::Infrastructure, &about(import), &err))?;
        }
        Method::Flat | Method::Text => {
            let read = nar::read_single_file(&mut nar, &mut hasher);
            read.map_err(|err| caused(FailureClass::BuildFailure, &about(import), &err))?;
        }
        // What holds its own path has none that follows from Git's hash of it, so nothing is read blindly.
        Method::Git => {
            let hash = nar::git_hash(&mut nar, algorithm);
            let class = |err: &NarError| match matches!(err, NarError::LongTrees) {
                true => FailureClass::BuildFailure,
                false => FailureClass::Infrastructure,
            };
            return hash.map_err(|err| caused(class(&err), &about(import), &err));
        }
    }
    Ok(hasher.finish())
}

/// Reads what was packed, not the files, so that what is hashed is what is uploaded.
fn nar_of<'a>(import: &Import<'_>, one: &'a PackedOutput) -> Result<impl Read + use<'a>, Failure> {
    let body: &'a BlobBytes = &one.body;
    NarReader::new(body.reader(), one.info.nar_size_bytes).map_err(|err| caused(FailureClass::Infrastructure, &about(import), &err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_to_forget_that_it_refers_to_itself_is_refused() {
        let path = |letter: &str| StorePath::parse(&format!("{}-x", letter.repeat(32))).expect("a path");
        let name = OutputName::parse("out").expect("a name");
        let (scratch, other) = (path("a"), path("b"));
        let of = |paths: &[&StorePath]| paths.iter().map(|path| (*path).clone()).collect::<BTreeSet<_>>();
        let check = |found: &[&StorePath], kept: &[&StorePath]| check_self(&name, &of(found), &of(kept), &scratch);
        assert_eq!(check(&[&scratch, &other], &[&scratch, &other]), Ok(()));
        assert_eq!(check(&[&other], &[]), Ok(()), "others may be forgotten");
        let text = check(&[&scratch], &[]).expect_err("its address would be wrong");
        assert!(text.contains("output `out` refers to itself"), "{text}");
    }
}
