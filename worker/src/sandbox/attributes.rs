//! What a build may do with a mount: the kernel's `mount_setattr`, for which neither the C library nor rustix has a face.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use libc::c_long;
use rustix::mount::{OpenTreeFlags, open_tree};

/// The kernel's `struct mount_attr`.
#[repr(C)]
pub(super) struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const RDONLY: u64 = 1;
const NOSUID: u64 = 2;
const NODEV: u64 = 4;

/// What a build can only read: inputs, the shell. Nothing that the host mounts there later appears in it.
pub(super) const SEALED: MountAttributes =
    MountAttributes { set: RDONLY | NOSUID | NODEV, clear: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
/// What a build may write.
pub(super) const WRITABLE: MountAttributes =
    MountAttributes { set: NOSUID | NODEV, clear: RDONLY, propagation: libc::MS_PRIVATE, userns_fd: 0 };

/// The arguments of `mount_setattr` that change one mount, by its descriptor.
pub(super) fn arguments(tree: c_long, attributes: &MountAttributes) -> [c_long; 5] {
    let size = size_of::<MountAttributes>() as c_long;
    [tree, c"".as_ptr() as c_long, c_long::from(libc::AT_EMPTY_PATH), std::ptr::from_ref(attributes) as c_long, size]
}

/// Returns a mount of what lies at `path`, mounted nowhere, with these attributes. No link is followed.
pub(super) fn take_mount(dir: impl AsFd, path: impl rustix::path::Arg, attributes: &MountAttributes) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(dir, path, flags)?;
    let [tree_fd, empty, flags, attributes, size] = arguments(c_long::from(tree.as_raw_fd()), attributes);
    // SAFETY: the kernel reads a string and the attributes, whose size is told.
    let set = unsafe { libc::syscall(libc::SYS_mount_setattr, tree_fd, empty, flags, attributes, size) };
    if set == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}
