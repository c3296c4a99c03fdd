//! Archives that somebody else compressed, and described in a narinfo of theirs: read once, checked, and packed as the farm's own.
//!
//! Goals: memory is bounded whatever is claimed; no more is read than what was stated can need; nothing is stored before everything that
//! the narinfo says of the path was held against the bytes. Non-goals: whether the narinfo's signatures are to be believed (the
//! coordinator knows whom it trusts).

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;

use kiln_nix::NarInfo;
use kiln_nix::nar::NarError;
use kiln_nix::scan::Candidates;
use kiln_wire::limits::NAR_BYTES_MAX;
use kiln_wire::{Blake3Hash, Blob, PathInfo, Sha256Hash, StorePath};

use crate::debug::BuildIdOf;
use crate::decompress::Compression;
use crate::error::StoreError;
use crate::grammar::Grammar;
use crate::keep::off_thread;
use crate::key;
use crate::lie::Lie;
use crate::pack::{PackError, Packer};
use crate::receive::{Provenance, Received, check_content, check_statement};
use crate::spool::{Spool, SpoolReader};
use crate::store::Store;
use crate::unpack::NarReader;

/// Why a narinfo of others is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vouched {
    /// Somebody whom the farm trusts said so. Every stated reference must be found in the archive.
    BySomebody,
    /// Its path follows from its content and its references.
    ByContent,
}

/// An archive that was read to its end and packed anew. Nobody has said yet whose it is.
#[derive(Clone, Debug)]
pub struct Repacked {
    nar_hash: Sha256Hash,
    nar_size_bytes: u64,
    blob: Blob,
    spool: Arc<Spool>,
    build_ids: Vec<BuildIdOf>,
}

/// An archive that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// What came is no archive so compressed, ended early, or went on beyond its bound.
    #[error("read the archive `{name}`")]
    Archive {
        /// Its name.
        name: String,
        /// What is wrong.
        #[source]
        err: NarError,
    },
    /// It cannot be packed here.
    #[error("pack the archive `{name}`")]
    Pack {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        err: io::Error,
    },
}

impl Store {
    /// Reads a compressed archive to its end and packs it anew. Blocks. `nar_bytes_max` bounds what comes out of it.
    ///
    /// # Errors
    /// [`ForeignError`] says who is at fault: the bytes, or this machine.
    pub fn repack(&self, name: &str, file: impl Read, compression: Compression, nar_bytes_max: u64) -> Result<Repacked, ForeignError> {
        let refuse = |err| ForeignError::Archive { name: name.to_owned(), err };
        let nar = compression.reader(file).map_err(|err| refuse(NarError::Read(err)))?;
        let mut nar = Within { nar, left_bytes: nar_bytes_max.min(NAR_BYTES_MAX), grammar: Some(Grammar::new()) };
        let packer = Packer { level: LEVEL, spool_dir: self.spool_dir().to_owned() };
        let packed = packer.pack_nar(name, &mut nar, &Candidates::new([])).map_err(|err| match err {
            PackError::Nar { err, .. } => refuse(err),
            PackError::Compress { err, .. } => ForeignError::Pack { name: name.to_owned(), err },
        })?;
        Ok(Repacked {
            nar_hash: packed.nar_hash,
            nar_size_bytes: packed.nar_size_bytes,
            blob: packed.blob,
            spool: Arc::new(packed.spool),
            build_ids: nar.grammar.map(|mut grammar| grammar.take_build_ids()).unwrap_or_default(),
        })
    }

    /// Holds an archive against what a narinfo says of it. Reads the archive once more if references or content have to be found. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Refused`] names what differs.
    pub fn claim_repacked(&self, narinfo: &NarInfo, repacked: &Repacked, vouched: Vouched) -> Result<Received, StoreError> {
        let stated = stated(narinfo, repacked.blob);
        let provenance = provenance(&stated, vouched);
        let refuse = |lie: Lie| StoreError::refused(&stated, lie);
        check_statement(self.store_dir(), &stated, &provenance).map_err(refuse)?;
        repacked.check_nar(&stated).map_err(refuse)?;
        if let Provenance::Built { candidates } = &provenance {
            let found = repacked.find(candidates).map_err(|err| StoreError::Spool { operation: "read", path: stated.path.clone(), err })?;
            let extra: BTreeSet<StorePath> = candidates.difference(&found).cloned().collect();
            if !extra.is_empty() {
                return Err(refuse(Lie::References { extra, omitted: BTreeSet::new() }));
            }
        }
        check_content(self.store_dir(), &stated, || SpoolReader::new(&repacked.spool)).map_err(refuse)?;
        Ok(Received { info: stated, provenance, spool: Arc::clone(&repacked.spool), build_ids: repacked.build_ids.clone() })
    }

