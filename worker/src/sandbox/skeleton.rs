//! The root file system of a build: a tmpfs of its own with directories, mount points and `/etc`, filled from the host's side before
//! any process of the build exists, and mounted nowhere until the child takes it.
//!
//! In memory, because two dozen files made and deleted for each build cost more on a disk than the rest of the sandbox. A build cannot
//! write here; what it writes lies on disk ([`super::tree`]).

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, mkdirat, openat, symlinkat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::egress::RESOLV_CONF;
use super::range::Inside;
use super::{Network, SandboxError, Spec};

/// Device nodes of the host that every build has.
pub(super) const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Makes the root file system of `spec` and returns its mount. Dropping that unmounts it.
pub(super) fn make(spec: &Spec) -> Result<OwnedFd, SandboxError> {
    let skeleton = Skeleton { root: mount().map_err(SandboxError::host("make the file system of", "/"))?, spec };
    for dir in ["bin", "build", "dev", "dev/pts", "dev/shm", "etc", "proc", "tmp"] {
        skeleton.dir(dir)?;
    }
    if spec.host_id.is_range() {
        skeleton.dir("sys")?;
    }
    skeleton.devices()?;
    skeleton.etc()?;
    skeleton.file("bin/sh", b"", 0o755)?;
    skeleton.store()?;
    skeleton.close()?;
    Ok(skeleton.root)
}

fn mount() -> io::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

struct Skeleton<'a> {
    root: OwnedFd,
    spec: &'a Spec,
}

impl Skeleton<'_> {
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
        let inside = Inside::of(self.spec.host_id);
        self.file("etc/passwd", inside.passwd, 0o644)?;
        self.file("etc/group", inside.group, 0o644)?;
        match &self.spec.network {
            Network::Loopback => self.file("etc/hosts", HOSTS, 0o644)?,
            Network::Host => self.name_service(&["hosts", "resolv.conf", "services"])?,
            Network::Egress(_) => {
                self.file("etc/hosts", HOSTS, 0o644)?;
                self.file("etc/resolv.conf", RESOLV_CONF, 0o644)?;
                self.name_service(&["services"])?;
            }
        }
        if self.spec.host_id.is_range() { self.hand_over("etc") } else { self.mode("etc", 0o555) }
    }

    /// What a build with a network needs to use it; `copied` are files of the host.
    fn name_service(&self, copied: &[&str]) -> Result<(), SandboxError> {
        self.file("etc/nsswitch.conf", b"hosts: files dns\nservices: files\n", 0o644)?;
        for name in copied {
            // A host may lack any of them; the build then sees what it would see on that host.
            if let Ok(bytes) = fs::read(format!("/etc/{name}")) {
                self.file(&format!("etc/{name}"), &bytes, 0o644)?;
            }
        }
        if let Some(bundle) = CA_BUNDLES.iter().find_map(|path| fs::read(path).ok()) {
            self.dir("etc/ssl")?;
            self.dir("etc/ssl/certs")?;
            self.file("etc/ssl/certs/ca-certificates.crt", &bundle, 0o644)?;
        }
        Ok(())
    }

    /// The mount point of the store and the directories above it. One below `/tmp` is made there, on disk.
    fn store(&self) -> Result<(), SandboxError> {
        if self.spec.store_below_tmp().is_some() {
            return Ok(());
        }
        let store = self.spec.store_dir.as_str().trim_start_matches('/');
        let ends = store.match_indices('/').map(|(at, _)| at).chain([store.len()]);
        ends.map(|end| &store[..end]).try_for_each(|path| self.dir(path))
    }

    /// Only root and the build's group may enter. Root of a range is root here too.
    fn close(&self) -> Result<(), SandboxError> {
        if self.spec.host_id.is_range() {
            return self.hand_over(".").and_then(|()| self.mode(".", 0o755));
        }
        let group = Gid::from_raw(self.spec.host_id.gid);
        chownat(&self.root, ".", None, Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("hand over", ""))?;
        self.mode(".", 0o750)
    }

    fn hand_over(&self, path: &str) -> Result<(), SandboxError> {
        let (user, group) = (Uid::from_raw(self.spec.host_id.uid), Gid::from_raw(self.spec.host_id.gid));
        chownat(&self.root, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("hand over", path))
    }

    fn dir(&self, path: &str) -> Result<(), SandboxError> {
        mkdirat(&self.root, path, Mode::from_raw_mode(0o755)).map_err(failed("make", path))?;
        self.mode(path, 0o755)
    }

    /// Sets a mode past the umask.
    fn mode(&self, path: &str, mode: u32) -> Result<(), SandboxError> {
        chmodat(&self.root, path, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(failed("change the mode of", path))
    }

    fn file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), SandboxError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.root, path, flags, Mode::from_raw_mode(mode)).map_err(failed("create", path))?;
        if bytes.is_empty() {
            return Ok(());
        }
        fchmod(&file, Mode::from_raw_mode(mode)).map_err(failed("change the mode of", path))?;
        fs::File::from(file).write_all(bytes).map_err(SandboxError::host("write", Path::new("/").join(path)))
    }

    fn link(&self, target: &[u8], path: &str) -> Result<(), SandboxError> {
        symlinkat(target, &self.root, path).map_err(failed("link", path))
    }
}

/// An error about a path that the build would see.
fn failed(step: &'static str, path: &str) -> impl FnOnce(rustix::io::Errno) -> SandboxError {
    let path: PathBuf = Path::new("/").join(path);
    move |err| SandboxError::host(step, path)(io::Error::from(err))
}

pub(super) const PASSWD: &[u8] = b"root:x:0:0:Nix build user:/build:/noshell\nnixbld:x:1000:100:Nix build user:/build:/noshell\nnobody:x:65534:65534:Nobody:/:/noshell\n";
pub(super) const GROUP: &[u8] = b"root:x:0:\nnixbld:!:100:\nnogroup:x:65534:\n";
const HOSTS: &[u8] = b"127.0.0.1 localhost\n::1 localhost\n";
/// Where distributions keep their certificate authorities.
const CA_BUNDLES: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
