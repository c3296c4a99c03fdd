//! Blobs: bytes that claim to be a zstd frame with a NAR of a stated size. No more comes out than was stated, in whatever pieces they
//! arrive, and an upload is taken only if all of them are one frame and what is in it is a NAR.
//!
//! An input is the stated size (three bytes, little endian, modulo 2 MiB), then the blob.

use std::io::Read;

use kiln_nix::nar;
use kiln_store::NarReader;
use kiln_wire::Sha256Hash;
use sha2::{Digest, Sha256};

use crate::nar::receive;
use crate::{Target, Verdict};

/// Steps of 128 KiB, and here the NAR itself in a vector that grows by doubling. The decoder's window is zstd's own memory.
pub(crate) const TARGET: Target = Target { name: "blob", run, heap_bytes: 6 << 20, heap_per_byte: 16 };

/// Sizes stated are below this, so that a bomb costs a millisecond.
const STATED_BYTES_MAX: u32 = 2 << 20;

fn run(bytes: &[u8]) -> Verdict {
    let Some((head, blob)) = bytes.split_first_chunk::<3>() else { return Verdict::Refused };
    let stated_bytes = u64::from(u32::from_le_bytes([head[0], head[1], head[2], 0]) % STATED_BYTES_MAX);
    let read = read(blob, stated_bytes);
    let is_nar = read.as_ref().is_ok_and(|nar| nar.len() as u64 == stated_bytes && nar::check(nar.as_slice()).is_ok());
    let nar = read.as_deref().unwrap_or_default();
    let received = receive(blob, nar, stated_bytes);
    assert_eq!(received.is_ok(), is_nar, "an upload is what its reader reads: {received:?}, {read:?}");
    Verdict::of(&received)
}

/// Reads the NAR of a blob to its end, as a worker does.
fn read(blob: &[u8], stated_bytes: u64) -> Result<Vec<u8>, String> {
    let mut reader = NarReader::new(blob, stated_bytes).map_err(|err| err.to_string())?;
    let mut nar = Vec::new();
    let outcome = reader.read_to_end(&mut nar);
    assert!(nar.len() as u64 <= stated_bytes, "{} bytes came out, {stated_bytes} were stated", nar.len());
    outcome.map_err(|err| err.to_string())?;
    let (hash, size_bytes) = reader.finish().map_err(|err| err.to_string())?;
    assert_eq!((hash, size_bytes), (Sha256Hash(Sha256::digest(&nar).into()), nar.len() as u64));
    Ok(nar)
}
