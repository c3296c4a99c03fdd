//! The coordinator's configuration: one struct, one file. Every knob states unit, default, bounds and reason.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kiln_nix::PublicKey;
use kiln_wire::{NodeId, StoreDir};
use serde::{Deserialize, Deserializer};

use crate::garbage::Gc;
use crate::hooks::Webhook;
use crate::shared_store::SharedStore;
use crate::tokens::Token;
use crate::upstream::Substituter;

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
    /// Further keys that sign beside it, so that clients can go over from one key to the next (`ops/runbooks/keys.md`). Default none.
    #[serde(default)]
    pub signing_keys: Vec<PathBuf>,
    /// Public halves of keys that signed before, as `trusted-public-keys` has them: what they signed, the present keys sign too when it
    /// is served. Default none.
    #[serde(default, deserialize_with = "public_keys")]
    pub retired_keys: Vec<PublicKey>,
    /// Public halves of keys that signed before and that somebody else may have: what only they signed stays without another signature.
    /// Default none.
    #[serde(default, deserialize_with = "public_keys")]
    pub revoked_keys: Vec<PublicKey>,
    /// Caches that have what need not be built: `[[substituters]]` with `url`, `public_keys` and, if wanted, `priority`. Default none.
    #[serde(default)]
    pub substituters: Vec<Substituter>,
    /// Who may upload, look and steer over HTTP: `[[tokens]]` with `name`, `hash`, `scope` and, of readers and submitters, `tenant`, as
    /// `kiln token create` prints them. Default nobody.
    #[serde(default)]
    pub tokens: Vec<Token>,
    /// Whoever reaches the HTTP address may look at all builds, jobs and logs without a token. Default false: tenants do not see each other.
    #[serde(default)]
    pub anonymous_readers: bool,
    /// Keys that vouch for what is uploaded and does not follow from its content, beside the farm's own, as `trusted-public-keys` has
    /// them. Default none.
    #[serde(default, deserialize_with = "public_keys")]
    pub trusted_upload_keys: Vec<PublicKey>,
    /// Coordinators of a farm, `host:port` each. An empty `dir` then waits to be taken in with `kiln cluster add`; without this it
    /// becomes a new farm. Set it at every coordinator of a farm, for a wiped `dir` must never begin another one. Default none.
    #[serde(default)]
    pub join: Vec<String>,
    /// `host:port` where other coordinators, workers and clients reach this one. Default `listen`, which must then name an address.
    #[serde(default)]
    pub advertise: Option<String>,
    /// `host:port` of HTTP for others: the binary cache's address, the name under which who has no token may look, and where the other
    /// coordinators hand requests on to, tokens included and without TLS: let it be in a network of their own. Default `http`.
    #[serde(default)]
    pub advertise_http: Option<String>,
    /// Shortest and longest wait, in milliseconds, of a coordinator that hears no leader before it stands for election. The leader
    /// gives a sign of life every fifth of the shortest. Default 250 and 400, for coordinators within a few milliseconds of each other;
    /// the shortest should be ten round trips. From 50 to 60,000, and the same at every coordinator.
    #[serde(default = "election_default")]
    pub election_ms: [u64; 2],
    /// How long what is built is kept, and when the rest is deleted. Default: ten builds of each name, and those of the last 30 days; nothing
    /// is deleted before `kiln gc` is asked to.
    #[serde(default)]
    pub gc: Gc,
    /// Where spans of traces go. Default nowhere.
    #[serde(default)]
    pub traces: kiln_trace::Config,
    /// Who is told what happens: `[[webhooks]]` with `url`, `secret_file` and, if wanted, `name`, `events` and `no_leader_seconds`; the same at
    /// every coordinator. Default nobody.
    #[serde(default)]
    pub webhooks: Vec<Webhook>,
    /// Where the store of a simulation is, whatever `store` says.
    #[cfg(feature = "simulation")]
    #[serde(skip)]
    pub location: Option<kiln_store::Location>,
    /// Bytes of a log segment in a simulation, whose logs are short; snapshots come after two, and little is kept behind them.
    #[cfg(feature = "simulation")]
    #[serde(skip)]
    pub segment_bytes: Option<u64>,
}

