//! Uploads outputs to the farm: verified while they flow, resumed where a broken connection left them.

use kiln_link::{BlobSource, Connection, LinkError, Sender};
use kiln_store::BlobBytes;
use kiln_wire::client::{RefusalKind, Request, Response};
use kiln_wire::{BuiltOutput, Lease, StorePath};

use crate::outputs::Made;
use crate::uplink::{RequestError, Uplink, answer};

/// An output that the farm did not take.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The lease is gone: nobody wants the output of this attempt.
    #[error("upload output `{path}`: the lease has ended")]
    StaleLease {
        /// Which output.
        path: StorePath,
    },
    /// It could not be sent, or was refused.
    #[error("upload output `{path}`")]
    Request {
        /// Which output.
        path: StorePath,
        /// Why not.
        #[source]
        err: RequestError,
    },
    /// Its packed bytes are not what they were.
    #[error("upload output `{path}`: its packed bytes have changed on the worker's disk since it was packed")]
    Damaged {
        /// Which output.
        path: StorePath,
    },
    /// Its packed bytes cannot be read.
    #[error("read the packed bytes of output `{path}`")]
    Read {
        /// Which output.
        path: StorePath,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
}

/// Uploads every output of an attempt, at the same time.
///
/// # Errors
/// The first [`UploadError`] that another try cannot mend.
pub async fn upload(uplink: &Uplink, lease: &Lease, made: &[Made]) -> Result<(), UploadError> {
    futures::future::try_join_all(made.iter().map(|made| one(uplink, lease, made))).await.map(|_| ())
}

async fn one(uplink: &Uplink, lease: &Lease, made: &Made) -> Result<(), UploadError> {
    let path = || made.output.info.path.clone();
    let read = |err| UploadError::Read { path: path(), err };
    let mut tries = uplink.tries();
    let mut furthest = None;
    loop {
        let source = source(&made.body).map_err(read)?;
        let mut asked_for = None;
        let sent = match tries.connection().await {
            Ok(connection) => send(&connection, lease, &made.output, source, &mut asked_for).await,
            Err(err) => Err(err),
        };
        if sent.is_err() && asked_for.is_some() {
            // The farm takes no byte that differs, however often it is sent.
            if !intact(made).await.map_err(read)? {
                return Err(UploadError::Damaged { path: path() });
            }
            if asked_for > furthest {
                furthest = asked_for;
                tries.progress();
            }
        }
        match sent {
            Ok(()) => return Ok(()),
            Err(RequestError::Refused(refusal)) if refusal.kind == RefusalKind::StaleLease => {
                return Err(UploadError::StaleLease { path: path() });
            }
            Err(err) => tries.again(err).await.map_err(|err| UploadError::Request { path: path(), err })?,
        }
    }
}

/// Blobs up to this size follow their request at once. Asking first whether the farm wants them would take longer than they do, and
/// they always start at 0: a transfer is resumed in steps of no less.
const EAGER_BYTES_MAX: u64 = kiln_link::GROUP_BYTES;

/// Sends one output. `asked_for` becomes the offset that the farm wants a large one from.
async fn send(
    connection: &Connection,
    lease: &Lease,
    output: &BuiltOutput,
    source: BlobSource,
    asked_for: &mut Option<u64>,
) -> Result<(), RequestError> {
    let (mut sender, mut receiver) = connection.open().await?;
    let size = output.info.blob.size_bytes;
    sender.send(&Request::Upload { lease: lease.clone(), output: output.clone() }).await?;
    if size <= EAGER_BYTES_MAX {
        send_blob(&mut sender, source, size, 0).await?;
        match answer(receiver.recv().await?)? {
            Response::UploadAt(None | Some(0)) => {}
            _ => return Err(RequestError::Answer),
        }
    } else if let Response::UploadAt(Some(offset)) = answer(receiver.recv().await?)? {
        *asked_for = Some(offset);
        send_blob(&mut sender, source, size, offset).await?;
    } else {
        sender.finish().await?;
    }
    match answer(receiver.recv().await?)? {
        Response::Stored => Ok(()),
        _ => Err(RequestError::Answer),
    }
}

/// A coordinator that stops reading says why on its own half of the stream.
async fn send_blob(sender: &mut Sender, source: BlobSource, size: u64, offset: u64) -> Result<(), RequestError> {
    match sender.send_blob(source, size, offset).await {
        Ok(_) | Err(LinkError::Stopped) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// Whether the packed bytes are still those that were packed.
async fn intact(made: &Made) -> std::io::Result<bool> {
    let (reader, expected) = (made.body.try_clone()?, made.output.info.blob.blake3);
    let root = tokio::task::spawn_blocking(move || kiln_link::blob_root(reader.reader())).await;
    Ok(root.map_err(std::io::Error::other)?? == expected)
}

fn source(body: &BlobBytes) -> std::io::Result<BlobSource> {
    Ok(match body.try_clone()? {
        BlobBytes::Memory(bytes) => BlobSource::Bytes(bytes),
        BlobBytes::File(file) => BlobSource::File(file),
    })
}
