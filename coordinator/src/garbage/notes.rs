//! What the store itself says of what must stay, and what is being deleted: pins, what clients hold, the condemned batch. They lie beside
//! what they are about, so that whatever loses them has lost that too, and a restored or new coordinator finds them.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::garbage::{HashPart, Key};
use kiln_link::Role;
use kiln_store::{Note, StoreError};
use kiln_wire::limits::{HELD_MS, PIN_NAME_BYTES_MAX, PINNED_PATHS_MAX};
use kiln_wire::{Sha256Hash, StorePath, Timestamp, frame};
use serde::{Deserialize, Serialize};

use crate::parts::Parts;

/// Paths that stay under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pin {
    pub name: String,
    pub paths: BTreeSet<StorePath>,
    /// Whose it is: the role of whoever pinned under that name first. Pins that are older are anybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

impl Pin {
    /// Whether such a peer may end it: its owner, and admins.
    fn may_be_ended_by(&self, peer: &Role) -> bool {
        matches!(peer, Role::Admin(_)) || self.owner.as_ref().is_none_or(|owner| *owner == peer.to_string())
    }
}

/// What a client relies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    holder: u64,
    paths: BTreeSet<StorePath>,
}

/// What a leader deletes at the moment.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Condemned {
    parts: Vec<String>,
    blobs: Vec<Sha256Hash>,
}

/// A note that cannot be had or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoteError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("read a note of `{kind}`: it is damaged; delete it from the store, or wait for a program that can read it")]
    Damaged {
        kind: &'static str,
        #[source]
        source: frame::FrameError,
    },
    #[error("pin `{name}`: it would have {count} paths, over the limit of {PINNED_PATHS_MAX}; use several names")]
    TooMany { name: String, count: usize },
    #[error("unpin `{name}`: it was pinned by `{owner}`, who may end that, as an admin may")]
    Others { name: String, owner: String },
    #[error("pin: a name has 1 to {PIN_NAME_BYTES_MAX} bytes, this one {bytes}")]
    Name { bytes: usize },
}

const PINS: &str = "pins";
const HOLDS: &str = "holds";
const SWEEP: &str = "sweep";
const CONDEMNED: &str = "condemned";
const ENDED: &str = "ended";
const CLOCK: &str = "clock";

/// Returns the pins.
pub(super) async fn pins(parts: &Parts) -> Result<Vec<Pin>, NoteError> {
    let notes = parts.store.notes(PINS).await?;
    let mut pins: Vec<Pin> = notes.iter().map(|note| read(PINS, &note.bytes)).collect::<Result<_, _>>()?;
    pins.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(pins)
}

/// Pins paths under a name, for whoever asks.
pub(super) async fn pin(parts: &Parts, peer: &Role, name: &str, paths: Vec<StorePath>) -> Result<(), NoteError> {
    change_pin(parts, peer, name, |pin| {
        pin.paths.extend(paths);
        Ok(())
    })
    .await
}

/// Ends that a name pins some paths; none: all of them.
pub(super) async fn unpin(parts: &Parts, peer: &Role, name: &str, paths: &[StorePath]) -> Result<(), NoteError> {
    change_pin(parts, peer, name, |pin| match pin.may_be_ended_by(peer) {
        true => {
            pin.paths.retain(|path| !paths.is_empty() && !paths.contains(path));
            Ok(())
        }
        false => Err(NoteError::Others { name: pin.name.clone(), owner: pin.owner.clone().unwrap_or_default() }),
    })
    .await
}

/// Changes what a name pins; a name that pins nothing is no pin.
async fn change_pin(
    parts: &Parts,
    peer: &Role,
    name: &str,
    change: impl FnOnce(&mut Pin) -> Result<(), NoteError>,
) -> Result<(), NoteError> {
    if name.is_empty() || name.len() > PIN_NAME_BYTES_MAX {
        return Err(NoteError::Name { bytes: name.len() });
    }
    let _turn = parts.garbage.noting.lock().await;
    let found = parts.store.note(PINS, name).await?;
    let mut pin = match found {
        Some(bytes) => read(PINS, &bytes)?,
        None => Pin { name: name.to_owned(), paths: BTreeSet::new(), owner: Some(peer.to_string()) },
    };
    change(&mut pin)?;
    match pin.paths.len() {
        0 => parts.store.delete_note(PINS, name).await?,
        count if count > PINNED_PATHS_MAX => return Err(NoteError::TooMany { name: pin.name, count }),
        _ => parts.store.put_note(PINS, name, write(PINS, &pin)?).await?,
    }
    Ok(())
}

