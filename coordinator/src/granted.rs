//! What each worker may fetch: the inputs of the assignments that were sent to it, and nothing else.
//!
//! Memory of the leader only, written once for each assignment: what an earlier leader sent is found again from the live leases
//! when a worker first asks for it. Holds no rights: a grant counts only while its lease is live, which the farm knows.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_wire::{AttemptId, DrvPath, Lease, StorePath, WorkerId};

use crate::dispatch::{input_closure, is_live};
use crate::driver::Chain;
use crate::parts::Parts;

/// The inputs of the assignments that were sent, by worker and attempt.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    workers: Mutex<ByWorker>,
    /// Held while grants are found again, so that many fetches at once find them once.
    finding: tokio::sync::Mutex<()>,
}

type ByWorker = BTreeMap<WorkerId, BTreeMap<(DrvPath, AttemptId), Grant>>;

#[derive(Debug)]
struct Grant {
    lease: Lease,
    /// The hash parts of the paths, sorted: a third of the memory of the whole paths, and no two paths have the same.
    inputs: Box<[HashPart]>,
}

/// The 32 characters that a store path starts with.
type HashPart = [u8; 32];

impl Granted {
    /// Notes the inputs of an assignment. Called before it is sent: the worker may fetch as soon as it has it.
    pub(crate) fn note<'a>(&self, lease: &Lease, inputs: impl IntoIterator<Item = &'a StorePath>) {
        let mut inputs: Vec<HashPart> = inputs.into_iter().map(hash_part).collect();
        inputs.sort_unstable();
        let grant = Grant { lease: lease.clone(), inputs: inputs.into() };
        self.lock().entry(lease.worker.clone()).or_default().insert(key(lease), grant);
    }

    /// Forgets an attempt that has ended.
    pub(crate) fn forget(&self, worker: &WorkerId, derivation: &DrvPath, attempt: AttemptId) {
        let mut workers = self.lock();
        if let Some(grants) = workers.get_mut(worker) {
            grants.remove(&(derivation.clone(), attempt));
            if grants.is_empty() {
                workers.remove(worker);
            }
        }
    }

    /// Forgets all but what a worker that registers anew may keep.
    pub(crate) fn keep_only(&self, worker: &WorkerId, keep: &[Lease]) {
        let mut workers = self.lock();
        if let Some(grants) = workers.get_mut(worker) {
            grants.retain(|held, _| keep.iter().any(|lease| key(lease) == *held));
            if grants.is_empty() {
                workers.remove(worker);
            }
        }
    }

    /// Forgets a worker that has lost its leases.
    pub(crate) fn forget_worker(&self, worker: &WorkerId) {
        self.lock().remove(worker);
    }

    /// Forgets everything: this coordinator leads no more.
    pub(crate) fn forget_all(&self) {
        self.lock().clear();
    }

    /// Returns the leases of a worker that let it fetch the path, as long as they are live.
    fn leases_for(&self, worker: &WorkerId, path: &StorePath) -> Vec<Lease> {
        let wanted = hash_part(path);
        let holds = |grant: &&Grant| grant.inputs.binary_search(&wanted).is_ok();
        let workers = self.lock();
        let grants = workers.get(worker).into_iter().flat_map(BTreeMap::values);
        grants.filter(holds).map(|grant| grant.lease.clone()).collect()
    }

    fn knows(&self, lease: &Lease) -> bool {
        self.lock().get(&lease.worker).is_some_and(|grants| grants.contains_key(&key(lease)))
    }

    fn lock(&self) -> MutexGuard<'_, ByWorker> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the path is an input of an attempt that the worker holds a live lease on.
///
/// Looks at nothing that depends on whether the farm has the path, so neither the answer nor its time tells.
pub(crate) async fn may_fetch(parts: &Parts, worker: &WorkerId, path: &StorePath) -> bool {
    let granted = || parts.granted.leases_for(worker, path).iter().any(|lease| is_live(parts, lease));
    if granted() {
        return true;
    }
    // Looked at once more whatever was found: somebody else may have noted it meanwhile.
    find_again(parts, worker).await;
    granted()
}

