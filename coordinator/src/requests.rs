//! Requests: what each role may ask, and who answers it. One stream, one request.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kiln_core::garbage::{HashPart, Key};
use kiln_link::{Connection, LinkError, Receiver, Role, Sender};
use kiln_nix::realisation::{DerivedOutput, Told};
use kiln_wire::client::{DerivationFile, Refusal, Request, Response, Substitutable};
use kiln_wire::limits::{DERIVATION_BATCH_BYTES, PATHS_PER_REQUEST_MAX};
use kiln_wire::worker::ToWorker;
use kiln_wire::{DrvPath, OutputName, StorePath, WorkerId};

use crate::closure::{ClosureError, closure};
use crate::derivations::DerivationError;
use crate::driver::Chain;
use crate::garbage::{self, touch};
use crate::parts::Parts;
use crate::register::{RegisterError, register};
use crate::{
    backing_up, cluster, drain, durations, follow, hold, leading, mend, realised, refuse, shares, submit, substitute, transfer, views,
    worker_session,
};

/// Answers a peer's requests until its connection ends.
pub(crate) async fn serve(parts: Arc<Parts>, connection: Connection) {
    let peer = connection.peer().role.clone();
    loop {
        match connection.accept().await {
            Ok(Some((sender, receiver))) => {
                tokio::spawn(answer(parts.clone(), peer.clone(), sender, receiver));
            }
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%peer, error = %Chain(&error), "connection lost");
                return;
            }
        }
    }
}

