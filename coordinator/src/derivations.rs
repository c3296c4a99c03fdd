//! Derivations in memory: outlines of what is brought and submitted, and bytes and parse of the few that were used lately.
//!
//! A submission needs the outlines of its whole closure at once, and seldom a file: its memory is bounded by that. Source: ADR 0043.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kiln_nix::Outline;
use kiln_nix::derivation::{Derivation, DerivationError as ParseError, path_of_parsed};
use kiln_nix::nar::{self, NarError};
use kiln_store::{NarReader, Store, StoreError};
use kiln_wire::limits::DERIVATION_BYTES_MAX;
use kiln_wire::{DrvPath, OutputName, PathInfo, StoreDir, StorePath};

use crate::checked::Checked;
use crate::driver::Chain;
use crate::heavy::heavy;
use crate::parts::Parts;

/// A derivation that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DerivationError {
    /// The farm lacks it.
    #[error("the farm has no derivation `{0}`")]
    Missing(DrvPath),
    /// It is not a derivation that this farm understands.
    #[error("parse `{path}`")]
    Parse {
        /// Which.
        path: DrvPath,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// A path that is called as a derivation is none.
    #[error("`{path}` is no derivation: {rule}")]
    NotOne {
        /// Which.
        path: DrvPath,
        /// The rule that it breaks.
        rule: String,
    },
    /// The store failed.
    #[error("read `{path}` from the store")]
    Store {
        /// Which.
        path: DrvPath,
        /// What the store said.
        #[source]
        source: StoreError,
    },
}

/// The derivations that were used lately.
pub(crate) struct Derivations {
    store_dir: StoreDir,
    kept: Mutex<Held>,
    outlines: Mutex<Outlines>,
}

#[derive(Default)]
struct Outlines {
    /// With what each takes of memory, about.
    by_path: BTreeMap<DrvPath, (Arc<Outline>, usize)>,
    /// What they take, about.
    bytes: usize,
}

impl Outlines {
    /// Keeps an outline, which names others by the paths that are held here already.
    fn keep(&mut self, path: DrvPath, mut outline: Outline) -> Arc<Outline> {
        if let Some((known, _)) = self.by_path.get(&path) {
            return known.clone();
        }
        let unshared = outline.share(|input| self.by_path.get_key_value(input).map(|(held, _)| held.clone()));
        let outline = Arc::new(outline);
        // With its own path and its place in the map.
        let taken = outline.bytes_taken(unshared) + 160;
        if taken > OUTLINE_KEPT_BYTES_MAX {
            // Read again whenever it is needed, rather than in the place of thousands.
            return outline;
        }
        if self.bytes + taken > OUTLINES_BYTES_MAX {
            // Everything is in the store: starting over costs reads, and no bookkeeping on the way.
            *self = Self::default();
        }
        self.bytes += taken;
        self.by_path.insert(path, (outline.clone(), taken));
        outline
    }

    fn forget(&mut self, path: &DrvPath) {
        if let Some((_, taken)) = self.by_path.remove(path) {
            self.bytes -= taken;
        }
    }
}

/// Bytes of one outline that is kept: real ones take some hundred, the largest of 62,315 some ten thousand.
const OUTLINE_KEPT_BYTES_MAX: usize = OUTLINES_BYTES_MAX / 64;

#[derive(Default)]
struct Held {
    by_path: BTreeMap<DrvPath, Kept>,
    /// What they take, by [`Kept::bytes_taken`].
    bytes: usize,
}

#[derive(Clone)]
struct Kept {
    bytes: Bytes,
    parsed: Arc<Derivation>,
}

impl Derivations {
    pub(crate) fn new(store_dir: StoreDir) -> Self {
        Self { store_dir, kept: Mutex::default(), outlines: Mutex::default() }
    }

    /// Returns the parse of a derivation.
    pub(crate) async fn get(&self, parts: &Parts, path: &DrvPath) -> Result<Arc<Derivation>, DerivationError> {
        Ok(self.load(parts, path).await?.parsed)
    }

    /// Returns the outline of a derivation, if it is in memory.
    pub(crate) fn known(&self, path: &DrvPath) -> Option<Arc<Outline>> {
        self.outlines().by_path.get(path).map(|(outline, _)| outline.clone())
    }

