//! One session with a worker: what it says becomes commands and log bytes, what the farm says to it goes out in order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_core::garbage::Key;
use kiln_core::{Command, JUDGING, LEARNING};
use kiln_link::{LinkError, Receiver, Sender};
use kiln_store::{Provenance, StoreError};
use kiln_wire::client::NOT_DETERMINISTIC;
use kiln_wire::worker::{FromWorker, Hello, ToWorker};
use kiln_wire::{BuiltOutput, Failure, FailureClass, Lease, Outcome, Sha256Hash, StorePath, Usage, WorkerId};
use tokio::sync::mpsc;

use crate::dispatch::{DispatchError, built_as, is_live, reference_candidates};
use crate::driver::{Chain, propose, propose_patiently};
use crate::garbage::touch;
use crate::leading;
use crate::made::{self, NotMade};
use crate::mend;
use crate::parts::Parts;
use crate::pauses::Pauses;
use crate::reports;
use crate::sessions::Outbox;

/// Serves a session until its stream ends. The worker's leases outlive it: it comes back, or its silence ends them.
pub(crate) async fn serve(parts: Arc<Parts>, worker: WorkerId, sender: Sender, mut receiver: Receiver) -> Result<(), LinkError> {
    let session = NEXT_SESSION.fetch_add(1, Ordering::Relaxed);
    let (outbox, inbox) = mpsc::unbounded_channel();
    let mut writer = tokio::spawn(write(parts.clone(), sender, inbox));
    let heard = tokio::select! {
        heard = read(&parts, &worker, session, Some(outbox), &mut receiver) => heard,
        // The leader gave the worker up, or does not lead any more.
        _ = &mut writer => Ok(()),
    };
    parts.sessions.close(&worker, session);
    writer.abort();
    tracing::info!(%worker, "worker session ended");
    heard
}

async fn write(parts: Arc<Parts>, mut sender: Sender, mut inbox: mpsc::UnboundedReceiver<ToWorker>) {
    while let Some(message) = inbox.recv().await {
        if let Err(error) = send_all(&mut sender, message, &mut inbox).await {
            // The reading half sees the same end and closes the session.
            tracing::debug!(error = %Chain(&error), "send to worker");
            return;
        }
    }
    if leading::own(&parts).is_none()
        && let Err(error) = sender.send(&ToWorker::NotLeader(leading::elsewhere(&parts))).await
    {
        tracing::debug!(error = %Chain(&error), "tell worker to look for the leader");
    }
    if let Err(error) = sender.finish().await {
        tracing::debug!(error = %Chain(&error), "end worker session");
    }
}

/// Sends a message with those that wait behind it: what is due at one time is handed to the transport together.
async fn send_all(sender: &mut Sender, first: ToWorker, inbox: &mut mpsc::UnboundedReceiver<ToWorker>) -> Result<(), LinkError> {
    let mut fed = sender.feed(&first);
    while matches!(fed, Ok(pending_bytes) if pending_bytes < TOGETHER_BYTES_MAX)
        && let Ok(message) = inbox.try_recv()
    {
        fed = sender.feed(&message);
    }
    // What came before one that cannot be sent goes out all the same.
    sender.flush().await?;
    fed.map(drop)
}

async fn read(
    parts: &Arc<Parts>,
    worker: &WorkerId,
    session: u64,
    // Handed over at the hello: when the leader gives the worker up and drops it, the stream ends and the worker dials again.
    mut outbox: Option<Outbox>,
    receiver: &mut Receiver,
) -> Result<(), LinkError> {
    while let Some(message) = receiver.recv::<FromWorker>().await? {
        parts.sessions.heard(worker, parts.clock.steady());
        match message {
            FromWorker::Hello(hello) => match outbox.take() {
                Some(outbox) if hello.worker == *worker => {
                    let opened = parts.sessions.open(worker, session, outbox, parts.clock.steady());
                    // Before it is registered, and so before anything is placed on it.
                    parts.sessions.strained(worker, session, hello.strain.clone());
                    if !opened || !register(parts, hello).await {
                        // Its outbox goes with this, and its writer says where to dial.
                        parts.sessions.close(worker, session);
                    }
                }
                Some(_) | None => {
                    tracing::warn!(%worker, claimed = %hello.worker, "a second hello, or of another name than the certificate's: session closed");
                    return Ok(());
                }
            },
            FromWorker::Heartbeat => {}
            FromWorker::Admission(strain) => parts.sessions.strained(worker, session, strain),
            // A lease that is over holds nothing anyway.
            FromWorker::Winding(lease) => {
                if lease.worker == *worker && is_live(parts, &lease) {
                    parts.sessions.wound(worker, session, lease.attempt);
                }
            }
            FromWorker::Started(lease) => {
                tracing::debug!(job = %lease.derivation, attempt = lease.attempt.0, worker = %lease.worker, term = parts.term(), "started")
            }
            FromWorker::Log { lease, offset_bytes, bytes } => keep_log(parts, worker, &lease, offset_bytes, &bytes),
            FromWorker::Finished { lease, outcome } if lease.worker == *worker => match outcome {
                Outcome::Built { outputs, usage } => drop(tokio::spawn(finish(parts.clone(), lease, outputs, usage))),
                outcome @ Outcome::Failed { .. } => reports::note(parts, lease, outcome),
            },
            FromWorker::Finished { lease, .. } => {
                tracing::warn!(%worker, lease_of = %lease.worker, "a report of another worker's lease is ignored")
            }
        }
    }
    Ok(())
}

