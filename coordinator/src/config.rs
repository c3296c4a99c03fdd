//! The coordinator's configuration: one struct, one file. Every knob states unit, default, bounds and reason.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kiln_wire::{NodeId, StoreDir};
use serde::Deserialize;

use crate::shared_store::SharedStore;

/// What a coordinator needs to know before it starts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where log, snapshot, store, logs and archive live. Made if absent; belongs to one process at a time.
    pub dir: PathBuf,
    /// The farm's name, which its certificates and its signing key carry. Default `kiln`.
    #[serde(default = "farm_default")]
    pub farm: String,
    /// This coordinator's number: positive, never reused within the farm. Default 1.
    #[serde(default = "node_default")]
    pub node: NodeId,
    /// UDP address for workers and clients (QUIC). Default `[::]:7420`.
    #[serde(default = "listen_default")]
    pub listen: SocketAddr,
    /// TCP address of the binary cache and the metrics (HTTP). Default `[::]:7480`.
    #[serde(default = "http_default")]
    pub http: SocketAddr,
    /// The directory that store paths live in. One per farm; Guix has `/gnu/store`. Default `/nix/store`.
    #[serde(default)]
    pub store_dir: StoreDir,
    /// Directory with this coordinator's certificate, key and CA, as `kiln ca issue` writes them.
    pub identity: PathBuf,
    /// Where outputs, finished logs and ended builds are kept. Default: below `dir`, which is enough for one coordinator.
    #[serde(default)]
    pub store: Option<SharedStore>,
    /// The key that signs the cache (`kiln keys generate`). Default: `signing.key` below `dir`, made at the first start.
    #[serde(default)]
    pub signing_key: Option<PathBuf>,
    /// Coordinators of the farm that this one joins, as `HOST:PORT`. Default none: an empty `dir` becomes a farm of its own.
    #[serde(default)]
    pub join: Vec<String>,
}

/// Why a coordinator cannot be one of several.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeersError {
    /// Its store is on its own disk.
    #[error(
        "a farm of several coordinators needs a store that they share: what is on one coordinator's disk is lost with it, and no other \
         could serve it; give every coordinator the same `[store]` with `url = \"s3://BUCKET/PREFIX\"`"
    )]
    OwnStore,
    /// It makes its own key.
    #[error(
        "a farm of several coordinators needs one signing key: each makes its own otherwise, and who trusts one refuses what another \
         signed; give every coordinator a copy of the same key, and its path as `signing_key`"
    )]
    OwnKey,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration `{}`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a field that is unknown, missing or of another type.
    #[error("parse configuration `{}`", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Says whether this coordinator may be one of several.
    ///
    /// # Errors
    /// [`PeersError`] says what it lacks, and why that is needed.
    pub fn may_have_peers(&self) -> Result<(), PeersError> {
        match (&self.store, &self.signing_key) {
            (None, _) => Err(PeersError::OwnStore),
            (Some(_), None) => Err(PeersError::OwnKey),
            (Some(_), Some(_)) => Ok(()),
        }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line and the rule.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_path_buf(), source: Box::new(source) })
    }
}

fn farm_default() -> String {
    "kiln".to_owned()
}

fn node_default() -> NodeId {
    NodeId(1)
}

fn listen_default() -> SocketAddr {
    SocketAddr::from(([0u16; 8], 7420))
}

fn http_default() -> SocketAddr {
    SocketAddr::from(([0u16; 8], 7480))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_is_enough() {
        let config: Config = toml::from_str("dir = '/var/lib/kiln'\nidentity = '/etc/kiln'").expect("defaults fill the rest");
        assert_eq!((config.farm.as_str(), config.node, config.listen.port()), ("kiln", NodeId(1), 7420));
    }

    #[test]
    fn several_coordinators_need_one_store_and_one_key() {
        let text = |more: &str| format!("dir = '/d'\nidentity = '/i'\njoin = ['a:7420']\n{more}");
        let store = "[store]\nurl = 's3://kiln/farm'";
        let table = [
            (text(""), Err(PeersError::OwnStore)),
            (text("signing_key = '/k'"), Err(PeersError::OwnStore)),
            (text(store), Err(PeersError::OwnKey)),
            (text(&format!("signing_key = '/k'\n{store}")), Ok(())),
        ];
        for (text, expected) in table {
            assert_eq!(toml::from_str::<Config>(&text).expect("a configuration").may_have_peers(), expected, "{text}");
        }
    }

    #[test]
    fn a_misspelt_or_missing_field_is_named() {
        for (text, named) in [("dir = '/d'\nidentity = '/i'\nlisen = '[::]:1'", "lisen"), ("identity = '/i'", "dir"), ("dir = 3", "dir")] {
            let error = toml::from_str::<Config>(text).expect_err(text).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