/// Notes the inputs of live leases whose assignments an earlier leader sent.
async fn find_again(parts: &Parts, worker: &WorkerId) {
    let unknown =
        || -> Vec<Lease> { parts.farm(|farm| farm.leases_of(worker)).into_iter().filter(|lease| !parts.granted.knows(lease)).collect() };
    if unknown().is_empty() {
        return;
    }
    let _finding = parts.granted.finding.lock().await;
    for lease in unknown() {
        match input_closure(parts, &lease.derivation).await {
            Ok((inputs, _)) => parts.granted.note(&lease, inputs.iter().map(|info| &info.path)),
            Err(error) => {
                tracing::warn!(job = %lease.derivation, attempt = lease.attempt.0, worker = %lease.worker, term = parts.term(), error = %Chain(&error), "find what a worker may fetch")
            }
        }
        if !is_live(parts, &lease) {
            // It ended meanwhile, and whoever ended it had nothing to forget yet.
            parts.granted.forget(&lease.worker, &lease.derivation, lease.attempt);
        }
    }
}

fn key(lease: &Lease) -> (DrvPath, AttemptId) {
    (lease.derivation.clone(), lease.attempt)
}

fn hash_part(path: &StorePath) -> HashPart {
    path.hash_part().as_bytes().try_into().expect("the hash part of a store path has 32 characters")
}

#[cfg(test)]
mod tests {
    use kiln_wire::Epoch;

    use super::*;

    fn path(name: &str) -> StorePath {
        let letter = name.chars().next().expect("a name");
        StorePath::parse(&format!("{}-{name}", letter.to_string().repeat(32))).expect("a store path")
    }

    fn worker(name: &str) -> WorkerId {
        WorkerId::parse(name).expect("a name")
    }

    fn lease(by: &str, attempt: u64) -> Lease {
        let derivation = DrvPath::from_path(path("a.drv")).expect("a derivation");
        Lease { derivation, attempt: AttemptId(attempt), worker: worker(by), epoch: Epoch(1) }
    }

    #[test]
    fn a_grant_is_for_one_worker_and_its_own_inputs_until_the_attempt_is_forgotten() {
        let granted = Granted::default();
        granted.note(&lease("w1", 1), [&path("gcc"), &path("libc")]);
        granted.note(&lease("w1", 2), [&path("libc")]);
        granted.note(&lease("w2", 3), [&path("zlib")]);
        let attempts = |by: &str, wanted: &str| -> Vec<u64> {
            granted.leases_for(&worker(by), &path(wanted)).iter().map(|lease| lease.attempt.0).collect()
        };
        let table: [(&str, &str, &[u64]); 6] = [
            ("w1", "gcc", &[1]),
            ("w1", "libc", &[1, 2]),
            ("w1", "zlib", &[]),
            ("w2", "zlib", &[3]),
            ("w2", "gcc", &[]),
            ("w3", "gcc", &[]),
        ];
        for (by, wanted, expected) in table {
            assert_eq!(attempts(by, wanted), expected, "{by} asks for {wanted}");
        }
        let first = lease("w1", 1);
        granted.forget(&first.worker, &first.derivation, first.attempt);
        assert_eq!((attempts("w1", "gcc"), attempts("w1", "libc")), (vec![], vec![2]), "the other attempt still needs its input");
        granted.note(&lease("w1", 4), [&path("zlib")]);
        granted.keep_only(&worker("w1"), &[lease("w1", 2)]);
        assert_eq!((attempts("w1", "libc"), attempts("w1", "zlib")), (vec![2], vec![]), "registered anew, it has lost the fourth");
        granted.forget_worker(&worker("w2"));
        assert_eq!(attempts("w2", "zlib"), [] as [u64; 0]);
        assert!(granted.knows(&lease("w1", 2)) && !granted.knows(&lease("w1", 1)) && !granted.knows(&lease("w2", 3)));
    }
}
