//! The kernel's calls for quotas, subvolumes and loop devices, which no crate of ours has. Each takes and returns plain values.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Calls an ioctl whose argument is a pointer to `argument`, which it may change.
///
/// # Safety
/// `T` must be, in layout, what the kernel takes for `request`.
unsafe fn ioctl<T>(fd: impl AsFd, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: by the caller's word the kernel reads and writes a `T`.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

// --- project quotas ---

/// The kernel's `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_on_write_size: u32,
    padding: [u8; 8],
}

/// Puts an empty directory, and what will be made in it, into a project.
pub(super) fn set_project(dir: impl AsFd, project: u32) -> io::Result<()> {
    const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
    const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
    const FS_XFLAG_PROJINHERIT: u32 = 0x200;
    let mut attributes = FsXattr::default();
    // SAFETY: both take a `struct fsxattr`.
    unsafe {
        ioctl(&dir, FS_IOC_FSGETXATTR, &mut attributes)?;
        attributes.flags |= FS_XFLAG_PROJINHERIT;
        attributes.project = project;
        ioctl(&dir, FS_IOC_FSSETXATTR, &mut attributes)
    }
}

/// The kernel's `struct if_dqblk`: limits in KiB, use in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quota {
    hard_kib: u64,
    soft_kib: u64,
    pub used_bytes: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    pub used_inodes: u64,
    grace: [u64; 2],
    valid: u32,
}

impl Quota {
    /// Whether nothing is in the project, and nobody limits it.
    pub(super) fn is_unused(self) -> bool {
        [self.hard_kib, self.soft_kib, self.used_bytes, self.hard_inodes, self.soft_inodes, self.used_inodes] == [0; 6]
    }
}

/// Returns a project's limits and use on the file system of `on`. One that was never used has none.
pub(super) fn quota(on: impl AsFd, project: u32) -> io::Result<Quota> {
    const Q_GETQUOTA: u32 = 0x80_0007;
    let mut quota = Quota::default();
    // SAFETY: it writes a `struct if_dqblk`.
    match unsafe { quotactl(on, Q_GETQUOTA, project, (&raw mut quota).cast()) } {
        Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(Quota::default()),
        other => other.map(|()| quota),
    }
}

/// Sets a project's hard limits; zero is none.
pub(super) fn set_quota(on: impl AsFd, project: u32, hard_kib: u64, hard_inodes: u64) -> io::Result<()> {
    const Q_SETQUOTA: u32 = 0x80_0008;
    const QIF_LIMITS: u32 = 5;
    let mut quota = Quota { hard_kib, hard_inodes, valid: QIF_LIMITS, ..Quota::default() };
    // SAFETY: it reads a `struct if_dqblk`.
    unsafe { quotactl(on, Q_SETQUOTA, project, (&raw mut quota).cast()) }
}

/// Returns whether the file system of `on` holds projects to their limits.
pub(super) fn enforces_projects(on: impl AsFd) -> io::Result<bool> {
    const Q_XGETQSTAT: u32 = 0x5805;
    const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
    // The kernel's `struct fs_quota_stat` is of 80 bytes; behind its version, and one byte of padding, stand the flags.
    let mut state = [0_u16; 64];
    // SAFETY: it writes the 80 bytes.
    unsafe { quotactl(on, Q_XGETQSTAT, 0, state.as_mut_ptr().cast()) }?;
    Ok(state[1] & FS_QUOTA_PDQ_ENFD != 0)
}

