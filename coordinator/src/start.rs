//! Starting and stopping a coordinator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use kiln_link::{Identity, LinkError, Listener, Protocol};
use kiln_nix::Keyring;
use kiln_store::keys::{self, KeyFileError};
use kiln_store::{Location, Store, StoreConfig, StoreError, Uploads};
use kiln_wire::limits::GROWTHS_UNDER_WAY_MAX;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::archive::{Archive, ArchiveError};
use crate::checked::Checked;
use crate::config::{Config, PeersError};
use crate::derivations::Derivations;
use crate::driver::Chain;
use crate::garbage::Garbage;
use crate::granted::Granted;
use crate::hooks::{Hooks, WebhookError};
use crate::http::{Http, Socket, api, pages, uploads};
use crate::intake::Intake;
use crate::logs::Logs;
use crate::meter::Meter;
use crate::parts::Parts;
use crate::raft::{About, Consensus, ConsensusConfig, ConsensusError, EffectReceiver};
use crate::shared_store::SharedStoreError;
use crate::substitute::Substitution;
use crate::traces::{self, Traces};
use crate::turns::Turns;
use crate::verified::Verified;
use crate::watch::Watchers;
use crate::{driver, garbage, hooks, http, kept_logs, live, requests, scrape, shared_store};

/// A running coordinator.
pub struct Coordinator {
    link_addr: SocketAddr,
    http_addr: SocketAddr,
    parts: Arc<Parts>,
    stop: Arc<Notify>,
    driver: JoinHandle<()>,
    listener: Arc<Listener>,
    acceptor: JoinHandle<()>,
    collector: JoinHandle<()>,
    teller: JoinHandle<()>,
    api: api::Api,
    tracer: JoinHandle<()>,
    callers: [JoinHandle<()>; 2],
    http: Http,
}

