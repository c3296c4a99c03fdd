//! The log in memory: what its records add up to.
//!
//! Pure: fed by recovery and by the store alike, so that what a restart reads back is what was there. Knows every entry that is not purged,
//! and holds the newest of them, as far as [`HELD_BYTES_MAX`] goes: the others are read back from their files by whoever asks for them, a
//! follower that lags or a restart. An entry is let go only once it is in a file.

use std::collections::VecDeque;
use std::ops::{Bound, RangeBounds};

use kiln_wire::Version;

use super::record::{Record, needs};
use super::types::{Entry, LogId, Vote};

/// Vote, marks and entries.
#[derive(Debug, Default)]
pub struct LogState {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    slots: VecDeque<Slot>,
    /// Up to which index entries are in their files.
    written: Option<u64>,
    /// Bytes of the entries that are held, which are the last ones.
    held_bytes: u64,
    /// How many those are.
    held: usize,
    held_bytes_max: Option<u64>,
}

/// One entry.
#[derive(Debug)]
struct Slot {
    log_id: LogId,
    needs: Version,
    /// Bytes of its payload.
    bytes: u64,
    /// None if it was let go.
    entry: Option<Entry>,
}

/// An entry that was asked for.
#[derive(Debug)]
pub enum Found {
    /// Here it is.
    Here(Entry),
    /// It is to be read back.
    There(LogId),
}

/// Bytes of entries that are held, as the log has them; in memory they take some three times as much.
const HELD_BYTES_MAX: u64 = 4 << 20;

impl LogState {
    /// Takes in one record whose payload has `bytes`.
    ///
    /// # Errors
    /// Says why the record cannot follow what came before it.
    pub fn take(&mut self, record: Record, bytes: u64) -> Result<(), String> {
        match record {
            Record::Entry(entry) => self.append(entry, bytes)?,
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Truncate(after) => self.truncate(after),
            Record::Purge(upto) => self.purge(upto),
            Record::Committed(upto) => self.committed = upto,
        }
        Ok(())
    }

    /// Checks what only the end of the log can show: that no entry is missing behind the purged ones.
    ///
    /// # Errors
    /// Says which entries are missing.
    pub fn check_whole(&self) -> Result<(), String> {
        let want = self.purged.map_or(0, |purged| purged.index + 1);
        match self.slots.front() {
            Some(first) if first.log_id.index > want => {
                Err(format!("log entries {want} to {} are missing: the oldest segment is gone", first.log_id.index - 1))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn append(&mut self, entry: Entry, bytes: u64) -> Result<(), String> {
        let index = entry.log_id.index;
        if self.purged.is_some_and(|purged| index <= purged.index) {
            return Ok(());
        }
        if let Some(last) = self.slots.back()
            && index != last.log_id.index + 1
        {
            return Err(format!("log entry {index} follows entry {}", last.log_id.index));
        }
        self.slots.push_back(Slot { log_id: entry.log_id, needs: needs(&entry), bytes, entry: Some(entry) });
        (self.held, self.held_bytes) = (self.held + 1, self.held_bytes + bytes);
        Ok(())
    }

    fn truncate(&mut self, after: Option<LogId>) {
        let keep = after.map_or(0, |after| after.index + 1);
        while self.slots.back().is_some_and(|last| last.log_id.index >= keep) {
            let slot = self.slots.pop_back();
            self.dropped(slot);
        }
        // What comes in their place is not written yet.
        self.written = self.written.filter(|_| keep > 0).map(|written| written.min(keep - 1));
    }

    fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged.index > upto.index) {
            return;
        }
        self.purged = Some(upto);
        while self.slots.front().is_some_and(|first| first.log_id.index <= upto.index) {
            let slot = self.slots.pop_front();
            self.dropped(slot);
        }
    }

    fn dropped(&mut self, slot: Option<Slot>) {
        if let Some(Slot { bytes, entry: Some(_), .. }) = slot {
            (self.held, self.held_bytes) = (self.held - 1, self.held_bytes - bytes);
        }
    }

    /// Notes that entries up to this one are in their files, if it still is an entry of the log, and lets go of those that are too many to hold.
    pub fn written(&mut self, upto: LogId) {
        let first = self.slots.front().map_or(0, |first| first.log_id.index);
        let slot = upto.index.checked_sub(first).and_then(|place| self.slots.get(usize::try_from(place).ok()?));
        if slot.is_some_and(|slot| slot.log_id == upto) {
            self.written = self.written.max(Some(upto.index));
        }
        let max = self.held_bytes_max.unwrap_or(HELD_BYTES_MAX);
        while self.held_bytes > max && self.held > 0 {
            let oldest = self.slots.len() - self.held;
            let slot = &mut self.slots[oldest];
            if self.written.is_none_or(|written| slot.log_id.index > written) {
                return;
            }
            slot.entry = None;
            (self.held, self.held_bytes) = (self.held - 1, self.held_bytes - slot.bytes);
        }
    }

    /// Returns whether this very entry is in the log.
    pub fn holds(&self, id: LogId) -> bool {
        let first = self.slots.front().map_or(0, |first| first.log_id.index);
        let place = id.index.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.slots.get(place)).is_some_and(|slot| slot.log_id == id)
    }

