//! File systems of a build's own, mounted over its directory: memory, or an image on a loop device. The kernel counts bytes and inodes,
//! exactly, and the build sees a full disk.
//!
//! An image is a copy of a template that is formatted once, when the worker starts: a copy has the few blocks that are in use and holes
//! elsewhere. It has no name while it is used, so that none is left behind.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount, unmount,
};

use super::{Limits, calls, open_dir};

/// A mounted file system; unmounted when this is dropped.
#[derive(Debug)]
pub(super) struct Mounted {
    path: PathBuf,
    root: OwnedFd,
}

impl Mounted {
    /// Mounts memory over the empty directory `path`.
    pub(super) fn memory(path: &Path, limits: Limits) -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let options = [("size", limits.bytes_max.to_string()), ("nr_inodes", limits.inodes_max.to_string()), ("mode", "0700".to_owned())];
        for (name, value) in &options {
            fsconfig_set_string(&context, *name, value.as_str())?;
        }
        Self::new(path, &context)
    }

    /// Mounts a copy of `template` over the empty directory `path`.
    pub(super) fn image(path: &Path, template: &File) -> io::Result<Self> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mut image = File::from(rustix::fs::open(parent, flags, Mode::RUSR | Mode::WUSR)?);
        copy(template, &mut image)?;
        let (name, device) = on_loop(&image)?;
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", name.as_str())?;
        // Blocks of removed files become holes of the image again; tables that the template does not have are not written for nothing.
        for flag in ["discard", "noinit_itable"] {
            fsconfig_set_flag(&context, flag)?;
        }
        let mounted = Self::new(path, &context)?;
        drop(device);
        match rustix::fs::unlinkat(&mounted.root, "lost+found", rustix::fs::AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(mounted),
            Err(err) => Err(err.into()),
        }
    }

    fn new(path: &Path, context: &OwnedFd) -> io::Result<Self> {
        fsconfig_create(context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let mount = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(&mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(Self { path: path.to_owned(), root: mount })
    }

    /// Returns what it can hold, its own tables included.
    pub(super) fn size(&self) -> io::Result<Limits> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok(Limits { bytes_max: stat.f_blocks.saturating_mul(stat.f_frsize), inodes_max: stat.f_files })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Builds that start at the same time have copies of the mount for a moment, which would make it busy.
        if let Err(err) = unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            tracing::warn!(path = %self.path.display(), %err, "unmount a build's disk");
        }
    }
}

/// Formats a file without a name in `dir` that holds `limits`, with what the machine has for it.
pub(super) fn template(dir: &Path, limits: Limits) -> io::Result<File> {
    let path = dir.join("template.image");
    let _ = std::fs::remove_file(&path);
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    file.set_len(image_bytes(limits))?;
    let formatted = format(&path, limits);
    std::fs::remove_file(&path)?;
    formatted.map(|()| file)
}

/// What the limits take, with what ext4 takes for itself: a table of inodes, maps of blocks, and some it keeps back.
fn image_bytes(limits: Limits) -> u64 {
    const INODE_BYTES: u64 = 256;
    let tables = limits.inodes_max.saturating_mul(INODE_BYTES).saturating_add(4 << 20);
    limits.bytes_max.saturating_add(limits.bytes_max / 32).saturating_add(tables)
}

fn format(path: &Path, limits: Limits) -> io::Result<()> {
    // It rounds down, by groups of blocks.
    let inodes = limits.inodes_max.saturating_add(limits.inodes_max / 64).saturating_add(64).to_string();
    // No journal: nobody looks at an image after a crash.
    let options = ["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", "-N", &inodes];
    let child = Command::new("mkfs.ext4").args(options).arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let done = child.and_then(std::process::Child::wait_with_output).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => io::Error::other("there is no `mkfs.ext4`: install e2fsprogs"),
        _ => err,
    })?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("mkfs.ext4: {}", String::from_utf8_lossy(&done.stderr).trim())))
}

/// Copies what is not a hole.
fn copy(from: &File, to: &mut File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut from = from.try_clone()?;
    let mut at = 0;
    while let Some(start) = seek(&from, rustix::fs::SeekFrom::Data(at))? {
        let end = seek(&from, rustix::fs::SeekFrom::Hole(start))?.unwrap_or(size);
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        io::copy(&mut (&from).take(end - start), to)?;
        at = end;
    }
    to.flush()
}

/// Nothing if there is none from there on.
fn seek(file: &File, to: rustix::fs::SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Binds an image to a loop device and returns its name, and a descriptor that keeps it bound.
fn on_loop(image: &File) -> io::Result<(String, File)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..LOOP_TRIES {
        let name = format!("/dev/loop{}", calls::free_loop(&control)?);
        let device = File::options().read(true).write(true).open(&name)?;
        match calls::bind_loop(device.as_fd(), image) {
            Ok(()) => return Ok((name, device)),
            // Somebody else was faster.
            Err(err) if err.raw_os_error() == Some(libc::EBUSY) => {}
            Err(err) => return Err(err),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

const LOOP_TRIES: u32 = 64;

/// Unmounts what an earlier process left mounted below `dir`.
pub(super) fn unmount_below(dir: &Path) -> io::Result<()> {
    let dir = dir.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(crate::cgroup::unescape);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(&dir) && *point != dir).collect();
    // What lies deeper first.
    below.sort_unstable_by(|a, b| b.cmp(a));
    below.iter().try_for_each(|point| Ok(unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?))
}

/// Whether file systems can be mounted over `path`, an empty directory, by `mount`.
///
/// # Errors
/// Why they cannot.
pub(super) fn probe(path: &Path, mount: impl FnOnce(&Path) -> io::Result<Mounted>) -> io::Result<()> {
    let mounted = mount(path)?;
    // What was mounted must also be what the path leads to.
    let (here, mounted) = (rustix::fs::fstat(open_dir(path)?)?, rustix::fs::fstat(&mounted.root)?);
    if here.st_dev == mounted.st_dev { Ok(()) } else { Err(io::Error::other("a mount does not show in its place")) }
}
