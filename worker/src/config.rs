//! A worker's configuration: one TOML file, read here and nowhere else.
//!
//! Every knob has a unit in its name, a default, bounds and a reason. An unknown key is an error, so that a typing mistake is not
//! silently a default. Does not read certificates (`kiln-link` does).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use kiln_wire::{JobLimits, WorkerId, limits};
use serde::{Deserialize, Serialize};

use crate::admission;
use crate::cgroup::Policy;
use crate::launcher::Owner;
use crate::sandbox::{HostId, LINK_LOCAL, UID_RANGE, disk};

/// A worker's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The worker's name; must equal the one in its certificate.
    pub name: WorkerId,
    /// Where it keeps its store cache, scratch directories, logs and journal. Made if it is missing. Everything lies on one file
    /// system, because outputs are moved into the cache by renaming.
    pub dir: PathBuf,
    /// Coordinators as `host:port`, tried in turn until one leads. At least one.
    pub coordinators: Vec<String>,
    /// Directory with the certificate and key that `kiln ca issue` wrote. Not used where the identity is handed over in memory.
    #[serde(default)]
    pub identity_dir: PathBuf,
    /// Who the worker is once it has started its launcher, which stays root. Default `auto`. Without effect where it is not started as root,
    /// and inside another process.
    #[serde(default)]
    pub user: WorkerUser,
    /// Most attempts at a time, 1 to 1024. Default: the number of cores. More than cores hides input fetches and waits for disks.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Attempts at a time beside those, of builds that are over in a moment: fetches by the worker itself, and those that prefer to be local.
    /// Default 2: they never wait for a long build, and hold no core.
    #[serde(default = "default_light_slots")]
    pub light_slots: u32,
    /// How fast it builds, per mille of the standard, 1 to 100,000. Default 1,000. The fastest workers get the most urgent jobs.
    #[serde(default = "default_speed_per_mille")]
    pub speed_per_mille: u32,
    /// MiB of inputs that it fetches in a second, where that is known. Default 0: unknown, 100 is assumed.
    #[serde(default)]
    pub fetch_mib_per_second: u32,
    /// Cores that jobs may use together, 1 to 4096. Default: all that the process may use.
    #[serde(default)]
    pub cores: Option<u32>,
    /// Memory in MiB that jobs may use together, at least 64. Default: seven eighths of the machine's, so that the worker and the
    /// kernel keep some.
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// Whether a build gets no more than the cores that it was granted, even while others are idle. Default false: idle cores would be
    /// wasted. True makes times comparable, and leaves a machine's other tenants theirs.
    #[serde(default)]
    pub cpu_quota: bool,
    /// Platforms that it runs. Default: the machine's own, and `i686-linux` on `x86_64`.
    #[serde(default)]
    pub systems: Option<BTreeSet<String>>,
    /// Features that it offers to jobs which require them. Default: those that Nix has by default, `kvm` among them where `/dev/kvm` can
    /// be used, `uid-range` where the launcher can give it.
    #[serde(default = "default_features")]
    pub features: BTreeSet<String>,
    /// A static busybox, shown to builds as `/bin/sh`. Default `/bin/busybox`.
    #[serde(default = "default_busybox")]
    pub busybox: PathBuf,
    /// Bytes of NAR that the store cache may hold before the least recently used paths are removed, files that several paths share counted
    /// once. Default 50 GiB. Paths in use are never removed, so that it may be passed while they are.
    #[serde(default = "default_cache_bytes_max")]
    pub cache_bytes_max: u64,
    /// Whether files of 4 KiB and more that hold the same bytes are one file in the store cache, by hard links. Default true:
    /// one closure takes 6 % less of the disk, two generations of it half; unpacking an input takes a tenth to a half more CPU time, once.
    #[serde(default = "default_cache_shares_files")]
    pub cache_shares_files: bool,
    /// First of the machine's 1024 build user ids that this worker uses; it uses as many as it has slots and light slots. Default 0. Workers on
    /// one machine need ranges that do not overlap, because a build could touch the processes of another with the same user.
    #[serde(default)]
    pub slot_first: u32,
    /// How builds are held to their part of the disk (`limits.disk_bytes_max`, `limits.disk_inodes_max`). Default `auto`.
    #[serde(default)]
    pub disk: disk::Choice,
    /// Bytes that stay free on the disk of `dir`, at least 8388608. Default 1 GiB. Below it no build starts, and the one that uses the most
    /// of the disk is ended and tried elsewhere.
    #[serde(default = "default_disk_free_bytes_min")]
    pub disk_free_bytes_min: u64,
    /// What else keeps the worker from taking more.
    #[serde(default)]
    pub admission: admission::Config,
    /// Paths fetched at a time, 1 to 256. Default 8: enough to hide a round trip, few enough to leave memory bounded.
    #[serde(default = "default_fetches_max")]
    pub fetches_max: u32,
    /// What fixed-output builds, which download, may reach.
    #[serde(default)]
    pub fixed_output_network: FixedOutputNetwork,
    /// What holds where a job names no limit of its own.
    #[serde(default)]
    pub limits: DefaultLimits,
    /// Where spans of traces go. Default nowhere.
    #[serde(default)]
    pub traces: kiln_trace::Config,
}

