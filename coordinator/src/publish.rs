//! Publishing: signs and writes the narinfos of a committed output set, then tells the farm.

use std::sync::Arc;
use std::time::Duration;

use kiln_core::Command;
use kiln_wire::{BuiltOutput, DrvPath, PathInfo};

use crate::driver::{Chain, propose_patiently};
use crate::parts::Parts;
use crate::realised;

/// Publishes `outputs` and proposes `Publish`; tries again until the store takes them, for they are committed.
pub(crate) async fn publish(parts: Arc<Parts>, derivation: DrvPath, outputs: Vec<PathInfo>) {
    let built = parts.farm(|farm| farm.outputs_of(&derivation).map(<[BuiltOutput]>::to_vec)).unwrap_or_default();
    let mut pause = RETRY_FIRST;
    while let Err(error) = publish_once(&parts, &derivation, &outputs, &built).await {
        tracing::warn!(%derivation, error = %Chain(&*error), "publish outputs; tried again in {pause:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
    let now = parts.clock.now();
    if let Err(error) = propose_patiently(parts, Command::Publish { derivation: derivation.clone(), now }).await {
        tracing::warn!(%derivation, error = %Chain(&error), "report published outputs; the next leader publishes them again");
    }
}

/// Realisations come after what they lead to.
async fn publish_once(
    parts: &Parts,
    derivation: &DrvPath,
    outputs: &[PathInfo],
    built: &[BuiltOutput],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    parts.store.publish(outputs, &parts.keys).await?;
    Ok(realised::record(parts, derivation, built).await?)
}

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(30);
