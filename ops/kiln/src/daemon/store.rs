//! The farm's store, as a Nix client asks about it. A derivation counts as a valid path when the farm has its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::daemon::Facts;
use kiln_nix::hash::{Algorithm, Hasher};
use kiln_nix::nar::{self, HashWriter};
use kiln_nix::{Derivation, NarInfo};
use kiln_store::Spool;
use kiln_wire::client::{DerivationFile, Request, Response, Substitutable};
use kiln_wire::limits::PATHS_PER_REQUEST_MAX;
use kiln_wire::{DrvPath, OutputName, PathInfo, StoreDir, StorePath};

use super::Daemon;
use super::local::Local;
use crate::client::{Client, unexpected};
use crate::{import, realise};

/// Derivations that clients brought or asked about lately, for all connections.
#[derive(Default)]
pub(super) struct Known(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// When the first of them came.
    since: Option<Instant>,
    derivations: BTreeMap<DrvPath, Arc<Derivation>>,
    /// What their files have together.
    bytes: usize,
}

/// The store, for one connection.
#[derive(Clone)]
pub(super) struct Store {
    client: Arc<Client>,
    store_dir: StoreDir,
    known: Arc<Known>,
    local: Option<Arc<Local>>,
}

impl Store {
    /// Connects to the farm.
    pub(super) async fn open(daemon: &Daemon) -> anyhow::Result<Self> {
        let client = Client::open(&daemon.farm).await?;
        let store_dir = client.status().await?.store_dir;
        Ok(Self { client: Arc::new(client), store_dir, known: daemon.known.clone(), local: daemon.local.clone() })
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    pub(super) fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// Returns those of `paths` that are valid.
    pub(super) async fn valid(&self, paths: BTreeSet<StorePath>) -> anyhow::Result<BTreeSet<StorePath>> {
        let missing = import::missing(&self.client, paths.iter().cloned().collect()).await?;
        let mut valid = paths;
        for path in &missing {
            valid.remove(path);
        }
        Ok(valid)
    }

    /// Forgets what is kept in memory: some of it may be deleted.
    pub(super) fn forget_derivations(&self) {
        self.known.forget();
    }

    /// Returns what upstream caches have of some paths that the farm lacks. For show: whoever cannot be asked has nothing.
    pub(super) async fn substitutable(&self, paths: Vec<StorePath>) -> Vec<Substitutable> {
        let mut found = Vec::new();
        for chunk in paths.chunks(PATHS_PER_REQUEST_MAX) {
            match self.client.one(&Request::Substitutable(chunk.to_vec())).await {
                Ok(Response::Substitutable(more)) => found.extend(more),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "ask what upstream caches have"),
            }
        }
        found
    }

    pub(super) async fn is_valid(&self, path: &StorePath) -> anyhow::Result<bool> {
        Ok(!self.valid(BTreeSet::from([path.clone()])).await?.is_empty())
    }

    /// Returns what is published of the path with this hash part.
    pub(super) async fn narinfo(&self, hash_part: &str) -> anyhow::Result<Option<NarInfo>> {
        let request = Request::Narinfos(vec![hash_part.to_owned()]);
        let texts = self.client.all(&request, |answer| if let Response::Narinfos(texts) = answer { Some(texts) } else { None }).await?;
        let parsed = texts.first().map(|text| NarInfo::parse(&self.store_dir, text.as_bytes()));
        Ok(parsed.transpose()?)
    }

    /// Returns what is published of a path that is no derivation.
    pub(super) async fn published(&self, path: &StorePath) -> anyhow::Result<Option<NarInfo>> {
        // Another path with the same hash part cannot be had by accident; this one is then not in the store.
        Ok(self.narinfo(path.hash_part()).await?.filter(|info| info.path == *path))
    }

    /// Returns a derivation; none if the farm lacks it.
    pub(super) async fn derivation(&self, path: &DrvPath) -> anyhow::Result<Option<Arc<Derivation>>> {
        Ok(self.derivations(BTreeSet::from([path.clone()])).await?.remove(path))
    }

    /// Returns derivations; those that the farm lacks are left out.
    pub(super) async fn derivations(&self, paths: BTreeSet<DrvPath>) -> anyhow::Result<BTreeMap<DrvPath, Arc<Derivation>>> {
        let mut found = BTreeMap::new();
        let mut lacking = Vec::new();
        for path in paths {
            match self.known.get(&path) {
                Some(derivation) => drop(found.insert(path, derivation)),
                None => lacking.push(path),
            }
        }
        for chunk in lacking.chunks(PATHS_PER_REQUEST_MAX) {
            let request = Request::Derivations(chunk.to_vec());
            let files =
                self.client.all(&request, |answer| if let Response::Derivations(files) = answer { Some(files) } else { None }).await?;
            for DerivationFile { path, bytes } in files {
                let derivation = Arc::new(Derivation::parse_canonical(&self.store_dir, path.name(), &bytes)?);
                self.known.keep(path.clone(), derivation.clone(), bytes.len());
                found.insert(path, derivation);
            }
        }
        Ok(found)
    }

