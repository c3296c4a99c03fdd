//! One upstream cache over HTTP: what it says of itself, of a path, and the archive of a path.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kiln_nix::narinfo::NarInfoError;
use kiln_nix::{NarInfo, PublicKey};
use kiln_wire::limits::{
    UPSTREAM_CONNECTIONS_MAX, UPSTREAM_FAILURES_MAX, UPSTREAM_FETCHES_MAX, UPSTREAM_NARINFO_BYTES_MAX, UPSTREAM_QUERIES_MAX,
    UPSTREAM_REST_MS,
};
use kiln_wire::{StoreDir, StorePath};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, Version};
use tokio::sync::{OnceCell, Semaphore};

use super::order::Health;
use super::{Substituter, judge};
use crate::driver::Chain;

/// A cache of somebody else's.
#[derive(Debug)]
pub(super) struct Cache {
    client: Client,
    /// Ends with a slash.
    url: Url,
    pub(super) keys: Vec<PublicKey>,
    pub(super) priority: Option<u32>,
    greeting: OnceCell<Greeting>,
    health: Mutex<Health>,
    /// Who fetches archives.
    pub(super) fetches: Semaphore,
    started: Instant,
}

/// What a cache says of itself, and how many may ask it at a time.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) priority: Option<u32>,
    slots: Semaphore,
}

/// A cache that did not answer as a cache does.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    #[error("ask `{url}`")]
    Request {
        url: Box<Url>,
        #[source]
        source: reqwest::Error,
    },
    #[error("ask `{url}`: it answered with status {status}")]
    Status { url: Box<Url>, status: StatusCode },
    #[error("ask `{url}`: the answer is longer than {UPSTREAM_NARINFO_BYTES_MAX} bytes")]
    Long { url: Box<Url> },
    #[error("ask `{url}`: its paths live in `{found}`, those of this farm in `{wanted}`")]
    OtherStoreDir { url: Box<Url>, found: String, wanted: StoreDir },
    #[error("ask `{url}`: the answer is no narinfo")]
    Unreadable {
        url: Box<Url>,
        #[source]
        source: NarInfoError,
    },
    #[error("ask `{url}`: it has failed again and again, and is left alone for a while")]
    Resting { url: Box<Url> },
    #[error("ask `{url}`: the archive comes encoded as `{encoding}`, which was not asked for")]
    Encoded { url: Box<Url>, encoding: String },
}

impl CacheError {
    /// Whether it may be otherwise a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            // A page of somebody in between, which says that all is well.
            Self::Unreadable { .. } => true,
            Self::Request { source, .. } => !source.is_redirect(),
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Long { .. } | Self::OtherStoreDir { .. } | Self::Resting { .. } | Self::Encoded { .. } => false,
        }
    }
}

impl Cache {
    pub(super) fn new(client: Client, configured: &Substituter) -> Self {
        Self {
            client,
            url: configured.url.0.clone(),
            keys: configured.public_keys.clone(),
            priority: configured.priority,
            greeting: OnceCell::new(),
            health: Mutex::default(),
            fetches: Semaphore::new(UPSTREAM_FETCHES_MAX),
            started: Instant::now(),
        }
    }

    pub(super) fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    pub(super) fn is_resting(&self) -> bool {
        self.health().is_resting(self.now_ms())
    }

    fn awake(&self) -> Result<(), CacheError> {
        match self.is_resting() {
            true => Err(CacheError::Resting { url: Box::new(self.url.clone()) }),
            false => Ok(()),
        }
    }

    /// Returns what the cache says of itself; asked once, and again after a failure.
    pub(super) async fn greeting(&self, store_dir: &StoreDir) -> Result<&Greeting, CacheError> {
        let greet = async || {
            // Whoever waited for one that failed does not try again at once.
            self.awake()?;
            self.greet(store_dir).await.inspect_err(|error| {
                // What has not answered even this is asked nothing for a while, at once.
                let _rests = self.health().failed(self.now_ms(), 1, UPSTREAM_REST_MS);
                tracing::warn!(cache = self.url(), error = %Chain(error), "an upstream cache is left alone for a while");
            })
        };
        self.greeting.get_or_try_init(greet).await
    }

    async fn greet(&self, store_dir: &StoreDir) -> Result<Greeting, CacheError> {
        let url = self.join("nix-cache-info");
        let answer = self.get(&url).await?;
        let queries_max = if answer.version() == Version::HTTP_2 { UPSTREAM_QUERIES_MAX } else { UPSTREAM_CONNECTIONS_MAX };
        let text = small(url.clone(), answer).await?;
        let text = String::from_utf8_lossy(&text);
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        match line("StoreDir:") {
            Some(found) if found == store_dir.as_str() => {}
            found => {
                return Err(CacheError::OtherStoreDir {
                    url: url.into(),
                    found: shown(found.unwrap_or_default()),
                    wanted: store_dir.clone(),
                });
            }
        }
        Ok(Greeting { priority: line("Priority:").and_then(|number| number.parse().ok()), slots: Semaphore::new(queries_max) })
    }

