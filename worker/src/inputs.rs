//! Inputs of attempts: what the cache lacks is fetched from the farm, each path once however many attempts want it.
//!
//! Bytes are verified while they flow (BLAKE3), decompressed and unpacked beside the cache, checked against NAR hash and size, and
//! only then renamed into place. A broken connection is resumed where it broke. Does not decide what is an input.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use kiln_link::Connection;
use kiln_wire::client::{Request, Response};
use kiln_wire::{PathInfo, StorePath};
use tokio::sync::Semaphore;

use crate::cache::{Cache, CacheError, Pin};
use crate::outputs::unpack_canonical;
use crate::pipe::{self, ReaderGone};
use crate::uplink::{RequestError, Tries, Uplink, answer};

/// Lookups of the same inputs before it is given up: each round fetches what the last one lacked, so a second is only needed when
/// the cache is far too small.
const ROUNDS: usize = 4;

/// Fetches inputs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inputs {
    shared: Arc<Fetcher>,
}

#[derive(Debug)]
struct Fetcher {
    cache: Cache,
    uplink: Uplink,
    permits: Semaphore,
    flights: Mutex<BTreeMap<StorePath, Flight>>,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Pin>, Arc<InputError>>>>;

/// An input that cannot be had. Never the job's fault.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be fetched.
    #[error("fetch input `{path}`")]
    Fetch {
        /// Which input.
        path: StorePath,
        /// Why not.
        #[source]
        err: RequestError,
    },
    /// The farm's bytes are not those of the path.
    #[error("fetch input `{path}`: the farm has other facts about it than the assignment")]
    OtherFacts {
        /// Which input.
        path: StorePath,
    },
    /// What was fetched is no good, or the disk refuses it.
    #[error("unpack input `{path}`")]
    Unpack {
        /// Which input.
        path: StorePath,
        /// Why.
        #[source]
        err: Box<dyn Error + Send + Sync>,
    },
    /// It cannot be kept.
    #[error("keep input `{path}`")]
    Keep {
        /// Which input.
        path: StorePath,
        /// Why not.
        #[source]
        err: CacheError,
    },
    /// The inputs were removed again as fast as they came.
    #[error("the store cache is too small for the inputs: `{path}` was removed again before all were there")]
    Thrash {
        /// One of them.
        path: StorePath,
    },
    /// A task died.
    #[error("fetch input `{path}`: the task died")]
    Task {
        /// Which input.
        path: StorePath,
        /// How.
        #[source]
        err: tokio::task::JoinError,
    },
}

impl Inputs {
    /// Makes a fetcher for `cache` with up to `fetches_max` fetches at a time.
    pub fn new(cache: Cache, uplink: Uplink, fetches_max: u32) -> Self {
        let permits = Semaphore::new(usize::try_from(fetches_max).unwrap_or(1));
        Self { shared: Arc::new(Fetcher { cache, uplink, permits, flights: Mutex::new(BTreeMap::new()) }) }
    }

    /// Makes all of `wanted` present and keeps them there while the pin lives. Without I/O if they are.
    ///
    /// # Errors
    /// [`InputError`] of the first path that cannot be had.
    pub async fn ensure(&self, wanted: &[PathInfo]) -> Result<Pin, Arc<InputError>> {
        let cache = &self.shared.cache;
        let mut found = cache.pin(wanted);
        let mut pin = found.pin;
        for _ in 0..ROUNDS {
            let mut left = found.missing;
            left.append(&mut found.unproven.clone());
            let Some(first) = left.first().map(|info| info.path.clone()) else { return Ok(pin) };
            for info in found.unproven {
                self.prove(info).await?;
            }
            let lacking = cache.pin(&left);
            pin.join(lacking.pin);
            let flights: Vec<_> = lacking.missing.iter().map(|info| self.flight(info)).collect();
            // Holds what arrived until it is pinned below.
            let arrived = futures::future::try_join_all(flights).await?;
            found = cache.pin(&lacking.missing);
            pin.join(std::mem::replace(&mut found.pin, cache.empty_pin()));
            drop(arrived);
            if found.missing.is_empty() && found.unproven.is_empty() {
                return Ok(pin);
            }
            tracing::debug!(path = %first, "the store cache lost inputs while others came");
        }
        let path = found.missing.first().map_or_else(|| wanted[0].path.clone(), |info| info.path.clone());
        Err(Arc::new(InputError::Thrash { path }))
    }

    /// Hashes a path that was written before the machine started; one that is damaged leaves the cache.
    async fn prove(&self, info: PathInfo) -> Result<(), Arc<InputError>> {
        let cache = self.shared.cache.clone();
        let host_path = cache.host_path(&info.path);
        let hashed = tokio::task::spawn_blocking(move || kiln_nix::nar::hash_path(&host_path)).await;
        let hashed = hashed.map_err(|err| InputError::Task { path: info.path.clone(), err })?;
        match hashed {
            Ok(digest) if digest.hash == info.nar_hash => cache.prove(&info.path),
            Ok(_) | Err(_) => {
                tracing::warn!(path = %info.path, "a path of the store cache was damaged; it is fetched again");
                cache.reject(&info.path);
            }
        }
        Ok(())
    }