    /// Returns where the outputs of derivations are whose paths only their builds tell, as far as they were built. Asks for many at a time.
    pub(super) async fn outputs(
        &self,
        derivations: &BTreeMap<DrvPath, Arc<Derivation>>,
    ) -> anyhow::Result<BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>> {
        let mut found = BTreeMap::new();
        for chunk in untold(derivations).chunks(OUTPUTS_ASKED_MAX) {
            match self.client.one(&Request::Outputs(chunk.to_vec())).await? {
                Response::Outputs(outputs) => found.extend(outputs),
                _ => return Err(unexpected("another kind").into_error()),
            }
        }
        Ok(found)
    }

    /// Returns the signed realisation of an output that is named as Nix to 2.34 names it; none if the farm has none.
    pub(super) async fn realisation(&self, id: &str) -> anyhow::Result<Option<String>> {
        match self.client.one(&Request::Realisation(id.to_owned())).await? {
            Response::Realisation(found) => Ok(found),
            _ => Err(unexpected("another kind").into_error()),
        }
    }

    /// Tells the farm what a derived output became, in words that Nix signs. Who is trusted here needs no signature if the farm trusts this daemon.
    pub(super) async fn register(&self, realisation: String, trusted: bool) -> anyhow::Result<()> {
        match self.client.one(&Request::Register { realisation, trusted }).await? {
            Response::Done => Ok(()),
            _ => Err(unexpected("another kind").into_error()),
        }
    }

    /// Hands over derivations whose paths were checked, and keeps their files here if files are kept. A client evaluates the same again and
    /// again: what the farm has is not sent there, which would write it to disk anew.
    pub(super) async fn add_derivations(&self, files: Vec<(DrvPath, Arc<Derivation>)>) -> anyhow::Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let paths = files.iter().map(|(path, _)| path.as_path().clone()).collect();
        let lacking: BTreeSet<StorePath> = import::missing(&self.client, paths).await?.into_iter().collect();
        let (mut batch, mut sizes) = (Vec::new(), Vec::new());
        for (path, derivation) in &files {
            let file = DerivationFile { path: path.clone(), bytes: derivation.print(&self.store_dir) };
            sizes.push(file.bytes.len());
            batch.push(file);
        }
        if let Some(local) = &self.local {
            let written: Vec<(&DrvPath, &[u8])> = batch.iter().map(|file| (&file.path, file.bytes.as_slice())).collect();
            local.write(&self.store_dir, &written)?;
        }
        batch.retain(|file| lacking.contains(file.path.as_path()));
        if !batch.is_empty() {
            match self.client.one(&Request::AddDerivations(batch)).await? {
                Response::Done => {}
                _ => return Err(unexpected("another kind").into_error()),
            }
        }
        for ((path, derivation), bytes) in files.into_iter().zip(sizes) {
            self.known.keep(path, derivation, bytes);
        }
        Ok(())
    }

    /// Returns what is known of a path; none if it is not valid. If files are kept here, its are here then.
    pub(super) async fn facts(&self, path: &StorePath) -> anyhow::Result<Option<Facts>> {
        if let Ok(path) = DrvPath::from_path(path.clone()) {
            return match self.derivation(&path).await? {
                Some(derivation) => self.facts_of_derivation(&path, &derivation).map(Some),
                None => Ok(None),
            };
        }
        let Some(info) = self.published(path).await? else { return Ok(None) };
        if let Some(local) = &self.local {
            local.bring(&self.client, &self.store_dir, &[info.path_info()?]).await?;
        }
        Ok(Some(Facts {
            deriver: info.deriver.map(|deriver| deriver.as_path().clone()),
            nar_hash: info.nar_hash,
            references: info.references,
            registered_at_seconds: 0,
            nar_size_bytes: info.nar_size_bytes,
            // What does not follow from its content was built by the farm.
            ultimate: info.content_address.is_none(),
            signatures: info.signatures.iter().map(ToString::to_string).collect(),
            content_address: info.content_address.unwrap_or_default(),
        }))
    }

    fn facts_of_derivation(&self, path: &DrvPath, derivation: &Derivation) -> anyhow::Result<Facts> {
        let bytes = derivation.print(&self.store_dir);
        if let Some(local) = &self.local {
            local.write(&self.store_dir, &[(path, &bytes)])?;
        }
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&bytes);
        let mut archive = HashWriter::new(std::io::sink());
        std::io::copy(&mut nar::of_file(&bytes[..], bytes.len() as u64), &mut archive)?;
        let (digest, _) = archive.finish();
        Ok(Facts {
            deriver: None,
            nar_hash: digest.hash,
            references: derivation.references(),
            registered_at_seconds: 0,
            nar_size_bytes: digest.size_bytes,
            ultimate: false,
            signatures: Vec::new(),
            content_address: ContentAddress { method: Method::Text, hash: hasher.finish() }.to_string(),
        })
    }

    /// Returns where the log of a derivation is kept, if files are kept here.
    pub(super) fn log_place(&self, derivation: &DrvPath) -> Option<PathBuf> {
        self.local.as_ref().map(|local| local.log_place(derivation))
    }

    /// Fetches the blob of a path.
    pub(super) async fn blob(&self, info: &PathInfo) -> anyhow::Result<Spool> {
        realise::fetch_blob(&self.client, info, &std::env::temp_dir()).await
    }

    /// Brings paths and all that they refer to, if files are kept here.
    pub(super) async fn bring(&self, paths: Vec<StorePath>) -> anyhow::Result<()> {
        let Some(local) = &self.local else { return Ok(()) };
        let infos = self.client.all(&Request::PathInfos { paths, closure: true }, realise::infos_of).await?;
        local.bring(&self.client, &self.store_dir, &infos).await
    }
}

