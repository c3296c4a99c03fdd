//! The coordinator's configuration: one struct, one file. Every knob states unit, default, bounds and reason.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kiln_wire::{NodeId, StoreDir};
use serde::Deserialize;

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
    fn a_misspelt_or_missing_field_is_named() {
        for (text, named) in [("dir = '/d'\nidentity = '/i'\nlisen = '[::]:1'", "lisen"), ("identity = '/i'", "dir"), ("dir = 3", "dir")] {
            let error = toml::from_str::<Config>(text).expect_err(text).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
