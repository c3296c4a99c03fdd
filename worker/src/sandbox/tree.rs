//! The skeleton of a build's root directory, made from the host's side before any process of the build exists: directories,
//! mount points, `/etc`, `/build` with its files. All by directory descriptor, nothing followed.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, mkdirat, openat, symlinkat};

use super::{SandboxError, Spec};
use crate::cgroup::MEMORY_BYTES_MIN;

/// Device nodes of the host that every build has.
pub(super) const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// An input that is to be mounted, as opposed to a symbolic link, which is copied.
pub(super) struct Mountable<'a> {
    /// Where it lies on the host.
    pub source: &'a Path,
    /// Its base name in the store.
    pub name: &'a str,
}

/// Fills the empty `spec.root_dir`. Returns the inputs that are still to be mounted.
pub(super) fn fill(spec: &Spec) -> Result<Vec<Mountable<'_>>, SandboxError> {
    check(spec)?;
    let root_err = |step| SandboxError::host(step, &spec.root_dir);
    let root = open_dir(CWD, &spec.root_dir).map_err(root_err("open"))?;
    if fs::read_dir(&spec.root_dir).map_err(root_err("list"))?.next().is_some() {
        return Err(refused("root directory", spec.root_dir.display(), "must be empty"));
    }
    let skeleton = Skeleton { root, spec };
    skeleton.owned(".", 0o750, None)?;
    for dir in ["bin", "dev", "dev/pts", "dev/shm", "etc", "proc"] {
        skeleton.dir(dir, 0o755)?;
    }
    skeleton.dir("tmp", 0o1777)?;
    skeleton.devices()?;
    skeleton.etc()?;
    skeleton.build_dir()?;
    skeleton.file("bin/sh", b"", 0o755)?;
    skeleton.store()
}

struct Skeleton<'a> {
    root: OwnedFd,
    spec: &'a Spec,
}