/// Notes what a client holds, in place of what it held before.
pub(super) async fn hold(parts: &Parts, holder: u64, paths: BTreeSet<StorePath>) -> Result<(), NoteError> {
    let name = holder.to_string();
    match paths.is_empty() {
        true => parts.store.delete_note(HOLDS, &name).await?,
        false => parts.store.put_note(HOLDS, &name, write(HOLDS, &Held { holder, paths })?).await?,
    }
    Ok(())
}

/// Returns what clients hold by holder. What nobody renewed in time is left out, and with `tidy` its note deleted.
pub(super) async fn held(parts: &Parts, now: Timestamp, tidy: bool) -> Result<BTreeMap<u64, BTreeSet<StorePath>>, NoteError> {
    let mut all = BTreeMap::new();
    for Note { bytes, at } in parts.store.notes(HOLDS).await? {
        let held: Held = read(HOLDS, &bytes)?;
        if now.0.saturating_sub(at.0) < HELD_MS {
            all.insert(held.holder, held.paths);
        } else if tidy {
            parts.store.delete_note(HOLDS, &held.holder.to_string()).await?;
        }
    }
    Ok(all)
}

/// Notes what is deleted next; nothing: the note goes.
pub(super) async fn condemn(parts: &Parts, keys: &[Key]) -> Result<(), NoteError> {
    let mut condemned = Condemned::default();
    for key in keys {
        match key {
            Key::Path(part) => condemned.parts.push(part.as_str().to_owned()),
            Key::Blob(blob) => condemned.blobs.push(*blob),
        }
    }
    match keys.is_empty() {
        true => parts.store.delete_note(SWEEP, CONDEMNED).await?,
        false => parts.store.put_note(SWEEP, CONDEMNED, write(SWEEP, &condemned)?).await?,
    }
    Ok(())
}

/// Returns what a leader was deleting when it noted that down last.
pub(super) async fn condemned(parts: &Parts) -> Result<Vec<Key>, NoteError> {
    let Some(bytes) = parts.store.note(SWEEP, CONDEMNED).await? else { return Ok(Vec::new()) };
    let Condemned { parts, blobs } = read(SWEEP, &bytes)?;
    let parts = parts.iter().filter_map(|part| HashPart::parse(part)).map(Key::Path);
    Ok(parts.chain(blobs.into_iter().map(Key::Blob)).collect())
}

/// Notes when a collection ended.
pub(super) async fn ended(parts: &Parts, at: Timestamp) -> Result<(), NoteError> {
    Ok(parts.store.put_note(SWEEP, ENDED, write(SWEEP, &at)?).await?)
}

/// Returns what time it is for the store, whose word the age of every object is, if its clock is behind ours: ours never goes back.
pub(super) async fn now(parts: &Parts) -> Result<Timestamp, NoteError> {
    let ours = parts.clock.now();
    parts.store.put_note(CLOCK, CLOCK, write(CLOCK, &ours)?).await?;
    let theirs = parts.store.notes(CLOCK).await?.into_iter().map(|note| note.at).min();
    Ok(theirs.map_or(ours, |theirs| theirs.min(ours)))
}

/// Returns when the last collection ended, if there was one.
pub(super) async fn last_ended(parts: &Parts) -> Result<Option<Timestamp>, NoteError> {
    let found = parts.store.note(SWEEP, ENDED).await?;
    found.map(|bytes| read(SWEEP, &bytes)).transpose()
}

fn read<T: serde::de::DeserializeOwned>(kind: &'static str, bytes: &[u8]) -> Result<T, NoteError> {
    frame::from_bytes(bytes).map_err(|source| NoteError::Damaged { kind, source })
}

fn write<T: Serialize>(kind: &'static str, value: &T) -> Result<bytes::Bytes, NoteError> {
    frame::to_bytes(value).map(Into::into).map_err(|source| NoteError::Damaged { kind, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_ended_by_whoever_pinned_or_an_admin() {
        let role = |text: &str| text.parse::<Role>().expect("a role");
        let pin = |owner: Option<&str>| Pin { name: "release".into(), paths: BTreeSet::new(), owner: owner.map(str::to_owned) };
        let table = [
            (Some("client/ann"), "client/ann", true),
            (Some("client/ann"), "client/bob", false),
            (Some("client/ann"), "admin/root", true),
            (Some("admin/root"), "client/root", false),
            (None, "client/bob", true),
        ];
        for (owner, peer, may) in table {
            let kept: Pin = read(PINS, &write(PINS, &pin(owner)).expect("writes")).expect("reads");
            assert_eq!(kept.may_be_ended_by(&role(peer)), may, "{owner:?} by {peer}");
        }
    }
}
