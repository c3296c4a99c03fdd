//! Imports what a builder left behind: outputs are made canonical (by whoever may: [`make_canonical`]), packed in one pass, checked, put
//! in order, and kept in the store cache, where dependents on this worker find them.
//!
//! Runs only after the build's group is empty, in a directory that nobody else can enter. Blocks. Does not upload.
//! Source: Nix's `registerOutputs`; SANDBOX.md items 31 to 38.

mod addressed;
pub mod canonical;
pub mod checks;
pub mod fixed;
pub mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kiln_nix::derivation::{Derivation, Output, scratch_path};
use kiln_nix::nar::NarError;
use kiln_nix::scan::Candidates;
use kiln_store::{BlobBytes, NarReader, PackError, Packed, Packer, unpack};
use kiln_wire::worker::Assignment;
use kiln_wire::{BuiltOutput, DrvPath, Failure, FailureClass, OutputName, PathInfo, StorePath};
use rustix::fs::CWD;

use crate::cache::{Cache, CacheError, Pin};
use crate::failure::{caused, failure};
use crate::launcher::Owner;
use crate::trash::{c_name, open_dir};
use canonical::{Canonical, CanonicalError};

/// What there is to import.
#[derive(Debug)]
pub struct Import<'a> {
    /// What was asked for.
    pub assignment: &'a Assignment,
    /// Its derivation.
    pub derivation: &'a Derivation,
    /// The directory in which the outputs lie by their base names, made canonical and our own.
    pub dir: PathBuf,
    /// Bytes of all outputs together.
    pub bytes_max: u64,
    /// How outputs are packed.
    pub packer: &'a Packer,
    /// Another process may hold descriptors of the outputs: the build had a network. Copies are kept then, not the files themselves.
    pub shared_network: bool,
}

/// One imported output.
#[derive(Debug)]
pub struct Made {
    /// What the farm is told.
    pub output: BuiltOutput,
    /// Its blob.
    pub body: BlobBytes,
}

/// Imports every output of an attempt. The outputs stay in the cache while the pin lives.
///
/// # Errors
/// The attempt's failure, in words for people.
pub fn import(import: &Import<'_>, cache: &Cache) -> Result<(Vec<Made>, Pin), Failure> {
    let paths = output_paths(import.assignment, import.derivation)?;
    let packed = pack_all(import, &paths)?;
    let mut packed = addressed::address(import, packed)?;
    let infos: BTreeMap<OutputName, PathInfo> = packed.iter().map(|(name, one)| (name.clone(), one.info.clone())).collect();
    check_fixed(import, &packed)?;
    let build_failure = |err: &dyn std::error::Error| caused(FailureClass::BuildFailure, &about(import), err);
    let ordered = order::order(&infos).map_err(|err| build_failure(&err))?;
    checks::check(&import.assignment.store_dir, import.derivation, &infos, &import.assignment.inputs).map_err(|err| build_failure(&err))?;
    let mut pin = cache.empty_pin();
    let mut made = Vec::new();
    for name in ordered {
        let one = packed.remove(&name).expect("every ordered output is packed");
        keep(import, cache, &mut pin, &one)?;
        let PackedOutput { info, body, .. } = one;
        made.push(Made { output: BuiltOutput { name, info }, body });
    }
    Ok((made, pin))
}

/// Makes the `outputs` in `dir` canonical and `owner`'s. They must have been made by `uids`, and hold `bytes_max` together at most. Nothing
/// may be able to change them meanwhile.
///
/// # Errors
/// The attempt's failure, in words for people, without its derivation's name.
pub fn make_canonical(
    dir: &Path,
    outputs: &BTreeMap<OutputName, StorePath>,
    uids: RangeInclusive<u32>,
    owner: Owner,
    bytes_max: u64,
) -> Result<(), Failure> {
    let infrastructure = |err: &dyn std::error::Error| caused(FailureClass::Infrastructure, "", err);
    let dir = c_name(dir).map_err(|err| infrastructure(&err))?;
    let dir = open_dir(CWD, &dir).map_err(|err| infrastructure(&err))?;
    let mut canonical = Canonical::new(uids, owner, bytes_max);
    for (name, path) in outputs {
        canonical.output(dir.as_fd(), &base_name(path), name).map_err(|err| caused(canonical_class(&err), "", &err))?;
    }
    Ok(())
}

