//! Hands a closure of derivations to the farm: finds the files, asks what the farm lacks, uploads only that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use anyhow::Context;
use kiln_link::BlobSource;
use kiln_nix::closure::{Closure, ClosureError};
use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::hash::{Algorithm, Hash, Hasher};
use kiln_nix::nar::{self, NarError};
use kiln_nix::scan::Candidates;
use kiln_store::{BlobBytes, Packed, Packer};
use kiln_wire::client::{DerivationFile, Request, Response};
use kiln_wire::limits::{DERIVATION_BATCH_BYTES, PATHS_PER_REQUEST_MAX};
use kiln_wire::{DrvPath, PathInfo, Root, StoreDir, StorePath};

use crate::client::{AskError, Client, Leading, unexpected};
use crate::progress::Progress;
use crate::words::{self, bad_input};

/// Where the store objects of an order are.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Directories in which they are looked for, by base name, the first one first.
    pub dirs: Vec<PathBuf>,
    /// Derivations that are at hand and need no file, by path.
    pub derivations: BTreeMap<DrvPath, Vec<u8>>,
}

impl Places {
    /// Returns where an object lies.
    pub fn find(&self, base_name: &str) -> Option<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(base_name)).find(|path| path.symlink_metadata().is_ok())
    }

    /// Returns the bytes of a derivation; none if it is nowhere.
    ///
    /// # Errors
    /// What the system says of its file.
    pub fn derivation(&self, path: &DrvPath) -> io::Result<Option<Vec<u8>>> {
        match self.derivations.get(path) {
            Some(bytes) => Ok(Some(bytes.clone())),
            None => self.find(path.as_str()).map(fs::read).transpose(),
        }
    }
}

/// Uploads what the farm lacks of the derivations and sources that `roots` need.
///
/// # Errors
/// Exit code 2 if a file is missing or not what its path says.
pub async fn upload(client: &Client, store_dir: &StoreDir, places: &Places, roots: &[Root], progress: &Progress) -> anyhow::Result<()> {
    let closure = load_whole(store_dir, places, roots)?;
    let derivations: BTreeSet<StorePath> = closure.derivations().iter().map(|(path, _)| path.as_path().clone()).collect();
    let sources: BTreeSet<StorePath> = closure
        .derivations()
        .iter()
        .flat_map(|(_, derivation)| derivation.sources.iter().cloned())
        .filter(|path| !is_derivation(path))
        .collect();
    // The farm may have a source of a derivation whose outputs it has too; both are asked for, nothing is sent twice.
    let lacking_sources = missing(client, sources.iter().cloned().collect()).await?;
    let lacking = missing(client, derivations.into_iter().collect()).await?;
    let absent: Vec<&StorePath> = lacking_sources.iter().filter(|path| places.find(path.as_str()).is_none()).collect();
    if !absent.is_empty() {
        return Err(missing_files(places, "input source", &absent));
    }
    if !lacking.is_empty() {
        progress.say(&format!("uploading {}", words::count(lacking.len() as u64, "derivation")));
    }
    upload_derivations(client, places, &lacking).await?;
    let mut waiting: BTreeSet<StorePath> = lacking_sources.into_iter().collect();
    while let Some(path) = waiting.pop_first() {
        upload_source(client, store_dir, places, &path, &sources, &mut waiting, progress).await?;
    }
    Ok(())
}

/// Uploads `wanted` sources, which the farm lacks, each after those that it refers to: of `candidates`, as far as they are in `lacking`.
///
/// # Errors
/// Exit code 2 if one is missing or not what its path says.
pub async fn upload_sources(
    client: &Client,
    store_dir: &StoreDir,
    places: &Places,
    wanted: &BTreeSet<StorePath>,
    candidates: &BTreeSet<StorePath>,
    mut lacking: BTreeSet<StorePath>,
) -> anyhow::Result<()> {
    let silent = Progress::new(true, store_dir.clone());
    for path in wanted {
        if lacking.remove(path) {
            upload_source(client, store_dir, places, path, candidates, &mut lacking, &silent).await?;
        }
    }
    Ok(())
}

/// Loads also those derivations that others have as sources: a builder may read what it is to make more of.
fn load_whole(store_dir: &StoreDir, places: &Places, roots: &[Root]) -> anyhow::Result<Closure> {
    let mut wanted = roots.to_vec();
    loop {
        let closure = load(store_dir, places, &wanted)?;
        let known: BTreeSet<&DrvPath> = closure.derivations().iter().map(|(path, _)| path).collect();
        let sources = closure.derivations().iter().flat_map(|(_, derivation)| &derivation.sources).filter(|path| is_derivation(path));
        let more: BTreeSet<DrvPath> =
            sources.filter_map(|path| DrvPath::from_path(path.clone()).ok()).filter(|path| !known.contains(path)).collect();
        if more.is_empty() {
            return Ok(closure);
        }
        wanted.extend(more.into_iter().map(|derivation| Root { derivation, outputs: BTreeSet::new() }));
    }
}

