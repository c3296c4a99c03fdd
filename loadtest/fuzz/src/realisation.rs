//! Realisations, in both layouts: what is read is written as what reads the same, under a file name that names it, and nobody vouches for
//! what was not signed.
//!
//! An input is a line that names the output, `sha256:HASH!OUTPUT` or `DERIVATION^OUTPUT`, then the text of its file.

use kiln_nix::realisation::{DerivedOutput, Realisation};
use kiln_nix::{Keyring, SecretKey};
use kiln_wire::{DrvPath, OutputName};

use crate::{Target, Verdict};

/// JSON is held as a tree.
pub(crate) const TARGET: Target = Target { name: "realisation", run, heap_bytes: 1 << 17, heap_per_byte: 256 };

fn run(bytes: &[u8]) -> Verdict {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (name, text) = (String::from_utf8_lossy(&bytes[..end]), bytes.get(end + 1..).unwrap_or_default());
    let Some(of) = named(&name) else { return Verdict::Refused };
    assert_eq!(of.to_string(), name, "an output has one name");
    let file = of.file_name();
    let leads_on = |part: &str| part.is_empty() || part == "." || part == "..";
    assert!(!file.split('/').any(leads_on) && file.ends_with(".doi"), "{file} stays where realisations are");
    let read = Realisation::parse(of.clone(), text);
    if let Ok(read) = &read {
        let written = read.to_json();
        let again = Realisation::parse(of, written.as_bytes()).unwrap_or_else(|err| panic!("{err}, of\n{written}"));
        assert_eq!(&again, read, "{written}");
        assert_eq!((again.fingerprint(), again.to_json()), (read.fingerprint(), written));
        let keys = Keyring::of(SecretKey::from_seed("farm-1", [1; 32]).expect("a name"));
        assert_eq!(read.is_vouched(&keys), read.signatures.iter().any(|by| is_ours(read, by, &keys)), "{read:?}");
    }
    Verdict::of(&read)
}

fn named(text: &str) -> Option<DerivedOutput> {
    match text.split_once('^') {
        None => DerivedOutput::parse_by_hash(text).ok(),
        Some((derivation, output)) => {
            let (derivation, output) = (DrvPath::parse(derivation).ok()?, OutputName::parse(output).ok()?);
            Some(DerivedOutput::ByPath { derivation, output })
        }
    }
}

/// Whether it is the signature that our key gives: Ed25519 has one for each text.
fn is_ours(read: &Realisation, by: &kiln_nix::Signature, keys: &Keyring) -> bool {
    Realisation::signed(read.of.clone(), read.path.clone(), keys).signatures.contains(by)
}