/// Who a worker runs as, when it was started as root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerUser {
    /// A user and group of Kiln's pool that has no name, no home and no other process; each worker of a machine has its own, by
    /// `slot_first`.
    #[default]
    Auto,
    /// Whoever started it. Root stays root: what takes over the worker has the machine.
    Own,
    /// This user of the machine, and its main group.
    #[serde(untagged)]
    Named(String),
}

/// A user that the machine does not know.
#[derive(Debug, thiserror::Error)]
#[error("run the worker as user `{name}`: there is no such user on this machine")]
pub struct UnknownUser {
    name: String,
}

/// What fixed-output builds may reach, and the worker's own downloads. The host itself, its coordinators and link-local addresses
/// (169.254.0.0/16, where clouds have their metadata) are never reached unless `mode` is `host`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FixedOutputNetwork {
    /// Whose network they have. Default `auto`.
    pub mode: NetworkMode,
    /// The user-mode network stack: a path, or a name that is looked for in `PATH`. Default `slirp4netns`.
    pub slirp4netns: PathBuf,
    /// Networks that may be reached although they lie within a denied one. Default none. Those of IPv6 concern `builtin:fetchurl` only:
    /// there is no IPv6 in a build's own network.
    pub allow: Vec<IpNet>,
    /// Networks that must not be reached. Default none.
    pub deny: Vec<IpNet>,
}

/// Whose network fixed-output builds have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// A namespace of their own where `slirp4netns` is there, else the host's; the worker tells the farm which.
    #[default]
    Auto,
    /// A namespace of their own, or the worker does not start.
    Isolated,
    /// The host's, without bounds. They may talk to its local services and to each other.
    Host,
}

impl Default for FixedOutputNetwork {
    fn default() -> Self {
        Self { mode: NetworkMode::Auto, slirp4netns: "slirp4netns".into(), allow: Vec::new(), deny: Vec::new() }
    }
}

/// Limits of a job that names none, and those that no job can name.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DefaultLimits {
    /// Wall time in milliseconds. Default 24 hours: longer than any package, shorter than a forgotten hang.
    pub wall_ms_max: u64,
    /// Time without a byte of log, in milliseconds. Default 2 hours: linkers and test suites are silent for long.
    pub silence_ms_max: u64,
    /// Log bytes. Default and bound: `LOG_BYTES_MAX`.
    pub log_bytes_max: u64,
    /// Bytes of all outputs together, as NARs. Default and bound: `OUTPUT_BYTES_MAX`.
    pub output_bytes_max: u64,
    /// Bytes that one build may have on the disk, outputs included, at least 1 MiB. Default 128 GiB: browsers take a third of it.
    pub disk_bytes_max: u64,
    /// Files and directories that one build may have there, at least 1000. Default 8388608: a kernel's build has a hundredth of it.
    pub disk_inodes_max: u64,
    /// Processes and threads of one build at a time, 16 to 4194304, which is Linux's own bound. Default 16384: a linker farm on 64 cores
    /// has hundreds, a fork bomb has more than this.
    pub pids_max: u32,
    /// Bytes of swap that one build may use beside its memory. Default 0: a build that swaps slows down all others.
    pub swap_bytes_max: u64,
}

impl Default for DefaultLimits {
    fn default() -> Self {
        Self {
            wall_ms_max: 24 * 3_600_000,
            silence_ms_max: 2 * 3_600_000,
            log_bytes_max: limits::LOG_BYTES_MAX,
            output_bytes_max: limits::OUTPUT_BYTES_MAX,
            disk_bytes_max: 128 << 30,
            disk_inodes_max: 8 << 20,
            pids_max: 16_384,
            swap_bytes_max: 0,
        }
    }
}

