//! narinfo: the signed description of one store object, as a binary cache serves it.
//!
//! Ours have one line more than Nix's, `FileBlake3`, which Nix ignores: with it the file alone is the store's truth about a path.
//! A signature covers path, NAR hash, NAR size and references, and nothing else; so the other lines are never trusted from outside.

use std::collections::BTreeSet;

use kiln_wire::{Blake3Hash, Blob, DrvPath, PathInfo, Sha256Hash, StoreDir, StorePath};

use crate::content::ContentAddress;
use crate::hash::{Hash, nix32, sha256_nix32};
use crate::path::{ours, their_dir, theirs};
use crate::sign::{PublicKey, SecretKey, Signature};

/// What a narinfo says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarInfo {
    /// The object.
    pub path: StorePath,
    /// Where the cache has its NAR, relative to the narinfo.
    pub url: String,
    /// How the NAR there is compressed (`zstd`, `xz`, `none`, …).
    pub compression: String,
    /// SHA-256 of the file at `url`.
    pub file_hash: Option<Hash>,
    /// Length of the file at `url`.
    pub file_size_bytes: Option<u64>,
    /// BLAKE3 of the file at `url`; only a Kiln farm states it.
    pub file_blake3: Option<Blake3Hash>,
    /// SHA-256 of the NAR.
    pub nar_hash: Sha256Hash,
    /// Length of the NAR.
    pub nar_size_bytes: u64,
    /// What the object refers to.
    pub references: BTreeSet<StorePath>,
    /// What made it.
    pub deriver: Option<DrvPath>,
    /// Its content address, if its path follows from its content.
    pub content_address: Option<String>,
    /// Signatures that can be read; Nix too skips others.
    pub signatures: Vec<Signature>,
}

/// Why a text is no narinfo, or says too little.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// A line breaks a rule.
    #[error("read narinfo: {rule}")]
    Read {
        /// Which line and rule.
        rule: String,
    },
    /// A line is missing that a farm's own narinfo has.
    #[error("read narinfo of `{path}`: it has no `{line}`, so a farm did not write it")]
    Foreign {
        /// The object.
        path: StorePath,
        /// The missing line.
        line: &'static str,
    },
    /// What is to be written has a line break or is empty.
    #[error("write narinfo of `{path}`: {rule}")]
    Write {
        /// The object.
        path: StorePath,
        /// Which field and rule.
        rule: String,
    },
}

impl NarInfo {
    /// Reads a narinfo, a farm's own or any other cache's.
    ///
    /// # Errors
    /// [`NarInfoError::Read`] names the line and rule.
    pub fn parse(store_dir: &StoreDir, bytes: &[u8]) -> Result<Self, NarInfoError> {
        let refuse = |rule: String| NarInfoError::Read { rule };
        let info = nix_narinfo::NarInfo::parse_in(&their_dir(store_dir), bytes).map_err(|err| refuse(err.to_string()))?;
        let nar_hash = Hash::from_theirs(info.nar_hash()).as_sha256().ok_or_else(|| refuse("NarHash must be a SHA-256".to_owned()))?;
        // Nix takes any path as a deriver; one that is no derivation tells nothing.
        let deriver = info.deriver().and_then(|path| DrvPath::from_path(ours(path)).ok());
        let blake3 = info.extensions().iter().find(|field| field.name == BLAKE3_LINE);
        let blake3 = blake3.map(|field| field.value.parse()).transpose();
        Ok(Self {
            path: ours(info.store_path()),
            url: info.url().to_owned(),
            compression: info.compression().as_str().to_owned(),
            file_hash: info.file_hash().map(Hash::from_theirs),
            file_size_bytes: info.file_size(),
            file_blake3: blake3.map_err(|err: kiln_wire::HashError| refuse(format!("{BLAKE3_LINE}: {err}")))?,
            nar_hash,
            nar_size_bytes: info.nar_size(),
            references: info.references().iter().map(ours).collect(),
            deriver,
            content_address: info.content_address().map(|address| ContentAddress::from_theirs(address).to_string()),
            signatures: info.signatures().iter().filter_map(|signature| Signature::parse(&signature.to_nix_string()).ok()).collect(),
        })
    }

    /// Describes a path that the farm stores as a zstd blob.
    pub fn describe(info: &PathInfo, signatures: Vec<Signature>) -> Self {
        Self {
            path: info.path.clone(),
            url: blob_key(&info.blob.sha256),
            compression: nix_narinfo::Compression::Zstd.as_str().to_owned(),
            file_hash: Some(info.blob.sha256.into()),
            file_size_bytes: Some(info.blob.size_bytes),
            file_blake3: Some(info.blob.blake3),
            nar_hash: info.nar_hash,
            nar_size_bytes: info.nar_size_bytes,
            references: info.references.clone(),
            deriver: info.deriver.clone(),
            content_address: info.content_address.clone(),
            signatures,
        }
    }

