//! What the attempts of one worker share.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_store::Packer;
use kiln_wire::worker::Offer;

use crate::cache::Cache;
use crate::cgroup::Cgroups;
use crate::config::{Config, DefaultLimits};
use crate::fixed_network::FixedNetwork;
use crate::inputs::Inputs;
use crate::slots::Slots;
use crate::trash::{Trash, private_dir};
use crate::uplink::Uplink;

/// Everything that attempts use.
#[derive(Debug)]
pub struct Workshop {
    /// Unpacked store paths.
    pub cache: Cache,
    /// What fetches those that are missing.
    pub inputs: Inputs,
    /// The way to the farm.
    pub uplink: Uplink,
    /// Where builds are held together and limited.
    pub cgroups: Cgroups,
    /// Build users.
    pub slots: Slots,
    /// How outputs become blobs.
    pub packer: Packer,
    /// Where directories go that nobody needs.
    pub trash: Trash,
    /// Below it each build has a directory of its own, 0700.
    pub build_dir: PathBuf,
    /// The static shell.
    pub shell: PathBuf,
    /// Memory in MiB that jobs may use together.
    pub memory_mib: u64,
    /// Limits of jobs that name none.
    pub limits: DefaultLimits,
    /// What fixed-output builds may reach.
    pub fixed_network: FixedNetwork,
    /// The worker's own environment, which fixed-output derivations may ask for (`impureEnvVars`: proxies).
    pub host_env: BTreeMap<String, Vec<u8>>,
}

/// A workshop that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum WorkshopError {
    /// A directory cannot be used.
    #[error("open the worker's directory `{path}`")]
    Dir {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
    /// The shell for builds is missing.
    #[error("find the static shell `{path}` for builds; install busybox-static or set `busybox`")]
    Shell {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
    /// The network of fixed-output builds cannot be had.
    #[error(transparent)]
    Network(#[from] crate::fixed_network::NoStack),
    /// The trash cannot be used.
    #[error(transparent)]
    Trash(#[from] crate::trash::TrashError),
    /// The store cache cannot be used.
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    /// Control groups of an earlier process cannot be removed.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
}

fn host_env() -> BTreeMap<String, Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_vec()))).collect()
}

/// Names the worker's control groups after its directory: two farms on one machine may both have a worker of the same name, and
/// each must clean up after itself only.
fn group_name(config: &Config) -> String {
    let hash = blake3::hash(config.dir.as_os_str().as_encoded_bytes()).to_hex();
    format!("{}-{}", config.name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "_"), &hash[..12])
}

/// zstd's level: 0.39 GB/s on one core, 2.85 to 1 on compilers; level 3 is 40 % slower for 11 % less.
const ZSTD_LEVEL: i32 = 1;

impl Workshop {
    /// Opens the directories below `config.dir`; what an earlier process of this worker left half done goes to the trash, and its
    /// control groups are removed.
    ///
    /// # Errors
    /// [`WorkshopError`] names the directory or file.
    pub fn open(config: &Config, uplink: Uplink) -> Result<Self, WorkshopError> {
        let dir = |name: &str| {
            let path = config.dir.join(name);
            private_dir(&path).map_err(|err| WorkshopError::Dir { path: path.clone(), err }).map(|()| path)
        };
        private_dir(&config.dir).map_err(|err| WorkshopError::Dir { path: config.dir.clone(), err })?;
        std::fs::metadata(&config.busybox).map_err(|err| WorkshopError::Shell { path: config.busybox.clone(), err })?;
        let cgroups = Cgroups::detect(&group_name(config))?;
        let trash = Trash::open(&config.dir.join("trash"))?;
        let (build_dir, spool_dir) = (dir("build")?, dir("spool")?);
        trash.discard_all(&build_dir)?;
        let cache = Cache::open(&config.dir, config.cache_bytes_max, trash.clone())?;
        let inputs = Inputs::new(cache.clone(), uplink.clone(), config.fetches_max);
        Ok(Self {
            cache,
            inputs,
            uplink,
            cgroups,
            slots: Slots::new(config.slot_first, config.slots()),
            packer: Packer { level: ZSTD_LEVEL, spool_dir },
            trash,
            build_dir,
            shell: config.busybox.clone(),
            memory_mib: config.memory_mib(),
            limits: config.limits,
            fixed_network: FixedNetwork::open(config)?,
            host_env: host_env(),
        })
    }

    /// Returns what the worker offers to the farm.
    pub fn offer(&self, config: &Config) -> Offer {
        let guarantees =
            [("cgroup".to_owned(), self.cgroups.describe()), ("fixed-output network".to_owned(), self.fixed_network.describe())];
        Offer {
            systems: config.systems(),
            features: config.features.clone(),
            capacity: kiln_wire::Resources { cores: config.cores(), memory_mib: config.memory_mib() },
            slots: config.slots(),
            guarantees: guarantees.into(),
        }
    }
}
