//! The log in memory: what its records add up to.
//!
//! Pure: fed by recovery and by the store alike, so that what a restart reads back is what was there. Holds every entry that is
//! not purged; the snapshot policy bounds how many bytes that is.

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
    entries: VecDeque<(Entry, u64)>,
}

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
        match self.entries.front() {
            Some((first, _)) if first.log_id.index > want => {
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
        if let Some((last, _)) = self.entries.back()
            && index != last.log_id.index + 1
        {
            return Err(format!("log entry {index} follows entry {}", last.log_id.index));
        }
        self.entries.push_back((entry, bytes));
        Ok(())
    }

    fn truncate(&mut self, after: Option<LogId>) {
        let keep = after.map_or(0, |after| after.index + 1);
        while self.entries.back().is_some_and(|(last, _)| last.log_id.index >= keep) {
            self.entries.pop_back();
        }
    }

    fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged.index > upto.index) {
            return;
        }
        self.purged = Some(upto);
        while self.entries.front().is_some_and(|(first, _)| first.log_id.index <= upto.index) {
            self.entries.pop_front();
        }
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
        self.entries(..).map(needs).max().unwrap_or_default()
    }

    /// Returns the last entry, or the last dropped one if none is left.
    pub fn last(&self) -> Option<LogId> {
        self.entries.back().map(|(last, _)| last.log_id).or(self.purged)
    }

    /// Returns the entries in `range` that are there.
    pub fn entries(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = &Entry> {
        self.sized(range).map(|(entry, _)| entry)
    }

    /// Returns the first entries of `range` that have `bytes_max` bytes together; the very first whatever its size.
    pub fn entries_within(&self, range: impl RangeBounds<u64>, bytes_max: u64) -> impl Iterator<Item = &Entry> {
        let mut before = 0;
        self.sized(range)
            .take_while(move |(_, bytes)| {
                let fits = before == 0 || before + bytes <= bytes_max;
                before += bytes.max(&1);
                fits
            })
            .map(|(entry, _)| entry)
    }

    fn sized(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = &(Entry, u64)> {
        let first = self.entries.front().map_or(0, |(first, _)| first.log_id.index);
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
        let place = |index: u64| usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX).min(self.entries.len());
        let (start, end) = (place(start), place(end));
        self.entries.range(start..end.max(start))
    }

    /// Returns the last entry up to `upto` to drop so that at most `entries_max` entries and `bytes_max` bytes stay.
    pub fn purge_point(&self, upto: u64, entries_max: u64, bytes_max: u64) -> Option<u64> {
        let (mut entries, mut bytes) = (0, 0);
        let drop_to = self.entries.iter().rev().find(|(_, size)| {
            entries += 1;
            bytes += size;
            entries > entries_max || bytes > bytes_max
        });
        drop_to.map(|(entry, _)| entry.log_id.index.min(upto)).filter(|index| self.purged.is_none_or(|purged| purged.index < *index))
    }
}
