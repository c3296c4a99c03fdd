//! What a simulated worker makes of a recipe: a small file for each output, as a NAR, compressed and hashed as a real worker does.

use std::path::PathBuf;

use anyhow::Context;
use kiln_nix::derivation::{Derivation, Output};
use kiln_nix::scan::Candidates;
use kiln_store::{BlobBytes, Packer};
use kiln_wire::worker::Assignment;
use kiln_wire::{BuiltOutput, DrvPath, OutputName};

use crate::recipe::CONTENT;

/// An output, with the bytes to upload.
#[derive(Debug)]
pub struct Made {
    /// What is said of it.
    pub output: BuiltOutput,
    /// Its archive, compressed.
    pub blob: Vec<u8>,
}

/// Makes all outputs of an assignment.
///
/// # Errors
/// If the derivation is none of ours.
pub fn make(assignment: &Assignment) -> anyhow::Result<Vec<Made>> {
    let path = &assignment.lease.derivation;
    let name = path.name().trim_end_matches(".drv");
    let derivation = Derivation::parse(&assignment.store_dir, name, &assignment.derivation)?;
    let content = derivation.env.get(CONTENT).with_context(|| format!("`{path}` does not say what to make"))?;
    derivation.outputs.iter().map(|(name, output)| one(path, name, output, content)).collect()
}

fn one(derivation: &DrvPath, name: &OutputName, output: &Output, content: &[u8]) -> anyhow::Result<Made> {
    let path = output.path().with_context(|| format!("the path of output `{name}` of `{derivation}` is not known"))?.clone();
    let (content, address) = match output {
        Output::Fixed { address, .. } => (content.to_vec(), Some(address.to_string())),
        // No two outputs are alike, as in life.
        _ => ([content, b" ", name.as_str().as_bytes()].concat(), None),
    };
    // Small archives never leave memory.
    let packer = Packer { level: 1, spool_dir: PathBuf::new() };
    let packed = packer.pack_file(path.as_str(), &content, &Candidates::new([]))?;
    let info = packed.path_info(path, Some(derivation.clone()), address);
    let BlobBytes::Memory(blob) = packed.spool.into_bytes() else { anyhow::bail!("a small archive is in memory") };
    Ok(Made { output: BuiltOutput { name: name.clone(), info }, blob: blob.to_vec() })
}
