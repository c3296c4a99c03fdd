//! narinfo: what is read of any cache's, written as the farm's own, says the same again, and so does what is written of that.

use kiln_nix::{NarInfo, PublicKey, narinfo};
use kiln_wire::{Blake3Hash, Blob, PathInfo, Sha256Hash, StoreDir};

use crate::{Target, Verdict};

/// Fields are held several times over: theirs, ours, written; a reference of 34 bytes is a string and a node of a tree.
pub(crate) const TARGET: Target = Target { name: "narinfo", run, heap_bytes: 1 << 17, heap_per_byte: 64 };

fn run(bytes: &[u8]) -> Verdict {
    let store_dir = StoreDir::default();
    let parsed = NarInfo::parse(&store_dir, bytes);
    if let Ok(read) = &parsed {
        check(&store_dir, read);
    }
    Verdict::of(&parsed)
}

fn check(store_dir: &StoreDir, read: &NarInfo) {
    let _unsigned = read.is_signed_by(store_dir, &[cache_key()]);
    let info = read.path_info().unwrap_or_else(|_| facts(read));
    assert_eq!(read.fingerprint(store_dir), narinfo::fingerprint(store_dir, &info), "signatures cover the same facts");
    let written = narinfo::write(store_dir, &info, &read.signatures).expect("what was read can be written");
    let again = NarInfo::parse(store_dir, written.as_bytes()).unwrap_or_else(|err| panic!("{err}, of\n{written}"));
    assert_eq!(again.path_info().as_ref(), Ok(&info), "a farm's narinfo says what it was written of:\n{written}");
    assert_eq!(again.signatures, read.signatures, "every signature is kept, in order:\n{written}");
    assert_eq!(again.fingerprint(store_dir), read.fingerprint(store_dir));
    let rewritten = narinfo::write(store_dir, &info, &again.signatures).expect("it was written before");
    assert_eq!(rewritten, written);
}

/// The facts of a foreign narinfo; what only a farm states is made up.
fn facts(read: &NarInfo) -> PathInfo {
    PathInfo {
        path: read.path.clone(),
        nar_hash: read.nar_hash,
        nar_size_bytes: read.nar_size_bytes,
        references: read.references.clone(),
        deriver: read.deriver.clone(),
        content_address: read.content_address.clone(),
        blob: Blob { size_bytes: read.file_size_bytes.unwrap_or(1), blake3: Blake3Hash([7; 32]), sha256: Sha256Hash([9; 32]) },
    }
}

/// The key of the public cache whose narinfos are among the seeds.
fn cache_key() -> PublicKey {
    PublicKey::parse("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=").expect("a public key")
}
