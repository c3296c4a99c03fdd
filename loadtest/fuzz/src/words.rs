//! Short texts that strangers send: what an `Authorization` header shows, names of files and paths in a URL, keys, signatures, content
//! addresses and hashes. What is taken has one way to be written, and leads nowhere else.
//!
//! An input is a byte that chooses the kind, then the text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kiln_nix::hash::Hash;
use kiln_nix::{ContentAddress, PublicKey, Signature};
use kiln_store::Compression;
use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

use crate::tokens::{self, Scope, Token, TokenHash};
use crate::{Target, Verdict};

/// A text is held a few times over.
pub(crate) const TARGET: Target = Target { name: "words", run, heap_bytes: 1 << 14, heap_per_byte: 16 };

fn run(bytes: &[u8]) -> Verdict {
    let Some((kind, text)) = bytes.split_first() else { return Verdict::Refused };
    let Ok(text) = std::str::from_utf8(text) else { return Verdict::Refused };
    let is_taken = KINDS[usize::from(*kind) % KINDS.len()](text);
    if is_taken { Verdict::Accepted } else { Verdict::Refused }
}

/// Each says whether it takes the text.
const KINDS: [fn(&str) -> bool; 8] = [authorisation, archive, store_path, full_path, output, key, content_address, hash];

fn authorisation(header: &str) -> bool {
    const SECRET: &str = "secret:1";
    let known = [Token { name: "ci".to_owned(), hash: TokenHash::of(SECRET), scope: Scope::Upload, tenant: None }];
    let is_known = tokens::shown(&known, header).is_some();
    let is_basic = || {
        let decoded = header.split_once(' ').and_then(|(_, rest)| STANDARD.decode(rest.trim()).ok()).unwrap_or_default();
        decoded.ends_with(format!(":{SECRET}").as_bytes())
    };
    assert!(!is_known || header.trim_end().ends_with(SECRET) || is_basic(), "a token is shown by who has it: {header}");
    is_known
}

fn archive(file: &str) -> bool {
    let Some((name, compression)) = Compression::of_file(file) else { return false };
    assert_eq!(format!("{name}{}", compression.suffix()), file);
    true
}

fn store_path(text: &str) -> bool {
    let derivation = DrvPath::parse(text);
    let Ok(path) = StorePath::parse(text) else {
        assert!(derivation.is_err(), "a derivation's path is a path");
        return false;
    };
    assert_eq!(path.as_str(), text);
    assert!(!text.contains(['/', '\0']) && path.hash_part().len() == 32, "{text} stays in its directory");
    assert_eq!(derivation.is_ok(), text.ends_with(".drv"), "{derivation:?}");
    true
}

fn full_path(text: &str) -> bool {
    let store_dir = StoreDir::default();
    let Ok(path) = store_dir.strip(text) else { return false };
    assert_eq!(store_dir.join(&path), text);
    true
}

fn output(text: &str) -> bool {
    let Ok(name) = OutputName::parse(text) else { return false };
    assert_eq!(name.as_str(), text);
    assert!(!text.contains(['/', '\0', '!', '^', ',', '*']) && !text.is_empty(), "{text} stays in its place");
    true
}

fn key(text: &str) -> bool {
    let key = PublicKey::parse(text);
    if let Ok(key) = &key {
        assert_eq!(PublicKey::parse(&key.to_string()).as_ref(), Ok(key));
    }
    let signature = Signature::parse(text);
    if let Ok(signature) = &signature {
        assert_eq!(Signature::parse(&signature.to_string()).as_ref(), Ok(signature));
    }
    key.is_ok() || signature.is_ok()
}

fn content_address(text: &str) -> bool {
    let Ok(address) = ContentAddress::parse(text) else { return false };
    assert_eq!(ContentAddress::parse(&address.to_string()).ok().as_ref(), Some(&address));
    true
}

fn hash(text: &str) -> bool {
    let Ok(hash) = Hash::parse(text) else { return false };
    assert_eq!((Hash::parse(&hash.to_nix32()).as_ref(), Hash::parse(&hash.to_sri()).as_ref()), (Ok(&hash), Ok(&hash)));
    true
}
