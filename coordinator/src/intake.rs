//! Intake: paths that clients bring and that no build of this farm made, over HTTP or over the link.
//!
//! Invariant: nothing becomes valid before its archive was read whole and held against what is said of it, and before somebody vouches
//! for that: its content, a key that the farm trusts, or the holder of a token of scope `trusted`. Source: ADR 0031.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kiln_nix::{Keyring, NarInfo, PublicKey, SecretKey};
use kiln_store::{Compression, Endorsed, Repacked, StoreError, Vouched};
use kiln_wire::limits::{UPLOAD_STAGED_SECONDS_MAX, UPLOADS_MAX, UPLOADS_STAGED_BYTES_MAX, UPLOADS_STAGED_MAX};
use kiln_wire::{Leader, PathInfo, StorePath};
use tokio::sync::Semaphore;

use crate::brought::{self, PublishError};
use crate::garbage::touch;
use crate::leading;
use crate::parts::Parts;
use crate::tokens::Token;
use crate::upstream::judge::{Believed, Doubt, believe};

/// What a coordinator needs to take paths from clients.
pub(crate) struct Intake {
    pub(crate) tokens: Vec<Token>,
    /// Keys that vouch for what is uploaded, beside the farm's own.
    keys: Vec<PublicKey>,
    staged: Mutex<Staged>,
    /// Archives that are read at a time.
    pub(crate) turns: Semaphore,
}

/// Archives that have come and whose narinfo has not, by their file names.
#[derive(Default)]
struct Staged {
    archives: BTreeMap<String, Waiting>,
}

/// An archive that waits for its narinfo.
struct Waiting {
    since: Instant,
    /// The name of the token under which it came.
    token: String,
    archive: Arc<Repacked>,
}

/// A path that is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    /// Its archive is not here.
    #[error("take `{path}`: its archive `{file}` is not here; upload it first")]
    NoArchive { path: StorePath, file: String },
    /// Nobody whom the farm trusts vouches for it.
    #[error(
        "take `{path}`: {doubt}; sign it with a key of the farm's `trusted_upload_keys` (`nix store sign`), or use a token of scope `trusted`"
    )]
    Doubted { path: StorePath, doubt: Doubt },
    /// The farm has it with other content.
    #[error("take `{path}`: the farm has it already, with another content")]
    Differs { path: StorePath },
    /// It is not what is said of it, or what it refers to is not here, or the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was touched here counts no more: another leader may be deleting it.
    #[error("take a path: this coordinator does not lead any more; try again")]
    NotLeader,
    /// The work on it died.
    #[error("take a path")]
    Died(#[source] tokio::task::JoinError),
}

impl Intake {
    pub(crate) fn new(tokens: Vec<Token>, keys: Vec<PublicKey>) -> Self {
        Self { tokens, keys, staged: Mutex::default(), turns: Semaphore::new(UPLOADS_MAX) }
    }

    /// Returns the keys that vouch for what clients bring: those that are trusted for that, and the farm's own.
    pub(crate) fn keys(&self, own: &Keyring) -> Vec<PublicKey> {
        self.keys.iter().cloned().chain(own.signing().map(SecretKey::public)).collect()
    }

    /// Keeps an archive until its narinfo comes.
    pub(crate) fn stage(&self, file: String, token: String, archive: Repacked) {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        staged.forget_old(now);
        staged.archives.insert(file, Waiting { since: now, token: token.clone(), archive: Arc::new(archive) });
        staged.forget_over(&token, UPLOADS_STAGED_MAX, UPLOADS_STAGED_BYTES_MAX);
    }

    fn staged(&self, file: &str) -> Option<Arc<Repacked>> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        staged.forget_old(Instant::now());
        staged.archives.get(file).map(|waiting| waiting.archive.clone())
    }

    /// Forgets all archives that wait: another coordinator gets their narinfos.
    pub(crate) fn step_down(&self) {
        let forgotten = std::mem::take(&mut *self.staged.lock().unwrap_or_else(PoisonError::into_inner));
        drop(forgotten);
    }

    fn forget(&self, file: &str) {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).archives.remove(file);
    }
}

impl Staged {
    /// Forgets archives whose narinfo has not come for too long: their client is gone.
    fn forget_old(&mut self, now: Instant) {
        self.archives.retain(|_, waiting| now.saturating_duration_since(waiting.since).as_secs() < UPLOAD_STAGED_SECONDS_MAX);
    }

    /// Forgets the oldest archives until neither their number nor their bytes are over the limits: first those of the token that brought
    /// the newest one.
    fn forget_over(&mut self, token: &str, count_max: usize, bytes_max: u64) {
        let bytes = |archives: &BTreeMap<String, Waiting>| archives.values().map(|waiting| waiting.archive.blob_bytes()).sum::<u64>();
        while self.archives.len() > count_max || bytes(&self.archives) > bytes_max {
            let newest = self.archives.values().map(|waiting| waiting.since).max();
            let is_others = |waiting: &Waiting| waiting.token != token || Some(waiting.since) == newest;
            let oldest = self.archives.iter().min_by_key(|(_, waiting)| (is_others(waiting), waiting.since)).map(|(file, _)| file.clone());
            match oldest {
                Some(file) => drop(self.archives.remove(&file)),
                None => return,
            }
        }
    }
}

