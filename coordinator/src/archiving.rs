//! Moves an ended build from the farm's state to the archive.

use std::sync::Arc;
use std::time::Duration;

use kiln_core::{BuildRecord, Command};

use crate::driver::{Chain, propose_patiently};
use crate::parts::Parts;

/// Writes the record, tells watchers, and proposes `Retire`; tries again until the disk takes it, for the farm must not forget first.
pub(crate) async fn archive(parts: Arc<Parts>, record: BuildRecord) {
    let build = record.build;
    let Some(glance) = parts.farm(|farm| farm.build_glance(build)) else {
        // It has left the farm, for its record was written. This one does not say whose it was.
        return parts.watchers.ended(build);
    };
    let record = BuildRecord { account: Some(glance.account), ..record };
    loop {
        match parts.archive.put(&record).await {
            Ok(()) => break,
            Err(error) => tracing::warn!(%build, error = %Chain(&error), "archive build; tried again in {RETRY:?}"),
        }
        tokio::time::sleep(RETRY).await;
    }
    parts.watchers.ended(build);
    let now = parts.clock.now();
    if let Err(error) = propose_patiently(parts.clone(), Command::Retire { build, now }).await {
        tracing::warn!(%build, error = %Chain(&error), "retire build; the next leader archives it again");
    }
    parts.hooks.wake();
}

const RETRY: Duration = Duration::from_secs(5);