    /// Holds the stored blob that a client knows by the hash of a file against what a narinfo says of it, as if its bytes had just
    /// arrived, and returns the facts that hold. `None`: there is no such blob, or it is damaged, or holds no archive of the stated size.
    ///
    /// # Errors
    /// [`StoreError::Refused`] names what differs, [`StoreError::Object`] says that the store fails.
    pub async fn claim_stored(&self, narinfo: &NarInfo, file_hash: &str, vouched: Vouched) -> Result<Option<PathInfo>, StoreError> {
        let Some(key) = self.blob_file(file_hash).await?.and_then(|file| key::nar_file(&file)) else { return Ok(None) };
        let Some(blob) = self.open_object(&key).await? else { return Ok(None) };
        let blob = Arc::new(blob);
        // Its hashes are not known before it is read.
        let unread = Blob { size_bytes: blob.size_bytes(), blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) };
        let mut stated = stated(narinfo, unread);
        let provenance = provenance(&stated, vouched);
        check_statement(self.store_dir(), &stated, &provenance).map_err(|lie| StoreError::refused(&stated, lie))?;
        let facts = match self.inspect(Arc::clone(&blob), stated.nar_size_bytes, &provenance).await? {
            Ok(facts) if key::nar(&facts.blob.sha256) == key => facts,
            Ok(facts) => {
                tracing::warn!(%key, found = %facts.blob.sha256, "a stored NAR is damaged: its bytes have another hash");
                return Ok(None);
            }
            Err(lie) => {
                tracing::warn!(%key, error = crate::store::chain(&lie), "a stored NAR is damaged, or its stated size is wrong");
                return Ok(None);
            }
        };
        stated.blob = facts.blob;
        facts.check_nar(&stated).map_err(|lie| StoreError::refused(&stated, lie))?;
        let (store, described) = (self.clone(), stated.clone());
        let check = move || check_content(store.store_dir(), &described, || blob.reader());
        let checked = off_thread(stated.nar_size_bytes, "check content", check).await?;
        checked.map_err(|lie| StoreError::refused(&stated, lie))?;
        Ok(Some(stated))
    }
}

fn stated(narinfo: &NarInfo, blob: Blob) -> PathInfo {
    PathInfo {
        path: narinfo.path.clone(),
        nar_hash: narinfo.nar_hash,
        nar_size_bytes: narinfo.nar_size_bytes,
        references: narinfo.references.clone(),
        deriver: narinfo.deriver.clone(),
        content_address: narinfo.content_address.clone(),
        blob,
    }
}

/// Returns what a path of others has to fulfil.
pub fn provenance(stated: &PathInfo, vouched: Vouched) -> Provenance {
    match vouched {
        Vouched::BySomebody => Provenance::Built { candidates: stated.references.clone() },
        Vouched::ByContent => Provenance::Imported,
    }
}

impl Repacked {
    /// Returns the bytes that it takes here.
    pub fn blob_bytes(&self) -> u64 {
        self.blob.size_bytes
    }

    /// Returns the SHA-256 of the archive without compression.
    pub fn nar_hash(&self) -> Sha256Hash {
        self.nar_hash
    }

    fn check_nar(&self, stated: &PathInfo) -> Result<(), Lie> {
        if self.nar_size_bytes != stated.nar_size_bytes {
            return Err(Lie::NarSize { stated_bytes: stated.nar_size_bytes, found_bytes: self.nar_size_bytes });
        }
        match self.nar_hash == stated.nar_hash {
            true => Ok(()),
            false => Err(Lie::NarHash { stated: stated.nar_hash, found: self.nar_hash }),
        }
    }

    /// Returns those of some paths that the archive holds the hash parts of.
    fn find(&self, candidates: &BTreeSet<StorePath>) -> io::Result<BTreeSet<StorePath>> {
        if candidates.is_empty() {
            return Ok(BTreeSet::new());
        }
        let mut scanner = Candidates::new(candidates.iter().cloned()).scanner();
        let mut nar = NarReader::new(SpoolReader::new(&self.spool), self.nar_size_bytes).map_err(io::Error::other)?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match nar.read(&mut buffer)? {
                0 => return Ok(scanner.finish()),
                count => scanner.update(&buffer[..count]),
            }
        }
    }
}

/// An archive up to its bound; the next byte is an error.
struct Within<R> {
    nar: R,
    left_bytes: u64,
    /// Knows the names of files, until something is wrong, which the packer says.
    grammar: Option<Grammar>,
}

impl<R: Read> Read for Within<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.nar.read(buffer)?;
        match self.left_bytes.checked_sub(count as u64) {
            Some(left_bytes) => {
                self.left_bytes = left_bytes;
                if self.grammar.as_mut().is_some_and(|grammar| grammar.feed(&buffer[..count], |_| ()).is_err()) {
                    self.grammar = None;
                }
                Ok(count)
            }
            None => Err(io::Error::new(io::ErrorKind::FileTooLarge, "more comes out of it than was stated or is allowed")),
        }
    }
}

/// How archives of others are packed: they are written once and read often, and each took longer to come here.
const LEVEL: i32 = 3;
/// Bytes of an archive that are searched at a time.
const READ_BYTES: usize = 256 << 10;
