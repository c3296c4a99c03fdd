//! Whether this machine can give a build a range of ids, found out by giving one to a builder that does nothing: whether a new `/sys` may
//! be mounted depends on what is mounted on the host's, and control groups on who made the launcher's own.

use std::path::Path;
use std::time::Duration;

use kiln_wire::StoreDir;

use super::policy::Policy;
use super::rootless::Users;
use crate::cgroup::Cgroups;
use crate::failure::chain;
use crate::sandbox::disk::Disk;
use crate::sandbox::{self, Cancel, Limits, Network, Spec};
use crate::scratch::Scratch;
use crate::trash::Trash;

/// Runs a builder that has a range, below `builds`.
///
/// # Errors
/// Why no build can have one here, in words for people.
pub(super) fn range(policy: &Policy, users: Users, cgroups: &Cgroups, disk: &Disk, builds: &Path, remains: &Trash) -> Result<(), String> {
    let host_id = users.range(policy.slot_first).ok_or_else(|| "the launcher is not root".to_owned())?;
    let scratch = Scratch::new(builds, "trial", remains).map_err(|err| chain(&err))?;
    let cancel = Cancel::new().map_err(|err| chain(&err))?;
    let spec = Spec {
        name: "trial".to_owned(),
        root_dir: scratch.dir().to_owned(),
        store_dir: StoreDir::default(),
        system: "x86_64-linux".to_owned(),
        builder: b"/bin/sh".to_vec(),
        args: vec![b"-c".to_vec(), b":".to_vec()],
        env: Vec::new(),
        files: Vec::new(),
        inputs: Vec::new(),
        network: Network::Loopback,
        host_id,
        shell: policy.shell.clone(),
        dev_kvm: false,
        resources: policy.resources.of(kiln_wire::Resources { cores: 1, memory_mib: 64 }),
        limits: Limits { wall: TRIAL_MAX, silence: TRIAL_MAX, log_bytes: 1 << 10 },
    };
    let room = disk.room(scratch.dir()).map_err(|err| chain(&err))?;
    let ended = sandbox::run(&spec, cgroups, &room, &cancel, &mut |_| {}).map_err(|err| chain(&err))?;
    if ended.succeeded() { Ok(()) } else { Err(format!("a builder that does nothing ended with {:?}", ended.status)) }
}

/// It takes milliseconds. A machine on which it takes longer than this has other troubles.
const TRIAL_MAX: Duration = Duration::from_secs(30);
