//! A file tree becomes a blob, in one pass: NAR, its hash, its references, compressed bytes, their hashes.
//!
//! Small archives are worked on by the calling thread. Once an archive is large a second thread hashes and scans it while the first
//! compresses, so that zstd is the limit. Blocks; does not store anything.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use kiln_nix::nar::{self, NarError};
use kiln_nix::scan::{Candidates, Scanner};
use kiln_wire::{Blake3Hash, Blob, DrvPath, PathInfo, Sha256Hash, StorePath};
use sha2::{Digest, Sha256};

use crate::spool::Spool;

/// How blobs are made.
#[derive(Clone, Debug)]
pub struct Packer {
    /// zstd's level, 1 to 19. 1 keeps up with a fast network; 3 is a tenth smaller at two thirds of the speed.
    pub level: i32,
    /// Where blobs larger than a MiB wait, in unnamed files.
    pub spool_dir: PathBuf,
}

/// A blob that was made, with all facts about it.
#[derive(Debug)]
pub struct Packed {
    /// SHA-256 of the NAR.
    pub nar_hash: Sha256Hash,
    /// Size of the NAR.
    pub nar_size_bytes: u64,
    /// Candidates that the NAR refers to.
    pub references: BTreeSet<StorePath>,
    /// Facts about the blob.
    pub blob: Blob,
    /// The blob's bytes.
    pub spool: Spool,
}

/// A tree that was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The tree cannot be read, or holds what a NAR cannot.
    #[error("pack `{}`", path.display())]
    Nar {
        /// The tree.
        path: PathBuf,
        /// Why.
        #[source]
        err: NarError,
    },
    /// The blob cannot be made or spooled.
    #[error("compress `{}`", path.display())]
    Compress {
        /// The tree.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
}

impl Packer {
    /// Packs the tree at `path`, looking for `candidates` in it.
    ///
    /// # Errors
    /// [`PackError`] names the tree and what is wrong.
    pub fn pack(&self, path: &Path, candidates: &Candidates) -> Result<Packed, PackError> {
        let compress = |err| PackError::Compress { path: path.to_owned(), err };
        let mut sink = Sink::new(self, candidates).map_err(compress)?;
        nar::dump(path, &mut sink).map_err(|err| PackError::Nar { path: path.to_owned(), err })?;
        sink.finish().map_err(compress)
    }

    /// Packs a single regular file that is not executable, from memory. `name` is for messages.
    ///
    /// # Errors
    /// [`PackError::Compress`].
    pub fn pack_file(&self, name: &str, contents: &[u8], candidates: &Candidates) -> Result<Packed, PackError> {
        self.pack_nar(name, nar::of_file(contents, contents.len() as u64), candidates)
    }

    /// Packs an archive, read to the end of `nar`. `name` is for messages.
    ///
    /// # Errors
    /// [`PackError::Nar`] if it breaks a rule of archives.
    pub fn pack_nar(&self, name: &str, nar: impl Read, candidates: &Candidates) -> Result<Packed, PackError> {
        let compress = |err| PackError::Compress { path: name.into(), err };
        let mut sink = Sink::new(self, candidates).map_err(compress)?;
        let checked = nar::check(nar::Tee::new(nar, &mut sink));
        // To whoever checks both look like a failure to read.
        match (checked, sink.is_broken) {
            (Ok(_), _) => {}
            (Err(err), true) => return Err(compress(io::Error::other(err))),
            (Err(err), false) => return Err(PackError::Nar { path: name.into(), err }),
        }
        sink.finish().map_err(compress)
    }
}

impl Packed {
    /// Returns the facts of this blob as those of a path.
    pub fn path_info(&self, path: StorePath, deriver: Option<DrvPath>, content_address: Option<String>) -> PathInfo {
        PathInfo {
            path,
            nar_hash: self.nar_hash,
            nar_size_bytes: self.nar_size_bytes,
            references: self.references.clone(),
            deriver,
            content_address,
            blob: self.blob,
        }
    }
}