/// Proposes the worker's registration; returns whether it was applied.
async fn register(parts: &Arc<Parts>, hello: Hello) -> bool {
    tracing::info!(worker = %hello.worker, attempts = hello.attempts.len(), "worker connected");
    let Hello { worker, offer, attempts, since, .. } = hello;
    // What a farm does not know yet, the worker says again when it opens its next session.
    let offer = if parts.consensus.version() < LEARNING { offer.as_before_4() } else { offer };
    let judge = parts.consensus.version() >= JUDGING;
    let command = Command::Register { worker: worker.clone(), offer, attempts, since, judge, now: parts.clock.now() };
    let proposed = propose(parts.clone(), vec![command]).await;
    if let Err(error) = &proposed {
        tracing::warn!(%worker, error = %Chain(error), "register worker");
    }
    proposed.is_ok()
}

fn keep_log(parts: &Parts, worker: &WorkerId, lease: &Lease, offset_bytes: u64, bytes: &[u8]) {
    // Of an attempt that has ended the leader before this one may have died before it kept the log.
    let late = || parts.store.is_shared() && parts.farm(|farm| farm.has_ended_on(&lease.derivation, lease.attempt, worker));
    if lease.worker != *worker || !(is_live(parts, lease) || late()) {
        return;
    }
    if let Err(error) = parts.logs.append(&lease.derivation, lease.attempt, offset_bytes, bytes) {
        tracing::warn!(job = %lease.derivation, attempt = lease.attempt.0, worker = %lease.worker, term = parts.term(), error = %Chain(&error), "keep log");
    }
}

/// Proposes the end of an attempt, after making sure that every output it claims is stored and is what it is said to be.
async fn finish(parts: Arc<Parts>, lease: Lease, outputs: Vec<BuiltOutput>, usage: Usage) {
    let tracing = parts.traces.begin_part(&parts, &lease.derivation, Some(lease.attempt));
    let _turn = parts.turns.take(outputs.iter().map(|output| &output.info.path)).await;
    // What the coordinator cannot look up is not the worker's doing.
    let mut says_of_worker = true;
    let outcome = match is_live(&parts, &lease) {
        true => {
            // A store that is away does not undo a build: the report waits for it.
            let mut pauses = Pauses::default();
            let checked = loop {
                match check_outputs(&parts, &lease, &outputs).await {
                    Err(error) if error.is_passing() && is_live(&parts, &lease) => pauses.after(&error).await,
                    checked => break checked,
                }
            };
            match checked {
                Ok(outputs) => Outcome::Built { outputs, usage },
                Err(error) => {
                    says_of_worker = !matches!(error, CheckError::Inputs(_) | CheckError::Store(_));
                    let failure = Failure { class: error.class(), message: Chain(&error).to_string() };
                    Outcome::Failed { failure, usage }
                }
            }
        }
        // A report that came too late is refused by the farm, which also lets the worker forget it.
        false => Outcome::Built { outputs, usage },
    };
    let (version, now) = (parts.consensus.version(), parts.clock.now());
    let (learn, judge) = (version >= LEARNING, version >= JUDGING && says_of_worker);
    let finish = Command::Finish { lease: lease.clone(), outcome, learn, judge, now };
    if let Err(error) = propose_patiently(parts.clone(), finish).await {
        // The worker keeps its report until it is acknowledged, and sends it again.
        tracing::warn!(job = %lease.derivation, attempt = lease.attempt.0, worker = %lease.worker, term = parts.term(), error = %Chain(&error), "commit the end of an attempt");
    }
    parts.traces.end_part("commit", tracing);
}