/// # Safety
/// `argument` must lead to what `command` reads or writes.
unsafe fn quotactl(on: impl AsFd, command: u32, project: u32, argument: *mut c_void) -> io::Result<()> {
    /// The same on every architecture; the C library has no function for it.
    const SYS_QUOTACTL_FD: libc::c_long = 443;
    const PRJQUOTA: u32 = 2;
    // SAFETY: by the caller's word.
    let done = unsafe { libc::syscall(SYS_QUOTACTL_FD, on.as_fd().as_raw_fd(), command << 8 | PRJQUOTA, project, argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

// --- btrfs ---

/// The kernel's `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeName {
    fd: i64,
    name: [u8; 4088],
}

fn volume(name: &CStr) -> io::Result<VolumeName> {
    let mut volume = VolumeName { fd: 0, name: [0; 4088] };
    let bytes = name.to_bytes_with_nul();
    volume.name.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidFilename)?.copy_from_slice(bytes);
    Ok(volume)
}

/// Makes a subvolume in a directory of a btrfs.
pub(super) fn create_subvolume(dir: impl AsFd, name: &CStr) -> io::Result<()> {
    const BTRFS_IOC_SUBVOL_CREATE: u64 = 0x5000_940e;
    // SAFETY: it takes a `struct btrfs_ioctl_vol_args`.
    unsafe { ioctl(dir, BTRFS_IOC_SUBVOL_CREATE, &mut volume(name)?) }
}

/// Removes a subvolume with all that is in it; the file system takes it apart later.
pub(super) fn destroy_subvolume(dir: impl AsFd, name: &CStr) -> io::Result<()> {
    const BTRFS_IOC_SNAP_DESTROY: u64 = 0x5000_940f;
    // SAFETY: it takes a `struct btrfs_ioctl_vol_args`.
    unsafe { ioctl(dir, BTRFS_IOC_SNAP_DESTROY, &mut volume(name)?) }
}

/// Returns the number of the subvolume that `root` is the root of.
pub(super) fn subvolume_id(root: impl AsFd) -> io::Result<u64> {
    const BTRFS_IOC_INO_LOOKUP: u64 = 0xd000_9412;
    const FIRST_FREE: u64 = 256;
    // The kernel's `struct btrfs_ioctl_ino_lookup_args`: tree, object, name.
    let mut lookup = [0_u64; 512];
    lookup[1] = FIRST_FREE;
    // SAFETY: 4096 bytes, as the kernel takes.
    unsafe { ioctl(root, BTRFS_IOC_INO_LOOKUP, &mut lookup) }?;
    Ok(lookup[0])
}

/// Limits what the subvolume of `root` may refer to, in bytes. Fails with `ENOTCONN` if the file system keeps no quotas.
pub(super) fn limit_subvolume(root: impl AsFd, bytes: u64) -> io::Result<()> {
    const BTRFS_IOC_QGROUP_LIMIT: u64 = 0x8030_942b;
    const MAX_RFER: u64 = 1;
    // The kernel's `struct btrfs_ioctl_qgroup_limit_args`: group (0 is that of `root`), flags, referred, exclusive, two reserved.
    let mut limit = [0, MAX_RFER, bytes, 0, 0, 0_u64];
    // SAFETY: 48 bytes, as the kernel takes.
    unsafe { ioctl(root, BTRFS_IOC_QGROUP_LIMIT, &mut limit) }
}

/// Forgets the quota of a subvolume that is gone.
pub(super) fn forget_subvolume(on: impl AsFd, id: u64) -> io::Result<()> {
    const BTRFS_IOC_QGROUP_CREATE: u64 = 0x4010_942a;
    // The kernel's `struct btrfs_ioctl_qgroup_create_args`: create or not, group.
    let mut group = [0, id];
    // SAFETY: 16 bytes, as the kernel takes.
    unsafe { ioctl(on, BTRFS_IOC_QGROUP_CREATE, &mut group) }
}

/// Returns the bytes that a subvolume refers to, as of the last commit.
pub(super) fn subvolume_bytes(on: impl AsFd, id: u64) -> io::Result<u64> {
    const BTRFS_IOC_TREE_SEARCH: u64 = 0xd000_9411;
    const QUOTA_TREE: u64 = 8;
    const QGROUP_INFO: u64 = 242;
    // The kernel's `struct btrfs_ioctl_search_args`: tree, objects, offsets, transactions from-to, types from-to, items, reserved; then
    // what was found, each with a head of 32 bytes.
    let mut search = [0_u64; 512];
    search[0] = QUOTA_TREE;
    (search[3], search[4]) = (id, id);
    search[6] = u64::MAX;
    search[7] = QGROUP_INFO | QGROUP_INFO << 32;
    search[8] = 1;
    // SAFETY: 4096 bytes, as the kernel takes.
    unsafe { ioctl(on, BTRFS_IOC_TREE_SEARCH, &mut search) }?;
    if search[8] & 0xffff_ffff == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    // Behind 13 words of key and 4 of head stands the item: generation, referred, …, little-endian as on every disk of btrfs.
    Ok(u64::from_le(search[13 + 4 + 1]))
}

// --- loop devices ---

/// The kernel's `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_bytes: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The kernel's `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_bytes: u32,
    flags: u32,
    names: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

/// Returns the number of a loop device that nobody uses.
pub(super) fn free_loop(control: impl AsFd) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: u64 = 0x4c82;
    // SAFETY: it takes no argument.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Binds a file to a loop device, until nobody uses the device any more.
pub(super) fn bind_loop(device: impl AsFd, file: impl AsFd) -> io::Result<()> {
    const LOOP_CONFIGURE: u64 = 0x4c0a;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    // SAFETY: all-zero is a valid configuration.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_fd().as_raw_fd().cast_unsigned();
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    // SAFETY: it takes a `struct loop_config`.
    unsafe { ioctl(device, LOOP_CONFIGURE, &mut config) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        let sizes = [size_of::<FsXattr>(), size_of::<Quota>(), size_of::<VolumeName>(), size_of::<LoopInfo>(), size_of::<LoopConfig>()];
        assert_eq!(sizes, [28, 72, 4096, 232, 304]);
    }
}
