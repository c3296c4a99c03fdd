//! Builds that have left the farm, for lists: their numbers, and what was read of their records. Records never change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_api::BuildSummary;
use kiln_core::BuildRecord;
use kiln_wire::limits::API_RECORDS_REMEMBERED_MAX;
use kiln_wire::{Account, BuildId};
use tokio::time::Instant;

use super::Refused;
use crate::parts::Parts;

/// What is remembered of the archive.
#[derive(Default)]
pub(super) struct Ended {
    listed: tokio::sync::Mutex<Option<(Instant, Arc<[BuildId]>)>>,
    read: Mutex<BTreeMap<BuildId, Arc<EndedBuild>>>,
}

/// An ended build, as lists have it.
pub(super) struct EndedBuild {
    /// Whose it was; nobody's if its record is older than that was asked.
    pub(super) account: Account,
    pub(super) summary: BuildSummary,
}

impl EndedBuild {
    /// Returns what lists have of a record.
    pub(super) fn of(record: &BuildRecord) -> Self {
        let account = record.account.clone().unwrap_or_default();
        let summary = BuildSummary {
            build: record.build.0,
            name: record.name.clone(),
            state: record.state.into(),
            tenant: account.tenant.as_ref().map(ToString::to_string),
            project: account.project.as_ref().map(ToString::to_string),
            submitted_at: record.submitted_at.0,
            ended_at: Some(record.ended_at.0),
            remaining_ms: None,
            jobs: record.counts.into(),
            archived: true,
            roots: Vec::new(),
            outputs: BTreeMap::new(),
            evaluation_errors_count: record.evaluation.as_ref().map_or(0, |evaluation| evaluation.errors_count()),
            evaluation_errors: BTreeMap::new(),
            attributes: BTreeMap::new(),
        };
        Self { account, summary }
    }
}

impl Ended {
    /// Returns the numbers of ended builds, oldest first, as of a moment ago.
    pub(super) async fn list(&self, parts: &Parts) -> Result<Arc<[BuildId]>, Refused> {
        let age = if parts.store.is_shared() { LISTED_SHARED } else { LISTED_OWN };
        // Whoever comes meanwhile waits for the list that is made.
        let mut listed = self.listed.lock().await;
        if let Some((_, list)) = listed.as_ref().filter(|(at, _)| at.elapsed() < age) {
            return Ok(list.clone());
        }
        let list: Arc<[BuildId]> = parts.archive.list().await.map_err(|error| Refused::failed("list ended builds", &error))?.into();
        *listed = Some((Instant::now(), list.clone()));
        Ok(list)
    }

    /// Returns whether a record need not be read.
    pub(super) fn remembers(&self, build: BuildId) -> bool {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&build)
    }

    /// Returns an ended build; none if it is not in the archive.
    pub(super) async fn get(&self, parts: &Parts, build: BuildId) -> Result<Option<Arc<EndedBuild>>, Refused> {
        if let Some(known) = self.read.lock().unwrap_or_else(PoisonError::into_inner).get(&build) {
            return Ok(Some(known.clone()));
        }
        let record = parts.archive.get(build).await.map_err(|error| Refused::failed("read an ended build", &error))?;
        let Some(record) = record else { return Ok(None) };
        let ended = Arc::new(EndedBuild::of(&record));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert(build, ended.clone());
        if read.len() > API_RECORDS_REMEMBERED_MAX {
            read.pop_first();
        }
        Ok(Some(ended))
    }
}

/// How old a list of this coordinator's own directory may be.
const LISTED_OWN: Duration = Duration::from_secs(1);
/// How old a list of a shared store may be: each costs requests there.
const LISTED_SHARED: Duration = Duration::from_secs(10);