    /// Returns the outline of a derivation.
    pub(crate) async fn outline(&self, parts: &Parts, path: &DrvPath) -> Result<Arc<Outline>, DerivationError> {
        if let Some(outline) = self.known(path) {
            return Ok(outline);
        }
        let parsed = self.get(parts, path).await?;
        Ok(self.outlines().keep(path.clone(), Outline::of(&parsed)))
    }

    /// Forgets a derivation that is deleted.
    pub(crate) fn forget(&self, path: &DrvPath) {
        self.outlines().forget(path);
        let mut held = self.held();
        if let Some(kept) = held.by_path.remove(path) {
            held.bytes -= kept.bytes_taken();
        }
    }

    /// Forgets all: another leader may have deleted some.
    pub(crate) fn forget_all(&self) {
        *self.held() = Held::default();
        *self.outlines() = Outlines::default();
    }

    /// Reads those of some derivations that are not in memory and lie on this machine's disk, together. Of the others whoever asks for one alone
    /// gets it, or is told why not.
    pub(crate) async fn prepare(&self, parts: &Parts, paths: impl Iterator<Item = DrvPath>) {
        let absent: Vec<DrvPath> = {
            let held = self.held();
            paths.filter(|path| !held.by_path.contains_key(path)).collect()
        };
        if absent.is_empty() {
            return;
        }
        match parts.store.derivations_at_hand(absent, AT_HAND_BYTES_MAX).await {
            Ok(read) => {
                for (path, bytes, parsed) in read {
                    if self.is_canonical(&path, &parsed, &bytes) {
                        self.keep(path, bytes, Arc::new(parsed));
                    }
                }
            }
            Err(error) => tracing::debug!(error = %Chain(&error), "read derivations together"),
        }
    }

    /// Returns the bytes of a derivation.
    pub(crate) async fn bytes(&self, parts: &Parts, path: &DrvPath) -> Result<Bytes, DerivationError> {
        Ok(self.load(parts, path).await?.bytes)
    }

    /// Keeps a derivation whose path was checked against its bytes.
    pub(crate) fn keep(&self, path: DrvPath, bytes: Bytes, parsed: Arc<Derivation>) {
        let kept = Kept { bytes, parsed };
        let taken = kept.bytes_taken();
        let mut held = self.held();
        if taken > KEPT_BYTES_MAX / 16 {
            return;
        }
        if held.bytes + taken > KEPT_BYTES_MAX {
            // Everything is in the store: starting over costs reads, and no bookkeeping on the way.
            *held = Held::default();
        }
        held.bytes += taken;
        if let Some(before) = held.by_path.insert(path, kept) {
            held.bytes -= before.bytes_taken();
        }
    }

