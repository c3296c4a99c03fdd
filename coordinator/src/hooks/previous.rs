//! The build of a name before another, among those that have ended.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_core::BuildRecord;
use kiln_wire::client::BuildState;
use kiln_wire::{Account, BuildId};

use crate::archive::ArchiveError;
use crate::parts::Parts;

/// What was read of records while one was looked for: records never change.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<BTreeMap<BuildId, Ended>>);

#[derive(Debug, PartialEq, Eq)]
struct Ended {
    name: String,
    account: Account,
    is_cancelled: bool,
}

impl Known {
    /// Returns the record of the latest build of the same name and account that ended by itself and is older than `record`; none if there is
    /// none among those that were looked at: so many that nothing waits for it for long.
    pub(super) async fn before(&self, parts: &Parts, record: &BuildRecord) -> Result<Option<BuildRecord>, ArchiveError> {
        if record.name.is_empty() {
            return Ok(None);
        }
        let (like, begun, mut read) = (Ended::of(record), Instant::now(), 0);
        let listed = parts.archive.list().await?;
        let older = listed.into_iter().rev().filter(|build| *build < record.build).take(LOOKED_AT_MAX);
        for build in older {
            if self.remembered().get(&build).is_some_and(|known| !known.is_before(&like)) {
                continue;
            }
            if read == READ_MAX || begun.elapsed() > LOOK_MAX {
                tracing::info!(build = %record.build, read, "no build of its name among the last ones: what it newly breaks is not told");
                return Ok(None);
            }
            read += 1;
            let Some(found) = parts.archive.get(build).await? else { continue };
            let ended = Ended::of(&found);
            let is_it = ended.is_before(&like);
            self.remember(build, ended);
            if is_it {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn remember(&self, build: BuildId, ended: Ended) {
        let mut remembered = self.remembered();
        remembered.insert(build, ended);
        if remembered.len() > LOOKED_AT_MAX {
            remembered.pop_first();
        }
    }

    /// Never held while something is read.
    fn remembered(&self) -> MutexGuard<'_, BTreeMap<BuildId, Ended>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ended {
    /// Returns whether a build like `other` is held against it.
    fn is_before(&self, other: &Self) -> bool {
        self.name == other.name && self.account == other.account && !self.is_cancelled
    }

    fn of(record: &BuildRecord) -> Self {
        let is_cancelled = record.state == BuildState::Cancelled;
        Self { name: record.name.clone(), account: record.account.clone().unwrap_or_default(), is_cancelled }
    }
}

/// Records that are looked at for one of the same name, and remembered: each is some ten bytes once it was read.
const LOOKED_AT_MAX: usize = 2_000;
/// Records that are read for one message, and for how long that is begun with: an archive in a store far away takes a while for each.
const READ_MAX: usize = 200;
const LOOK_MAX: Duration = Duration::from_secs(5);
