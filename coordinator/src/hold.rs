//! Builds that are wanted only as long as their client's stream lives, and only within its patience.
//!
//! A build hook is killed without a word, and a machine may lose its power: the farm hears of both when nothing comes any more. Kept in
//! memory: a client asks the next leader to hold its build again, and if it died together with the leader the build goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_core::Command;
use kiln_link::{Closed, LinkError, Receiver, Role, Sender};
use kiln_wire::client::{Request, Response, Submission};
use kiln_wire::{AttemptId, BuildId, DrvPath, OutOfPatience, Patience, Timestamp};

use crate::driver::{Chain, propose_patiently};
use crate::parts::Parts;
use crate::submit as submission;

/// Makes a build of a submission and holds it.
pub(crate) async fn submit(
    parts: &Arc<Parts>,
    peer: &Role,
    wanted: Submission,
    patience: Patience,
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Result<(), LinkError> {
    let submitted = submission::while_wanted(parts, peer, wanted, sender).await?;
    let held = match &submitted {
        Ok(build) => Some(*build),
        Err(_) => None,
    };
    let told = sender.send(&submitted.map_or_else(Response::Refused, Response::Submitted)).await;
    match (held, told) {
        (Some(held), Ok(())) => build(parts, held, patience, sender, receiver).await,
        // Who is gone before the answer does not want it either.
        (Some(held), Err(error)) => {
            let_go(parts, held, &error);
            Err(error)
        }
        (None, told) => told,
    }
}

/// Holds a build until its client finishes the stream.
pub(crate) async fn build(
    parts: &Arc<Parts>,
    build: BuildId,
    patience: Patience,
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Result<(), LinkError> {
    let holding = Holding::begin(parts, build);
    let heard = tokio::select! {
        heard = receiver.recv::<Request>() => heard,
        out = out_of_patience(parts, build, patience) => {
            cancel(parts.clone(), build).await;
            sender.send(&Response::OutOfPatience(out)).await?;
            receiver.recv::<Request>().await
        }
    };
    match heard {
        // It has finished; whatever else it says is no part of this.
        Ok(_) => Ok(()),
        Err(error) => {
            drop(holding);
            let_go(parts, build, &error);
            Err(error)
        }
    }
}

/// Cancels a build whose client's stream broke, unless somebody holds it before long: a client whose connection was lost comes again.
fn let_go(parts: &Arc<Parts>, build: BuildId, error: &LinkError) {
    // Where this coordinator stops, its clients are still there.
    if matches!(error, LinkError::Lost(Closed::Here)) {
        return;
    }
    tracing::debug!(%build, %error, "the stream of a held build broke");
    // A coordinator that has stopped by then has nothing to cancel.
    let parts = Arc::downgrade(parts);
    tokio::spawn(async move {
        tokio::time::sleep(COMES_AGAIN_WITHIN).await;
        if let Some(parts) = parts.upgrade().filter(|parts| !parts.holders.hold(build)) {
            tracing::info!(%build, "the client of a held build is gone");
            cancel(parts, build).await;
        }
    });
}

async fn cancel(parts: Arc<Parts>, build: BuildId) {
    let now = parts.clock.now();
    // Refused where it has ended meanwhile, which is as good.
    if let Err(error) = propose_patiently(parts, Command::Cancel { build, now }).await {
        tracing::debug!(%build, error = %Chain(&error), "cancel a held build");
    }
}

/// How many streams hold each build.
#[derive(Debug, Default)]
pub(crate) struct Holders(Mutex<BTreeMap<BuildId, usize>>);

impl Holders {
    fn hold(&self, build: BuildId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&build)
    }

    fn begin(&self, build: BuildId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(build).or_default() += 1;
    }

    fn end(&self, build: BuildId) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&build) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&build);
            }
        }
    }
}

/// A stream that holds a build, as long as this lives.
struct Holding {
    parts: Arc<Parts>,
    build: BuildId,
}

impl Holding {
    fn begin(parts: &Arc<Parts>, build: BuildId) -> Self {
        parts.holders.begin(build);
        Self { parts: parts.clone(), build }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.parts.holders.end(self.build);
    }
}

/// Returns once an attempt of the build takes too long; never, if nothing limits that.
async fn out_of_patience(parts: &Parts, build: BuildId, patience: Patience) -> OutOfPatience {
    if patience.is_endless() {
        return std::future::pending().await;
    }
    let mut watch = Watch::default();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let running = running(parts, build);
        if let Some(out) = watch.look(patience, parts.clock.now(), running) {
            return out;
        }
    }
}

