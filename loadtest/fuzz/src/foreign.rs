//! Archives as other stores compress them, as they are uploaded over HTTP and fetched from upstream caches: whatever is claimed, no more
//! memory is taken than a decoder needs, no more comes out than is allowed, and what is taken is a NAR.
//!
//! An input is a byte that chooses the compression, then the file.

use std::io::Read;

use kiln_nix::hash::{Algorithm, Hasher};
use kiln_nix::nar;
use kiln_store::{Compression, Location, Store, StoreConfig};
use kiln_wire::{Sha256Hash, StoreDir};

use crate::{Target, Verdict};

/// A decoder of xz has the dictionary that the file asks for, up to its bound of 128 MiB; one of bzip2 some 4 MiB; packing takes less.
pub(crate) const TARGET: Target = Target { name: "foreign", run, heap_bytes: 144 << 20, heap_per_byte: 64 };

/// Bytes that may come out, so that a bomb costs milliseconds.
const NAR_BYTES_MAX: u64 = 1 << 20;

fn run(bytes: &[u8]) -> Verdict {
    let Some((chosen, file)) = bytes.split_first() else { return Verdict::Refused };
    let names = ["none", "zstd", "xz", "bzip2"];
    let compression = Compression::named(names[usize::from(*chosen) % names.len()]).expect("it is read");
    let repacked = store().repack("input", file, compression, NAR_BYTES_MAX);
    if let Ok(repacked) = &repacked {
        let nar = decompressed(file, compression);
        assert!(nar.len() as u64 <= NAR_BYTES_MAX && nar::check(nar.as_slice()).is_ok(), "{} bytes that are no archive", nar.len());
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&nar);
        let hash: [u8; 32] = hasher.finish().digest().try_into().expect("SHA-256 has 32 bytes");
        assert_eq!(repacked.nar_hash(), Sha256Hash(hash), "it has the hash of what was in the file");
    }
    Verdict::of(&repacked)
}

/// The tools' own way to read such a file.
fn decompressed(file: &[u8], compression: Compression) -> Vec<u8> {
    let mut nar = Vec::new();
    let reader = compression.reader(file).expect("it was read before");
    reader.take(NAR_BYTES_MAX + 1).read_to_end(&mut nar).expect("it was read before");
    nar
}

fn store() -> &'static Store {
    static STORE: std::sync::OnceLock<Store> = std::sync::OnceLock::new();
    STORE.get_or_init(|| {
        let config = StoreConfig {
            location: Location::Memory,
            store_dir: StoreDir::default(),
            spool_dir: std::env::temp_dir(),
            cached_paths_max: 1,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(Store::open(config)).expect("a store in memory")
    })
}