    /// Returns whether Nix would have written a derivation so. Of one that was brought it is known: it has an outline then.
    fn is_canonical(&self, path: &DrvPath, parsed: &Derivation, bytes: &[u8]) -> bool {
        self.known(path).is_some() || parsed.check_canonical(&self.store_dir, bytes).is_ok()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outlines(&self) -> MutexGuard<'_, Outlines> {
        self.outlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts derivations that a client brought into the store, and keeps what their submission will need of them. Each is read and checked
    /// once, inputs first where they came so.
    ///
    /// # Errors
    /// What the store says, or what is wrong with one of them: nothing is stored then.
    pub(crate) async fn add(&self, store: &Store, checked: &Checked, files: Vec<(DrvPath, Bytes)>) -> Result<(), StoreError> {
        let outlines = heavy(|| files.iter().map(|(path, bytes)| self.read(checked, path, bytes)).collect::<Result<Vec<_>, _>>())?;
        let paths: Vec<DrvPath> = files.iter().map(|(path, _)| path.clone()).collect();
        store.put_checked_derivations(files).await?;
        let mut kept = self.outlines();
        for (path, outline) in paths.into_iter().zip(outlines) {
            outline.map(|outline| kept.keep(path, outline));
        }
        Ok(())
    }

    /// Reads what a client brought. One that Nix would have written differently is refused when it is submitted, and has no outline here.
    fn read(&self, checked: &Checked, path: &DrvPath, bytes: &[u8]) -> Result<Option<Outline>, StoreError> {
        let parsed = kiln_store::parse_derivation(&self.store_dir, path, bytes)?;
        if parsed.check_canonical(&self.store_dir, bytes).is_err() {
            return Ok(None);
        }
        checked.check_if_known(path, &parsed);
        Ok(Some(Outline::of(&parsed)))
    }

    async fn load(&self, parts: &Parts, path: &DrvPath) -> Result<Kept, DerivationError> {
        if let Some(kept) = self.held().by_path.get(path) {
            return Ok(kept.clone());
        }
        let read = parts.store.derivation(path).await.map_err(|source| DerivationError::Store { path: path.clone(), source })?;
        let Some((bytes, parsed)) = read else { return self.load_made(parts, path).await };
        parsed.check_canonical(&self.store_dir, &bytes).map_err(|source| DerivationError::Parse { path: path.clone(), source })?;
        let parsed = Arc::new(parsed);
        self.keep(path.clone(), bytes.clone(), parsed.clone());
        Ok(Kept { bytes, parsed })
    }

    /// Loads a derivation of which there is no file, but a path with that name, which a build made or somebody brought: published, or committed
    /// and on its way there.
    async fn load_made(&self, parts: &Parts, path: &DrvPath) -> Result<Kept, DerivationError> {
        let found = parts.path_info(path.as_path()).await.map_err(|source| DerivationError::Store { path: path.clone(), source })?;
        let info = found.ok_or_else(|| DerivationError::Missing(path.clone()))?;
        self.take(&parts.store, path, &info).await
    }

    /// Reads a path as a derivation, and keeps that as one from now on, if the path is the one that follows from it.
    async fn take(&self, store: &Store, path: &DrvPath, info: &PathInfo) -> Result<Kept, DerivationError> {
        let failed = |source| DerivationError::Store { path: path.clone(), source };
        let bytes: Bytes = file_of(store, path, info).await?.into();
        let unread = |source| DerivationError::Parse { path: path.clone(), source };
        let parsed = Arc::new(Derivation::parse_canonical(&self.store_dir, path.name(), &bytes).map_err(unread)?);
        let computed = path_of_parsed(&self.store_dir, &parsed, &bytes).map_err(unread)?;
        if computed != *path {
            // Its builder could not see all that it names, or it says another name or store directory.
            let rule = format!("a derivation that says what it says belongs at `{computed}`: it names what its builder was not given");
            return Err(DerivationError::NotOne { path: path.clone(), rule });
        }
        store.put_derivation(path, bytes.clone()).await.map_err(failed)?;
        self.keep(path.clone(), bytes.clone(), parsed.clone());
        Ok(Kept { bytes, parsed })
    }
}

/// Returns the bytes of the file at a path, if that is a file and no larger than a derivation may be.
async fn file_of(store: &Store, path: &DrvPath, info: &PathInfo) -> Result<Vec<u8>, DerivationError> {
    let refuse = |rule: String| DerivationError::NotOne { path: path.clone(), rule };
    if info.nar_size_bytes > DERIVATION_BYTES_MAX as u64 {
        return Err(refuse(format!("it has {} bytes, at most {DERIVATION_BYTES_MAX} are allowed", info.nar_size_bytes)));
    }
    let blob = store.open_blob(info).await.map_err(|source| DerivationError::Store { path: path.clone(), source })?;
    heavy(|| read_file(info, blob.reader())).map_err(|unread| match unread {
        Unread::NotOne(rule) => refuse(rule),
        Unread::Damaged(reason) => {
            let source = StoreError::DamagedDerivation { path: path.clone(), key: path.as_str().to_owned(), reason };
            DerivationError::Store { path: path.clone(), source }
        }
    })
}

/// Why an archive gives no file.
#[derive(Debug)]
enum Unread {
    /// It never had one.
    NotOne(String),
    /// It is not what it was when it was stored, which says nothing of what it held.
    Damaged(String),
}

/// Reads the file that an archive is.
fn read_file(info: &PathInfo, blob: impl Read) -> Result<Vec<u8>, Unread> {
    let damaged = |reason: &dyn std::error::Error| Unread::Damaged(reason.to_string());
    let mut bytes = Vec::new();
    let mut nar = NarReader::new(blob, info.nar_size_bytes).map_err(|err| damaged(&err))?;
    nar::read_single_file(&mut nar, &mut bytes).map_err(|err| match err {
        NarError::NotOneFile { .. } => Unread::NotOne(format!("it is no file: {err}")),
        err => damaged(&err),
    })?;
    let (found, _) = nar.finish().map_err(|err| damaged(&err))?;
    if found != info.nar_hash {
        return Err(Unread::Damaged("its archive has another hash than it was stored with".to_owned()));
    }
    Ok(bytes)
}

/// Returns the outputs of a derivation whose paths are known before the build, from its outline.
pub(crate) fn outputs_known(outline: &Outline) -> BTreeMap<OutputName, StorePath> {
    outline.outputs().iter().filter_map(|(name, path)| Some((name.clone(), path.clone()?))).collect()
}

/// Returns the outputs of a derivation whose paths are known before the build.
pub(crate) fn output_paths(derivation: &Derivation) -> BTreeMap<OutputName, StorePath> {
    derivation.outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.path()?.clone()))).collect()
}