/// Outputs that cannot be committed.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Inputs(#[from] DispatchError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("commit an output")]
    NotMade(#[from] NotMade),
    #[error("commit output `{0}`: it was reported, but its NAR is not in the store")]
    Absent(StorePath),
    #[error("{NOT_DETERMINISTIC}`{path}` was made again with NAR hash {made}, and the store has it with {kept}; the store's stays")]
    Differs { path: StorePath, made: Sha256Hash, kept: Sha256Hash },
}

impl CheckError {
    fn is_passing(&self) -> bool {
        match self {
            Self::Inputs(error) => error.is_passing(),
            Self::Store(error) => error.is_passing(),
            Self::Absent(_) | Self::NotMade(_) | Self::Differs { .. } => false,
        }
    }

    fn class(&self) -> FailureClass {
        match self {
            Self::Inputs(_) | Self::Store(_) | Self::Absent(_) | Self::NotMade(_) => FailureClass::Infrastructure,
            Self::Differs { .. } => FailureClass::BuildFailure,
        }
    }
}

/// Returns the outputs with the facts of the stored bytes. What this leader did not verify on upload it verifies from the store.
async fn check_outputs(parts: &Parts, lease: &Lease, outputs: &[BuiltOutput]) -> Result<Vec<BuiltOutput>, CheckError> {
    let mut checked = Vec::with_capacity(outputs.len());
    let built = built_as(parts, &lease.derivation);
    let derivation = parts.derivations.get(parts, &built).await.map_err(DispatchError::from)?;
    let paths: BTreeSet<StorePath> = outputs.iter().map(|output| output.info.path.clone()).collect();
    touch(parts, outputs.iter().flat_map(|output| [Key::from(&output.info.path), Key::Blob(output.info.blob.sha256)])).await;
    for output in outputs {
        made::check(&parts.store_dir, &built, &derivation, output)?;
        // Those that the output was taken to refer to when it came are outputs indeed, or inputs.
        let stated = made::stated(&derivation, &output.info);
        if !stated.is_subset(&paths) {
            let candidates = reference_candidates(parts, &lease.derivation, &output.name, &paths).await?;
            if let Some(stranger) = stated.into_iter().find(|path| !candidates.contains(path)) {
                return Err(CheckError::Absent(stranger));
            }
        }
        // When it came it was searched for the paths that it states: a worker's word alone must not leave out others.
        let unstated = made::unstated(&derivation, outputs, output);
        let verified = parts.verified.find(lease, &output.info).filter(|_| unstated.is_empty());
        // It was there when it came; since then a collection may have passed.
        let is_there = match &verified {
            Some(info) => parts.store.has_blob(&info.blob.sha256).await?,
            None => false,
        };
        let info = match verified.filter(|_| is_there) {
            Some(info) => info,
            None => {
                let searched = made::stated(&derivation, &output.info).into_iter().chain(unstated).collect();
                let candidates = reference_candidates(parts, &lease.derivation, &output.name, &searched).await?;
                let adopted = parts.store.adopt(&output.info, &Provenance::Built { candidates }).await?;
                adopted.ok_or_else(|| CheckError::Absent(output.info.path.clone()))?
            }
        };
        checked.push(BuiltOutput { name: output.name.clone(), info });
    }
    keep_published(parts, lease, &mut checked).await?;
    Ok(checked)
}

/// Puts what is committed already in the place of what was made again: a valid path never changes. If the job is there to see whether it makes
/// the same, it must.
async fn keep_published(parts: &Parts, lease: &Lease, outputs: &mut [BuiltOutput]) -> Result<(), CheckError> {
    let is_check = parts.farm(|farm| farm.is_check(&lease.derivation));
    for output in outputs {
        // What is committed counts too: two derivations may make one path.
        let Some(kept) = parts.path_info(&output.info.path).await? else { continue };
        if kept.nar_hash != output.info.nar_hash {
            let (path, made) = (output.info.path.clone(), output.info.nar_hash);
            if is_check {
                return Err(CheckError::Differs { path, made, kept: kept.nar_hash });
            }
            tracing::warn!(%path, job = %lease.derivation, attempt = lease.attempt.0, worker = %lease.worker, term = parts.term(), %made, kept = %kept.nar_hash, "made again, and not the same: what is published stays");
        }
        if is_check && mend::gives_way(parts, &kept, &output.info).await? {
            tracing::info!(path = %kept.path, "a damaged path is whole again, built anew");
            continue;
        }
        output.info = kept;
    }
    Ok(())
}

/// Bytes of messages that are handed to the transport at once, unless a single one has more.
const TOGETHER_BYTES_MAX: usize = 64 << 10;

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);
