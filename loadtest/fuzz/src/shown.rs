//! Derivations as JSON, in every form in which Nix has shown them: what is read belongs at its path, and what is shown of a derivation is
//! read back to the same bytes or refused.
//!
//! An input is a byte: even, and JSON follows; odd, and a derivation in its own form follows, which is shown first.

use kiln_nix::derivation::{Derivation, Shown, path_of_parsed, read_shown, show};
use kiln_nix::drv_path_of;
use kiln_wire::StoreDir;

use crate::{Target, Verdict};

/// A text of JSON is held as a tree, as a derivation, and as bytes of each; an empty entry of a map is some forty times its length.
pub(crate) const TARGET: Target = Target { name: "shown", run, heap_bytes: 1 << 18, heap_per_byte: 256 };

/// The name of the derivation in an odd input.
const NAME: &str = "x";

fn run(bytes: &[u8]) -> Verdict {
    let Some((kind, rest)) = bytes.split_first() else { return Verdict::Refused };
    let store_dir = StoreDir::default();
    if kind % 2 == 1 {
        return parsed(&store_dir, rest);
    }
    let read = read_shown(&store_dir, rest);
    if let Ok(all) = &read {
        for one in all {
            assert_eq!(drv_path_of(&store_dir, one.path.name(), &one.bytes).as_ref(), Ok(&one.path), "it belongs at its path");
        }
        shown_again(&store_dir, all);
    }
    Verdict::of(&read)
}

/// Shows a derivation, and reads that.
fn parsed(store_dir: &StoreDir, bytes: &[u8]) -> Verdict {
    let parsed = Derivation::parse_canonical(store_dir, NAME, bytes);
    if let Ok(derivation) = &parsed
        && let Ok(path) = path_of_parsed(store_dir, derivation, bytes)
    {
        shown_again(store_dir, &[Shown { path, derivation: derivation.clone(), bytes: bytes.to_vec() }]);
    }
    Verdict::of(&parsed)
}

/// JSON cannot say bytes that are no text, and the form of Nix 2.8 no outputs of outputs; all else is read back.
fn shown_again(store_dir: &StoreDir, all: &[Shown]) {
    let pairs: Vec<_> = all.iter().map(|one| (one.path.clone(), one.derivation.clone())).collect();
    let text = show(store_dir, &pairs);
    let is_text = |one: &Shown| one.derivation.env.values().all(|value| std::str::from_utf8(value).is_ok());
    let is_plain = |one: &Shown| one.derivation.inputs.values().all(|input| input.dynamic.is_empty());
    let can_be_said = all.iter().all(|one| is_text(one) && is_plain(one));
    match read_shown(store_dir, text.as_bytes()) {
        Ok(again) => assert_eq!(again, all, "{text}"),
        Err(err) => assert!(!can_be_said, "{err}, of\n{text}"),
    }
}
