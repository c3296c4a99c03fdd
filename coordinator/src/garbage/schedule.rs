//! Collections that begin by themselves, where the configuration says how often.

use std::sync::Arc;
use std::time::Duration;

use kiln_wire::{Collect, Timestamp};
use tokio::sync::mpsc;

use super::collection::collect;
use super::notes;
use crate::driver::Chain;
use crate::leading;
use crate::parts::Parts;

/// Collects as often as the configuration says, while this coordinator leads. Ends with the coordinator.
pub(crate) async fn run(parts: Arc<Parts>) {
    let Some(hours) = parts.garbage.settings.every_hours else { return };
    let period_ms = u64::from(hours.max(1)) * 3_600_000;
    let mut open = parts.garbage.open.subscribe();
    loop {
        let Ok(led) = open.wait_for(Option::is_some).await.map(|open| *open) else { return };
        let Some((leader, since)) = led else { continue };
        // What was asked of the leader before is remembered by nobody: it has its grace.
        let grace = Duration::from_secs(parts.garbage.settings.grace_seconds);
        tokio::select! {
            () = leading::lost(&parts, leader) => continue,
            () = tokio::time::sleep_until(since + grace) => {}
        }
        let last = notes::last_ended(&parts).await.unwrap_or_default().unwrap_or(Timestamp(0));
        let wait_ms = last.0.saturating_add(period_ms).saturating_sub(parts.clock.now().0);
        tokio::select! {
            () = leading::lost(&parts, leader) => continue,
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
        }
        let (told, mut paths) = mpsc::channel(1);
        let collecting = collect(parts.clone(), Collect::default(), told);
        let (collected, ()) = tokio::join!(collecting, async { while paths.recv().await.is_some() {} });
        if let Err(error) = collected {
            tracing::warn!(error = %Chain(&error), "collect garbage; tried again in an hour");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// After a collection that failed.
const AGAIN: Duration = Duration::from_secs(3600);
