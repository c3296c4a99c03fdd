//! Upstream caches: where a path can be taken from instead of being built.
//!
//! Goals: thousands of questions in flight; a cache that is away, slow or lying costs time within bounds and never a wrong byte; what a
//! cache does not have is remembered here, for a while, and told to nobody. Non-goals: which paths are needed (`substitute`), and what
//! an archive must fulfil (`kiln-store`).

mod absent;
mod cache;
pub(crate) mod judge;
mod order;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use kiln_nix::{NarInfo, PublicKey};
use kiln_store::{Endorsed, ForeignError, Store, StoreError};
use kiln_wire::limits::{UPSTREAM_ABSENT_MAX, UPSTREAM_ABSENT_MS_MAX, UPSTREAM_FETCHES_MAX};
use kiln_wire::{StoreDir, StorePath};
use reqwest::Url;
use serde::{Deserialize, Deserializer};
use tokio::sync::Semaphore;

use self::absent::Absent;
use self::cache::{Cache, CacheError};
use self::judge::Believed;
use self::order::Standing;
use crate::body::{Bounds, read_blocking};
use crate::config::public_keys;
use crate::driver::Chain;

/// A cache to take paths from: one `[[substituters]]` of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Substituter {
    /// `https://` or `http://`, and where the cache is. What comes without TLS is checked all the same.
    pub(crate) url: CacheUrl,
    /// Keys of which one must have signed what is taken, as `trusted-public-keys` has them; at least one. They are trusted for this cache only.
    #[serde(deserialize_with = "public_keys")]
    pub(crate) public_keys: Vec<PublicKey>,
    /// A lower one is asked first. Default: what the cache says of itself, else 50.
    #[serde(default)]
    pub(crate) priority: Option<u32>,
}

/// Where a cache is; the URL ends with a slash.
#[derive(Clone, Debug)]
pub(crate) struct CacheUrl(pub(crate) Url);

impl Substituter {
    /// Reads `URL KEY…`, as the command line has it.
    ///
    /// # Errors
    /// Says in words what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let url = CacheUrl::parse(words.next().unwrap_or_default())?;
        let public_keys: Vec<PublicKey> =
            words.map(|word| PublicKey::parse(word).map_err(|err| err.to_string())).collect::<Result<_, _>>()?;
        match public_keys.is_empty() {
            true => Err("want the cache's URL and, after a space, at least one key that signs there".to_owned()),
            false => Ok(Self { url, public_keys, priority: None }),
        }
    }
}

impl CacheUrl {
    fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(&format!("{}/", text.trim_end_matches('/'))).map_err(|err| format!("`{text}` is no URL: {err}"))?;
        let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
        match matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain {
            true => Ok(Self(url)),
            false => Err(format!("`{text}` is no `https://HOST` or `http://HOST` without password and query")),
        }
    }
}

impl<'de> Deserialize<'de> for CacheUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The upstream caches of a farm.
pub(crate) struct Upstreams {
    caches: Vec<Cache>,
    store_dir: StoreDir,
    absent: Mutex<Absent>,
    fetches: Semaphore,
    started: Instant,
}

/// A path that a cache has.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) believed: Believed,
    /// The cache, by its place in the configuration.
    pub(crate) from: usize,
}

