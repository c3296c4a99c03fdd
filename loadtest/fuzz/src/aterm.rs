//! Derivations as ATerm: what is read and printed again is the same derivation, in the same bytes if Nix wrote them; nothing that the
//! farm computes of a derivation (its path, its modulo hash, its job, its attributes, what is shown) panics.
//!
//! An input is a name, a newline, and a file.

use std::collections::BTreeMap;

use kiln_nix::derivation::{self, Derivation};
use kiln_nix::{Modulo, ModuloHash, Outline, drv_path_of, job};
use kiln_wire::{DrvPath, OutputName, Sha256Hash, StoreDir, StorePath};

use crate::{Target, Verdict};

/// A derivation is held several times over (theirs, ours, printed, as JSON), and its smallest parts are strings of a few bytes.
pub(crate) const TARGET: Target = Target { name: "aterm", run, heap_bytes: 1 << 18, heap_per_byte: 256 };

fn run(bytes: &[u8]) -> Verdict {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (Some(Ok(name)), Some(file)) = (parts.next().map(str::from_utf8), parts.next()) else { return Verdict::Refused };
    let store_dir = StoreDir::default();
    let canonical = Derivation::parse_canonical(&store_dir, name, file);
    match Derivation::parse(&store_dir, name, file) {
        Err(_) => assert!(canonical.is_err(), "what Nix writes is read: {canonical:?}"),
        Ok(derivation) => {
            check_print(&store_dir, &derivation, file, canonical.is_ok());
            check_computed(&store_dir, &derivation, file);
        }
    }
    Verdict::of(&canonical)
}

fn check_print(store_dir: &StoreDir, derivation: &Derivation, file: &[u8], is_canonical: bool) {
    let printed = derivation.print(store_dir);
    assert_eq!(printed == file, is_canonical, "only what is printed alike is as Nix writes it");
    // Nix does not escape a system, so one with a quote is printed as something else, which the farm refuses where it takes files.
    if !derivation.system.contains(['"', '\\']) {
        let again = Derivation::parse_canonical(store_dir, &derivation.name, &printed);
        assert_eq!(again.as_ref(), Ok(derivation), "what is printed is read back as Nix writes it");
    }
}

/// Computes all that the farm computes of a derivation that it was given.
fn check_computed(store_dir: &StoreDir, derivation: &Derivation, file: &[u8]) {
    let path = drv_path_of(store_dir, &derivation.name, file);
    let path = path.unwrap_or_else(|_| DrvPath::parse(&format!("{}-x.drv", "0".repeat(32))).expect("a derivation's path"));
    let mut modulo = Modulo::new(store_dir.clone());
    for (position, input) in derivation.inputs.keys().enumerate() {
        modulo.tell(input.clone(), told(position, input));
    }
    let _refused = modulo.check_outputs(&path, derivation);
    let _refused = job::spec(&path, &Outline::of(derivation), |_| None);
    if let Ok(attributes) = derivation.attributes() {
        let _refused = attributes.required_system_features();
        let _refused = attributes.prefer_local_build();
        let _refused = attributes.allow_substitutes();
        let _refused = attributes.enable_parallel_building();
        let _refused = attributes.pass_as_file();
        let _refused = attributes.export_references_graph();
        let _refused = attributes.impure_env_vars();
        let _refused = attributes.discards_references("out");
    }
    let _refused = derivation.structured_files(store_dir, &outputs(derivation), &BTreeMap::new());
    let shown = derivation::show(store_dir, &[(path, derivation.clone())]);
    assert!(shown.starts_with('{') && shown.ends_with('}'));
}

/// A hash for an input that was not read: one of each kind in turn, and some alike.
fn told(position: usize, input: &DrvPath) -> ModuloHash {
    let hash = Sha256Hash([input.as_str().as_bytes()[0]; 32]);
    match position % 4 {
        0 | 1 => ModuloHash::Regular(hash),
        2 => ModuloHash::Fixed(hash),
        _ => ModuloHash::Deferred(Some(hash)),
    }
}

/// Paths for the outputs, as a worker makes them up where they are not known.
fn outputs(derivation: &Derivation) -> BTreeMap<OutputName, StorePath> {
    let made_up = StorePath::parse(&format!("{}-x", "0".repeat(32))).expect("a store path");
    derivation.outputs.iter().map(|(name, output)| (name.clone(), output.path().unwrap_or(&made_up).clone())).collect()
}
