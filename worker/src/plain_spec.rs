//! What the sandbox is asked to run for a derivation with a plain environment.

use std::path::PathBuf;
use std::time::Duration;

use kiln_nix::derivation::Derivation;
use kiln_wire::worker::Assignment;
use kiln_wire::{JobLimits, StorePath};

use crate::cgroup;
use crate::sandbox::{HostId, Limits, Spec};

/// Where things are on this host.
#[derive(Debug)]
pub struct Place {
    /// The build's empty root directory.
    pub root_dir: PathBuf,
    /// Its user.
    pub host_id: HostId,
    /// The static shell.
    pub shell: PathBuf,
    /// The closure of the inputs.
    pub inputs: Vec<(StorePath, PathBuf)>,
}

/// Returns the specification of a run.
pub fn spec(assignment: &Assignment, derivation: &Derivation, limits: &JobLimits, place: Place) -> Spec {
    let text = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let mut env = vec![
        text("PATH", "/path-not-set"),
        text("HOME", "/homeless-shelter"),
        text("NIX_STORE", assignment.store_dir.as_str()),
        text("NIX_BUILD_CORES", &assignment.resources.cores.to_string()),
    ];
    for (name, value) in &derivation.env {
        env.retain(|(known, _)| known != name.as_bytes());
        env.push((name.as_bytes().to_vec(), value.clone()));
    }
    for (name, value) in
        [("NIX_BUILD_TOP", "/build"), ("TMPDIR", "/build"), ("TEMPDIR", "/build"), ("TMP", "/build"), ("TEMP", "/build"), ("PWD", "/build")]
    {
        env.push(text(name, value));
    }
    env.push(text("NIX_LOG_FD", "2"));
    env.push(text("TERM", "xterm-256color"));
    Spec {
        name: format!("attempt-{}", assignment.lease.attempt),
        root_dir: place.root_dir,
        store_dir: assignment.store_dir.clone(),
        system: derivation.system.clone(),
        builder: derivation.builder.as_bytes().to_vec(),
        args: derivation.args.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        env,
        files: Vec::new(),
        inputs: place.inputs,
        network: derivation.is_fixed_output(),
        host_id: place.host_id,
        shell: place.shell,
        dev_kvm: false,
        resources: cgroup::Limits::of(assignment.resources),
        limits: Limits {
            wall: Duration::from_millis(limits.wall_ms_max),
            silence: Duration::from_millis(limits.silence_ms_max),
            log_bytes: limits.log_bytes_max,
        },
    }
}
