//! Logs may go before what they are of: text that nobody reads after a while, of derivations that are kept for years.

use futures::{StreamExt, TryStreamExt};
use kiln_wire::Timestamp;

use super::collection::{CollectError, Collection};
use super::{DELETION_MAX, notes};
use crate::heavy::heavy;

/// Deletes logs that nobody has written to for so long: those in a store that is shared, and those of this coordinator.
pub(super) async fn sweep(collection: &Collection, age_ms: u64) -> Result<(), CollectError> {
    let parts = &collection.parts;
    let mut gone = 0_usize;
    if parts.store.is_shared() {
        let before = Timestamp(notes::now(parts).await?.0.saturating_sub(age_ms));
        for some in parts.store.logs_before(before).await?.chunks(AT_A_TIME) {
            collection.check_leads()?;
            let deletions =
                futures::stream::iter(some.to_vec()).map(async |(derivation, attempt)| parts.store.delete_log(&derivation, attempt).await);
            let deleted = deletions.buffer_unordered(AT_A_TIME).try_collect::<()>();
            tokio::time::timeout(DELETION_MAX, deleted).await.map_err(|_| CollectError::Slow)??;
            gone += some.len();
        }
    }
    let since = Timestamp(parts.clock.now().0.saturating_sub(age_ms));
    gone += heavy(|| {
        let old = parts.logs.untouched_since(since).map_err(CollectError::Logs)?;
        old.iter().try_for_each(|(derivation, attempt)| parts.logs.remove(derivation, *attempt))?;
        Ok::<_, CollectError>(old.len())
    })?;
    if gone > 0 {
        tracing::info!(logs = gone, "logs that were old enough are deleted");
    }
    Ok(())
}

/// Logs that are deleted at a time.
const AT_A_TIME: usize = 32;