fn canonical_class(err: &CanonicalError) -> FailureClass {
    match err {
        CanonicalError::Io { .. } => FailureClass::Infrastructure,
        CanonicalError::TooLarge { .. } => FailureClass::LimitExceeded,
        CanonicalError::Missing { .. }
        | CanonicalError::Suspicious { .. }
        | CanonicalError::Unsupported { .. }
        | CanonicalError::Foreign { .. }
        | CanonicalError::TooDeep { .. } => FailureClass::BuildFailure,
    }
}

/// Returns where the builder puts each output: its path, or one in the place of what will follow from its content.
///
/// # Errors
/// A build failure for derivations whose output paths follow from inputs that are not put into them.
pub fn output_paths(assignment: &Assignment, derivation: &Derivation) -> Result<BTreeMap<OutputName, StorePath>, Failure> {
    let built = assignment.resolved.as_ref().unwrap_or(&assignment.lease.derivation);
    let at = derivation.outputs.iter().map(|(name, output)| {
        let path = match output {
            Output::InputAddressed(path) | Output::Fixed { path, .. } => path.clone(),
            Output::Floating { .. } | Output::Impure { .. } => {
                let path = scratch_path(&assignment.store_dir, built, name);
                path.map_err(|err| caused(FailureClass::BuildFailure, &importing(&assignment.lease.derivation), &err))?
            }
            Output::Deferred => {
                let text = format!("output `{name}` of `{}` is deferred: its path is not known before its inputs are", derivation.name);
                return Err(failure(FailureClass::BuildFailure, &text));
            }
        };
        Ok((name.clone(), path))
    });
    at.collect()
}

fn about(import: &Import<'_>) -> String {
    importing(&import.assignment.lease.derivation)
}

/// Says what an import is about, for the start of a failure's message.
pub fn importing(derivation: &DrvPath) -> String {
    format!("import the outputs of `{derivation}`")
}

/// An output that was packed.
struct PackedOutput {
    info: PathInfo,
    body: BlobBytes,
    /// What it was found to hold, also where the recipe wants that forgotten.
    found: BTreeSet<StorePath>,
    /// Its tree lies in the directory of the outputs, under the base name of its path.
    in_place: bool,
}

type PackedOutputs = BTreeMap<OutputName, PackedOutput>;

fn pack_all(import: &Import<'_>, paths: &BTreeMap<OutputName, StorePath>) -> Result<PackedOutputs, Failure> {
    let inputs = import.assignment.inputs.iter().map(|info| &info.path);
    let candidates: BTreeSet<StorePath> = inputs.chain(paths.values()).cloned().collect();
    let candidates = Candidates::new(candidates);
    let mut left_bytes = import.bytes_max;
    let mut found = BTreeMap::new();
    for (name, path) in paths {
        let packed = import.packer.pack(&import.dir.join(path.as_str()), &candidates);
        let packed = packed.map_err(|err| caused(pack_class(&err), &about(import), &err))?;
        left_bytes = left_bytes.checked_sub(packed.nar_size_bytes).ok_or_else(|| {
            let err = CanonicalError::TooLarge { limit_bytes: import.bytes_max };
            caused(FailureClass::LimitExceeded, &about(import), &err)
        })?;
        found.insert(name.clone(), describe(import, name, path, packed)?);
    }
    Ok(found)
}

fn describe(import: &Import<'_>, name: &OutputName, path: &StorePath, packed: Packed) -> Result<PackedOutput, Failure> {
    let discards = import.derivation.attributes().and_then(|attributes| attributes.discards_references(name.as_str()));
    let discards = discards.map_err(|err| caused(FailureClass::BuildFailure, &about(import), &err))?;
    let content_address = match &import.derivation.outputs[name] {
        Output::Fixed { address, .. } => Some(address.to_string()),
        Output::InputAddressed(_) | Output::Floating { .. } | Output::Deferred | Output::Impure { .. } => None,
    };
    let mut info = packed.path_info(path.clone(), Some(import.assignment.lease.derivation.clone()), content_address);
    if discards {
        info.references.clear();
    }
    Ok(PackedOutput { info, body: packed.spool.into_bytes(), found: packed.references, in_place: true })
}

