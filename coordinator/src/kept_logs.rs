//! Logs of ended attempts: where several coordinators share a store, each log goes there before its worker may forget it.

use std::sync::Arc;

use kiln_store::{BlobBytes, StoreError};
use kiln_wire::worker::ToWorker;
use kiln_wire::{AttemptId, DrvPath, Lease, WorkerId};

use crate::heavy::heavy;
use crate::http::FinishedLog;
use crate::leading;
use crate::logs::{LogError, LogReader};
use crate::parts::Parts;
use crate::pauses::Pauses;

/// A log that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptLogError {
    #[error(transparent)]
    Own(#[from] LogError),
    #[error("read log from the store")]
    Store(#[from] StoreError),
    #[error("the whole log is with the coordinator that leads")]
    Elsewhere,
}

/// Ends the log of an attempt and acknowledges its worker's report. In a shared store the log is kept first: the worker, which has
/// all of it, sends it again to the next leader as long as it is not acknowledged.
pub(crate) fn end(parts: &Arc<Parts>, worker: WorkerId, derivation: DrvPath, attempt: AttemptId) {
    parts.logs.close(&derivation, attempt);
    if !parts.store.is_shared() {
        return acknowledge(parts, &worker, derivation, attempt);
    }
    let parts = parts.clone();
    tokio::spawn(async move {
        let mut pauses = Pauses::default();
        loop {
            match move_to_store(&parts, &derivation, attempt).await {
                Ok(()) => break,
                Err(KeptLogError::Store(error)) if error.is_passing() => pauses.after(&error).await,
                Err(error) => {
                    // A log decides nothing: the report must not wait for a disk that is broken.
                    tracing::warn!(job = %derivation, attempt = attempt.0, %worker, term = parts.term(), error = %crate::driver::Chain(&error), "keep log");
                    break;
                }
            }
        }
        acknowledge(&parts, &worker, derivation, attempt);
    });
}

fn acknowledge(parts: &Parts, worker: &WorkerId, derivation: DrvPath, attempt: AttemptId) {
    if !parts.sessions.send(worker, ToWorker::Acknowledge { derivation, attempt }) {
        tracing::debug!(%worker, "no session: its next hello says what it missed");
    }
}

async fn move_to_store(parts: &Parts, derivation: &DrvPath, attempt: AttemptId) -> Result<(), KeptLogError> {
    // Most small builds write none.
    let Some(file) = parts.logs.file(derivation, attempt)? else { return Ok(()) };
    parts.store.put_log(derivation, attempt, file).await?;
    Ok(parts.logs.remove(derivation, attempt)?)
}

/// Forgets the log of an attempt that another one outran: whoever asks what the job said is to find the log of the one that made its outputs.
pub(crate) fn drop_if_outrun(parts: &Parts, lease: &Lease) {
    if parts.farm(|farm| farm.outputs_of(&lease.derivation).is_none()) {
        return;
    }
    parts.logs.close(&lease.derivation, lease.attempt);
    match parts.logs.file(&lease.derivation, lease.attempt) {
        // It wrote nothing.
        Ok(None) => {}
        Ok(Some(_)) => {
            if let Err(error) = parts.logs.remove(&lease.derivation, lease.attempt) {
                tracing::warn!(job = %lease.derivation, attempt = lease.attempt.0, worker = %lease.worker, term = parts.term(), error = %crate::driver::Chain(&error), "forget the log of an attempt that was outrun");
            }
        }
        Err(error) => {
            tracing::warn!(job = %lease.derivation, attempt = lease.attempt.0, worker = %lease.worker, term = parts.term(), error = %crate::driver::Chain(&error), "forget the log of an attempt that was outrun");
        }
    }
}

/// Has everybody find a log that a client brought, which lies here.
pub(crate) async fn keep_brought(parts: &Parts, derivation: &DrvPath) -> Result<(), KeptLogError> {
    match parts.store.is_shared() {
        true => keep_left_over(parts, derivation, BROUGHT).await,
        false => Ok(()),
    }
}

/// The number of no attempt: the log that a client brought of a derivation that was built elsewhere. Every attempt comes after it.
pub(crate) const BROUGHT: AttemptId = AttemptId(0);

/// What a new leader finds on its disk of jobs that have left the farm: parts of logs that another leader took over, and whole ones that
/// nobody kept before the last leader here died. What the store lacks goes there; nothing of it stays here.
pub(crate) fn sweep(parts: &Arc<Parts>) {
    if !parts.store.is_shared() {
        return;
    }
    let parts = parts.clone();
    tokio::spawn(async move {
        let found = match heavy(|| parts.logs.list()) {
            Ok(found) => found,
            Err(error) => return tracing::warn!(%error, "list the logs of ended attempts"),
        };
        for (derivation, attempt) in found {
            // Of a job that the farm still has the worker may be sending the whole.
            let is_live = parts.farm(|farm| farm.outputs_declared(&derivation).is_some());
            if !is_live && let Err(error) = keep_left_over(&parts, &derivation, attempt).await {
                tracing::warn!(job = %derivation, attempt = attempt.0, term = parts.term(), error = %crate::driver::Chain(&error), "keep the log of an ended attempt; the next leader here tries again");
            }
        }
    });
}

async fn keep_left_over(parts: &Parts, derivation: &DrvPath, attempt: AttemptId) -> Result<(), KeptLogError> {
    match parts.store.has_log(derivation, attempt).await? {
        true => Ok(parts.logs.remove(derivation, attempt)?),
        false => move_to_store(parts, derivation, attempt).await,
    }
}

/// Returns the latest attempt of a derivation that has a log.
pub(crate) async fn latest_attempt(parts: &Parts, derivation: &DrvPath) -> Result<Option<AttemptId>, KeptLogError> {
    let own = parts.logs.latest_attempt(derivation);
    match parts.store.is_shared() {
        true => Ok(own.max(parts.store.latest_log(derivation).await?)),
        false => Ok(own),
    }
}

/// Returns the attempt whose log somebody wants who names none: the one that runs, else the latest that has a log.
pub(crate) async fn current_attempt(parts: &Parts, derivation: &DrvPath) -> Result<Option<AttemptId>, KeptLogError> {
    match parts.farm(|farm| farm.live_lease(derivation)) {
        Some(lease) => Ok(Some(lease.attempt)),
        None => latest_attempt(parts, derivation).await,
    }
}

/// Returns the log of the latest attempt that has ended and left one. Where all coordinators share a store, every one of them finds
/// it there, a moment after the attempt's end.
pub(crate) async fn newest_finished(parts: &Parts, derivation: &DrvPath) -> Result<Option<FinishedLog>, KeptLogError> {
    if parts.store.is_shared() {
        let Some(attempt) = parts.store.latest_log(derivation).await? else { return Ok(None) };
        return Ok(parts.store.log(derivation, attempt).await?.map(|bytes| FinishedLog { attempt, bytes }));
    }
    let running: Vec<AttemptId> = parts.farm(|farm| farm.live_leases(derivation)).into_iter().map(|lease| lease.attempt).collect();
    heavy(|| {
        let Some(attempt) = parts.logs.attempts(derivation).filter(|attempt| !running.contains(attempt)).max() else { return Ok(None) };
        let file = parts.logs.file(derivation, attempt)?;
        Ok(file.map(|file| FinishedLog { attempt, bytes: BlobBytes::File(file) }))
    })
}

/// Returns whether an attempt runs, as far as this coordinator knows.
pub(crate) fn runs(parts: &Parts, derivation: &DrvPath, attempt: AttemptId) -> bool {
    parts.farm(|farm| farm.live_leases(derivation)).iter().any(|lease| lease.attempt == attempt)
}

/// Opens a log: that of a running attempt here, where it is written; any other where all coordinators have it, for what is here may
/// be the part that this one heard before another led.
pub(crate) async fn read(parts: &Parts, derivation: &DrvPath, attempt: AttemptId) -> Result<LogReader, KeptLogError> {
    if !parts.store.is_shared() || runs(parts, derivation, attempt) {
        return Ok(parts.logs.read(derivation, attempt)?);
    }
    if let Some(bytes) = parts.store.log(derivation, attempt).await? {
        return Ok(LogReader::stored(bytes));
    }
    if leading::own(parts).is_none() {
        return Err(KeptLogError::Elsewhere);
    }
    let own = parts.logs.read(derivation, attempt);
    match own {
        Ok(reader) => Ok(reader),
        // It may have been moved to the store since that was asked.
        Err(absent) => Ok(LogReader::stored(parts.store.log(derivation, attempt).await?.ok_or(absent)?)),
    }
}