    /// Returns the facts, if a farm wrote this narinfo.
    ///
    /// # Errors
    /// [`NarInfoError::Foreign`] names the line that is missing.
    pub fn path_info(&self) -> Result<PathInfo, NarInfoError> {
        let foreign = |line| NarInfoError::Foreign { path: self.path.clone(), line };
        let blob = Blob {
            size_bytes: self.file_size_bytes.ok_or_else(|| foreign("FileSize"))?,
            blake3: self.file_blake3.ok_or_else(|| foreign(BLAKE3_LINE))?,
            sha256: self.file_hash.as_ref().and_then(Hash::as_sha256).ok_or_else(|| foreign("FileHash"))?,
        };
        Ok(PathInfo {
            path: self.path.clone(),
            nar_hash: self.nar_hash,
            nar_size_bytes: self.nar_size_bytes,
            references: self.references.clone(),
            deriver: self.deriver.clone(),
            content_address: self.content_address.clone(),
            blob,
        })
    }

    /// Returns the text that signatures cover.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> String {
        fingerprint_of(store_dir, &self.path, &self.nar_hash, self.nar_size_bytes, &self.references)
    }

    /// Says whether one of the signatures is valid and by one of the trusted keys.
    pub fn is_signed_by(&self, store_dir: &StoreDir, trusted: &[PublicKey]) -> bool {
        let fingerprint = self.fingerprint(store_dir);
        self.signatures.iter().any(|signature| trusted.iter().any(|key| key.verifies(fingerprint.as_bytes(), signature)))
    }
}

/// Returns the text that signatures of `info` cover.
pub fn fingerprint(store_dir: &StoreDir, info: &PathInfo) -> String {
    fingerprint_of(store_dir, &info.path, &info.nar_hash, info.nar_size_bytes, &info.references)
}

/// Signs the facts about a path.
pub fn sign(store_dir: &StoreDir, info: &PathInfo, key: &SecretKey) -> Signature {
    key.sign(fingerprint(store_dir, info).as_bytes())
}

/// Returns the object key of a blob, which is also the `URL` of its narinfo: it follows from the blob's own bytes, so that whoever
/// writes the object writes the same.
pub fn blob_key(blob_sha256: &Sha256Hash) -> String {
    format!("nar/{}.nar.zst", nix32(&blob_sha256.0))
}

/// Returns the object key of a path's narinfo.
pub fn narinfo_key(path: &StorePath) -> String {
    format!("{}.narinfo", path.hash_part())
}

/// Writes the narinfo of a path that the farm stores as a zstd blob.
///
/// # Errors
/// [`NarInfoError::Write`] if the NAR is empty or the content address is none.
pub fn write(store_dir: &StoreDir, info: &PathInfo, signatures: &[Signature]) -> Result<String, NarInfoError> {
    let refuse = |rule: String| NarInfoError::Write { path: info.path.clone(), rule };
    let address = info.content_address.as_deref().map(ContentAddress::parse).transpose().map_err(|err| refuse(err.to_string()))?;
    let address = address.map(|address| address.theirs()).transpose().map_err(|err| refuse(err.to_string()))?;
    let signature = |signature: &Signature| {
        nix_narinfo::NixSignature::parse(&signature.to_string()).expect("a signature's text reads back, it was checked when it was made")
    };
    let nar_hash = Hash::from(info.nar_hash).theirs();
    let record = nix_narinfo::NarInfo::builder_in(
        their_dir(store_dir),
        theirs(&info.path),
        blob_key(&info.blob.sha256),
        nar_hash,
        info.nar_size_bytes,
    )
    .compression(nix_narinfo::Compression::Zstd)
    .file_hash(Some(Hash::from(info.blob.sha256).theirs()))
    .file_size(Some(info.blob.size_bytes))
    .references(info.references.iter().map(theirs))
    .deriver(info.deriver.as_ref().map(|path| theirs(path.as_path())))
    .signatures(signatures.iter().map(signature))
    .content_address(address)
    .extension(nix_narinfo::Field { name: BLAKE3_LINE.to_owned(), value: info.blob.blake3.to_string() })
    .build()
    .map_err(|err| refuse(err.to_string()))?;
    Ok(String::from_utf8(record.to_canonical_bytes()).expect("every field of a narinfo is text"))
}

fn fingerprint_of(store_dir: &StoreDir, path: &StorePath, hash: &Sha256Hash, size_bytes: u64, references: &BTreeSet<StorePath>) -> String {
    let references: Vec<String> = references.iter().map(|path| store_dir.join(path)).collect();
    format!("1;{};{};{size_bytes};{}", store_dir.join(path), sha256_nix32(hash), references.join(","))
}

/// The line that Nix does not have: the root hash by which the farm's byte streams are verified.
const BLAKE3_LINE: &str = "FileBlake3";