    /// Holds at most so many bytes of entries from here on, for tests.
    #[cfg(test)]
    pub fn hold_at_most(&mut self, bytes: u64) {
        self.held_bytes_max = Some(bytes);
    }

    /// Returns how many entries are held, for tests.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Returns the vote.
    pub fn vote(&self) -> Option<Vote> {
        self.vote
    }

    /// Returns up to where the log is known to be committed.
    pub fn committed(&self) -> Option<LogId> {
        self.committed
    }

    /// Returns the last dropped entry.
    pub fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// Returns the version that a coordinator must speak to read every entry.
    pub fn needs(&self) -> Version {
        self.slots.iter().map(|slot| slot.needs).max().unwrap_or_default()
    }

    /// Returns the last entry, or the last dropped one if none is left.
    pub fn last(&self) -> Option<LogId> {
        self.slots.back().map(|last| last.log_id).or(self.purged)
    }

    /// Returns the entries in `range` that are there.
    pub fn entries(&self, range: impl RangeBounds<u64>) -> Vec<Found> {
        self.range(range).map(Slot::found).collect()
    }

    /// Returns the first entries of `range` that have `bytes_max` bytes together; the very first whatever its size.
    pub fn entries_within(&self, range: impl RangeBounds<u64>, bytes_max: u64) -> Vec<Found> {
        let mut before = 0;
        let fitting = self.range(range).take_while(move |slot| {
            let fits = before == 0 || before + slot.bytes <= bytes_max;
            before += slot.bytes.max(1);
            fits
        });
        fitting.map(Slot::found).collect()
    }

    fn range(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = &Slot> {
        let first = self.slots.front().map_or(0, |first| first.log_id.index);
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let place = |index: u64| usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX).min(self.slots.len());
        let (start, end) = (place(start), place(end));
        self.slots.range(start..end.max(start))
    }

    /// Returns the last entry up to `upto` to drop so that at most `entries_max` entries and `bytes_max` bytes stay.
    pub fn purge_point(&self, upto: u64, entries_max: u64, bytes_max: u64) -> Option<u64> {
        let (mut entries, mut bytes) = (0, 0);
        let drop_to = self.slots.iter().rev().find(|slot| {
            entries += 1;
            bytes += slot.bytes;
            entries > entries_max || bytes > bytes_max
        });
        drop_to.map(|slot| slot.log_id.index.min(upto)).filter(|index| self.purged.is_none_or(|purged| purged.index < *index))
    }
}

impl Slot {
    fn found(&self) -> Found {
        self.entry.as_ref().map_or(Found::There(self.log_id), |entry| Found::Here(entry.clone()))
    }
}