fn running(parts: &Parts, build: BuildId) -> Vec<Running> {
    let found = parts.farm(|farm| {
        let running = farm.build_view(build).map(|view| view.running).unwrap_or_default();
        let found = running.into_iter().filter_map(|job| {
            // Of two attempts the one that began last: the other is late, which is why there are two.
            let lease = farm.live_leases(&job.derivation).pop()?;
            let started_at = job.attempts.iter().find(|attempt| attempt.attempt == lease.attempt)?.started_at;
            Some((lease, started_at))
        });
        found.collect::<Vec<_>>()
    });
    let (leases, starts): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let log_bytes = parts.logs.open_bytes(&leases);
    let running = leases.into_iter().zip(starts).map(|(lease, started_at)| Running {
        log_bytes: log_bytes.get(&lease.attempt).copied().unwrap_or_default(),
        attempt: lease.attempt,
        derivation: lease.derivation,
        started_at,
    });
    running.collect()
}

/// An attempt that goes on.
struct Running {
    attempt: AttemptId,
    derivation: DrvPath,
    started_at: Timestamp,
    /// Bytes of its log so far.
    log_bytes: u64,
}

/// What was seen of attempts at earlier looks.
#[derive(Default)]
struct Watch {
    /// Of each attempt the bytes of its log, and since when it has had no more.
    grown: BTreeMap<AttemptId, (u64, Timestamp)>,
}

impl Watch {
    /// Returns the first attempt that takes too long.
    fn look(&mut self, patience: Patience, now: Timestamp, running: Vec<Running>) -> Option<OutOfPatience> {
        let seen = std::mem::take(&mut self.grown);
        let passed = |since: Timestamp, limit: Option<u64>| limit.filter(|limit| now.0.saturating_sub(since.0) >= *limit);
        for Running { attempt, derivation, started_at, log_bytes } in running {
            let grown = match seen.get(&attempt) {
                Some(&(bytes, since)) if bytes == log_bytes => (bytes, since),
                Some(_) => (log_bytes, now),
                // How long it was silent before the first look is not known, unless it never wrote.
                None => (log_bytes, if log_bytes == 0 { started_at } else { now }),
            };
            self.grown.insert(attempt, grown);
            if let Some(ms_max) = passed(started_at, patience.attempt_ms_max) {
                return Some(OutOfPatience { derivation, is_silent: false, ms_max });
            }
            if let Some(ms_max) = passed(grown.1, patience.silent_ms_max) {
                return Some(OutOfPatience { derivation, is_silent: true, ms_max });
            }
        }
        None
    }
}

/// How soon a client is back whose connection was lost: the farm is there, and it tries about once a second.
const COMES_AGAIN_WITHIN: Duration = Duration::from_secs(20);
/// Between looks at how long attempts take: clients count in seconds.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_out_of_patience_when_it_runs_or_is_silent_for_too_long() {
        let patience = |attempt_ms_max, silent_ms_max| Patience { attempt_ms_max, silent_ms_max };
        // Patience; looks, each as time and bytes of log; whether it is silence, and the limit. The attempt starts at 100.
        type Row<'a> = (Patience, &'a [(u64, u64)], Option<(bool, u64)>);
        let table: [Row<'_>; 7] = [
            (patience(Some(50), None), &[(100, 0), (149, 0)], None),
            (patience(Some(50), None), &[(100, 0), (150, 7)], Some((false, 50))),
            (patience(None, Some(50)), &[(120, 0), (150, 0)], Some((true, 50))),
            (patience(None, Some(50)), &[(120, 0), (149, 1), (198, 1)], None),
            (patience(None, Some(50)), &[(120, 0), (149, 1), (199, 1)], Some((true, 50))),
            // The next leader sees a log whose last growth it does not know.
            (patience(None, Some(50)), &[(300, 9), (349, 9)], None),
            (patience(Some(400), Some(50)), &[(300, 9), (350, 9)], Some((true, 50))),
        ];
        for (patience, looks, wanted) in table {
            let mut watch = Watch::default();
            let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
            let found = looks.iter().find_map(|&(now, log_bytes)| {
                let running = Running { attempt: AttemptId(7), derivation: derivation.clone(), started_at: Timestamp(100), log_bytes };
                watch.look(patience, Timestamp(now), vec![running])
            });
            assert_eq!(found.map(|out| (out.is_silent, out.ms_max)), wanted, "{patience:?} {looks:?}");
        }
    }

    #[test]
    fn a_build_is_held_as_long_as_any_stream_does() {
        let (holders, build) = (Holders::default(), BuildId(7));
        let mut seen = Vec::new();
        for begins in [true, true, false, false] {
            if begins {
                holders.begin(build)
            } else {
                holders.end(build)
            }
            seen.push(holders.hold(build));
        }
        assert_eq!(seen, [true, true, true, false]);
    }

    #[test]
    fn another_attempt_starts_anew() {
        let mut watch = Watch::default();
        let patience = Patience { attempt_ms_max: None, silent_ms_max: Some(50) };
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        let mut look = |attempt, at, now| {
            let running = Running { attempt: AttemptId(attempt), derivation: derivation.clone(), started_at: Timestamp(at), log_bytes: 0 };
            watch.look(patience, Timestamp(now), vec![running]).is_some()
        };
        assert_eq!([look(1, 0, 49), look(2, 40, 89), look(2, 40, 90)], [false, false, true]);
    }
}