async fn answer(parts: Arc<Parts>, peer: Role, mut sender: Sender, mut receiver: Receiver) {
    let answered = match receiver.recv::<Request>().await {
        Ok(Some(request)) => route(&parts, &peer, request, sender, receiver).await,
        Ok(None) => Ok(()),
        Err(error @ LinkError::Frame(_)) => {
            let refusal = refuse::invalid(format!("read request: {}; this coordinator may be older than its client", Chain(&error)));
            sender.send(&Response::Refused(refusal)).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = answered {
        tracing::debug!(%peer, error = %Chain(&error), "request ended early");
    }
}

/// Sends each kind of request to its handler, if the peer's role may ask it and this coordinator leads.
async fn route(parts: &Arc<Parts>, peer: &Role, request: Request, mut sender: Sender, mut receiver: Receiver) -> Result<(), LinkError> {
    let leader = match (&request, leading::own(parts)) {
        (Request::Leader | Request::Cluster(_), leader) => leader.unwrap_or_default(),
        (_, Some(leader)) => leader,
        (Request::Session, None) => {
            sender.send(&ToWorker::NotLeader(leading::elsewhere(parts))).await?;
            return sender.finish().await;
        }
        (_, None) => {
            sender.send(&Response::NotLeader(leading::elsewhere(parts))).await?;
            return sender.finish().await;
        }
    };
    let request = match (request, worker_of(peer)) {
        (Request::Session, Some(worker)) => return worker_session::serve(parts.clone(), worker.clone(), sender, receiver).await,
        (Request::Upload { lease, output }, Some(worker)) if lease.worker == *worker => {
            transfer::upload(parts, lease, output, &mut sender, &mut receiver).await?;
            return sender.finish().await;
        }
        (Request::Leader, _) => {
            leading::tell(parts, &mut sender, &mut receiver).await?;
            return sender.finish().await;
        }
        (Request::Cluster(request), None) => {
            sender.send(&cluster::answer(parts, peer, request).await).await?;
            return sender.finish().await;
        }
        (Request::FetchBlob { path, offset_bytes }, asker) => {
            transfer::fetch(parts, asker, path, offset_bytes, &mut sender).await?;
            return sender.finish().await;
        }
        (Request::Session | Request::Upload { .. }, _) | (_, Some(_)) => {
            let refusal = refuse::forbidden(format!("a certificate of `{peer}` does not allow this request"));
            sender.send(&Response::Refused(refusal)).await?;
            return sender.finish().await;
        }
        (request, None) => request,
    };
    if matches!(request, Request::Backup) {
        // One copy of one moment: a leader that is deposed meanwhile says so itself.
        backing_up::send(parts, peer, &mut sender).await?;
        return sender.finish().await;
    }
    if matches!(request, Request::Import(_) | Request::ImportSigned { .. }) {
        // Bytes verified here are as good under the next leader, and its stream is no place for another message.
        route_client(parts, peer, request, &mut sender, &mut receiver).await?;
        return sender.finish().await;
    }
    let deposed = tokio::select! {
        biased;
        () = leading::lost(parts, leader) => true,
        answered = route_client(parts, peer, request, &mut sender, &mut receiver) => {
            answered?;
            false
        }
    };
    if deposed {
        sender.send(&Response::NotLeader(leading::elsewhere(parts))).await?;
    }
    sender.finish().await
}

fn worker_of(peer: &Role) -> Option<&WorkerId> {
    match peer {
        Role::Worker(worker) => Some(worker),
        Role::Coordinator(_) | Role::Client(_) | Role::Admin(_) => None,
    }
}

async fn route_client(
    parts: &Arc<Parts>,
    peer: &Role,
    request: Request,
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Result<(), LinkError> {
    match request {
        Request::Import(info) => transfer::import(parts, info, sender, receiver).await,
        Request::ImportSigned { info, signatures } => transfer::import_signed(parts, info, &signatures, sender, receiver).await,
        Request::Substitutable(paths) => reply(sender, substitutable(parts, paths).await.map(Response::Substitutable)).await,
        Request::Missing(paths) => reply(sender, missing(parts, paths).await.map(Response::Paths)).await,
        Request::AddDerivations(files) => reply(sender, add_derivations(parts, files).await.map(|()| Response::Done)).await,
        Request::Submit(submission) => {
            let submitted = submit::while_wanted(parts, peer, submission, sender).await?;
            reply(sender, submitted.map(Response::Submitted)).await
        }
        Request::Check(submission) => reply(sender, submit::check(parts.clone(), peer, submission).await.map(Response::Submitted)).await,
        Request::SubmitHeld(submission, patience) => hold::submit(parts, peer, submission, patience, sender, receiver).await,
        Request::Hold(build, patience) => hold::build(parts, build, patience, sender, receiver).await,
        Request::Watch(build) => follow::build(parts, build, sender).await,
        Request::Cancel(build) => reply(sender, views::cancel(parts, peer, build).await.map(|()| Response::Done)).await,
        Request::Status => sender.send(&Response::Status(views::farm(parts, peer))).await,
        Request::Jobs => {
            for jobs in views::jobs(parts).chunks(JOBS_PER_FRAME) {
                sender.send(&Response::Jobs(jobs.to_vec())).await?;
            }
            Ok(())
        }
        Request::Workers => sender.send(&Response::Workers(views::workers(parts))).await,
        Request::Log { derivation, attempt, follow } => follow::log(parts, &derivation, attempt, follow, sender).await,
        Request::PathInfos { paths, closure } => path_infos(parts, paths, closure, sender).await,
        Request::Narinfos(hash_parts) => narinfos(parts, hash_parts, sender).await,
        Request::Derivations(paths) => derivations(parts, paths, sender).await,
        Request::Outputs(paths) => reply(sender, outputs(parts, paths).await.map(Response::Outputs)).await,
        Request::Realisation(id) => reply(sender, realisation(parts, &id).await.map(Response::Realisation)).await,
        Request::Verify { paths, how } => reply(sender, mend::damaged(parts, paths, how).await.map(Response::Damaged)).await,
        Request::Register { realisation, trusted } => {
            let trusted = trusted && matches!(peer, Role::Admin(_));
            reply(sender, registered(parts, &realisation, trusted).await.map(|()| Response::Done)).await
        }
        Request::Garbage(request) => garbage::answer(parts, peer, request, sender).await,
        Request::ImportDurations(measured) => reply(sender, durations::import(parts, peer, measured).await).await,
        Request::Explain(derivation) => reply(sender, views::explain(parts, &derivation).map(Response::Explained)).await,
        Request::Drain { worker, drain } => reply(sender, drain::drain(parts, peer, worker, drain).await).await,
        Request::Packages(pname) => durations::tell(parts, pname.as_deref(), sender).await,
        Request::Shares(request) => reply(sender, shares::answer(parts, peer, request).await).await,
        Request::Steer(steering) => reply(sender, shares::steer(parts, peer, steering).await).await,
        // Routed before: a worker's requests, and those that both may make.
        Request::Leader | Request::Backup | Request::Cluster(_) | Request::Session | Request::Upload { .. } | Request::FetchBlob { .. } => {
            Ok(())
        }
    }
}

async fn reply(sender: &mut Sender, answer: Result<Response, Refusal>) -> Result<(), LinkError> {
    sender.send(&answer.unwrap_or_else(Response::Refused)).await
}

fn check_count(count: usize) -> Result<(), Refusal> {
    if count <= PATHS_PER_REQUEST_MAX {
        return Ok(());
    }
    Err(refuse::invalid(format!("the request names {count} paths, over the limit of {PATHS_PER_REQUEST_MAX}; ask in parts")))
}

/// Returns the paths that the farm lacks. A derivation counts as there when its file is, whatever else is.
async fn missing(parts: &Parts, paths: Vec<StorePath>) -> Result<Vec<StorePath>, Refusal> {
    check_count(paths.len())?;
    // What the client is told that is there has to stay until its submission.
    touch(parts, &paths).await;
    let (derivations, others): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.name().ends_with(".drv"));
    let derivations: Vec<DrvPath> = derivations.into_iter().filter_map(|path| DrvPath::from_path(path).ok()).collect();
    let failed = |error| refuse::unavailable("look up paths", &error);
    let mut missing = parts.store.missing(&others).await.map_err(failed)?;
    let lacking = parts.store.missing_derivations(&derivations).await.map_err(failed)?;
    // A path that a build made is read as a derivation by whoever wants it as one.
    let lacking: Vec<StorePath> = lacking.into_iter().map(|path| path.as_path().clone()).collect();
    missing.extend(parts.store.missing(&lacking).await.map_err(failed)?);
    Ok(missing)
}

/// Returns those of some paths that upstream caches have and the farm lacks.
async fn substitutable(parts: &Arc<Parts>, paths: Vec<StorePath>) -> Result<Vec<Substitutable>, Refusal> {
    check_count(paths.len())?;
    substitute::substitutable(parts, paths).await
}

/// Keeps derivations, all of them or none.
async fn add_derivations(parts: &Parts, files: Vec<DerivationFile>) -> Result<(), Refusal> {
    check_count(files.len())?;
    touch(parts, files.iter().map(|file| file.path.as_path())).await;
    let files = files.into_iter().map(|DerivationFile { path, bytes }| (path, bytes.into())).collect();
    parts.derivations.add(&parts.store, &parts.checked, files).await.map_err(|error| match error.is_peers_fault() {
        true => refuse::invalid(format!("add derivations: {}", Chain(&error))),
        false => refuse::unavailable("add derivations", &error),
    })
}

async fn path_infos(parts: &Parts, paths: Vec<StorePath>, whole_closure: bool, sender: &mut Sender) -> Result<(), LinkError> {
    if let Err(refusal) = check_count(paths.len()) {
        return sender.send(&Response::Refused(refusal)).await;
    }
    touch(parts, &paths).await;
    let mut infos = Vec::new();
    for path in paths {
        match parts.path_info(&path).await {
            Ok(info) => infos.extend(info),
            Err(error) => return sender.send(&Response::Refused(refuse::unavailable("look up paths", &error))).await,
        }
    }
    if whole_closure {
        infos = match closure(parts, infos.into_iter().map(|info| info.path)).await {
            Ok(infos) => infos,
            Err(error @ ClosureError::Missing(_)) => return sender.send(&Response::Refused(refuse::not_found(error.to_string()))).await,
            Err(error @ ClosureError::Store(_)) => {
                return sender.send(&Response::Refused(refuse::unavailable("look up paths", &error))).await;
            }
        };
    }
    for chunk in infos.chunks(INFOS_PER_FRAME) {
        sender.send(&Response::PathInfos(chunk.to_vec())).await?;
    }
    Ok(())
}

/// Sends what the binary cache says of paths: what is signed is what is published.
async fn narinfos(parts: &Parts, hash_parts: Vec<String>, sender: &mut Sender) -> Result<(), LinkError> {
    if let Err(refusal) = check_count(hash_parts.len()) {
        return sender.send(&Response::Refused(refusal)).await;
    }
    touch(parts, hash_parts.iter().filter_map(|text| HashPart::parse(text)).map(Key::Path)).await;
    let lookups = futures::stream::iter(hash_parts).map(|hash_part| async move { parts.store.narinfo(&hash_part, &parts.keys).await });
    let found: Result<Vec<_>, _> = lookups.buffered(READS_MAX).try_collect().await;
    let found = match found {
        Ok(found) => found,
        Err(error) => return sender.send(&Response::Refused(refuse::unavailable("look up paths", &error))).await,
    };
    let texts: Vec<String> = found.into_iter().flatten().map(|text| String::from_utf8_lossy(&text).into_owned()).collect();
    for chunk in texts.chunks(INFOS_PER_FRAME) {
        sender.send(&Response::Narinfos(chunk.to_vec())).await?;
    }
    Ok(())
}

async fn derivations(parts: &Parts, paths: Vec<DrvPath>, sender: &mut Sender) -> Result<(), LinkError> {
    if let Err(refusal) = check_count(paths.len()) {
        return sender.send(&Response::Refused(refusal)).await;
    }
    touch(parts, paths.iter().map(DrvPath::as_path)).await;
    let mut reads = futures::stream::iter(paths)
        .map(|path| async move {
            match parts.derivations.bytes(parts, &path).await {
                Ok(bytes) => Ok(Some(DerivationFile { path, bytes: bytes.to_vec() })),
                Err(DerivationError::Missing(_)) => Ok(None),
                Err(error @ DerivationError::Store { .. }) => Err(refuse::unavailable("read derivation", &error)),
                Err(error) => Err(refuse::invalid(Chain(&error).to_string())),
            }
        })
        .buffered(READS_MAX);
    let (mut batch, mut batch_bytes) = (Vec::new(), 0);
    while let Some(read) = reads.next().await {
        match read {
            Ok(file) => {
                batch_bytes += file.as_ref().map_or(0, |file| file.bytes.len());
                batch.extend(file);
            }
            Err(refusal) => return sender.send(&Response::Refused(refusal)).await,
        }
        if batch_bytes >= DERIVATION_BATCH_BYTES {
            sender.send(&Response::Derivations(std::mem::take(&mut batch))).await?;
            batch_bytes = 0;
        }
    }
    if batch.is_empty() { Ok(()) } else { sender.send(&Response::Derivations(batch)).await }
}

async fn outputs(parts: &Parts, paths: Vec<DrvPath>) -> Result<BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>, Refusal> {
    check_count(paths.len())?;
    realised::outputs(parts, paths).await.map_err(|error| refuse::unavailable("look up outputs", &error))
}

async fn realisation(parts: &Parts, id: &str) -> Result<Option<String>, Refusal> {
    let of = DerivedOutput::parse_by_hash(id).map_err(|error| refuse::invalid(error.to_string()))?;
    let found = parts.store.realisation(&of, &parts.keys).await;
    Ok(found.map_err(|error| refuse::unavailable("look up a realisation", &error))?.map(|found| found.to_json()))
}

async fn registered(parts: &Parts, told: &str, is_trusted: bool) -> Result<(), Refusal> {
    let told = Told::parse_named(told.as_bytes()).map_err(|error| refuse::invalid(error.to_string()))?;
    register(parts, told, is_trusted).await.map_err(|error| match error {
        RegisterError::Unsigned { .. } | RegisterError::Absent { .. } | RegisterError::Differs { .. } => refuse::invalid(error.to_string()),
        RegisterError::NotLeader(_) | RegisterError::Store(_) => refuse::unavailable("take a realisation", &error),
    })
}

/// Objects read at a time for one request.
const READS_MAX: usize = 64;
/// Jobs in one frame: a view with attempts takes a few hundred bytes.
const JOBS_PER_FRAME: usize = 1024;
/// Facts in one frame: one with many references takes some KiB.
const INFOS_PER_FRAME: usize = 512;
