//! `builtin:fetchurl`: downloads one file.
//!
//! Runs in the worker's process and writes only to the path it is given; what it wrote is imported and checked as any output is
//! (its hash is known, so that a lying server is found out). Bounded in size, time, tries and redirects. Local files (`file://`)
//! are read only if every user of the machine could. Source: Nix's `builtins/fetchurl.cc`.

mod request;
mod sink;

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use kiln_wire::{FailureClass, JobLimits};
use reqwest::{Client, StatusCode, Url};

pub use request::{Request, RequestError};

use crate::pipe::{self, Writer};

/// How recipes call it.
pub const NAME: &str = "builtin:fetchurl";

/// Tries of one address, with a pause before each but the first: servers have bad moments.
const TRIES: u32 = 3;
/// The first pause; doubled each time.
const PAUSE: Duration = Duration::from_millis(250);
/// Redirects that are followed. Mirrors use one or two.
const REDIRECTS_MAX: usize = 10;
/// Time for a connection to stand. Nix has the same.
const CONNECT: Duration = Duration::from_secs(15);
/// Longest time without a byte. Nix has the same (`stalled-download-timeout`).
const STALL: Duration = Duration::from_secs(300);

/// A file that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No client can be made.
    #[error("prepare for downloads")]
    Client(#[source] reqwest::Error),
    /// The server cannot be reached, or the transfer broke.
    #[error("download `{url}`")]
    Transfer {
        /// From where.
        url: String,
        /// Why not.
        #[source]
        err: reqwest::Error,
    },
    /// The server refuses.
    #[error("download `{url}`: the server answers {status}")]
    Status {
        /// From where.
        url: String,
        /// What it says.
        status: StatusCode,
    },
    /// There is more than the job may make.
    #[error("download `{url}`: it has more than {limit_bytes} bytes, the job's output size limit")]
    TooLarge {
        /// From where.
        url: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// The local file may not be read.
    #[error("read `{url}`: {rule}")]
    Local {
        /// Which file.
        url: String,
        /// The rule.
        rule: String,
    },
    /// What was downloaded cannot be written or unpacked.
    #[error("keep what `{url}` holds")]
    Sink {
        /// From where.
        url: String,
        /// Why not.
        #[source]
        err: sink::SinkError,
    },
    /// It took too long.
    #[error("download timed out: it ran longer than its limit of {} s", limit_ms / 1000)]
    Timeout {
        /// The limit.
        limit_ms: u64,
    },
    /// Every address failed; the last one's reason.
    #[error("none of {count} addresses could be downloaded; the last one")]
    All {
        /// How many.
        count: usize,
        /// Why the last one failed.
        #[source]
        err: Box<FetchError>,
    },
}

impl FetchError {
    /// Returns who is at fault: a refusal is the recipe's, a broken network is not.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Client(_) | Self::Transfer { .. } => FailureClass::Infrastructure,
            Self::Status { .. } if self.is_passing() => FailureClass::Infrastructure,
            Self::Status { .. } | Self::Local { .. } => FailureClass::BuildFailure,
            Self::TooLarge { .. } | Self::Timeout { .. } => FailureClass::LimitExceeded,
            Self::Sink { err, .. } => err.class(),
            Self::All { err, .. } => err.class(),
        }
    }

    /// Whether the same address may well succeed a moment later.
    fn is_passing(&self) -> bool {
        match self {
            Self::Transfer { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 429),
            Self::Client(_) | Self::TooLarge { .. } | Self::Local { .. } | Self::Sink { .. } | Self::Timeout { .. } | Self::All { .. } => {
                false
            }
        }
    }
}

/// Downloads the first address of `request` that works to `destination`, which must not exist. `note` gets a line for each try.
/// Dropping the future stops it.
///
/// # Errors
/// [`FetchError`] of the last address. Something may then lie at `destination`.
pub async fn fetch(request: &Request, destination: &Path, limits: &JobLimits, note: impl Fn(&str)) -> Result<(), FetchError> {
    let work = every_address(request, destination, limits.output_bytes_max, note);
    match tokio::time::timeout(Duration::from_millis(limits.wall_ms_max), work).await {
        Ok(result) => result,
        Err(_) => Err(FetchError::Timeout { limit_ms: limits.wall_ms_max }),
    }
}

