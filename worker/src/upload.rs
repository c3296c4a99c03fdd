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
    let mut tries = uplink.tries();
    loop {
        let source = source(&made.body).map_err(|err| UploadError::Read { path: path(), err })?;
        let sent = match tries.connection().await {
            Ok(connection) => send(&connection, lease, &made.output, source).await,
            Err(err) => Err(err),
        };
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

async fn send(connection: &Connection, lease: &Lease, output: &BuiltOutput, source: BlobSource) -> Result<(), RequestError> {
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

fn source(body: &BlobBytes) -> std::io::Result<BlobSource> {
    match body {
        BlobBytes::Memory(bytes) => Ok(BlobSource::Bytes(bytes.clone())),
        BlobBytes::File(file) => file.try_clone().map(BlobSource::File),
    }
}
