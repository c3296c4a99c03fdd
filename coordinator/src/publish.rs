//! Publishing: signs and writes the narinfos of a committed output set, then tells the farm.

use std::sync::Arc;
use std::time::Duration;

use kiln_core::Command;
use kiln_wire::{BuiltOutput, DrvPath, Leader, PathInfo};

use crate::driver::{Chain, propose_patiently};
use crate::garbage::touch;
use crate::parts::Parts;
use crate::transfer::keys_of;
use crate::{leading, realised, traces};

/// Publishes `outputs` and proposes `Publish`; tries again until the store takes them, for they are committed, or until this coordinator does
/// not lead under `leader` any more: the next one publishes them.
pub(crate) async fn publish(parts: Arc<Parts>, leader: Leader, derivation: DrvPath, outputs: Vec<PathInfo>) {
    let tracing = parts.traces.begin_part(&parts, &derivation, None);
    let built = parts.farm(|farm| farm.outputs_of(&derivation).map(<[BuiltOutput]>::to_vec)).unwrap_or_default();
    let mut pause = RETRY_FIRST;
    loop {
        touch(&parts, outputs.iter().flat_map(keys_of)).await;
        let error = match leading::own(&parts) == Some(leader) {
            true => match publish_once(&parts, &derivation, &outputs, &built).await {
                Ok(()) => break,
                Err(error) => Chain(&*error).to_string(),
            },
            false if leading::has_ended(&parts, leader) => return,
            false => "it is not certain that this coordinator leads".to_owned(),
        };
        tracing::warn!(job = %derivation, term = parts.term(), error, "publish outputs; tried again in {pause:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
    let now = parts.clock.now();
    if let Err(error) = propose_patiently(parts.clone(), Command::Publish { derivation: derivation.clone(), now }).await {
        tracing::warn!(job = %derivation, term = parts.term(), error = %Chain(&error), "report published outputs; the next leader publishes them again");
    }
    parts.traces.end_part(traces::PUBLISH, tracing);
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
