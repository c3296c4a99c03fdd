//! Moves an ended build from the farm's state to the archive.

use std::sync::Arc;
use std::time::Duration;

use kiln_core::{BuildRecord, Command};

use crate::driver::{Chain, propose};
use crate::parts::Parts;

/// Writes the record, tells watchers, and proposes `Retire`; tries again until the disk takes it, for the farm must not forget first.
pub(crate) async fn archive(parts: Arc<Parts>, record: BuildRecord) {
    let build = record.build;
    loop {
        let (writer, copy) = (parts.clone(), record.clone());
        match tokio::task::spawn_blocking(move || writer.archive.put(&copy)).await {
            Ok(Ok(())) => break,
            Ok(Err(error)) => tracing::warn!(%build, error = %Chain(&error), "archive build; tried again in {RETRY:?}"),
            Err(error) => tracing::warn!(%build, %error, "archive build; tried again in {RETRY:?}"),
        }
        tokio::time::sleep(RETRY).await;
    }
    parts.watchers.ended(build);
    let now = parts.clock.now();
    if let Err(error) = propose(parts, vec![Command::Retire { build, now }]).await {
        tracing::warn!(%build, error = %Chain(&error), "retire build; the next leader archives it again");
    }
}

const RETRY: Duration = Duration::from_secs(5);
