//! What is particular to a build that requires `uid-range`: it is root of 65,536 ids and of all its namespaces, as a test of containers or
//! of a service manager needs it.
//!
//! Its rights end at its ids: nothing of the host's belongs to one of them, and the kernel gives root of a user namespace no right over
//! anybody else's files. It can undo its mounts, but not reach below them; what it mounts, nested namespaces included, dies with it.
//! Absences: a range has no way out of its own network, since it could undo the routes of one. Nix does not build such a derivation either:
//! it leaves the host's network to a fixed-output build, and the kernel mounts a new `/sys` only for who owns the network.

use std::fs;
use std::io;

use super::{HostId, Network, SandboxError, Spec, child};
use crate::cgroup::Group;

/// The feature by which a derivation asks for it.
pub const UID_RANGE: &str = "uid-range";

/// Users and groups of a build that has a range, as it sees itself.
const PASSWD: &[u8] =
    b"root:x:0:0:Nix build user:/build:/noshell\nnixbld:x:0:0:Nix build user:/build:/noshell\nnobody:x:65534:65534:Nobody:/:/noshell\n";
const GROUP: &[u8] = b"root:x:0:\nnixbld:!:0:\nnogroup:x:65534:\n";

/// Who a build is in its sandbox, and what it is told about that.
pub(super) struct Inside {
    pub uid: u32,
    pub gid: u32,
    pub passwd: &'static [u8],
    pub group: &'static [u8],
}

impl Inside {
    pub(super) fn of(id: HostId) -> Self {
        if id.is_range() {
            Self { uid: 0, gid: 0, passwd: PASSWD, group: GROUP }
        } else {
            Self { uid: child::UID, gid: child::GID, passwd: super::skeleton::PASSWD, group: super::skeleton::GROUP }
        }
    }
}

/// Gives a build that has a range what only such a one has on the host's side.
pub(super) fn prepare(spec: &Spec, group: &mut Group) -> Result<(), SandboxError> {
    if !spec.host_id.is_range() {
        return Ok(());
    }
    let refuse = |what, value: &str, rule| Err(SandboxError::Spec { what, value: value.to_owned(), rule });
    match spec.network {
        Network::Loopback => {}
        Network::Host | Network::Egress(_) => {
            return refuse("network", "outside", "must be its own: root of a network namespace could undo what keeps it from others");
        }
    }
    if !group.limits_pids() {
        return refuse("control group", &spec.name, "must limit processes: a limit for each user does not bind who has many");
    }
    if !group.delegate(spec.host_id.uid, spec.host_id.gid)? {
        return refuse("control group", &spec.name, "must lie in the unified hierarchy too, the only one that can be delegated");
    }
    Ok(())
}

/// Maps the ids of a user namespace from outside. One user cannot change its groups; root of a range can, among its own.
pub(super) fn map_ids(pid: u32, id: HostId) -> io::Result<()> {
    let inside = Inside::of(id);
    fs::write(format!("/proc/{pid}/uid_map"), format!("{} {} {}", inside.uid, id.uid, id.count))?;
    if !id.is_range() {
        fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    }
    fs::write(format!("/proc/{pid}/gid_map"), format!("{} {} {}", inside.gid, id.gid, id.count))
}