impl<'a> Skeleton<'a> {
    fn devices(&self) -> Result<(), SandboxError> {
        for name in DEVICES.into_iter().chain(self.spec.dev_kvm.then_some("kvm")) {
            self.file(&format!("dev/{name}"), b"", 0o666)?;
        }
        let links = [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "/dev/pts/ptmx"),
        ];
        links.into_iter().try_for_each(|(name, target)| self.link(target.as_bytes(), &format!("dev/{name}")))
    }

    fn etc(&self) -> Result<(), SandboxError> {
        self.file("etc/passwd", PASSWD, 0o644)?;
        self.file("etc/group", GROUP, 0o644)?;
        if self.spec.network {
            self.file("etc/nsswitch.conf", b"hosts: files dns\nservices: files\n", 0o644)?;
            for name in ["hosts", "resolv.conf", "services"] {
                // A host may lack any of them; the build then sees what it would see on that host.
                if let Ok(bytes) = fs::read(format!("/etc/{name}")) {
                    self.file(&format!("etc/{name}"), &bytes, 0o644)?;
                }
            }
            if let Some(bundle) = CA_BUNDLES.iter().find_map(|path| fs::read(path).ok()) {
                self.dir("etc/ssl", 0o755)?;
                self.dir("etc/ssl/certs", 0o755)?;
                self.file("etc/ssl/certs/ca-certificates.crt", &bundle, 0o644)?;
            }
        } else {
            self.file("etc/hosts", HOSTS, 0o644)?;
        }
        let etc = self.open("etc")?;
        fchmod(&etc, Mode::from_raw_mode(0o555)).map_err(self.failed("change the mode of", "etc"))
    }

    fn build_dir(&self) -> Result<(), SandboxError> {
        self.dir("build", 0o700)?;
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

    fn store(&self) -> Result<Vec<Mountable<'a>>, SandboxError> {
        let store = self.spec.store_dir.as_str().trim_start_matches('/');
        let ends = store.match_indices('/').map(|(at, _)| at);
        for end in ends {
            self.parent_dir(&store[..end])?;
        }
        self.parent_dir(store)?;
        // The build makes its outputs here, and must not remove a mount point: group-writable and sticky, as Nix has it.
        self.owned(store, 0o1775, Some(self.build_user().1))?;
        let store_fd = self.open(store)?;
        let mut mounts = Vec::with_capacity(self.spec.inputs.len());
        for (path, source) in &self.spec.inputs {
            let name = path.as_str();
            let at = || format!("{store}/{name}");
            let kind = fs::symlink_metadata(source).map_err(SandboxError::host("look at input", source))?.file_type();
            if kind.is_symlink() {
                let target = fs::read_link(source).map_err(SandboxError::host("read input", source))?;
                symlinkat(target.as_os_str().as_bytes(), &store_fd, name).map_err(self.failed("copy the link", &at()))?;
                continue;
            }
            if kind.is_dir() {
                mkdirat(&store_fd, name, Mode::from_raw_mode(0o555)).map_err(self.failed("make", &at()))?;
            } else {
                create(&store_fd, name.as_bytes(), 0o444).map_err(self.failed("create", &at()))?;
            }
            mounts.push(Mountable { source, name });
        }
        Ok(mounts)
    }

    fn build_user(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.spec.host_id.uid), Gid::from_raw(self.spec.host_id.gid))
    }

    fn dir(&self, path: &str, mode: u32) -> Result<(), SandboxError> {
        mkdirat(&self.root, path, Mode::from_raw_mode(mode)).map_err(self.failed("make", path))?;
        self.owned(path, mode, None)
    }

    /// A directory above the store, which may lie below one that is there already.
    fn parent_dir(&self, path: &str) -> Result<(), SandboxError> {
        match mkdirat(&self.root, path, Mode::from_raw_mode(0o755)) {
            Ok(()) => self.owned(path, 0o755, None),
            Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(err) => Err(self.failed("make", path)(err)),
        }
    }

    /// Sets the mode past the umask, and the group.
    fn owned(&self, path: &str, mode: u32, group: Option<Gid>) -> Result<(), SandboxError> {
        let group = group.or_else(|| (path == ".").then(|| self.build_user().1));
        if group.is_some() {
            chownat(&self.root, path, None, group, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed("hand over", path))?;
        }
        rustix::fs::chmodat(&self.root, path, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(self.failed("change the mode of", path))
    }

    fn file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), SandboxError> {
        let file = create(&self.root, path.as_bytes(), mode).map_err(self.failed("create", path))?;
        if bytes.is_empty() {
            return Ok(());
        }
        fchmod(&file, Mode::from_raw_mode(mode)).map_err(self.failed("change the mode of", path))?;
        fs::File::from(file).write_all(bytes).map_err(SandboxError::host("write", self.spec.root_dir.join(path)))
    }

    fn link(&self, target: &[u8], path: &str) -> Result<(), SandboxError> {
        symlinkat(target, &self.root, path).map_err(self.failed("link", path))
    }

    fn open(&self, path: &str) -> Result<OwnedFd, SandboxError> {
        open_dir(&self.root, Path::new(path)).map_err(SandboxError::host("open", self.spec.root_dir.join(path)))
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
    if !found.is_dir() || found.mode() & 0o077 != 0 || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused("root directory", spec.root_dir.display(), "must lie in a directory of the worker's own, of mode 0700"));
    }
    let store = spec.store_dir.as_str();
    if ["/proc", "/dev", "/build", "/etc", "/bin"].iter().any(|dir| Path::new(store).starts_with(dir)) {
        return Err(refused("store directory", store, "must not lie in /proc, /dev, /build, /etc or /bin"));
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

fn open_dir(at: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn create(at: impl AsFd, path: &[u8], mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::from_raw_mode(mode))
}

const PASSWD: &[u8] = b"root:x:0:0:Nix build user:/build:/noshell\nnixbld:x:1000:100:Nix build user:/build:/noshell\nnobody:x:65534:65534:Nobody:/:/noshell\n";
const GROUP: &[u8] = b"root:x:0:\nnixbld:!:100:\nnogroup:x:65534:\n";
const HOSTS: &[u8] = b"127.0.0.1 localhost\n::1 localhost\n";
/// Where distributions keep their certificate authorities.
const CA_BUNDLES: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