    /// Asks for the narinfo of a path. `None`: the cache does not have it.
    pub(super) async fn narinfo(&self, path: &StorePath, store_dir: &StoreDir) -> Result<Option<NarInfo>, CacheError> {
        let greeting = self.greeting(store_dir).await?;
        let _slot = greeting.slots.acquire().await.expect("never closed");
        let url = self.join(&format!("{}.narinfo", path.hash_part()));
        let mut pauses = PAUSES.into_iter();
        loop {
            // It may have begun to fail while this waited.
            self.awake()?;
            let answered = self.small_or_absent(&url).await.and_then(|text| match text.map(|text| NarInfo::parse(store_dir, &text)) {
                None => Ok(None),
                Some(Ok(narinfo)) => Ok(Some(narinfo)),
                Some(Err(source)) => Err(CacheError::Unreadable { url: Box::new(url.clone()), source }),
            });
            match pauses.next().filter(|_| answered.as_ref().is_err_and(CacheError::is_passing)) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return self.note(answered),
            }
        }
    }

    async fn small_or_absent(&self, url: &Url) -> Result<Option<Bytes>, CacheError> {
        match self.get(url).await {
            Ok(answer) => small(url.clone(), answer).await.map(Some),
            // Buckets that nobody may list say that what is absent is forbidden.
            Err(CacheError::Status { status: StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::GONE, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the archive of a path. `file` is what its narinfo calls it, and was checked. How it went is noted by whoever reads it.
    pub(super) async fn archive(&self, file: &str) -> Result<impl Stream<Item = Result<Bytes, reqwest::Error>> + use<>, CacheError> {
        self.awake()?;
        let url = self.join(file);
        let answer = self.open(&url).await?;
        if let Some(encoding) = answer.headers().get(reqwest::header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            return Err(CacheError::Encoded { url: url.into(), encoding: shown(&String::from_utf8_lossy(encoding.as_bytes())) });
        }
        Ok(answer.bytes_stream())
    }

    /// Notes how the cache answered.
    fn note<T>(&self, answered: Result<T, CacheError>) -> Result<T, CacheError> {
        match &answered {
            Err(error) if error.is_passing() => self.note_failure(error),
            Ok(_) | Err(_) => self.note_success(),
        }
        answered
    }

    pub(super) fn note_failure(&self, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        if self.health().failed(self.now_ms(), UPSTREAM_FAILURES_MAX, UPSTREAM_REST_MS) {
            tracing::warn!(cache = self.url(), error = %Chain(error), "an upstream cache is left alone for a while");
        }
    }

    pub(super) fn note_success(&self) {
        self.health().worked();
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn get(&self, url: &Url) -> Result<Response, CacheError> {
        let failed = |source| CacheError::Request { url: Box::new(url.clone()), source };
        let answer = self.client.get(url.clone()).timeout(ANSWER).send().await.map_err(failed)?;
        succeeded(url, answer)
    }

    async fn open(&self, url: &Url) -> Result<Response, CacheError> {
        let failed = |source| CacheError::Request { url: Box::new(url.clone()), source };
        succeeded(url, self.client.get(url.clone()).send().await.map_err(failed)?)
    }

    /// Returns the URL of one of the cache's files.
    fn join(&self, file: &str) -> Url {
        judge::join(&self.url, file).expect("names of files were checked")
    }

    /// Returns the URL of the cache, which ends with a slash.
    pub(super) fn base(&self) -> &Url {
        &self.url
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn succeeded(url: &Url, answer: Response) -> Result<Response, CacheError> {
    match answer.status() {
        StatusCode::OK => Ok(answer),
        status => Err(CacheError::Status { url: Box::new(url.clone()), status }),
    }
}

/// Reads an answer that is always small.
async fn small(url: Url, answer: Response) -> Result<Bytes, CacheError> {
    let mut bytes = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|source| CacheError::Request { url: Box::new(url.clone()), source })?;
        if bytes.len() + piece.len() > UPSTREAM_NARINFO_BYTES_MAX {
            return Err(CacheError::Long { url: url.into() });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// A stranger's text for a message.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Makes the client that all caches share.
///
/// # Errors
/// [`reqwest`]'s, if it cannot prepare for TLS.
pub(super) fn client() -> reqwest::Result<Client> {
    client_with(|builder| builder)
}

/// Makes a client that speaks as that one does, but for what `change` says.
///
/// # Errors
/// As of [`client`].
pub(crate) fn client_with(change: impl Fn(ClientBuilder) -> ClientBuilder) -> reqwest::Result<Client> {
    // A machine without certificates of its own still verifies, against the roots that we bring.
    change(builder()).build().or_else(|_| {
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(|der| reqwest::Certificate::from_der(der).ok());
        change(builder()).tls_certs_only(roots).build()
    })
}

/// Says how caches are spoken with, whoever vouches for them.
pub(super) fn builder() -> ClientBuilder {
    let agent = concat!("kiln/", env!("CARGO_PKG_VERSION"));
    let redirects = Policy::custom(|attempt| match judge::may_follow(attempt.previous(), attempt.url()) {
        Ok(()) => attempt.follow(),
        Err(doubt) => attempt.error(doubt),
    });
    let client = Client::builder().redirect(redirects).user_agent(agent);
    client.connect_timeout(CONNECT).read_timeout(STALL).http2_adaptive_window(true)
}

/// Pauses between the tries of one question.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// Time for a connection to stand.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest time without a byte.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// Time for a small answer as a whole.
const ANSWER: Duration = Duration::from_secs(20);