/// A tree that no NAR can hold is the builder's; a disk that refuses is not.
fn pack_class(err: &PackError) -> FailureClass {
    match err {
        PackError::Nar { err: NarError::FileType { .. } | NarError::Changed { .. } | NarError::TreeDepth { .. }, .. } => {
            FailureClass::BuildFailure
        }
        PackError::Nar { .. } | PackError::Compress { .. } => FailureClass::Infrastructure,
    }
}

/// Holds fixed outputs against the hashes in the recipe.
fn check_fixed(import: &Import<'_>, packed: &PackedOutputs) -> Result<(), Failure> {
    for (name, PackedOutput { info, body, .. }) in packed {
        let Output::Fixed { address, .. } = &import.derivation.outputs[name] else { continue };
        // Reading what was packed, not the files, so that what is checked is what is uploaded.
        let nar = NarReader::new(body.reader(), info.nar_size_bytes);
        let nar = nar.map_err(|err| caused(FailureClass::Infrastructure, &about(import), &err))?;
        let assignment = import.assignment;
        fixed::check(&assignment.store_dir, &assignment.lease.derivation, info, address, || nar)
            .map_err(|err| caused(FailureClass::BuildFailure, "", &err))?;
    }
    Ok(())
}

fn keep(import: &Import<'_>, cache: &Cache, pin: &mut Pin, one: &PackedOutput) -> Result<(), Failure> {
    let PackedOutput { info, body, in_place, .. } = one;
    let infrastructure = |err: &dyn std::error::Error| caused(FailureClass::Infrastructure, &about(import), err);
    let kept = if import.shared_network || !in_place || !is_near(import, cache).map_err(|err| infrastructure(&err))? {
        let copy = cache.incoming();
        let copied = unpack_canonical(info, body.reader(), &copy);
        copied.map_err(|err| {
            cache.discard_incoming(&copy);
            infrastructure(&*err)
        })?;
        pin.keep_incoming(info, &copy)
    } else {
        let dir = c_name(&import.dir).map_err(|err| infrastructure(&err))?;
        let dir = open_dir(CWD, &dir).map_err(|err| infrastructure(&err))?;
        pin.keep(info, dir.as_fd(), &base_name(&info.path))
    };
    match kept {
        // Another content of the same path is in use here. The farm decides which one counts; the upload has ours.
        Err(CacheError::InUse { .. }) => Ok(()),
        kept => kept.map_err(|err| infrastructure(&err)),
    }
}

/// Whether the outputs can be moved into the cache by renaming: they may lie on a file system, or subvolume, of the build's own.
fn is_near(import: &Import<'_>, cache: &Cache) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let incoming = cache.incoming();
    let cache_dir = incoming.parent().unwrap_or(Path::new("/"));
    Ok(std::fs::metadata(&import.dir)?.dev() == std::fs::metadata(cache_dir)?.dev())
}

/// Unpacks a blob to a private path and makes the tree canonical: as every object of the cache is.
///
/// # Errors
/// What the blob, the NAR in it or the disk gives. Something may then lie at `destination`.
pub fn unpack_canonical(
    info: &PathInfo,
    blob: impl std::io::Read,
    destination: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    unpack(info, blob, destination)?;
    let own = Owner::own();
    let dir = open_dir(CWD, &c_name(destination.parent().unwrap_or(Path::new("/")))?)?;
    let name = c_name(Path::new(destination.file_name().unwrap_or_default()))?;
    let output = OutputName::parse(info.path.name())?;
    Canonical::new(own.uid..=own.uid, own, u64::MAX).output(dir.as_fd(), &name, &output)?;
    Ok(())
}

fn base_name(path: &StorePath) -> CString {
    CString::new(path.as_str()).expect("a store path holds no NUL")
}