/// Says whether what is stated of a path is to be believed.
///
/// # Errors
/// [`IntakeError::Doubted`] says why not, and what would help.
pub(crate) fn vouch(parts: &Parts, narinfo: NarInfo, is_trusted: bool) -> Result<Believed, IntakeError> {
    let path = narinfo.path.clone();
    let keys = parts.intake.keys(&parts.keys);
    let unsigned = is_trusted.then(|| narinfo.clone());
    match (believe(&parts.store_dir, &path, narinfo, &keys), unsigned) {
        (Err(Doubt::Unsigned), Some(narinfo)) => {
            let compression = Compression::named(&narinfo.compression).unwrap_or(Compression::None);
            Ok(Believed { narinfo, signatures: Vec::new(), vouched: Vouched::BySomebody, compression })
        }
        (believed, _) => believed.map_err(|doubt| IntakeError::Doubted { path, doubt }),
    }
}

/// Takes a path whose archive was uploaded before, and publishes it. A path that the farm has stays as it is.
///
/// # Errors
/// [`IntakeError`] says what is wrong, and what to do.
pub(crate) async fn take(parts: &Arc<Parts>, narinfo: NarInfo, is_trusted: bool) -> Result<(), IntakeError> {
    let leader = leading::own(parts);
    // Whoever is told that it is there relies on it.
    touch(parts, narinfo.references.iter().chain([&narinfo.path])).await;
    check_leads(parts, leader)?;
    if let Some(known) = parts.path_info(&narinfo.path).await? {
        return match known.nar_hash == narinfo.nar_hash {
            true => Ok(()),
            false => Err(IntakeError::Differs { path: known.path }),
        };
    }
    let believed = vouch(parts, narinfo, is_trusted)?;
    let file = believed.narinfo.url.strip_prefix("nar/").unwrap_or(&believed.narinfo.url).to_owned();
    let signatures = believed.signatures.clone();
    let info = claim(parts, believed, &file).await?;
    publish(parts, leader, &Endorsed { info, signatures }).await?;
    parts.intake.forget(&file);
    Ok(())
}

/// Finds the archive of a path, holds it against what is said of the path, and stores it. Returns the facts.
async fn claim(parts: &Arc<Parts>, believed: Believed, file: &str) -> Result<PathInfo, IntakeError> {
    let uploaded = Compression::of_file(file).map_or("", |(hash, _)| hash);
    let Some(archive) = parts.intake.staged(file) else {
        // Nix does not send an archive that is here already, by whichever path.
        let _turn = parts.intake.turns.acquire().await.expect("never closed");
        let stored = parts.store.claim_stored(&believed.narinfo, uploaded, believed.vouched).await?;
        return stored.ok_or_else(|| IntakeError::NoArchive { path: believed.narinfo.path, file: file.to_owned() });
    };
    let store = parts.store.clone();
    let work = move || store.claim_repacked(&believed.narinfo, &archive, believed.vouched);
    let received = tokio::task::spawn_blocking(work).await.map_err(IntakeError::Died)??;
    let info = parts.store.keep(&received).await?;
    // Nix remembers the narinfo that it made, and asks for the archive by the name in that one.
    parts.store.note_uploaded(uploaded, &info.blob.sha256).await?;
    Ok(info)
}

/// Publishes a path that was vouched for, with the signatures by which it was. A path that the farm has committed or published stays as
/// it is; a build that makes the path meanwhile waits for its turn, and finds it. `leader` is under which this began.
///
/// # Errors
/// [`IntakeError::NotLeader`], [`IntakeError::Differs`] of a path that the farm has with another content, and as of [`kiln_store::Store::publish`].
pub(crate) async fn publish(parts: &Parts, leader: Option<Leader>, endorsed: &Endorsed) -> Result<(), IntakeError> {
    let valid = brought::publish(parts, leader, endorsed).await.map_err(|error| match error {
        PublishError::NotLeader => IntakeError::NotLeader,
        PublishError::Store(error) => IntakeError::Store(error),
    })?;
    match valid.nar_hash == endorsed.info.nar_hash {
        true => Ok(()),
        false => Err(IntakeError::Differs { path: valid.path }),
    }
}

/// Only under the leadership that something was touched under does that count.
pub(crate) fn check_leads(parts: &Parts, leader: Option<Leader>) -> Result<(), IntakeError> {
    match leader.is_some() && leading::own(parts) == leader {
        true => Ok(()),
        false => Err(IntakeError::NotLeader),
    }
}