impl Known {
    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }

    fn get(&self, path: &DrvPath) -> Option<Arc<Derivation>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The farm may have deleted them since, but not before it has been silent about them for longer.
        if kept.since.is_some_and(|since| since.elapsed() > KEPT_MAX) {
            *kept = Kept::default();
        }
        kept.derivations.get(path).cloned()
    }

    /// Keeps a derivation whose file has so many bytes.
    fn keep(&self, path: DrvPath, derivation: Arc<Derivation>, bytes: usize) {
        if bytes > ONE_KEPT_BYTES_MAX {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + bytes > KEPT_BYTES_MAX {
            // The farm has them all: starting over costs reads, and no bookkeeping on the way.
            *kept = Kept::default();
        }
        kept.since.get_or_insert_with(Instant::now);
        if kept.derivations.insert(path, derivation).is_none() {
            kept.bytes += bytes;
        }
    }
}

/// Returns the derivations that do not say where all of their outputs are.
fn untold(derivations: &BTreeMap<DrvPath, Arc<Derivation>>) -> Vec<DrvPath> {
    let is_untold = |derivation: &Derivation| derivation.outputs.values().any(|output| output.path().is_none());
    derivations.iter().filter(|(_, derivation)| is_untold(derivation)).map(|(path, _)| path.clone()).collect()
}

/// Derivations whose outputs are asked for at a time: the answer, with some outputs of each, is one frame.
const OUTPUTS_ASKED_MAX: usize = PATHS_PER_REQUEST_MAX / 4;
/// How long they are kept: less than the shortest period of grace that makes sense.
const KEPT_MAX: Duration = Duration::from_secs(600);
/// Bytes of derivations' files that are kept, parsed, in memory; a real one has about 5 KB.
const KEPT_BYTES_MAX: usize = 256 << 20;
/// Bytes of the largest that is.
const ONE_KEPT_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_not_say_its_paths_is_asked_for() {
        let parsed = |output: &str| {
            let text = format!(r#"Derive([("out",{output})],[],[],"s","b",[],[("out","")])"#);
            Arc::new(Derivation::parse(&StoreDir::default(), "x", text.as_bytes()).expect("parses"))
        };
        let path = |letter: &str| DrvPath::parse(&format!("{}-x.drv", letter.repeat(32))).expect("a path");
        let known = parsed(r#""/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-x","","""#);
        let derivations =
            [(path("a"), known), (path("b"), parsed(r#""","r:sha256","""#)), (path("c"), parsed(r#""","","""#))].into_iter().collect();
        assert_eq!(untold(&derivations), [path("b"), path("c")]);
    }

    #[test]
    fn what_is_kept_in_memory_is_bounded_by_its_bytes() {
        let known = Known::default();
        let text = br#"Derive([("out","/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-x","","")],[],[],"s","b",[],[("out","/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-x")])"#;
        let derivation = Arc::new(Derivation::parse(&StoreDir::default(), "x", text).expect("parses"));
        let path = |number: usize| DrvPath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-x{number}.drv")).expect("a path");
        let fit = KEPT_BYTES_MAX / ONE_KEPT_BYTES_MAX;
        (0..fit).for_each(|number| known.keep(path(number), derivation.clone(), ONE_KEPT_BYTES_MAX));
        assert!((0..fit).all(|number| known.get(&path(number)).is_some()));
        known.keep(path(fit), derivation.clone(), 1);
        assert!(known.get(&path(0)).is_none() && known.get(&path(fit)).is_some(), "it starts over");
        known.keep(path(fit + 1), derivation, ONE_KEPT_BYTES_MAX + 1);
        assert!(known.get(&path(fit + 1)).is_none(), "too large by itself");
    }
}