impl DefaultLimits {
    /// Returns the limits of a job: its own where it names one, these elsewhere, never above what the farm stores.
    pub fn of(&self, job: &JobLimits) -> JobLimits {
        let or = |own: u64, default: u64| if own == 0 { default } else { own };
        JobLimits {
            wall_ms_max: or(job.wall_ms_max, self.wall_ms_max),
            silence_ms_max: or(job.silence_ms_max, self.silence_ms_max),
            log_bytes_max: or(job.log_bytes_max, self.log_bytes_max).min(limits::LOG_BYTES_MAX),
            output_bytes_max: or(job.output_bytes_max, self.output_bytes_max).min(limits::OUTPUT_BYTES_MAX),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read worker configuration `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
    /// The file is not TOML, or has a key or value that does not belong there.
    #[error("parse worker configuration `{path}`")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and rule.
        #[source]
        err: toml::de::Error,
    },
    /// A value is outside its bounds.
    #[error("worker configuration: `{knob}` {rule}")]
    Bound {
        /// Which knob.
        knob: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

impl Config {
    /// Returns a configuration with every default, for workers that live inside another process.
    pub fn new(name: WorkerId, dir: PathBuf, coordinators: Vec<String>) -> Self {
        Self {
            name,
            dir,
            coordinators,
            identity_dir: PathBuf::new(),
            user: WorkerUser::Auto,
            slots: None,
            light_slots: default_light_slots(),
            speed_per_mille: default_speed_per_mille(),
            fetch_mib_per_second: 0,
            cores: None,
            memory_mib: None,
            cpu_quota: false,
            systems: None,
            features: default_features(),
            busybox: default_busybox(),
            cache_bytes_max: default_cache_bytes_max(),
            cache_shares_files: default_cache_shares_files(),
            slot_first: 0,
            disk: disk::Choice::default(),
            disk_free_bytes_min: default_disk_free_bytes_min(),
            admission: admission::Config::default(),
            fetches_max: default_fetches_max(),
            fixed_output_network: FixedOutputNetwork::default(),
            limits: DefaultLimits::default(),
            traces: kiln_trace::Config::default(),
        }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the line, or the knob and its bound.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|err| ConfigError::Read { path: path.into(), err })?;
        let config: Self = toml::from_str(&text).map_err(|err| ConfigError::Parse { path: path.into(), err })?;
        config.check()?;
        Ok(config)
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`ConfigError::Bound`] names the first knob outside its bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (slots, users) = (self.slots(), self.users());
        let table = [
            ("dir", self.dir.is_absolute(), "must be an absolute path"),
            ("coordinators", !self.coordinators.is_empty(), "must name at least one `host:port`"),
            ("slots", (1..=SLOTS_MAX).contains(&slots), "must be 1 to 1024"),
            ("cores", (1..=4096).contains(&self.cores()), "must be 1 to 4096"),
            ("memory_mib", self.memory_mib() >= 64, "must be at least 64"),
            ("systems", !self.systems().is_empty(), "must name at least one platform"),
            ("busybox", self.busybox.is_absolute(), "must be an absolute path"),
            ("light_slots", self.light_slots <= 64, "must be at most 64"),
            ("speed_per_mille", (1..=100_000).contains(&self.speed_per_mille), "must be 1 to 100000"),
            ("slot_first", self.slot_first.saturating_add(users) <= SLOTS_MAX, "plus `slots` and `light_slots` must be at most 1024"),
            ("fetches_max", (1..=256).contains(&self.fetches_max), "must be 1 to 256"),
            (
                "fixed_output_network.allow",
                self.fixed_output_network.allow.iter().all(|net| match net {
                    IpNet::V4(net) => !LINK_LOCAL.contains(&net.network()) && !net.network().is_loopback(),
                    IpNet::V6(net) => !net.network().is_unicast_link_local() && !net.network().is_loopback(),
                }),
                "must not open link-local or loopback addresses (169.254.0.0/16, 127.0.0.0/8, fe80::/10, ::1)",
            ),
            ("limits.wall_ms_max", self.limits.wall_ms_max > 0, "must be above 0"),
            ("limits.silence_ms_max", self.limits.silence_ms_max > 0, "must be above 0"),
            ("limits.log_bytes_max", (1..=limits::LOG_BYTES_MAX).contains(&self.limits.log_bytes_max), "must be 1 to 67108864"),
            ("disk_free_bytes_min", self.disk_free_bytes_min >= 8 << 20, "must be at least 8388608"),
            ("limits.disk_bytes_max", self.limits.disk_bytes_max >= 1 << 20, "must be at least 1048576"),
            ("limits.disk_inodes_max", self.limits.disk_inodes_max >= 1000, "must be at least 1000"),
            ("limits.pids_max", (16..=4_194_304).contains(&self.limits.pids_max), "must be 16 to 4194304"),
            ("limits.output_bytes_max", (1..=limits::OUTPUT_BYTES_MAX).contains(&self.limits.output_bytes_max), "must be 1 to 34359738368"),
        ];
        match table.into_iter().find(|(_, holds, _)| !holds) {
            Some((knob, _, rule)) => Err(ConfigError::Bound { knob, rule }),
            None => Ok(()),
        }
    }

    /// Returns the number of slots.
    pub fn slots(&self) -> u32 {
        self.slots.unwrap_or_else(|| self.cores().min(SLOTS_MAX - self.light_slots.min(64)))
    }

    /// Returns how many builds may run at a time, each as a user of its own.
    pub fn users(&self) -> u32 {
        self.slots().saturating_add(self.light_slots)
    }

    /// Returns the cores that jobs may use together.
    pub fn cores(&self) -> u32 {
        self.cores.unwrap_or_else(|| {
            let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            u32::try_from(available).unwrap_or(4096).min(4096)
        })
    }

    /// Returns the user that the worker is to run as.
    ///
    /// # Errors
    /// [`UnknownUser`].
    pub fn owner(&self) -> Result<Owner, UnknownUser> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Owner::own());
        }
        match &self.user {
            WorkerUser::Own => Ok(Owner::own()),
            WorkerUser::Auto => {
                let HostId { uid, gid, count: _ } = HostId::of_worker(self.slot_first);
                Ok(Owner { uid, gid })
            }
            WorkerUser::Named(name) => match nix::unistd::User::from_name(name) {
                Ok(Some(user)) => Ok(Owner { uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
                Ok(None) | Err(_) => Err(UnknownUser { name: name.clone() }),
            },
        }
    }

    /// Returns the memory in MiB that jobs may use together.
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib.unwrap_or_else(|| (machine_memory_mib() * 7 / 8).max(64))
    }

    /// Returns from where on the worker takes nothing new.
    pub fn bounds(&self) -> kiln_agent::Bounds {
        self.admission.bounds(self.disk_free_bytes_min, machine_memory_mib())
    }

    /// Returns what the control groups of builds are limited by.
    pub fn policy(&self) -> Policy {
        let DefaultLimits { pids_max, swap_bytes_max, .. } = self.limits;
        Policy { memory_mib: self.memory_mib(), swap_bytes_max, pids_max, cpu_quota: self.cpu_quota }
    }

    /// Returns what builds may use of the disk.
    pub fn disk_limits(&self) -> disk::Limits {
        disk::Limits { bytes_max: self.limits.disk_bytes_max, inodes_max: self.limits.disk_inodes_max }
    }

    /// Returns the platforms that it runs.
    pub fn systems(&self) -> BTreeSet<String> {
        self.systems.clone().unwrap_or_else(|| match std::env::consts::ARCH {
            "x86_64" => ["x86_64-linux", "i686-linux"].map(String::from).into(),
            arch => [format!("{arch}-linux")].into(),
        })
    }
}

/// Build user ids of a machine, as the sandbox has them.
const SLOTS_MAX: u32 = 1024;

fn default_light_slots() -> u32 {
    2
}

fn default_speed_per_mille() -> u32 {
    kiln_wire::worker::SPEED_STANDARD
}

fn default_features() -> BTreeSet<String> {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    ["nixos-test", "benchmark", "big-parallel", "ca-derivations", UID_RANGE]
        .into_iter()
        .chain(kvm.then_some("kvm"))
        .map(String::from)
        .collect()
}

fn default_busybox() -> PathBuf {
    "/bin/busybox".into()
}

fn default_cache_bytes_max() -> u64 {
    50 << 30
}

fn default_disk_free_bytes_min() -> u64 {
    1 << 30
}

fn default_cache_shares_files() -> bool {
    true
}

fn default_fetches_max() -> u32 {
    8
}

/// The machine's memory in MiB; 1024 where the kernel does not tell, so that the worker still takes small jobs.
fn machine_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map_or(1024, |kib| kib / 1024)
}

#[cfg(test)]
mod tests;
