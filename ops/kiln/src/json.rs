//! The JSON that `--json` prints: the types that the HTTP API answers with. The README documents it.

use kiln_wire::client::{BuildView, FarmView, JobView, WorkerView};
use kiln_wire::{Explanation, PathInfo, ShareView, StoreDir};
use serde::Serialize;
use serde_json::{Value, json};

/// The farm at a glance.
pub fn farm(view: &FarmView) -> Value {
    value(&kiln_api::Farm::of(view))
}

/// An attribute of a set that has no job, because it does not evaluate.
pub fn evaluation_error(attribute: &str, message: &str) -> Value {
    json!({ "event": "evaluation-failed", "attr": attribute, "message": message })
}

/// One build.
pub fn build(view: &BuildView, store_dir: &StoreDir) -> Value {
    value(&kiln_api::Build::of(view, store_dir))
}

/// One job.
pub fn job(view: &JobView, store_dir: &StoreDir) -> Value {
    value(&kiln_api::Job::of(view, store_dir))
}

/// Why a job is where it is.
pub fn explanation(view: &Explanation, store_dir: &StoreDir) -> Value {
    value(&kiln_api::Explanation::of(view, store_dir))
}

/// One worker.
pub fn worker(view: &WorkerView) -> Value {
    value(&kiln_api::Worker::of(view))
}

/// Facts about a path, with the names that `nix path-info --json` uses.
pub fn path_info(info: &PathInfo, store_dir: &StoreDir) -> Value {
    value(&kiln_api::PathInfo::of(info, store_dir))
}

/// Somebody's share.
pub fn share(view: &ShareView) -> Value {
    value(&kiln_api::Share::of(view))
}

/// Returns the value, whose names are then in the order of the alphabet, as they were printed first.
fn value(shown: &impl Serialize) -> Value {
    serde_json::to_value(shown).expect("its maps have texts for keys")
}