    /// Joins the fetch of a path, or starts it. It goes on if those who wait for it give up: another attempt may want it soon.
    fn flight(&self, info: &PathInfo) -> Flight {
        let mut flights = self.shared.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&info.path) {
            return flight.clone();
        }
        let (fetcher, info, path) = (self.shared.clone(), info.clone(), info.path.clone());
        let task = tokio::spawn(async move {
            let fetched = fetcher.fetch(&info).await;
            fetcher.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&info.path);
            fetched.map(Arc::new).map_err(Arc::new)
        });
        let key = path.clone();
        let flight = task.map(move |ended| ended.unwrap_or_else(|err| Err(Arc::new(InputError::Task { path, err })))).boxed().shared();
        flights.insert(key, flight.clone());
        flight
    }
}

impl Fetcher {
    async fn fetch(&self, info: &PathInfo) -> Result<Pin, InputError> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let incoming = self.cache.incoming();
        let kept = match self.unpack_to(info, incoming.clone()).await {
            Ok(()) => self.keep(info, incoming.clone()).await,
            Err(err) => Err(err),
        };
        if kept.is_err() {
            self.cache.discard_incoming(&incoming);
        }
        kept
    }

    async fn keep(&self, info: &PathInfo, incoming: PathBuf) -> Result<Pin, InputError> {
        let (mut pin, stated) = (self.cache.empty_pin(), info.clone());
        let keeping = tokio::task::spawn_blocking(move || pin.keep_incoming(&stated, &incoming).map(|()| pin));
        let kept = keeping.await.map_err(|err| InputError::Task { path: info.path.clone(), err })?;
        kept.map_err(|err| InputError::Keep { path: info.path.clone(), err })
    }

    async fn unpack_to(&self, info: &PathInfo, incoming: PathBuf) -> Result<(), InputError> {
        let (writer, reader) = pipe::pipe();
        let stated = info.clone();
        let unpacking = tokio::task::spawn_blocking(move || unpack_canonical(&stated, reader, &incoming));
        let mut transfer = Transfer { info, writer: Some(writer), offset_bytes: 0, reader_gone: false };
        let received = transfer.run(self.uplink.tries()).await;
        match (received.is_ok(), transfer.writer.take()) {
            (true, Some(writer)) => writer.end().await,
            (_, writer) => drop(writer),
        }
        let unpacked = unpacking.await.map_err(|err| InputError::Task { path: info.path.clone(), err })?;
        // An unpacker that stopped by itself is the cause; one that was cut off is not.
        received?;
        unpacked.map_err(|err| InputError::Unpack { path: info.path.clone(), err })
    }
}

/// One path on its way here.
struct Transfer<'a> {
    info: &'a PathInfo,
    writer: Option<pipe::Writer>,
    /// Bytes of the blob that were handed on; a multiple of the link's grain until the end.
    offset_bytes: u64,
    reader_gone: bool,
}

impl Transfer<'_> {
    /// Tries until everything is there, or the unpacker has given up (whose own result tells why).
    async fn run(&mut self, mut tries: Tries) -> Result<(), InputError> {
        let fetch = |err| InputError::Fetch { path: self.info.path.clone(), err };
        loop {
            let before = self.offset_bytes;
            let received = match tries.connection().await {
                Ok(connection) => self.receive(&connection).await,
                Err(err) => Err(err.into()),
            };
            match received {
                Ok(()) => return Ok(()),
                Err(_) if self.reader_gone => return Ok(()),
                Err(Stop::OtherFacts) => return Err(InputError::OtherFacts { path: self.info.path.clone() }),
                Err(Stop::Request(err)) => {
                    if self.offset_bytes > before {
                        tries.progress();
                    }
                    tries.again(err).await.map_err(fetch)?;
                }
            }
        }
    }

    async fn receive(&mut self, connection: &Connection) -> Result<(), Stop> {
        let (mut sender, mut receiver) = connection.open().await.map_err(RequestError::from)?;
        let request = Request::FetchBlob { path: self.info.path.clone(), offset_bytes: self.offset_bytes };
        sender.send(&request).await.map_err(RequestError::from)?;
        let found = match answer(receiver.recv().await.map_err(RequestError::from)?)? {
            Response::Blob(found) => found,
            _ => return Err(RequestError::Answer.into()),
        };
        // The same NAR may have been compressed by another worker; what it holds may not differ.
        let same = (&found.path, found.nar_hash, found.nar_size_bytes) == (&self.info.path, self.info.nar_hash, self.info.nar_size_bytes);
        if !same {
            return Err(Stop::OtherFacts);
        }
        let (writer, offset, gone) = (self.writer.as_ref(), &mut self.offset_bytes, &mut self.reader_gone);
        let start = *offset;
        let sink = |bytes: &[u8]| -> Result<(), ReaderGone> {
            let writer = writer.ok_or(ReaderGone)?;
            writer.write_blocking(Bytes::copy_from_slice(bytes)).inspect_err(|_| *gone = true)?;
            *offset += bytes.len() as u64;
            Ok(())
        };
        receiver.recv_blob(found.blob.blake3, found.blob.size_bytes, start, sink).await.map_err(RequestError::from)?;
        Ok(())
    }
}

/// Why a try ended.
enum Stop {
    Request(RequestError),
    OtherFacts,
}

impl From<RequestError> for Stop {
    fn from(err: RequestError) -> Self {
        Self::Request(err)
    }
}