fn is_derivation(path: &StorePath) -> bool {
    path.name().ends_with(".drv")
}

fn load(store_dir: &StoreDir, places: &Places, roots: &[Root]) -> anyhow::Result<Closure> {
    let read = |path: &DrvPath| places.derivation(path);
    let loaded = Closure::load(store_dir, roots.iter().map(|root| root.derivation.clone()), read);
    loaded.map_err(|error| match error {
        ClosureError::Missing { paths } => missing_files(places, "derivation", &paths),
        ClosureError::Read { .. }
        | ClosureError::Parse { .. }
        | ClosureError::WrongPath { .. }
        | ClosureError::Cycle { .. }
        | ClosureError::TooMany => bad_input(format!("{:#}", anyhow::Error::from(error))),
    })
}

/// Names every file that would have to be there, and where it was looked for.
fn missing_files<T: fmt::Display>(places: &Places, noun: &str, paths: &[T]) -> anyhow::Error {
    let looked: Vec<String> = places.dirs.iter().map(|dir| format!("`{}`", dir.display())).collect();
    let looked = looked.join(", ");
    bad_input(match paths {
        [path] => format!("{noun} `{path}` is missing; looked in {looked}"),
        paths => format!("{} are missing; looked in {looked}:\n{}", words::count(paths.len() as u64, noun), words::listed(paths)),
    })
}

/// Returns those of `paths` that the farm lacks. Of a derivation it may have the file, whatever else it has.
///
/// # Errors
/// Exit code 3 if the farm cannot be reached.
pub async fn missing(client: &Client, paths: Vec<StorePath>) -> anyhow::Result<Vec<StorePath>> {
    let mut missing = Vec::new();
    for chunk in paths.chunks(PATHS_PER_REQUEST_MAX) {
        match client.one(&Request::Missing(chunk.to_vec())).await? {
            Response::Paths(mut paths) => missing.append(&mut paths),
            _ => return Err(unexpected("another kind").into_error()),
        }
    }
    Ok(missing)
}

async fn upload_derivations(client: &Client, places: &Places, lacking: &[StorePath]) -> anyhow::Result<()> {
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for path in lacking {
        let path = DrvPath::from_path(path.clone())?;
        let read = places.derivation(&path).with_context(|| format!("read derivation `{path}`"))?;
        let bytes = read.ok_or_else(|| bad_input(format!("derivation `{path}` disappeared")))?;
        batch_bytes += bytes.len();
        batch.push(DerivationFile { path, bytes });
        if batch_bytes >= DERIVATION_BATCH_BYTES || batch.len() >= FILES_PER_BATCH {
            client.one(&Request::AddDerivations(std::mem::take(&mut batch))).await?;
            batch_bytes = 0;
        }
    }
    if !batch.is_empty() {
        client.one(&Request::AddDerivations(batch)).await?;
    }
    Ok(())
}

/// Uploads one source. If it refers to others that the farm lacks, those go first and it waits.
async fn upload_source(
    client: &Client,
    store_dir: &StoreDir,
    places: &Places,
    path: &StorePath,
    sources: &BTreeSet<StorePath>,
    waiting: &mut BTreeSet<StorePath>,
    progress: &Progress,
) -> anyhow::Result<()> {
    let file = places.find(path.as_str()).ok_or_else(|| missing_files(places, "input source", &[path]))?;
    let packer = Packer { level: UPLOAD_LEVEL, spool_dir: std::env::temp_dir() };
    let (candidates, packed_file) = (Candidates::new(sources.iter().cloned()), file.clone());
    let packed = tokio::task::spawn_blocking(move || packer.pack(&packed_file, &candidates)).await??;
    let info = describe(store_dir, path, &file, &packed)?;
    for reference in info.references.iter().filter(|reference| *reference != path) {
        if waiting.remove(reference) {
            Box::pin(upload_source(client, store_dir, places, reference, sources, waiting, progress)).await?;
        }
    }
    progress.say(&format!("uploading {} ({})", path.name(), words::size(info.blob.size_bytes)));
    import(client, &info, &packed.spool.into_bytes()).await
}

/// Uploads a content-addressed path. What it refers to is there already.
///
/// # Errors
/// What the farm has against it.
pub async fn import(client: &Client, info: &PathInfo, body: &BlobBytes) -> anyhow::Result<()> {
    offer(client, &Request::Import(info.clone()), info.blob.size_bytes, body).await
}

/// Uploads a path that was built elsewhere, with what others say of it. What it refers to is there already.
///
/// # Errors
/// What the farm has against it: also that it trusts none of the signatures.
pub async fn import_signed(client: &Client, info: &PathInfo, signatures: Vec<String>, body: &BlobBytes) -> anyhow::Result<()> {
    offer(client, &Request::ImportSigned { info: info.clone(), signatures }, info.blob.size_bytes, body).await
}