/// An archive that was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    /// The cache did not give what it said it had.
    #[error("take `{path}` from `{cache}`")]
    Cache {
        path: StorePath,
        cache: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This farm's store or disk failed.
    #[error("keep a path of an upstream cache")]
    Own(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Upstreams {
    /// Prepares to ask these caches.
    ///
    /// # Errors
    /// [`reqwest`]'s, if it cannot prepare for TLS.
    pub(crate) fn new(configured: &[Substituter], store_dir: StoreDir) -> reqwest::Result<Self> {
        let client = match configured.is_empty() {
            true => None,
            false => Some(cache::client()?),
        };
        let caches = configured.iter().zip(client.into_iter().cycle()).map(|(cache, client)| Cache::new(client, cache)).collect();
        Ok(Self {
            caches,
            store_dir,
            absent: Mutex::new(Absent::new(UPSTREAM_ABSENT_MAX, UPSTREAM_ABSENT_MS_MAX)),
            fetches: Semaphore::new(UPSTREAM_FETCHES_MAX),
            started: Instant::now(),
        })
    }

    /// Returns the caches that answer, in the order in which they are to be asked.
    pub(crate) async fn order(&self) -> Vec<usize> {
        let now_ms = self.now_ms();
        let greeted = self.caches.iter().enumerate().filter(|(_, cache)| !cache.is_resting(now_ms)).map(|(at, cache)| async move {
            let greeting = cache.greeting(&self.store_dir, now_ms).await.ok()?;
            Some(Standing { cache: at, configured: cache.priority, advertised: greeting.priority })
        });
        order::order(join_all(greeted).await.into_iter().flatten().collect())
    }

    /// Asks caches for a path, one after the other, leaving out some.
    pub(crate) async fn find(&self, order: &[usize], path: &StorePath, but: &BTreeSet<usize>) -> Option<Found> {
        for at in order.iter().copied().filter(|at| !but.contains(at)) {
            let (cache, now_ms) = (&self.caches[at], self.now_ms());
            if cache.is_resting(now_ms) || self.absent().is_absent(at, path, now_ms) {
                continue;
            }
            match cache.narinfo(path, &self.store_dir, now_ms).await {
                Ok(Some(text)) => match self.believe(cache, path, &text) {
                    Ok(believed) => return Some(Found { believed, from: at }),
                    Err(doubt) => {
                        tracing::warn!(cache = cache.url(), %path, %doubt, "an upstream cache's narinfo is not believed");
                        self.absent().note(at, path, now_ms);
                    }
                },
                Ok(None) => self.absent().note(at, path, now_ms),
                Err(error) => tracing::debug!(%path, error = %Chain(&error), "an upstream cache gave no answer"),
            }
        }
        None
    }

    fn believe(&self, cache: &Cache, path: &StorePath, text: &[u8]) -> Result<Believed, String> {
        let narinfo = NarInfo::parse(&self.store_dir, text).map_err(|error| Chain(&error).to_string())?;
        let believed = judge::believe(&self.store_dir, path, narinfo, &cache.keys).map_err(|doubt| doubt.to_string())?;
        judge::join(cache.base(), &believed.narinfo.url).map_err(|doubt| doubt.to_string())?;
        Ok(believed)
    }

    /// Fetches the archive of a path, checks and keeps it. The path is not valid before it is published.
    ///
    /// # Errors
    /// [`TakeError`] says who is at fault.
    pub(crate) async fn take(&self, store: &Store, found: &Found) -> Result<Endorsed, TakeError> {
        let _turn = self.fetches.acquire().await.expect("never closed");
        let (cache, believed) = (&self.caches[found.from], found.believed.clone());
        let path = believed.narinfo.path.clone();
        let theirs = |source: Box<dyn std::error::Error + Send + Sync>| {
            let (path, cache) = (path.clone(), cache.url().to_owned());
            TakeError::Cache { path, cache, source }
        };
        let body = cache.archive(&believed.narinfo.url, self.now_ms()).await.map_err(|error: CacheError| theirs(error.into()))?;
        let signatures = believed.signatures.clone();
        let packing = store.clone();
        let work = move |reader| {
            let narinfo = &believed.narinfo;
            let repacked = packing.repack(narinfo.path.as_str(), reader, believed.compression, narinfo.nar_size_bytes);
            let repacked = repacked.map_err(|error| match error {
                ForeignError::Archive { .. } => Fault::Theirs(error.into()),
                ForeignError::Pack { .. } => Fault::Ours(error.into()),
            })?;
            packing.claim_repacked(narinfo, &repacked, believed.vouched).map_err(|error: StoreError| match error.is_peers_fault() {
                true => Fault::Theirs(error.into()),
                false => Fault::Ours(error.into()),
            })
        };
        let bounds = bounds(found.believed.narinfo.nar_size_bytes);
        let received = match read_blocking(body, bounds, work).await {
            Ok(Ok(received)) => received,
            Ok(Err(Fault::Theirs(error))) => return Err(theirs(error)),
            Ok(Err(Fault::Ours(error))) => return Err(TakeError::Own(error)),
            Err(died) => return Err(TakeError::Own(died.into())),
        };
        let info = store.keep(&received).await.map_err(|error| TakeError::Own(error.into()))?;
        Ok(Endorsed { info, signatures })
    }

    fn absent(&self) -> std::sync::MutexGuard<'_, Absent> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

enum Fault {
    Theirs(Box<dyn std::error::Error + Send + Sync>),
    Ours(Box<dyn std::error::Error + Send + Sync>),
}

/// What the archive of a NAR of this size may take: compressing what cannot be compressed adds a little.
fn bounds(nar_size_bytes: u64) -> Bounds {
    Bounds {
        bytes_max: nar_size_bytes.saturating_add(nar_size_bytes / 16).saturating_add(64 << 10),
        whole: WHOLE_MIN + Duration::from_secs(nar_size_bytes / BYTES_PER_SECOND_MIN),
        stall: cache::STALL,
    }
}

/// Time that every archive has.
const WHOLE_MIN: Duration = Duration::from_secs(120);
/// Bytes of a NAR for which an archive has another second; a cache that is slower than this builds slower than the farm.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

#[cfg(test)]
mod tests;