async fn every_address(request: &Request, destination: &Path, bytes_max: u64, note: impl Fn(&str)) -> Result<(), FetchError> {
    let mut last = None;
    for url in &request.urls {
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(PAUSE * 2u32.pow(attempt - 1)).await;
            }
            note(&format!("downloading {url}\n"));
            sink::clear(destination).map_err(|err| FetchError::Sink { url: url.to_string(), err })?;
            let err = match one(request, url, destination, bytes_max).await {
                Ok(()) => return Ok(()),
                Err(err) => err,
            };
            note(&format!("{}\n", crate::failure::caused(err.class(), "", &err).message));
            let again = err.is_passing();
            last = Some(err);
            if !again {
                break;
            }
        }
    }
    let err = last.expect("a request has at least one address");
    match request.urls.len() {
        1 => Err(err),
        count => Err(FetchError::All { count, err: Box::new(err) }),
    }
}

async fn one(request: &Request, url: &Url, destination: &Path, bytes_max: u64) -> Result<(), FetchError> {
    let (writer, reader) = pipe::pipe();
    let unpacking = sink::start(request, url, reader, destination.to_owned(), bytes_max);
    let fed = if url.scheme() == "file" { local(url, &writer, bytes_max).await } else { remote(url, &writer, bytes_max).await };
    match fed {
        Ok(()) => writer.end().await,
        Err(_) => drop(writer),
    }
    let unpacked = unpacking.await;
    // A sink that stopped early is the cause of a feeder that could not go on, and the other way round its echo.
    fed?;
    unpacked.map_err(|err| FetchError::Sink { url: url.to_string(), err })
}

async fn remote(url: &Url, writer: &Writer, bytes_max: u64) -> Result<(), FetchError> {
    let transfer = |err: reqwest::Error| FetchError::Transfer { url: url.to_string(), err: err.without_url() };
    let response = client()?.get(url.clone()).send().await.map_err(transfer)?;
    if !response.status().is_success() {
        return Err(FetchError::Status { url: url.to_string(), status: response.status() });
    }
    let too_large = || FetchError::TooLarge { url: url.to_string(), limit_bytes: bytes_max };
    if response.content_length().is_some_and(|length| length > bytes_max) {
        return Err(too_large());
    }
    let mut body = response.bytes_stream();
    let mut count = 0u64;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(transfer)?;
        count += piece.len() as u64;
        if count > bytes_max {
            return Err(too_large());
        }
        if writer.write(piece).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn local(url: &Url, writer: &Writer, bytes_max: u64) -> Result<(), FetchError> {
    let refuse = |rule: String| FetchError::Local { url: url.to_string(), rule };
    let path = url.to_file_path().map_err(|()| refuse("it names no path of this machine".into()))?;
    let file = sink::open_public(&path).map_err(refuse)?;
    let mut pieces = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 64 << 10);
    let mut count = 0u64;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|err| refuse(err.to_string()))?;
        count += piece.len() as u64;
        if count > bytes_max {
            return Err(FetchError::TooLarge { url: url.to_string(), limit_bytes: bytes_max });
        }
        if writer.write(piece).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// A client for one download: they are rare, and a kept one would keep connections and an old list of roots.
fn client() -> Result<Client, FetchError> {
    let builder = || {
        let redirects = reqwest::redirect::Policy::limited(REDIRECTS_MAX);
        let agent = concat!("kiln/", env!("CARGO_PKG_VERSION"), " (Nix builtin:fetchurl)");
        Client::builder().redirect(redirects).connect_timeout(CONNECT).read_timeout(STALL).user_agent(agent)
    };
    // A machine without certificates of its own still verifies, against the roots that we bring.
    builder().build().or_else(|_| {
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(|der| reqwest::Certificate::from_der(der).ok());
        builder().tls_certs_only(roots).build().map_err(FetchError::Client)
    })
}

#[cfg(test)]
mod tests;
