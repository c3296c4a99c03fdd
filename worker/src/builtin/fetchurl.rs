//! `builtin:fetchurl`: downloads one file.
//!
//! Runs in the worker's process and writes only to the path it is given; what it wrote is imported and checked as any output is
//! (its hash is known, so that a lying server is found out). Bounded in size, time, tries and redirects, and in where it connects to.
//! Local files (`file://`) are read only if every user of the machine could. Source: Nix's `builtins/fetchurl.cc`.

mod dial;
mod request;
mod sink;

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use kiln_wire::{FailureClass, JobLimits};
use reqwest::{StatusCode, Url};

pub use request::{Request, RequestError};

use super::Destinations;
use super::destinations::Denied;
use crate::pipe::{self, Writer};

/// How recipes call it.
pub const NAME: &str = "builtin:fetchurl";

/// Tries of one address, with a pause before each but the first: servers have bad moments.
const TRIES: u32 = 3;
/// The first pause; doubled each time.
const PAUSE: Duration = Duration::from_millis(250);

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
    /// It leads where builds must not go.
    #[error("download `{url}`")]
    Denied {
        /// From where.
        url: String,
        /// Where to.
        #[source]
        err: Denied,
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
            Self::Denied { .. } | Self::Status { .. } | Self::Local { .. } => FailureClass::BuildFailure,
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
            Self::Client(_)
            | Self::Denied { .. }
            | Self::TooLarge { .. }
            | Self::Local { .. }
            | Self::Sink { .. }
            | Self::Timeout { .. }
            | Self::All { .. } => false,
        }
    }
}

/// Downloads the first address of `request` that works to `destination`, which must not exist, connecting to `reachable` servers only.
/// `note` gets a line for each try. Dropping the future stops it.
///
/// # Errors
/// [`FetchError`] of the last address. Something may then lie at `destination`.
pub async fn fetch(
    request: &Request,
    destination: &Path,
    limits: &JobLimits,
    reachable: &Destinations,
    note: impl Fn(&str),
) -> Result<(), FetchError> {
    let download = Download { request, destination, bytes_max: limits.output_bytes_max, reachable };
    let work = download.every_address(note);
    match tokio::time::timeout(Duration::from_millis(limits.wall_ms_max), work).await {
        Ok(result) => result,
        Err(_) => Err(FetchError::Timeout { limit_ms: limits.wall_ms_max }),
    }
}

/// A download under way.
struct Download<'a> {
    request: &'a Request,
    destination: &'a Path,
    bytes_max: u64,
    reachable: &'a Destinations,
}

impl Download<'_> {
    async fn every_address(&self, note: impl Fn(&str)) -> Result<(), FetchError> {
        let mut last = None;
        for url in &self.request.urls {
            for attempt in 0..TRIES {
                if attempt > 0 {
                    tokio::time::sleep(PAUSE * 2u32.pow(attempt - 1)).await;
                }
                note(&format!("downloading {url}\n"));
                sink::clear(self.destination).map_err(|err| FetchError::Sink { url: url.to_string(), err })?;
                let err = match self.one(url).await {
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
        match self.request.urls.len() {
            1 => Err(err),
            count => Err(FetchError::All { count, err: Box::new(err) }),
        }
    }

    async fn one(&self, url: &Url) -> Result<(), FetchError> {
        let (writer, reader) = pipe::pipe();
        let unpacking = sink::start(self.request, url, reader, self.destination.to_owned(), self.bytes_max);
        let fed = if url.scheme() == "file" { local(url, &writer, self.bytes_max).await } else { self.remote(url, &writer).await };
        match fed {
            Ok(()) => writer.end().await,
            Err(_) => drop(writer),
        }
        let unpacked = unpacking.await;
        // A sink that stopped early is the cause of a feeder that could not go on, and the other way round its echo.
        fed?;
        unpacked.map_err(|err| FetchError::Sink { url: url.to_string(), err })
    }

    async fn remote(&self, url: &Url, writer: &Writer) -> Result<(), FetchError> {
        let transfer = |err: reqwest::Error| match dial::denied(&err) {
            Some(err) => FetchError::Denied { url: url.to_string(), err },
            None => FetchError::Transfer { url: url.to_string(), err: err.without_url() },
        };
        dial::check_literal(self.reachable, url).map_err(|err| FetchError::Denied { url: url.to_string(), err })?;
        let client = dial::client(self.reachable).map_err(FetchError::Client)?;
        let response = client.get(url.clone()).send().await.map_err(transfer)?;
        if !response.status().is_success() {
            return Err(FetchError::Status { url: url.to_string(), status: response.status() });
        }
        let too_large = || FetchError::TooLarge { url: url.to_string(), limit_bytes: self.bytes_max };
        if response.content_length().is_some_and(|length| length > self.bytes_max) {
            return Err(too_large());
        }
        let mut body = response.bytes_stream();
        let mut count = 0u64;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(transfer)?;
            count += piece.len() as u64;
            if count > self.bytes_max {
                return Err(too_large());
            }
            if writer.write(piece).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests;