impl Kept {
    /// What it takes of memory, about: the file, its parse, which holds the same text once more with what holds it together, and a node of the map.
    fn bytes_taken(&self) -> usize {
        3 * self.bytes.len() + 512
    }
}

/// Bytes of derivations kept in memory, parses among them: those that are handed to workers at the time.
const KEPT_BYTES_MAX: usize = 48 << 20;
/// Bytes of a derivation that is read with others: as large as one that is kept, so that what many hold at a time is bounded too.
const AT_HAND_BYTES_MAX: u64 = (KEPT_BYTES_MAX / 16 / 3) as u64;
/// Bytes of outlines kept in memory: those of a package set of 100,000, so that who submits it again asks the store for none.
const OUTLINES_BYTES_MAX: usize = 96 << 20;

#[cfg(test)]
mod tests {
    use kiln_nix::scan::Candidates;
    use kiln_store::Packer;

    use super::*;

    #[test]
    fn what_is_kept_in_memory_stays_within_its_bound() {
        let derivations = Derivations::new(StoreDir::default());
        let text =
            br#"Derive([("out","","r:sha256","")],[],[],"s","b",[],[("out","/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9")])"#;
        let parsed = Derivation::parse(&StoreDir::default(), "a", text).expect("a derivation");
        let parsed = Arc::new(parsed);
        let path = |number: usize| DrvPath::parse(&format!("{number:032}-a.drv")).expect("a path");
        let bytes = Bytes::from(vec![0; 256 << 10]);
        for number in 0..200 {
            derivations.keep(path(number), bytes.clone(), parsed.clone());
            derivations.keep(path(number), bytes.clone(), parsed.clone());
            let held = derivations.held();
            assert!(held.bytes <= KEPT_BYTES_MAX);
            assert_eq!(held.bytes, held.by_path.values().map(Kept::bytes_taken).sum::<usize>());
        }
        assert!(derivations.held().by_path.len() > 1, "some are kept");
        (0..200).for_each(|number| derivations.forget(&path(number)));
        assert_eq!(derivations.held().bytes, 0);
    }

    #[test]
    fn what_the_store_has_lost_is_no_fault_of_the_derivation() {
        let path = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-x.drv").expect("a path");
        let packed = Packer { level: 3, spool_dir: std::env::temp_dir() };
        let pack = |bytes: &[u8]| packed.pack_file(path.as_str(), bytes, &Candidates::new([])).expect("packed");
        let blob = |bytes: &[u8]| {
            let mut blob = Vec::new();
            pack(bytes).spool.into_bytes().reader().read_to_end(&mut blob).expect("read");
            blob
        };
        let text = b"Derive([],[],[],\"s\",\"b\",[],[])";
        let info = pack(text).path_info(path.as_path().clone(), None, None);
        assert_eq!(read_file(&info, &*blob(text)).expect("it is whole"), text);
        let mut other = text.to_vec();
        other[0] = b'd';
        let whole = blob(text);
        for damaged in [&whole[..whole.len() - 4], &blob(&other), b"nonsense", b""] {
            let read = read_file(&info, damaged);
            assert!(matches!(read, Err(Unread::Damaged(_))), "{read:?}");
        }
    }
}
