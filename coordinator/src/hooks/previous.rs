//! The build of a name before another, among those that have ended.

use std::collections::BTreeMap;

use kiln_core::BuildRecord;
use kiln_wire::client::BuildState;
use kiln_wire::{Account, BuildId};

use crate::archive::ArchiveError;
use crate::parts::Parts;

/// What was read of records while one was looked for: records never change.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<BuildId, Ended>);

#[derive(Debug, PartialEq, Eq)]
struct Ended {
    name: String,
    account: Account,
    is_cancelled: bool,
}

impl Known {
    /// Returns the record of the latest build of the same name and account that ended by itself and is older than `record`; none if there is
    /// none among those that were looked at.
    pub(super) async fn before(&mut self, parts: &Parts, record: &BuildRecord) -> Result<Option<BuildRecord>, ArchiveError> {
        if record.name.is_empty() {
            return Ok(None);
        }
        let like = Ended::of(record);
        let listed = parts.archive.list().await?;
        let older = listed.into_iter().rev().filter(|build| *build < record.build).take(LOOKED_AT_MAX);
        for build in older {
            if self.0.get(&build).is_some_and(|known| known.name != like.name || known.account != like.account || known.is_cancelled) {
                continue;
            }
            let Some(found) = parts.archive.get(build).await? else { continue };
            let ended = Ended::of(&found);
            let is_it = ended.name == like.name && ended.account == like.account && !ended.is_cancelled;
            self.0.insert(build, ended);
            if self.0.len() > LOOKED_AT_MAX {
                self.0.pop_first();
            }
            if is_it {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl Ended {
    fn of(record: &BuildRecord) -> Self {
        let is_cancelled = record.state == BuildState::Cancelled;
        Self { name: record.name.clone(), account: record.account.clone().unwrap_or_default(), is_cancelled }
    }
}

/// Records that are looked at for one of the same name, and remembered: each is some ten bytes once it was read.
const LOOKED_AT_MAX: usize = 2_000;