/// A coordinator that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be made or used.
    #[error("open directory `{}`", path.display())]
    Dir {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The log or its snapshot cannot be used.
    #[error("start consensus")]
    Consensus(#[from] ConsensusError),
    /// It is to be one of several, and lacks what that needs.
    #[error("join a farm")]
    Peers(#[from] PeersError),
    /// The shared store is not described well.
    #[error("find the shared store")]
    SharedStore(#[from] SharedStoreError),
    /// The store cannot be used.
    #[error("open store")]
    Store(#[from] StoreError),
    /// The key that signs the cache cannot be used.
    #[error("load signing key")]
    Key(#[from] KeyFileError),
    /// TLS for upstream caches cannot be prepared.
    #[error("prepare to ask the substituters")]
    Substituters(#[source] reqwest::Error),
    /// Receivers of webhooks cannot be used.
    #[error("prepare webhooks")]
    Webhooks(#[from] WebhookError),
    /// The archive cannot be used.
    #[error("open archive")]
    Archive(#[from] ArchiveError),
    /// The link's address or identity cannot be used.
    #[error("listen for workers and clients on {addr}")]
    Link {
        /// Which address.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: LinkError,
    },
    /// The HTTP address cannot be used.
    #[error("listen for HTTP on {addr}; choose another with `http`")]
    Http {
        /// Which address.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl Coordinator {
    /// Starts a coordinator from what its directory holds; an empty directory becomes a new farm.
    ///
    /// # Errors
    /// [`StartError`] names the part that cannot start; nothing runs then.
    pub async fn start(config: Config, identity: &Identity) -> Result<Self, StartError> {
        if !config.join.is_empty() {
            config.may_have_peers()?;
        }
        make_dir(&config.dir)?;
        let web = Socket::bind(config.http).await.map_err(|source| StartError::Http { addr: config.http, source })?;
        let http_addr = web.local_addr().map_err(|source| StartError::Http { addr: config.http, source })?;
        let failed = |source| StartError::Link { addr: config.listen, source };
        let listener = Arc::new(Listener::bind(config.listen, identity, Some(&config.dir.join("link"))).map_err(failed)?);
        let signing_key = match &config.signing_key {
            Some(path) => keys::load(path)?,
            None => keys::load_or_create(&config.dir.join("signing.key"), &config.farm)?,
        };
        let keys = keys::ring(signing_key, &config.signing_keys, &config.retired_keys, &config.revoked_keys)?;
        let consensus = consensus_config(&config, identity, &keys, listener.local_addr(), http_addr);
        let (parts, effects) = parts(&config, consensus, keys, http_addr).await?;
        let parts = Arc::new(parts);
        let stop = Arc::new(Notify::new());
        let driver = tokio::spawn(driver::run(parts.clone(), effects, stop.clone()));
        let acceptor = tokio::spawn(accept(parts.clone(), listener.clone()));
        let collector = tokio::spawn(garbage::run(parts.clone()));
        let teller = tokio::spawn(live::run(parts.clone()));
        let tracer = tokio::spawn(traces::run(parts.clone()));
        let callers = [tokio::spawn(hooks::run(parts.clone())), tokio::spawn(hooks::run_without_leader(parts.clone()))];
        let (scraped, logged) = (parts.clone(), parts.clone());
        let log = move |derivation| {
            let parts = logged.clone();
            async move { Ok(kept_logs::newest_finished(&parts, &derivation).await?) }.boxed()
        };
        let state = http::State::new(parts.store.clone(), parts.keys.clone(), move || scrape::snapshot(&scraped), log);
        let api = api::Api::new(parts.clone());
        let http = Http::serve_with(web, state, uploads::router(parts.clone()).merge(api::router(&api)).merge(pages::router(&api)));
        Ok(Self {
            link_addr: listener.local_addr(),
            http_addr,
            parts,
            stop,
            driver,
            listener,
            acceptor,
            collector,
            teller,
            tracer,
            callers,
            api,
            http,
        })
    }

    /// Returns the UDP address for workers and clients.
    pub fn link_addr(&self) -> SocketAddr {
        self.link_addr
    }

    /// Returns the TCP address of the binary cache and the metrics.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Returns what it is made of.
    #[cfg(test)]
    pub(crate) fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    /// Returns what keeps the replicated state, for the checks of a simulation.
    #[cfg(feature = "simulation")]
    pub fn consensus(&self) -> &Consensus {
        &self.parts.consensus
    }

    /// Returns the public halves of the keys that sign the cache, as `trusted-public-keys` has them.
    pub fn public_key(&self) -> String {
        self.parts.keys.trusted()
    }

    /// Waits until consensus stops by itself, which it does when its disk fails.
    pub async fn failed(&self) -> ConsensusError {
        self.parts.consensus.stopped().await
    }

    /// Stops. A leader first has another coordinator lead, if one is in step. What was committed is on disk; workers go on and come
    /// back to the leader or to the next start.
    pub async fn stop(self) {
        if self.parts.consensus.leadership().borrow().is_self && self.parts.consensus.members().len() > 1 {
            match self.parts.consensus.hand_over(None).await {
                Ok(()) => tracing::info!("another coordinator leads"),
                Err(error) => tracing::warn!(error = %Chain(&error), "stop the leader without a hand-over"),
            }
        }
        self.parts.traces.finish().await;
        self.acceptor.abort();
        self.collector.abort();
        self.teller.abort();
        self.tracer.abort();
        self.callers.iter().for_each(JoinHandle::abort);
        self.listener.close("the coordinator stops").await;
        self.stop.notify_one();
        if let Err(error) = self.driver.await {
            tracing::warn!(%error, "the driver ended badly");
        }
        self.api.end_streams();
        self.http.stop().await;
        self.parts.consensus.shutdown().await;
    }
}

async fn accept(parts: Arc<Parts>, listener: Arc<Listener>) {
    while let Some(connection) = listener.accept().await {
        match connection.protocol() {
            Protocol::Farm => drop(tokio::spawn(requests::serve(parts.clone(), connection))),
            Protocol::Raft => parts.consensus.serve(connection),
        }
    }
}

/// How this coordinator takes part in consensus.
fn consensus_config(config: &Config, identity: &Identity, keys: &Keyring, link: SocketAddr, http: SocketAddr) -> ConsensusConfig {
    let common = [
        ("signing key", keys.own().public().to_string()),
        ("store directory", config.store_dir.to_string()),
        ("store", config.store.as_ref().map_or_else(|| format!("on the disk of coordinator {}", config.node), |store| store.url.clone())),
    ];
    let sized = ConsensusConfig::new(config.dir.join("raft"), config.node);
    #[cfg(feature = "simulation")]
    let sized = match config.segment_bytes {
        Some(bytes) => ConsensusConfig { segment_bytes: bytes, snapshot_log_bytes: 2 * bytes, keep_entries: 10, ..sized },
        None => sized,
    };
    ConsensusConfig {
        heartbeat_ms: config.election_ms[0] / 5,
        election_ms: config.election_ms,
        identity: Some(identity.clone()),
        link: config.advertise.clone().unwrap_or_else(|| link.to_string()),
        http: config.advertise_http.clone().unwrap_or_else(|| http.to_string()),
        join: !config.join.is_empty(),
        common: common.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..sized
    }
}

async fn parts(
    config: &Config,
    consensus: ConsensusConfig,
    keys: Keyring,
    http_addr: SocketAddr,
) -> Result<(Parts, EffectReceiver), StartError> {
    let dir = &config.dir;
    let store = Store::open(StoreConfig {
        location: location(config)?,
        store_dir: config.store_dir.clone(),
        spool_dir: dir.join("spool"),
        cached_paths_max: CACHED_PATHS_MAX,
    })
    .await?;
    if store.is_shared() {
        shared_store::claim(&store, &config.farm, &keys).await?;
    }
    let logs = Logs::open(&dir.join("logs")).map_err(|source| StartError::Dir { path: dir.join("logs"), source })?;
    let archive = Archive::open(&dir.join("builds"), &store)?;
    let substitution = Substitution::new(&config.substituters, config.store_dir.clone()).map_err(StartError::Substituters)?;
    let hooks = Hooks::open(&config.webhooks, &config.farm, config.store_dir.clone(), config.advertise_http.as_deref())?;
    // Last, for whoever takes part in consensus may have to lead at once.
    let (consensus, effects) = Consensus::start(consensus).await?;
    if consensus.members().is_empty() {
        tracing::info!(node = %config.node, "this coordinator waits until `kiln cluster add` takes it in");
    }
    let parts = Parts {
        consensus,
        dir: config.dir.clone(),
        join: config.join.clone(),
        store,
        store_dir: config.store_dir.clone(),
        may_have_peers: config.may_have_peers(),
        about: About {
            farm: config.farm.clone(),
            store_dir: config.store_dir.clone(),
            public_key: keys.own().public().to_string(),
            store: config.store.as_ref().map_or_else(String::new, |store| store.url.clone()),
            taken_at: Default::default(),
            program: concat!("kiln ", env!("CARGO_PKG_VERSION")).to_owned(),
        },
        keys,
        cache_url: Some(format!("http://{}", config.advertise_http.clone().unwrap_or_else(|| http_addr.to_string()))),
        derivations: Derivations::new(config.store_dir.clone()),
        checked: Checked::new(config.store_dir.clone()),
        sessions: Default::default(),
        uploads: Uploads::default(),
        verified: Verified::default(),
        substitution,
        intake: Intake::new(config.tokens.iter().filter(|token| token.uploads()).cloned().collect(), config.trusted_upload_keys.clone()),
        access: Access::new(config.tokens.clone(), config.anonymous_readers, config.advertise_http.as_deref()),
        granted: Granted::default(),
        turns: Turns::default(),
        reports: Default::default(),
        growths: Semaphore::new(GROWTHS_UNDER_WAY_MAX),
        holders: Default::default(),
        garbage: Garbage::new(config.gc.clone()),
        hooks,
        watchers: Watchers::new(),
        live: Default::default(),
        logs: Arc::new(logs),
        archive,
        meter: Meter::of(&config.dir),
        traces: Traces::new(&config.farm, kiln_trace::spans().cloned()),
        clock: Default::default(),
    };
    Ok((parts, effects))
}

/// Where the store is. A simulation has one that all its coordinators share.
fn location(config: &Config) -> Result<Location, StartError> {
    #[cfg(feature = "simulation")]
    if let Some(location) = &config.location {
        return Ok(location.clone());
    }
    match &config.store {
        Some(shared) => Ok(shared.location()?),
        None => Ok(Location::Local { dir: config.dir.join("store"), durable: true }),
    }
}

fn make_dir(dir: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| StartError::Dir { path: dir.to_path_buf(), source })
}

/// Path facts kept in memory, about 500 bytes each.
const CACHED_PATHS_MAX: usize = 200_000;
