//! Upstream caches: where a path can be taken from instead of being built.
//!
//! Goals: thousands of questions in flight; a cache that is away, slow or lying costs time within bounds and never a wrong byte; what a
//! cache does not have is remembered here, for a while, and told to nobody. Non-goals: which paths are needed (`substitute`), and what
//! an archive must fulfil (`kiln-store`).

mod absent;
mod cache;
pub(crate) mod judge;
mod order;
mod pace;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use kiln_nix::{NarInfo, PublicKey};
use kiln_store::{Endorsed, ForeignError, Store, StoreError};
use kiln_wire::limits::{UPSTREAM_ABSENT_MAX, UPSTREAM_ABSENT_MS_MAX, UPSTREAM_ARCHIVE_MS_MAX, UPSTREAM_BYTES_PER_SECOND_MIN};
use kiln_wire::{StoreDir, StorePath};
use reqwest::Url;
use serde::{Deserialize, Deserializer};

use self::absent::Absent;
use self::cache::Cache;
pub(crate) use self::cache::client_with;
use self::judge::{Believed, Doubt};
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
    /// Pauses between the tries of one archive.
    pauses: Vec<Duration>,
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
            pauses: PAUSES.to_vec(),
            started: Instant::now(),
        })
    }

    /// Returns the caches that answer, in the order in which they are to be asked.
    pub(crate) async fn order(&self) -> Vec<usize> {
        let greeted = self.caches.iter().enumerate().map(|(at, cache)| async move {
            let greeting = cache.greeting(&self.store_dir).await.ok().filter(|_| !cache.is_resting())?;
            Some(Standing { cache: at, configured: cache.priority, advertised: greeting.priority })
        });
        order::order(join_all(greeted).await.into_iter().flatten().collect())
    }

    /// Asks caches for a path, one after the other, leaving out some.
    pub(crate) async fn find(&self, order: &[usize], path: &StorePath, but: &BTreeSet<usize>) -> Option<Found> {
        for at in order.iter().copied().filter(|at| !but.contains(at)) {
            let cache = &self.caches[at];
            if cache.is_resting() || self.absent().is_absent(at, path, self.now_ms()) {
                continue;
            }
            match cache.narinfo(path, &self.store_dir).await {
                Ok(Some(narinfo)) => match self.believe(cache, path, narinfo) {
                    Ok(believed) => return Some(Found { believed, from: at }),
                    Err(doubt) => {
                        tracing::warn!(cache = cache.url(), %path, %doubt, "an upstream cache's narinfo is not believed");
                        self.note_absent(at, path);
                    }
                },
                Ok(None) => self.note_absent(at, path),
                Err(error) => tracing::debug!(%path, error = %Chain(&error), "an upstream cache gave no answer"),
            }
        }
        None
    }

    fn believe(&self, cache: &Cache, path: &StorePath, narinfo: NarInfo) -> Result<Believed, Doubt> {
        let believed = judge::believe(&self.store_dir, path, narinfo, &cache.keys).and_then(judge::within_bounds)?;
        judge::join(cache.base(), &believed.narinfo.url)?;
        Ok(believed)
    }

    /// Fetches the archive of a path, checks and keeps it; tries again if the network failed. The path is not valid before it is published.
    ///
    /// # Errors
    /// [`TakeError`] says who is at fault.
    pub(crate) async fn take(&self, store: &Store, found: &Found) -> Result<Endorsed, TakeError> {
        let cache = &self.caches[found.from];
        let _turn = cache.fetches.acquire().await.expect("never closed");
        let mut pauses = self.pauses.iter();
        let source = loop {
            match self.take_once(cache, store, &found.believed).await {
                Ok(endorsed) => {
                    cache.note_success();
                    return Ok(endorsed);
                }
                Err(Fault::Ours(error)) => return Err(TakeError::Own(error)),
                Err(Fault::Theirs(error)) => break error,
                Err(Fault::Passing(error)) => match pauses.next().filter(|_| !cache.is_resting()) {
                    Some(pause) => {
                        tracing::debug!(cache = cache.url(), error = %Chain(&*error), "an archive is asked for again after {pause:?}");
                        tokio::time::sleep(*pause).await;
                    }
                    None => {
                        cache.note_failure(&*error);
                        break error;
                    }
                },
            }
        };
        Err(TakeError::Cache { path: found.believed.narinfo.path.clone(), cache: cache.url().to_owned(), source })
    }

    async fn take_once(&self, cache: &Cache, store: &Store, believed: &Believed) -> Result<Endorsed, Fault> {
        let body = cache.archive(&believed.narinfo.url).await.map_err(|error| match error.is_passing() {
            true => Fault::Passing(error.into()),
            false => Fault::Theirs(error.into()),
        })?;
        let (packing, claimed) = (store.clone(), believed.clone());
        let work = move |reader| {
            let narinfo = &claimed.narinfo;
            let repacked = packing.repack(narinfo.path.as_str(), reader, claimed.compression, narinfo.nar_size_bytes);
            let repacked = repacked.map_err(|error| match error {
                ForeignError::Archive { .. } => Fault::Theirs(error.into()),
                ForeignError::Pack { .. } => Fault::Ours(error.into()),
            })?;
            packing.claim_repacked(narinfo, &repacked, claimed.vouched).map_err(|error: StoreError| match error.is_peers_fault() {
                true => Fault::Theirs(error.into()),
                false => Fault::Ours(error.into()),
            })
        };
        let broke = Arc::<AtomicBool>::default();
        let received = match read_blocking(pace::paced(body, broke.clone()), bounds(believed.narinfo.nar_size_bytes), work).await {
            Ok(Ok(received)) => received,
            Ok(Err(Fault::Theirs(error))) if broke.load(Ordering::Relaxed) => return Err(Fault::Passing(error)),
            Ok(Err(fault)) => return Err(fault),
            // Whatever brought a decoder to its knees was in those bytes.
            Err(died) => return Err(Fault::Theirs(died.into())),
        };
        let info = store.keep(&received).await.map_err(|error| Fault::Ours(error.into()))?;
        Ok(Endorsed { info, signatures: believed.signatures.clone() })
    }

    fn note_absent(&self, cache: usize, path: &StorePath) {
        let mut absent = self.absent();
        absent.note(cache, path, self.now_ms());
    }

    fn absent(&self) -> std::sync::MutexGuard<'_, Absent> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

enum Fault {
    /// Theirs, or the network's: it may be otherwise a moment later.
    Passing(Box<dyn std::error::Error + Send + Sync>),
    Theirs(Box<dyn std::error::Error + Send + Sync>),
    Ours(Box<dyn std::error::Error + Send + Sync>),
}

/// What the archive of a NAR of this size may take: compressing what cannot be compressed adds a little.
fn bounds(nar_size_bytes: u64) -> Bounds {
    Bounds {
        bytes_max: nar_size_bytes.saturating_add(nar_size_bytes / 16).saturating_add(64 << 10),
        whole: (WHOLE_MIN + Duration::from_secs(nar_size_bytes / UPSTREAM_BYTES_PER_SECOND_MIN))
            .min(Duration::from_millis(UPSTREAM_ARCHIVE_MS_MAX)),
        stall: cache::STALL,
    }
}

/// Time that every archive has.
const WHOLE_MIN: Duration = Duration::from_secs(120);
/// Pauses between the tries of one archive, within which a cache starts anew.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];

#[cfg(test)]
mod http2_tests;
#[cfg(test)]
mod tests;
