//! The store of a Kiln farm: NARs compressed with zstd, written once, and signed descriptions of the paths that they belong to.
//!
//! It is laid out as a Nix binary cache over any object store. [`Packer`] and [`unpack`] are the ends where files become blobs and
//! blobs files; [`BlobReceiver`] judges what comes from outside; [`Store::publish`] makes a path valid. Does not decide who may upload
//! or publish (the coordinator does) and does not move bytes between machines (kiln-link does).
//!
//! Past one machine the objects lie in a bucket of an S3-compatible service ([`Location::S3`]), which every coordinator of the farm
//! reads and writes; what makes them agree is Raft, not the bucket.
//!
//! What is guaranteed of the bytes at rest: [`Store::keep`] and [`Store::publish`] return when they are on stable storage (with
//! `durable`), never half of an object is readable, and no object changes but narinfos,
//! whose signatures and facts may be written anew. What a disk does to them later is found when they are
//! read: a worker's stream is verified against the blob's BLAKE3, Nix checks the NAR hash of what HTTP gives it (HTTP serves bytes as
//! they lie), and [`Store::verify_all`] reads everything. Each names the object.

mod batch;
mod blob;
mod cache;
mod debug;
mod decompress;
mod delete;
mod error;
mod foreign;
mod frame;
mod grammar;
mod inspect;
mod keep;
mod key;
pub mod keys;
mod known;
mod lie;
mod listing;
mod narinfo;
mod notes;
mod objects;
mod pack;
mod publish;
mod realisations;
mod receive;
mod records;
mod s3;
mod serve;
mod spool;
mod store;
mod unpack;
mod uploads;
mod verify;

pub use blob::{BlobBytes, BlobReader};
pub use decompress::{Compression, recompress};
pub use delete::{Deleted, Pointer, Stored};
pub use error::StoreError;
pub use foreign::{ForeignError, Repacked, Vouched, provenance};
pub use frame::FrameError;
pub use grammar::GrammarError;
pub use lie::Lie;
pub use listing::KeptListing;
pub use notes::Note;
pub use pack::{PackError, Packed, Packer};
pub use publish::Endorsed;
pub use receive::{BlobReceiver, Provenance, RESUME_BYTES, Received};
pub use s3::{S3, S3Credentials};
pub use spool::{SPOOL_MEMORY_BYTES, Spool};
pub use store::{Location, Store, StoreConfig, Traffic, parse_derivation};
pub use unpack::{NarReader, UnpackError, unpack};
pub use uploads::{Begun, Uploads};
pub use verify::VerifyReport;
