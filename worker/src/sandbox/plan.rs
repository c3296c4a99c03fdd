//! Everything that the child needs, laid out before it is born: after the clone it may neither allocate nor lock.

use std::ffi::{CString, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use libc::sock_filter;

use super::range::Inside;
use super::skeleton::DEVICES;
use super::steps::Step;
use super::tree::Tree;
use super::{Network, SandboxError, Spec, filter};

/// A bind mount: a host path, and where it goes below the root directory.
pub(super) struct Bind {
    pub source: CString,
    pub target: CString,
}

/// Where a build's root file system goes, and what lies on disk in it.
pub(super) struct Root {
    /// The file system, mounted nowhere.
    pub mount: RawFd,
    /// The directory that it is mounted on.
    pub point: CString,
    /// Directories below that one which the build may write.
    pub writable: Vec<Bind>,
    /// The store with its inputs, mounted nowhere.
    pub store: RawFd,
    /// Where it goes below the root directory.
    pub store_at: CString,
}

/// Mount points as absolute host paths, for file systems that are mounted new.
pub(super) struct NewMounts {
    pub proc: CString,
    /// Only root of a range of ids has one.
    pub sys: Option<CString>,
    pub shm: CString,
    pub pts: CString,
}

/// The descriptors that the child uses.
pub(super) struct Descriptors {
    pub go: RawFd,
    pub report: RawFd,
    /// The parent's ends of both. Closed first, so that the parent's death is noticed.
    pub parents: [RawFd; 2],
    pub log: RawFd,
    pub null: RawFd,
}

/// The network namespace that the child is born in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Birth {
    /// One that is made with it.
    New,
    /// The one that the thread is in which starts it.
    Parents,
}

/// What the child does, in a form that needs no allocation.
pub(super) struct Plan {
    pub root: Root,
    /// The shell, read-only.
    pub shell: Bind,
    pub devices: Vec<Bind>,
    pub new_mounts: NewMounts,
    pub network: Birth,
    /// Netlink requests for routes in it.
    pub routes: Vec<Vec<u8>>,
    pub personality: libc::c_ulong,
    /// Who the build becomes, as it sees itself.
    pub uid: u32,
    pub gid: u32,
    /// Whether it keeps its rights over its namespaces, and may nest others.
    pub keeps_rights: bool,
    pub processes_max: Option<u64>,
    pub filter: Vec<sock_filter>,
    pub builder: CString,
    pub descriptors: Descriptors,
    /// What the child writes to in order to enter its control groups.
    pub entrances: Vec<RawFd>,
    argv: Pointers,
    envp: Pointers,
}

/// A null-terminated array of pointers, as `execve` wants it, with what it points to.
struct Pointers {
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Pointers {
    fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<*const c_char> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { _strings: strings, pointers }
    }
}

impl Plan {
    pub(super) fn new(
        spec: &Spec,
        tree: &Tree,
        descriptors: Descriptors,
        entrances: &[OwnedFd],
        processes_max: Option<u64>,
        network: Birth,
    ) -> Result<Self, SandboxError> {
        let root = spec.root_dir.as_path();
        let inside = Inside::of(spec.host_id);
        let mut devices = Vec::with_capacity(DEVICES.len() + 1);
        for name in DEVICES.into_iter().chain(spec.dev_kvm.then_some("kvm")) {
            devices.push(Bind {
                source: text(format!("/dev/{name}").into_bytes(), "device")?,
                target: text(format!("dev/{name}").into_bytes(), "device")?,
            });
        }
        let base_name = spec.builder.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        let argv = std::iter::once(base_name).chain(spec.args.iter().cloned()).map(|arg| text(arg, "argument"));
        let envp = spec.env.iter().map(|(name, value)| text([name.as_slice(), b"=", value.as_slice()].concat(), "environment variable"));
        Ok(Self {
            root: Root {
                mount: tree.root.as_raw_fd(),
                point: path(root)?,
                writable: vec![writable(spec, "build")?, writable(spec, "tmp")?],
                store: tree.store.tree.as_raw_fd(),
                store_at: text(spec.store_dir.as_str().trim_start_matches('/').as_bytes().to_vec(), "store directory")?,
            },
            shell: Bind { source: path(&spec.shell)?, target: c"bin/sh".to_owned() },
            devices,
            new_mounts: NewMounts {
                proc: path(&root.join("proc"))?,
                sys: spec.host_id.is_range().then(|| path(&root.join("sys"))).transpose()?,
                shm: path(&root.join("dev/shm"))?,
                pts: path(&root.join("dev/pts"))?,
            },
            network,
            routes: match &spec.network {
                Network::Loopback | Network::Host => Vec::new(),
                Network::Egress(egress) => egress.routes(),
            },
            personality: personality(&spec.system),
            uid: inside.uid,
            gid: inside.gid,
            keeps_rights: spec.host_id.is_range(),
            processes_max,
            filter: filter::program(&spec.system),
            builder: text(spec.builder.clone(), "builder")?,
            descriptors,
            entrances: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
            argv: Pointers::new(argv.collect::<Result<_, _>>()?),
            envp: Pointers::new(envp.collect::<Result<_, _>>()?),
        })
    }

    pub(super) fn argv(&self) -> *const *const c_char {
        self.argv.pointers.as_ptr()
    }

    pub(super) fn envp(&self) -> *const *const c_char {
        self.envp.pointers.as_ptr()
    }

    /// Says what a step was about, with a leading space, or nothing.
    pub(super) fn subject(&self, step: Step, index: u32) -> String {
        let binds: &[Bind] = if step == Step::BindWritable {
            &self.root.writable
        } else if step == Step::BindDevice {
            &self.devices
        } else {
            &[]
        };
        let source = binds.get(index as usize).map(|bind| &bind.source);
        let source = source
            .or((step == Step::Root).then_some(&self.root.point))
            .or((step == Step::MountStore).then_some(&self.root.store_at))
            .or((step == Step::BindShell).then_some(&self.shell.source));
        source.map_or_else(String::new, |path| format!(" `{}`", path.to_string_lossy()))
    }
}

impl Descriptors {
    /// `go` and `report` are pipes, the end that is read first.
    pub(super) fn new(go: &(OwnedFd, OwnedFd), report: &(OwnedFd, OwnedFd), log: BorrowedFd<'_>, null: BorrowedFd<'_>) -> Self {
        Self {
            go: go.0.as_raw_fd(),
            report: report.1.as_raw_fd(),
            parents: [go.1.as_raw_fd(), report.0.as_raw_fd()],
            log: log.as_raw_fd(),
            null: null.as_raw_fd(),
        }
    }
}

fn writable(spec: &Spec, at: &str) -> Result<Bind, SandboxError> {
    Ok(Bind { source: path(&spec.root_dir.join(at))?, target: text(at.as_bytes().to_vec(), "path")? })
}

fn personality(system: &str) -> libc::c_ulong {
    const ADDR_NO_RANDOMIZE: libc::c_ulong = 0x004_0000;
    const PER_LINUX32: libc::c_ulong = 0x0008;
    ADDR_NO_RANDOMIZE | if system == "i686-linux" { PER_LINUX32 } else { 0 }
}

fn path(path: &Path) -> Result<CString, SandboxError> {
    text(path.as_os_str().as_bytes().to_vec(), "path")
}

fn text(bytes: Vec<u8>, what: &'static str) -> Result<CString, SandboxError> {
    CString::new(bytes).map_err(|err| SandboxError::Spec {
        what,
        value: String::from_utf8_lossy(&err.into_vec()).chars().take(200).collect(),
        rule: "must not contain a zero byte",
    })
}
