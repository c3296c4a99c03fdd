//! Reading single entries back from a log that is open: whoever uses it need not hold all of it in memory.
//!
//! Knows where the newest record of each entry lies that is in its file. What is read is checked as recovery checks it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::disk::{File, FileExt};
use super::layout::{BLOCK_BYTES, Found, Header, Kind, decode_record};
use super::{WalError, at, segment};

/// Where a record lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its segment.
    pub segment: u64,
    /// Its first byte there.
    pub offset: u64,
    /// Its bytes, head and padding among them.
    pub bytes: usize,
}

/// Where entries lie, by log index.
#[derive(Debug, Default)]
pub struct Places(Mutex<BTreeMap<u64, Place>>);

impl Places {
    /// Notes records that are in their files, in the order in which they were written: of two of one entry the later counts.
    pub fn note(&self, written: impl IntoIterator<Item = (u64, Place)>) {
        self.lock().extend(written);
    }

    /// Forgets entries up to an index, whose records may be deleted.
    pub fn forget(&self, upto: u64) {
        let mut places = self.lock();
        *places = places.split_off(&upto.saturating_add(1));
    }

    /// Reads an entry back: the version of its payload, and the payload. `None`: no record of it is in a file.
    ///
    /// # Errors
    /// [`WalError::Io`] also if the record was deleted meanwhile, [`WalError::Damaged`] if it is not what was written.
    pub fn read(&self, dir: &Path, index: u64) -> Result<Option<(u8, Vec<u8>)>, WalError> {
        let place = self.lock().get(&index).copied();
        let Some(Place { segment, offset, bytes }) = place else { return Ok(None) };
        let path = segment::path(dir, segment);
        let file = File::open(&path).map_err(at("open", &path))?;
        let (mut head, mut record) = ([0; BLOCK_BYTES], vec![0; bytes]);
        file.read_exact_at(&mut head, 0).map_err(at("read", &path))?;
        file.read_exact_at(&mut record, offset).map_err(at("read", &path))?;
        let damaged = |what: &str| WalError::Damaged { path: path.clone(), offset, what: what.to_owned() };
        let header = Header::decode(&head).map_err(damaged)?;
        match decode_record(&header, &record) {
            Found::Record(head, payload, _) if head.kind == Kind::Entry && head.index == index => {
                Ok(Some((head.version, payload.to_owned())))
            }
            Found::Record(..) => Err(damaged("another record lies in the place of an entry")),
            Found::Blank => Err(damaged("an entry that was written is gone")),
            Found::Bad(what) => Err(damaged(what)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
