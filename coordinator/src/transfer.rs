//! Blobs over the link: outputs and sources come in, inputs and results go out. Every byte is verified on its way.

use std::time::Instant;

use kiln_core::garbage::Key;
use kiln_link::{BlobSource, LinkError, Receiver, Sender};
use kiln_nix::{NarInfo, Signature};
use kiln_store::{Begun, BlobBytes, Endorsed, Provenance, Received, StoreError};
use kiln_wire::client::{Refusal, Response};
use kiln_wire::{BuiltOutput, Leader, Lease, PathInfo, StorePath, WorkerId};

use crate::dispatch::{built_as, is_live, reference_candidates};
use crate::driver::Chain;
use crate::garbage::touch;
use crate::granted::may_fetch;
use crate::heavy::heavy;
use crate::intake::{self, IntakeError};
use crate::meter::add;
use crate::parts::Parts;
use crate::{leading, made, refuse};

/// Takes one output of a leased attempt.
pub(crate) async fn upload(
    parts: &Parts,
    lease: Lease,
    output: BuiltOutput,
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Result<(), LinkError> {
    match upload_provenance(parts, &lease, &output).await {
        Ok(provenance) => {
            let claimed = output.info;
            if let Some(stored) = receive(parts, claimed.clone(), provenance, sender, receiver).await? {
                // Another leader may publish it, which has not seen it.
                if let Err(error) = parts.store.index_stored(&stored.blob.sha256).await {
                    return refused(&error, sender).await.map(drop);
                }
                parts.verified.note(&lease, claimed, stored.blob);
                sender.send(&Response::Stored).await?;
            }
            Ok(())
        }
        Err(refusal) => sender.send(&Response::Refused(refusal)).await,
    }
}

/// Only the holder of the live lease may upload, and only what its derivation makes.
async fn upload_provenance(parts: &Parts, lease: &Lease, output: &BuiltOutput) -> Result<Provenance, Refusal> {
    if !is_live(parts, lease) {
        return Err(refuse::stale_lease(format!("upload `{}`: attempt {} holds no lease", output.info.path, lease.attempt)));
    }
    let built = built_as(parts, &lease.derivation);
    let derivation = parts.derivations.get(parts, &built).await.map_err(|error| refuse::unavailable("upload", &error))?;
    made::check(&parts.store_dir, &built, &derivation, output).map_err(|error| refuse::invalid(format!("upload: {}", Chain(&error))))?;
    // Outputs may refer to each other, and come in any order: whether those that they name are outputs, the report will tell.
    let stated = made::stated(&derivation, &output.info);
    let candidates =
        reference_candidates(parts, &lease.derivation, &output.name, &stated).await.map_err(|error| match error.is_passing() {
            true => refuse::unavailable("upload", &error),
            false => refuse::invalid(format!("upload: {}", Chain(&error))),
        })?;
    Ok(Provenance::Built { candidates })
}

/// Takes a content-addressed path from a client and publishes it: nothing but its own bytes vouches for it.
pub(crate) async fn import(parts: &Parts, info: PathInfo, sender: &mut Sender, receiver: &mut Receiver) -> Result<(), LinkError> {
    let leader = leading::own(parts);
    let Some(stored) = receive(parts, info, Provenance::Imported, sender, receiver).await? else { return Ok(()) };
    publish(parts, leader, Endorsed { info: stored, signatures: Vec::new() }, sender).await
}

/// Publishes what a client brought, if the leadership that this began under lasts: it may have taken long, and who does not lead any more
/// does not know what is deleted meanwhile. A path that is valid keeps its narinfo, with whoever signed it.
async fn publish(parts: &Parts, leader: Option<Leader>, endorsed: Endorsed, sender: &mut Sender) -> Result<(), LinkError> {
    match intake::publish(parts, leader, &endorsed).await {
        Ok(()) => sender.send(&Response::Stored).await,
        Err(IntakeError::NotLeader) => sender.send(&Response::NotLeader(leading::elsewhere(parts))).await,
        Err(error @ (IntakeError::Differs { .. } | IntakeError::Store(StoreError::MissingReference { .. }))) => {
            sender.send(&Response::Refused(refuse::invalid(Chain(&error).to_string()))).await
        }
        Err(error) => sender.send(&Response::Refused(refuse::unavailable("publish an imported path", &error))).await,
    }
}

/// Takes a path that was built elsewhere from a client, if its content or a key that is trusted for uploads vouches for it.
pub(crate) async fn import_signed(
    parts: &Parts,
    info: PathInfo,
    signatures: &[String],
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Result<(), LinkError> {
    let leader = leading::own(parts);
    let described = NarInfo::describe(&info, signatures.iter().filter_map(|text| Signature::parse(text).ok()).collect());
    let believed = match intake::vouch(parts, described, false) {
        Ok(believed) => believed,
        Err(doubt) => return sender.send(&Response::Refused(refuse::invalid(Chain(&doubt).to_string()))).await,
    };
    let provenance = kiln_store::provenance(&info, believed.vouched);
    let Some(stored) = receive(parts, info, provenance, sender, receiver).await? else { return Ok(()) };
    publish(parts, leader, Endorsed { info: stored, signatures: believed.signatures }, sender).await
}

/// Receives a blob; none if it was refused, in which case the peer has been told.
async fn receive(
    parts: &Parts,
    stated: PathInfo,
    provenance: Provenance,
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Result<Option<PathInfo>, LinkError> {
    touch(parts, keys_of(&stated)).await;
    match parts.store.adopt(&stated, &provenance).await {
        Ok(Some(stored)) => {
            add(&parts.meter.moved.spared, stored.blob.size_bytes);
            sender.send(&Response::UploadAt(None)).await?;
            return Ok(Some(stored));
        }
        Ok(None) => {}
        Err(error) => return refused(&error, sender).await,
    }
    let is_workers = matches!(provenance, Provenance::Built { .. });
    let (mut upload, offset) = match parts.uploads.begin(&parts.store, &stated, provenance, Instant::now()) {
        Ok(Begun::Receive(upload, offset)) => (upload, offset),
        Ok(Begun::Complete(received)) => {
            sender.send(&Response::UploadAt(None)).await?;
            return keep_received(parts, received, is_workers, sender).await;
        }
        Err(error) => return refused(&error, sender).await,
    };
    sender.send(&Response::UploadAt(Some(offset))).await?;
    let mut lie: Option<StoreError> = None;
    let sink = |bytes: &[u8]| block_if_large(bytes, || upload.write(bytes)).map_err(|error| aside(&mut lie, error));
    let took = receiver.recv_blob(stated.blob.blake3, stated.blob.size_bytes, offset, sink).await;
    match (took, lie) {
        (_, Some(error)) => refused(&error, sender).await,
        (Err(error), None) => {
            parts.uploads.park(*upload, Instant::now());
            Err(error)
        }
        (Ok(()), None) => match parts.store.check_upload(*upload).await {
            Ok(received) => keep_received(parts, Box::new(received), is_workers, sender).await,
            Err(error) => refused(&error, sender).await,
        },
    }
}

/// Stores what has arrived. If the store is away, the bytes stay here for the peer's next try.
async fn keep_received(
    parts: &Parts,
    received: Box<Received>,
    is_workers: bool,
    sender: &mut Sender,
) -> Result<Option<PathInfo>, LinkError> {
    touch(parts, keys_of(received.info())).await;
    let kept = if is_workers { parts.store.keep_made(&received).await } else { parts.store.keep(&received).await };
    match kept {
        Ok(stored) => Ok(Some(stored)),
        Err(error) => {
            parts.uploads.park_complete(received, Instant::now());
            refused(&error, sender).await
        }
    }
}

/// All that a path is made of: its narinfo, its blob, and what it refers to.
pub(crate) fn keys_of(info: &PathInfo) -> Vec<Key> {
    info.references.iter().chain([&info.path]).map(Key::from).chain([Key::Blob(info.blob.sha256)]).collect()
}

/// Hashing, decompressing and scanning a large piece takes a millisecond: other tasks of this thread move elsewhere meanwhile.
fn block_if_large<R>(bytes: &[u8], work: impl FnOnce() -> R) -> R {
    if bytes.len() < LARGE_BYTES { work() } else { heavy(work) }
}

/// Puts the store's error aside and returns a stand-in that ends the stream.
fn aside(slot: &mut Option<StoreError>, error: StoreError) -> std::io::Error {
    *slot = Some(error);
    std::io::Error::other("the store refused the bytes")
}

async fn refused(error: &StoreError, sender: &mut Sender) -> Result<Option<PathInfo>, LinkError> {
    tracing::warn!(error = %Chain(error), "upload refused");
    let refusal = if error.is_peers_fault() { refuse::invalid(Chain(error).to_string()) } else { refuse::unavailable("upload", error) };
    sender.send(&Response::Refused(refusal)).await?;
    Ok(None)
}

/// Sends the blob of a path from an offset on. A worker gets the inputs of its leased jobs, and of other paths no word: a path that
/// is not there and one that is not for it have one answer.
pub(crate) async fn fetch(
    parts: &Parts,
    worker: Option<&WorkerId>,
    path: StorePath,
    offset_bytes: u64,
    sender: &mut Sender,
) -> Result<(), LinkError> {
    if let Some(worker) = worker
        && !may_fetch(parts, worker, &path).await
    {
        tracing::warn!(%worker, %path, "a worker asked for a path that is no input of its live leases");
        let message = format!("fetch `{path}`: it is not among the inputs of a job that worker `{worker}` holds a live lease on");
        return sender.send(&Response::Refused(refuse::not_found(message))).await;
    }
    if worker.is_none() {
        touch(parts, [&path]).await;
    }
    let info = match parts.path_info(&path).await {
        Ok(Some(info)) => info,
        Ok(None) => return sender.send(&Response::Refused(refuse::not_found(format!("fetch `{path}`: the farm does not have it")))).await,
        Err(error) => return sender.send(&Response::Refused(refuse::unavailable("fetch", &error))).await,
    };
    let blob = match parts.store.open_blob(&info).await {
        Ok(blob) => blob,
        Err(error) => {
            // A store that is away, or a disk that has no room for what is sent, passes: whoever asked asks again.
            match error.is_passing() {
                true => tracing::warn!(%path, error = %Chain(&error), "a path cannot be read now"),
                false => tracing::error!(%path, error = %Chain(&error), "a valid path cannot be read"),
            }
            return sender.send(&Response::Refused(refuse::unavailable("fetch", &error))).await;
        }
    };
    let (size, object) = (info.blob.size_bytes, blob.object_key().to_owned());
    let expected = info.blob.blake3;
    sender.send(&Response::Blob(info)).await?;
    let source: BlobSource = match blob.into_bytes() {
        BlobBytes::File(file) => file.into(),
        BlobBytes::Memory(bytes) => bytes.into(),
    };
    let sent = sender.send_blob(source, size, offset_bytes).await?;
    if sent != expected {
        tracing::error!(%path, %object, %expected, found = %sent, "a stored NAR is damaged: its bytes have another BLAKE3");
    }
    let served = size.saturating_sub(offset_bytes);
    match worker {
        Some(_) => add(&parts.meter.moved.to_workers, served),
        None => parts.store.count_served(served),
    }
    Ok(())
}

/// Pieces below this are worked on where they arrive.
const LARGE_BYTES: usize = 64 << 10;
