//! The JSON that `--json` prints: stable names, full store paths, units in the names. The README documents it.

use kiln_wire::client::{AttemptView, BuildState, BuildView, FarmView, JobCounts, JobView, WorkerView};
use kiln_wire::{DrvPath, Explanation, PathInfo, Standing, Step, StoreDir, Usage, WorkersFor};
use serde_json::{Value, json};

use crate::drain;

/// A build's state in one word.
pub fn state(state: BuildState) -> &'static str {
    match state {
        BuildState::Active => "active",
        BuildState::Built => "built",
        BuildState::Failed => "failed",
        BuildState::Cancelled => "cancelled",
    }
}

/// The farm at a glance.
pub fn farm(view: &FarmView) -> Value {
    json!({
        "version": view.version,
        "storeDir": view.store_dir,
        "publicKey": view.public_key,
        "cacheUrl": view.cache_url,
        "term": view.leader.term,
        "leader": view.leader.node,
        "workersConnected": view.workers_connected,
        "jobs": counts(view.counts),
        "builds": view.builds.iter().map(|build| self::build(build, &view.store_dir)).collect::<Vec<_>>(),
    })
}

/// An attribute of a set that has no job, because it does not evaluate.
pub fn evaluation_error(attribute: &str, message: &str) -> Value {
    json!({ "event": "evaluation-failed", "attr": attribute, "message": message })
}

/// One build.
pub fn build(view: &BuildView, store_dir: &StoreDir) -> Value {
    let outputs: serde_json::Map<String, Value> = view
        .outputs
        .iter()
        .map(|(derivation, made)| {
            let made = made.iter().map(|(name, path)| (name.to_string(), Value::from(store_dir.join(path)))).collect();
            (full(derivation, store_dir), Value::Object(made))
        })
        .collect();
    json!({
        "build": view.build,
        "name": view.name,
        "state": state(view.state),
        "submittedAt": view.submitted_at,
        "remainingMs": view.remaining_ms,
        "jobs": counts(view.counts),
        "outputs": outputs,
        "failures": view.failures.iter().map(|job| self::job(job, store_dir)).collect::<Vec<_>>(),
    })
}

/// One job.
pub fn job(view: &JobView, store_dir: &StoreDir) -> Value {
    json!({
        "derivation": full(&view.derivation, store_dir),
        "state": view.state,
        "reason": view.reason,
        "builds": view.builds,
        "upwardRankMs": view.upward_rank_ms,
        "attempts": view.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}

/// Why a job is where it is.
pub fn explanation(view: &Explanation, store_dir: &StoreDir) -> Value {
    let step = |step: &Step| json!({ "derivation": full(&step.derivation, store_dir), "state": step.state, "reason": step.reason, "expectedMs": step.expected_ms });
    let workers = |group: &WorkersFor| json!({ "what": group.what, "count": group.count, "first": group.first });
    json!({
        "job": job(&view.job, store_dir),
        "expectedMs": view.expected_ms,
        "runningMs": view.running_ms,
        "system": view.system,
        "features": view.features,
        "cores": view.resources.cores,
        "memoryMiB": view.resources.memory_mib,
        "memoryWishMiB": view.memory_wish_mib,
        "workers": view.workers.iter().map(workers).collect::<Vec<_>>(),
        "ahead": view.ahead,
        "inputsUnbuilt": view.inputs_unbuilt,
        "behind": view.behind.iter().map(step).collect::<Vec<_>>(),
        "behindMs": view.behind_ms,
        "dependents": view.dependents,
        "dependentsAll": view.dependents_all,
    })
}

fn attempt(view: &AttemptView) -> Value {
    json!({
        "attempt": view.attempt,
        "worker": view.worker,
        "startedAt": view.started_at,
        "endedAt": view.ended_at,
        "failureClass": view.failure.as_ref().map(|(class, _)| class.to_string()),
        "failure": view.failure.as_ref().map(|(_, message)| message),
        "usage": view.usage.as_ref().map(usage),
    })
}

fn usage(usage: &Usage) -> Value {
    json!({
        "wallMs": usage.wall_ms,
        "cpuMs": usage.cpu_ms,
        "cpuThrottledMs": usage.cpu_throttled_ms,
        "memoryPeakBytes": usage.memory_peak_bytes,
        "diskWriteBytes": usage.disk_write_bytes,
        "logBytes": usage.log_bytes,
    })
}

/// One worker.
pub fn worker(view: &WorkerView) -> Value {
    let offer = &view.offer;
    json!({
        "worker": view.worker,
        "connected": view.connected,
        "systems": offer.systems,
        "features": offer.features,
        "slots": offer.slots,
        "cores": offer.capacity.cores,
        "memoryMiB": offer.capacity.memory_mib,
        "coresUsed": view.used.cores,
        "memoryUsedMiB": view.used.memory_mib,
        "guarantees": offer.guarantees,
        "running": view.running,
        "strain": view.strain.as_ref().map(|strain| &strain.message),
        "ailing": view.ailing.as_ref().map(|ailing| json!({
            "state": drain::state(ailing),
            "until": match ailing.standing {
                Standing::Resting { until } => Some(until),
                Standing::Working | Standing::Probation { .. } | Standing::Quarantined { .. } => None,
            },
            "rests": ailing.rests,
            "failures": ailing.failures,
            "message": ailing.message,
        })),
    })
}

/// Facts about a path, with the names that `nix path-info --json` uses.
pub fn path_info(info: &PathInfo, store_dir: &StoreDir) -> Value {
    json!({
        "path": store_dir.join(&info.path),
        "narHash": kiln_nix::hash::Hash::from(info.nar_hash).to_sri(),
        "narSize": info.nar_size_bytes,
        "references": info.references.iter().map(|path| store_dir.join(path)).collect::<Vec<_>>(),
        "deriver": info.deriver.as_ref().map(|path| full(path, store_dir)),
        "ca": info.content_address,
        "downloadSize": info.blob.size_bytes,
    })
}

fn counts(counts: JobCounts) -> Value {
    json!({
        "blocked": counts.blocked,
        "ready": counts.ready,
        "running": counts.running,
        "built": counts.built,
        "failed": counts.failed,
    })
}

fn full(derivation: &DrvPath, store_dir: &StoreDir) -> String {
    store_dir.join(derivation.as_path())
}