async fn offer(client: &Client, request: &Request, size_bytes: u64, body: &BlobBytes) -> anyhow::Result<()> {
    let mut tries = client.tries();
    loop {
        match send(&tries.leader().await?, request, size_bytes, body).await {
            Ok(()) => return Ok(()),
            Err(error) => tries.failed(error).await?,
        }
    }
}

async fn send(leader: &Leading, request: &Request, size_bytes: u64, body: &BlobBytes) -> Result<(), AskError> {
    let (mut sender, mut answers) = leader.ask(request).await?;
    match answers.next().await? {
        Some(Response::UploadAt(None)) => {}
        Some(Response::UploadAt(Some(offset))) => {
            let source: BlobSource = match body.try_clone()? {
                BlobBytes::File(file) => file.into(),
                BlobBytes::Memory(bytes) => bytes.into(),
            };
            // What the farm has against the bytes is in its answer, which is read in either case.
            if let Err(error) = sender.send_blob(source, size_bytes, offset).await {
                tracing::debug!(%error, "send source");
            }
        }
        _ => return Err(unexpected("another kind")),
    }
    match answers.next().await? {
        Some(Response::Stored) => Ok(()),
        _ => Err(unexpected("another kind")),
    }
}

/// Finds the content address that the path follows from: Nix imports a tree by its NAR or as Git has
/// it, a file flat, or a text with its references.
fn describe(store_dir: &StoreDir, path: &StorePath, file: &Path, packed: &Packed) -> anyhow::Result<PathInfo> {
    let meta = file.symlink_metadata().with_context(|| format!("read `{}`", file.display()))?;
    let sha256 = Algorithm::Sha256;
    let mut tried = vec![(Method::Nar, sha256, BTreeSet::new())];
    if meta.is_file() {
        tried.push((Method::Flat, sha256, BTreeSet::new()));
        tried.push((Method::Text, sha256, packed.references.iter().filter(|reference| *reference != path).cloned().collect()));
    }
    tried.extend([Algorithm::Sha1, sha256].map(|algorithm| (Method::Git, algorithm, BTreeSet::new())));
    for (method, algorithm, references) in tried {
        let hash: Hash = match method {
            Method::Nar => packed.nar_hash.into(),
            Method::Flat | Method::Text => flat_hash(file)?,
            Method::Git => match nar::git_hash_path(file, algorithm) {
                // Then it was not added so.
                Err(NarError::LongTrees) => continue,
                hash => hash?,
            },
        };
        let address = ContentAddress { method, hash };
        if address.path(store_dir, path.name(), &references, false)? == *path {
            let mut info = packed.path_info(path.clone(), None, Some(address.to_string()));
            info.references = references;
            return Ok(info);
        }
    }
    Err(bad_input(format!(
        "input source `{}` is not what its path says: its content has another hash; only content-addressed sources can be uploaded",
        file.display()
    )))
}

fn flat_hash(file: &Path) -> anyhow::Result<Hash> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut reader = fs::File::open(file).with_context(|| format!("open `{}`", file.display()))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match std::io::Read::read(&mut reader, &mut buffer).with_context(|| format!("read `{}`", file.display()))? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// zstd's level for sources: they are sent once and kept.
pub const UPLOAD_LEVEL: i32 = 3;
/// Derivations in one batch: few enough that one is through before the next change of leader, which has it sent again.
const FILES_PER_BATCH: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_what_its_path_says_by_any_of_the_ways_in_which_nix_adds_it() {
        let (dir, store_dir) = (tempfile::tempdir().expect("temporary directory"), StoreDir::default());
        let file = dir.path().join("source");
        fs::write(&file, "a source\n").expect("write");
        let packer = Packer { level: UPLOAD_LEVEL, spool_dir: dir.path().to_owned() };
        let packed = packer.pack(&file, &Candidates::new(std::iter::empty())).expect("packs");
        let git = |algorithm| nar::git_hash_path(&file, algorithm).expect("hashes");
        let table = [
            (Method::Nar, Hash::from(packed.nar_hash)),
            (Method::Flat, flat_hash(&file).expect("hashes")),
            (Method::Git, git(Algorithm::Sha1)),
            (Method::Git, git(Algorithm::Sha256)),
        ];
        for (method, hash) in table {
            let address = ContentAddress { method, hash };
            let path = address.path(&store_dir, "source", &BTreeSet::new(), false).expect("a path");
            let info = describe(&store_dir, &path, &file, &packed).expect("it is what its path says");
            assert_eq!(info.content_address, Some(address.to_string()));
        }
        let other = StorePath::parse(&format!("{}-source", "0".repeat(32))).expect("a path");
        assert!(describe(&store_dir, &other, &file, &packed).is_err());
    }
}