/// Why a coordinator cannot be one of several.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    #[error("parse configuration `{}`, line {line}: {what}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What. The line itself is not shown, for it may hold the URL of a webhook, and that a secret.
        what: String,
    },
    /// Values that do not go together.
    #[error("read configuration `{}`: {rule}", path.display())]
    Rule {
        /// Which file.
        path: PathBuf,
        /// Which rule they break, and what to do.
        rule: String,
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
        let config: Self = toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
            ConfigError::Parse { path: path.to_path_buf(), line, what: error.message().to_owned() }
        })?;
        match config.objection() {
            None => Ok(config),
            Some(rule) => Err(ConfigError::Rule { path: path.to_path_buf(), rule }),
        }
    }

    /// Returns the rule that the values break, if they do.
    fn objection(&self) -> Option<String> {
        let [shortest, longest] = self.election_ms;
        if !(50..=60_000).contains(&shortest) || !(50..=60_000).contains(&longest) || longest <= shortest {
            return Some(format!("`election_ms` is [{shortest}, {longest}]: the shortest wait, then a longer one, from 50 to 60000"));
        }
        if !self.join.is_empty() && self.advertise.is_none() && self.listen.ip().is_unspecified() {
            return Some(format!("`join` needs `advertise`: nobody can reach this coordinator at {}", self.listen));
        }
        if let Some(rule) = Webhook::objection(&self.webhooks) {
            return Some(rule);
        }
        if let Some(rule) = self.gc.objection() {
            return Some(rule);
        }
        if let Some(rule) = self.tokens.iter().find_map(Token::objection) {
            return Some(rule);
        }
        let unvouched = self.substituters.iter().find(|of| of.public_keys.is_empty());
        unvouched.map(|of| {
            let url = of.url.0.as_str();
            format!("substituter `{url}` has no `public_keys`: give it the keys that sign there, for nothing that nobody signed is taken")
        })
    }
}

pub(crate) fn public_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PublicKey>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| PublicKey::parse(text)).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

fn farm_default() -> String {
    "kiln".to_owned()
}

fn election_default() -> [u64; 2] {
    [250, 400]
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
    fn what_cannot_be_parsed_is_told_by_its_line_which_is_not_shown() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "dir = '/d'\nidentity = '/i'\nwebhooks = [{ url = 'https://a/SECRET', secret_file = '/s', evnts = [] }]\n";
        std::fs::write(file.path(), text).expect("write");
        let told = Config::read(file.path()).expect_err("a field is misspelt").to_string();
        assert!(told.contains("line 3") && told.contains("evnts") && !told.contains("SECRET"), "{told}");
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
    fn values_that_do_not_go_together_are_named() {
        let file = |more: &str| -> Config { toml::from_str(&format!("dir = '/d'\nidentity = '/i'\n{more}")).expect("parses") };
        for (more, named) in [
            ("election_ms = [400, 250]", Some("`election_ms`")),
            ("election_ms = [10, 20]", Some("`election_ms`")),
            ("join = ['c1:7420']", Some("`advertise`")),
            ("[gc]\nevery_hours = 0", Some("`every_hours`")),
            ("[gc]\nevery_hours = 24\nkeep_builds = 2", None),
            ("join = ['c1:7420']\nadvertise = 'c2:7420'", None),
            ("join = ['c1:7420']\nlisten = '192.0.2.1:7420'", None),
            ("[[substituters]]\nurl = 'https://cache.example.org'\npublic_keys = []", Some("`https://cache.example.org/`")),
            (CACHE, None),
        ] {
            let objection = file(more).objection();
            assert_eq!(named.is_some(), objection.is_some(), "{more}: {objection:?}");
            assert!(objection.unwrap_or_default().contains(named.unwrap_or_default()), "{more}");
        }
    }

    const CACHE: &str = "[[substituters]]\nurl = 'https://cache.example.org/a'\npriority = 30\npublic_keys = ['cache-1:gGkVfM9XPmE5pZyTLuDBWzKxsA9YxN1n6JBVs0bVW0s=']";

    #[test]
    fn a_misspelt_or_missing_field_is_named() {
        for (text, named) in [
            ("dir = '/d'\nidentity = '/i'\nlisen = '[::]:1'", "lisen"),
            ("identity = '/i'", "dir"),
            ("dir = 3", "dir"),
            ("dir = '/d'\nidentity = '/i'\nretired_keys = ['x']", "retired_keys"),
            ("dir = '/d'\nidentity = '/i'\nrevoked_keys = ['x']", "revoked_keys"),
            ("dir = '/d'\nidentity = '/i'\n[[substituters]]\nurl = 'file:///cache'\npublic_keys = []", "file:///cache"),
            ("dir = '/d'\nidentity = '/i'\n[[substituters]]\nurl = 'https://a:b@cache'\npublic_keys = []", "https://a:b@cache"),
            ("dir = '/d'\nidentity = '/i'\n[[substituters]]\nurl = 'https://cache'", "public_keys"),
        ] {
            let error = toml::from_str::<Config>(text).expect_err(text).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
