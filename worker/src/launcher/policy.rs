//! What a launcher may be asked to do. Fixed when it starts, by the process that started it; a worker that was taken over later cannot
//! widen it. Pure: no I/O but the question which addresses the host has.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::message::{Reach, Task};
use super::network::FixedNetwork;
use super::places::{Owner, STORE};
use super::rootless::Users;
use crate::cgroup;
use crate::config::{Config, FixedOutputNetwork};
use crate::sandbox::{Network, Spec, UID_RANGE, disk};

/// What a launcher may do for its worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// The worker's directory.
    pub dir: PathBuf,
    /// The user that the worker runs as, who gets the outputs.
    pub owner: Owner,
    /// Names the builds' control groups on this machine.
    pub group: String,
    /// First of the build users.
    pub slot_first: u32,
    /// How many of them, and how many builds at a time.
    pub slots: u32,
    /// What a build's control group may have at most.
    pub resources: cgroup::Policy,
    /// How builds are held to their part of the disk.
    pub disk: disk::Choice,
    /// What each may use of it.
    pub disk_limits: disk::Limits,
    /// Bytes of it that stay free.
    pub disk_free_bytes_min: u64,
    /// The static shell of builds.
    pub shell: PathBuf,
    /// Whether builds may have `/dev/kvm`.
    pub dev_kvm: bool,
    /// Whether builds may be root of a range of ids.
    pub uid_range: bool,
    /// What fixed-output builds may reach.
    pub network: FixedOutputNetwork,
}

/// A task that breaks the policy.
#[derive(Debug, thiserror::Error)]
#[error("launch build `{name}`: {what} `{value}` {rule}")]
pub struct Refused {
    name: String,
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl Policy {
    /// Returns what the launcher of a worker with this configuration may do, if that runs as `owner`.
    pub fn new(config: &Config, owner: Owner) -> Self {
        Self {
            dir: config.dir.clone(),
            owner,
            group: group_name(config),
            slot_first: config.slot_first,
            slots: config.users(),
            resources: config.policy(),
            disk: config.disk,
            disk_limits: config.disk_limits(),
            disk_free_bytes_min: config.disk_free_bytes_min,
            shell: config.busybox.clone(),
            dev_kvm: config.features.contains("kvm"),
            uid_range: config.features.contains(UID_RANGE),
            network: config.fixed_output_network.clone(),
        }
    }

    /// Holds a task against the policy, before anything is done for it.
    ///
    /// # Errors
    /// [`Refused`] names the part of the task that this worker's launcher does not do.
    pub(super) fn check(&self, task: &Task, users: Users) -> Result<(), Refused> {
        let refuse = |what, value: String, rule| Err(Refused { name: task.name.chars().take(80).collect(), what, value, rule });
        if !cgroup::is_name(&task.name) {
            return refuse("name", task.name.chars().take(80).collect(), "is no name of a group and a directory");
        }
        let past = self.slot_first.saturating_add(self.slots);
        if !(self.slot_first..past).contains(&task.slot) {
            return refuse("build user", task.slot.to_string(), "is not one of this worker's");
        }
        let most = self.resources.of(kiln_wire::Resources::default());
        for (what, asked, most) in [
            ("memory limit", task.resources.memory_bytes_max, most.memory_bytes_max),
            ("swap limit", task.resources.swap_bytes_max, most.swap_bytes_max),
            ("limit of processes", task.resources.pids_max.into(), most.pids_max.into()),
        ] {
            if asked > most {
                return refuse(what, asked.to_string(), "is more than the worker may give to builds");
            }
        }
        if task.limits.wall > TIME_MAX || task.limits.silence > TIME_MAX {
            return refuse("time limit", format!("{:?}", task.limits.wall.max(task.limits.silence)), "is longer than a year");
        }
        if task.dev_kvm && !self.dev_kvm {
            return refuse("device", "kvm".to_owned(), "is not a feature of this worker");
        }
        if task.uid_range && (!self.uid_range || users.range(task.slot).is_none()) {
            return refuse("feature", UID_RANGE.to_owned(), "is not one of this worker's");
        }
        // Its builds are the launcher's own user, and could exchange the directories above their store.
        if users == Users::One && task.store_dir.as_str().starts_with("/tmp/") {
            return refuse("store directory", task.store_dir.to_string(), "lies below /tmp, for which builds need users of their own");
        }
        Ok(())
    }

    /// Returns what a sandbox is to run for `task`, which was checked, in the empty directory `root_dir`.
    pub(super) fn spec(&self, task: Task, root_dir: PathBuf, users: Users, network: &FixedNetwork) -> Spec {
        let bytes = |list: Vec<ByteBuf>| list.into_iter().map(ByteBuf::into_vec).collect();
        let pairs = |list: Vec<(ByteBuf, ByteBuf)>| list.into_iter().map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
        let range = task.uid_range.then(|| users.range(task.slot)).flatten();
        let store = self.dir.join(STORE);
        let inputs = task.inputs.into_iter().map(|path| {
            let source = store.join(path.as_str());
            (path, source)
        });
        Spec {
            name: task.name,
            root_dir,
            store_dir: task.store_dir,
            system: task.system,
            builder: task.builder.into_vec(),
            args: bytes(task.args),
            env: pairs(task.env),
            files: pairs(task.files),
            inputs: inputs.collect(),
            network: match task.reach {
                Reach::Itself => Network::Loopback,
                Reach::Outside { denied } => network.of_build(&denied),
            },
            host_id: range.unwrap_or_else(|| users.host_id(task.slot, self.slot_first)),
            shell: self.shell.clone(),
            dev_kvm: task.dev_kvm,
            resources: task.resources,
            limits: task.limits,
        }
    }
}

/// Longest limit of time: far beyond any build, far below what clocks cannot add.
const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Names the control groups after the worker's directory: two farms on one machine may both have a worker of the same name, and each
/// must clean up after itself only.
fn group_name(config: &Config) -> String {
    let hash = blake3::hash(config.dir.as_os_str().as_encoded_bytes()).to_hex();
    format!("{}-{}", config.name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "_"), &hash[..12])
}