/// NAR bytes that are worked on at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// NARs up to this size are not worth a second thread.
const ONE_THREAD_BYTES_MAX: u64 = 4 << 20;
/// Chunks that the hashing thread may lag behind.
const CHUNKS_AHEAD: usize = 8;

/// Takes the bytes of a NAR.
struct Sink {
    chunk: Vec<u8>,
    digest: Digester,
    encoder: zstd::Encoder<'static, BlobSink>,
    /// Something could not be written: what went wrong is no fault of the archive's.
    is_broken: bool,
}

/// Who finds hash and references of the NAR.
enum Digester {
    Here(Box<NarDigest>),
    Thread { chunks: SyncSender<Bytes>, digest: JoinHandle<NarDigest> },
    Gone,
}

struct NarDigest {
    sha256: Sha256,
    scanner: Scanner,
    size_bytes: u64,
}

/// Takes the bytes of the blob.
struct BlobSink {
    spool: Spool,
    sha256: Sha256,
    blake3: blake3::Hasher,
}

impl Sink {
    fn new(packer: &Packer, candidates: &Candidates) -> io::Result<Self> {
        let blob = BlobSink { spool: Spool::new(&packer.spool_dir), sha256: Sha256::new(), blake3: blake3::Hasher::new() };
        let encoder = zstd::Encoder::new(blob, packer.level)?;
        let digest = NarDigest { sha256: Sha256::new(), scanner: candidates.scanner(), size_bytes: 0 };
        Ok(Self { chunk: Vec::new(), digest: Digester::Here(Box::new(digest)), encoder, is_broken: false })
    }

    fn flush_chunk(&mut self) -> io::Result<()> {
        self.move_large_digest();
        match &mut self.digest {
            Digester::Here(digest) => {
                digest.update(&self.chunk);
                self.encoder.write_all(&self.chunk)?;
                self.chunk.clear();
                Ok(())
            }
            Digester::Thread { chunks, .. } => {
                let chunk = Bytes::from(std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES)));
                chunks.send(chunk.clone()).map_err(|_| io::Error::other(HASHER_DIED))?;
                self.encoder.write_all(&chunk)
            }
            Digester::Gone => Err(io::Error::other(HASHER_DIED)),
        }
    }

    /// Gives the hashing of an archive that has become large to a thread of its own.
    fn move_large_digest(&mut self) {
        self.digest = match std::mem::replace(&mut self.digest, Digester::Gone) {
            Digester::Here(digest) if digest.size_bytes >= ONE_THREAD_BYTES_MAX => {
                let (chunks, arriving) = sync_channel::<Bytes>(CHUNKS_AHEAD);
                let digest = std::thread::spawn(move || {
                    let mut digest = *digest;
                    arriving.iter().for_each(|chunk| digest.update(&chunk));
                    digest
                });
                Digester::Thread { chunks, digest }
            }
            same => same,
        };
    }

    fn finish(mut self) -> io::Result<Packed> {
        self.flush_chunk()?;
        let blob = self.encoder.finish()?;
        let digest = match self.digest {
            Digester::Here(digest) => *digest,
            Digester::Thread { chunks, digest } => {
                drop(chunks);
                digest.join().map_err(|_| io::Error::other(HASHER_DIED))?
            }
            Digester::Gone => return Err(io::Error::other(HASHER_DIED)),
        };
        Ok(Packed {
            nar_hash: Sha256Hash(digest.sha256.finalize().into()),
            nar_size_bytes: digest.size_bytes,
            references: digest.scanner.finish(),
            blob: Blob {
                size_bytes: blob.spool.size_bytes(),
                blake3: Blake3Hash(*blob.blake3.finalize().as_bytes()),
                sha256: Sha256Hash(blob.sha256.finalize().into()),
            },
            spool: blob.spool,
        })
    }
}

const HASHER_DIED: &str = "the thread that hashes the archive died";

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES {
            self.flush_chunk().inspect_err(|_| self.is_broken = true)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NarDigest {
    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.scanner.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }
}

impl Write for BlobSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.spool.write(bytes)?;
        self.sha256.update(&bytes[..taken]);
        self.blake3.update(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
