//! What a build may write, on disk: `/build` with its files, `/tmp`, and the store directory, in which [`super::stock`] puts its inputs.
//! Made from the host's side before any process of the build exists; by directory descriptor, nothing followed. Each is a mount of its
//! own: a link from one to another is EXDEV, and `mv` copies.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, openat};

use super::stock::{Lease, Stock};
use super::{SandboxError, Spec, skeleton};
use crate::cgroup::MEMORY_BYTES_MIN;

/// Everything that stands before a build's first process.
#[derive(Debug)]
pub(super) struct Tree {
    /// The root file system, mounted nowhere yet.
    pub root: OwnedFd,
    /// The store with its inputs.
    pub store: Lease,
}

/// Makes the root file system of `spec` and fills the empty `spec.root_dir`.
pub(super) fn make(spec: &Spec, stock: &'static Stock) -> Result<Tree, SandboxError> {
    check(spec)?;
    let root_err = |step| SandboxError::host(step, &spec.root_dir);
    let dir = open_dir(CWD, &spec.root_dir).map_err(root_err("open"))?;
    if fs::read_dir(&spec.root_dir).map_err(root_err("list"))?.next().is_some() {
        return Err(refused("root directory", spec.root_dir.display(), "must be empty"));
    }
    let disk = Disk { dir, spec };
    disk.make("tmp", 0o1777, None)?;
    disk.build_dir()?;
    let store = stock.lease(spec, &disk.dir, || disk.store())?;
    Ok(Tree { root: skeleton::make(spec)?, store })
}

struct Disk<'a> {
    dir: OwnedFd,
    spec: &'a Spec,
}

impl Disk<'_> {
    fn build_dir(&self) -> Result<(), SandboxError> {
        self.make("build", 0o700, None)?;
        let build = self.open("build")?;
        let (uid, gid) = self.build_user();
        for (name, bytes) in &self.spec.files {
            let shown = || format!("build/{}", String::from_utf8_lossy(name));
            if !is_component(name) {
                return Err(refused("file", shown(), "must be one path component"));
            }
            let file = create(&build, name, 0o644).map_err(self.failed("create", &shown()))?;
            fchown(&file, Some(uid), Some(gid)).map_err(self.failed("hand over", &shown()))?;
            fchmod(&file, Mode::from_raw_mode(0o644)).map_err(self.failed("change the mode of", &shown()))?;
            fs::File::from(file).write_all(bytes).map_err(SandboxError::host("write", self.spec.root_dir.join(shown())))?;
        }
        fchown(&build, Some(uid), Some(gid)).map_err(self.failed("hand over", "build"))
    }

    /// The store directory, empty.
    fn store(&self) -> Result<(), SandboxError> {
        let store = self.spec.store_on_disk();
        // Those between `/tmp` and a store below it.
        for (end, _) in store.match_indices('/').skip(1) {
            self.make(&store[..end], 0o755, None)?;
        }
        // The build makes its outputs here, and must not remove a mount point: group-writable and sticky, as Nix has it.
        self.make(&store, 0o1775, Some(self.build_user().1))
    }

    fn build_user(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.spec.host_id.uid), Gid::from_raw(self.spec.host_id.gid))
    }

    /// A directory with a mode past the umask. By its descriptor: nothing that may have taken its name meanwhile is changed.
    fn make(&self, path: &str, mode: u32, group: Option<Gid>) -> Result<(), SandboxError> {
        mkdirat(&self.dir, path, Mode::from_raw_mode(mode)).map_err(self.failed("make", path))?;
        let made = self.open(path)?;
        if group.is_some() {
            fchown(&made, None, group).map_err(self.failed("hand over", path))?;
        }
        fchmod(&made, Mode::from_raw_mode(mode)).map_err(self.failed("change the mode of", path))
    }

    fn open(&self, path: &str) -> Result<OwnedFd, SandboxError> {
        open_dir(&self.dir, Path::new(path)).map_err(SandboxError::host("open", self.spec.root_dir.join(path)))
    }

    fn failed(&self, step: &'static str, path: &str) -> impl FnOnce(rustix::io::Errno) -> SandboxError {
        let path: PathBuf = self.spec.root_dir.join(path);
        move |err| SandboxError::host(step, path)(io::Error::from(err))
    }
}

/// The rules that the caller must keep; breaking one would open the build to other users of the host.
fn check(spec: &Spec) -> Result<(), SandboxError> {
    let parent = spec.root_dir.parent().filter(|_| spec.root_dir.is_absolute());
    let Some(parent) = parent else { return Err(refused("root directory", spec.root_dir.display(), "must be absolute")) };
    let found = fs::symlink_metadata(parent).map_err(SandboxError::host("look at", parent))?;
    if !found.is_dir() || found.mode() & 0o067 != 0 || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused(
            "root directory",
            spec.root_dir.display(),
            "must lie in a directory of the launcher's own, of mode 0700 or 0710",
        ));
    }
    let store = spec.store_dir.as_str();
    if store == "/tmp" || ["/proc", "/dev", "/build", "/etc", "/bin"].iter().any(|dir| Path::new(store).starts_with(dir)) {
        return Err(refused("store directory", store, "must not be /tmp, and not lie in /proc, /dev, /build, /etc or /bin"));
    }
    if spec.resources.memory_bytes_max < MEMORY_BYTES_MIN {
        return Err(refused("memory limit", spec.resources.memory_bytes_max, "must be at least 64 MiB, which a start may take"));
    }
    Ok(())
}

fn refused(what: &'static str, value: impl ToString, rule: &'static str) -> SandboxError {
    SandboxError::Spec { what, value: value.to_string(), rule }
}

fn is_component(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= 255 && !matches!(name, b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

pub(super) fn open_dir(at: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

pub(super) fn create(at: impl AsFd, path: &[u8], mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::from_raw_mode(mode))
}
