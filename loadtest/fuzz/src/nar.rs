//! NAR: the reader that pulls (kiln-nix) and the one that is pushed at (kiln-store) take the same archives, and an archive that is
//! taken, written anew from what was read of it, has the same bytes.

use std::collections::BTreeSet;
use std::path::Path;

use kiln_nix::nar::{self, Listing, Node};
use kiln_store::{BlobReceiver, Provenance};
use kiln_wire::{Blake3Hash, Blob, PathInfo, Sha256Hash, StoreDir, StorePath};
use sha2::{Digest, Sha256};

use crate::{Target, Verdict};

/// Readers hold a buffer of 64 KiB and the decoder's step of 128 KiB, and `nix-archive` takes a name's word for its length up to 1 MiB.
/// A listing, and the archive written anew, follow the input.
pub(crate) const TARGET: Target = Target { name: "nar", run, heap_bytes: 3 << 19, heap_per_byte: 32 };

fn run(bytes: &[u8]) -> Verdict {
    let counts = nar::check(bytes);
    let verdict = Verdict::of(&counts);
    let listing = Listing::read(bytes);
    assert_eq!(Verdict::of(&listing), verdict, "the listing is read from the same archives: {listing:?}, {counts:?}");
    let received = receive(&stored_frame(bytes), bytes, bytes.len() as u64);
    assert_eq!(Verdict::of(&received), verdict, "an upload is taken for the same archives: {received:?}, {counts:?}");
    let mut single = Vec::new();
    let single_file = nar::read_single_file(bytes, &mut single);
    if let Ok(listing) = listing {
        assert!(write(&listing, bytes) == bytes, "an archive that was read, written anew, has the same bytes");
        assert_eq!(single_file.is_ok(), matches!(listing.root, Node::Regular { executable: false, .. }), "{single_file:?}");
        assert!(!listing.to_json().is_empty() && !listing.paths().is_empty());
    } else {
        assert!(single_file.is_err(), "what is no archive is no archive of one file");
    }
    verdict
}

/// Uploads a blob of which all that can be stated truly is, in pieces whose length follows from it. `nar` is what it holds.
pub(crate) fn receive(blob: &[u8], nar: &[u8], nar_size_bytes: u64) -> Result<(), String> {
    let stated = PathInfo {
        path: path("a"),
        nar_hash: Sha256Hash(Sha256::digest(nar).into()),
        nar_size_bytes,
        references: candidates().into_iter().filter(|path| mentions(nar, path)).collect(),
        deriver: None,
        content_address: None,
        blob: Blob {
            size_bytes: blob.len() as u64,
            blake3: Blake3Hash(*blake3::hash(blob).as_bytes()),
            sha256: Sha256Hash(Sha256::digest(blob).into()),
        },
    };
    let built = Provenance::Built { candidates: candidates() };
    let mut receiver = BlobReceiver::new(&StoreDir::default(), Path::new("/nowhere"), stated, built).map_err(|err| chain(&err))?;
    let piece_bytes = 1 + blob.iter().fold(blob.len(), |sum, byte| sum + usize::from(*byte)) % 97;
    for piece in blob.chunks(piece_bytes) {
        receiver.write(piece).map_err(|err| chain(&err))?;
    }
    receiver.finish().map(drop).map_err(|err| chain(&err))
}

fn chain(err: &dyn std::error::Error) -> String {
    std::iter::successors(Some(err), |err| err.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Two hashes that seeds mention.
fn candidates() -> BTreeSet<StorePath> {
    ["a", "b"].map(path).into()
}

fn path(name: &str) -> StorePath {
    StorePath::parse(&format!("{}-{name}", name.repeat(32))).expect("its characters are those of base 32")
}

/// The slow way to find a reference, which the scanner must agree with.
fn mentions(bytes: &[u8], path: &StorePath) -> bool {
    bytes.windows(32).any(|window| window == path.hash_part().as_bytes())
}

/// Returns a zstd frame that holds `content` as it is, in raw blocks. Source: RFC 8878, 3.1.1.
fn stored_frame(content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(content.len() + 64);
    frame.extend_from_slice(&0xFD2F_B528_u32.to_le_bytes());
    // A single segment whose content size has 4 bytes.
    frame.push(0b1010_0000);
    frame.extend_from_slice(&u32::try_from(content.len()).expect("an input is shorter than 4 GiB").to_le_bytes());
    let mut blocks = content.chunks(128 << 10).peekable();
    if blocks.peek().is_none() {
        frame.extend_from_slice(&[1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let last = usize::from(blocks.peek().is_none());
        frame.extend_from_slice(&(block.len() << 3 | last).to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

/// Writes the archive that a listing of `nar` describes; contents of files come from `nar`.
fn write(listing: &Listing, nar: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(nar.len());
    token(&mut out, b"nix-archive-1");
    write_node(&mut out, &listing.root, nar);
    out
}

/// As deep as the archive, whose depth its reader bounds.
fn write_node(out: &mut Vec<u8>, node: &Node, nar: &[u8]) {
    [&b"("[..], b"type"].iter().for_each(|word| token(out, word));
    match node {
        Node::Regular { size_bytes, executable, offset_bytes } => {
            token(out, b"regular");
            if *executable {
                [&b"executable"[..], b""].iter().for_each(|word| token(out, word));
            }
            token(out, b"contents");
            let place = |offset: u64| usize::try_from(offset).expect("it lies within the input");
            token(out, &nar[place(*offset_bytes)..place(offset_bytes + size_bytes)]);
        }
        Node::Symlink(target) => [&b"symlink"[..], b"target", target].iter().for_each(|word| token(out, word)),
        Node::Directory(entries) => {
            token(out, b"directory");
            for (name, node) in entries {
                [&b"entry"[..], b"(", b"name", name, b"node"].iter().for_each(|word| token(out, word));
                write_node(out, node, nar);
                token(out, b")");
            }
        }
    }
    token(out, b")");
}

fn token(out: &mut Vec<u8>, word: &[u8]) {
    out.extend_from_slice(&(word.len() as u64).to_le_bytes());
    out.extend_from_slice(word);
    out.resize(out.len().next_multiple_of(8), 0);
}
