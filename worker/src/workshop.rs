//! What the attempts of one worker share.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use kiln_store::Packer;
use kiln_wire::worker::Offer;

use crate::builtin::Destinations;
use crate::cache::{Budget, Cache};
use crate::cgroup;
use crate::config::{Config, DefaultLimits, FixedOutputNetwork};
use crate::inputs::Inputs;
use crate::launcher::{Launcher, Reach};
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
    /// What runs builders.
    pub launcher: Launcher,
    /// Build users.
    pub slots: Slots,
    /// How outputs become blobs.
    pub packer: Packer,
    /// Where directories go that nobody needs.
    pub trash: Trash,
    /// The file system that everything lies on.
    pub dir: PathBuf,
    /// Below it each of the worker's own builders has a directory, 0700.
    pub builtin_dir: PathBuf,
    /// What control groups of builds are limited by.
    pub policy: cgroup::Policy,
    /// Limits of jobs that name none.
    pub limits: DefaultLimits,
    /// Coordinators as `host:port`, which no build may reach.
    pub coordinators: Vec<String>,
    /// What builds that download may reach.
    pub fixed_output_network: FixedOutputNetwork,
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
    /// The trash cannot be used.
    #[error(transparent)]
    Trash(#[from] crate::trash::TrashError),
    /// The store cache cannot be used.
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
}

fn host_env() -> BTreeMap<String, Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_vec()))).collect()
}

/// zstd's level: 0.39 GB/s on one core, 2.85 to 1 on compilers; level 3 is 40 % slower for 11 % less.
const ZSTD_LEVEL: i32 = 1;

impl Workshop {
    /// Opens the directories below `config.dir`, which the launcher has prepared; what an earlier process of this worker left half done
    /// goes to the trash.
    ///
    /// # Errors
    /// [`WorkshopError`] names the directory or file.
    pub fn open(config: &Config, uplink: Uplink, launcher: Launcher) -> Result<Self, WorkshopError> {
        let dir = |name: &str| {
            let path = config.dir.join(name);
            private_dir(&path).map_err(|err| WorkshopError::Dir { path: path.clone(), err }).map(|()| path)
        };
        let trash = Trash::open(&config.dir.join("trash"))?;
        let (builtin_dir, spool_dir) = (dir("builtin")?, dir("spool")?);
        trash.discard_all(&builtin_dir)?;
        let budget = Budget { bytes_max: config.cache_bytes_max, share_files: config.cache_shares_files };
        let cache = Cache::open(&config.dir, budget, trash.clone())?;
        let inputs = Inputs::new(cache.clone(), uplink.clone(), config.fetches_max);
        Ok(Self {
            cache,
            inputs,
            uplink,
            launcher,
            slots: Slots::new(config.slot_first, config.users()),
            packer: Packer { level: ZSTD_LEVEL, spool_dir },
            trash,
            dir: config.dir.clone(),
            builtin_dir,
            policy: config.policy(),
            limits: config.limits,
            coordinators: config.coordinators.clone(),
            fixed_output_network: config.fixed_output_network.clone(),
            host_env: host_env(),
        })
    }

    /// Returns what the worker offers to the farm.
    pub fn offer(&self, config: &Config) -> Offer {
        Offer {
            systems: config.systems(),
            features: config.features.difference(self.launcher.lacking()).cloned().collect(),
            capacity: kiln_wire::Resources { cores: config.cores(), memory_mib: config.memory_mib() },
            slots: config.slots(),
            guarantees: self.launcher.guarantees().iter().cloned().collect(),
            speed_per_mille: config.speed_per_mille,
            light_slots: config.light_slots,
            fetch_mib_per_second: config.fetch_mib_per_second,
        }
    }

    /// Returns what a download of the worker's own that starts now may reach. May block for a moment.
    pub fn destinations(&self) -> Destinations {
        Destinations::new(&self.fixed_output_network, &self.coordinator_addresses())
    }

    /// Returns what a fixed-output build that starts now may reach. May block for a moment.
    pub fn reach_outside(&self) -> Reach {
        let denied = self.coordinator_addresses().into_iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(Ipv4Net::from(address)),
            // There is no IPv6 in the build's network.
            IpAddr::V6(_) => None,
        });
        Reach::Outside { denied: denied.collect() }
    }

    /// Looked up each time, because they change; a name that does not resolve now denies nothing.
    fn coordinator_addresses(&self) -> Vec<IpAddr> {
        let addresses = self.coordinators.iter().filter_map(|address| address.to_socket_addrs().ok()).flatten();
        addresses.map(|address| address.ip()).collect()
    }
}
