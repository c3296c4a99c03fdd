//! Which outputs of running attempts were verified here. Memory of the leader only: what a new leader has not seen itself it verifies
//! again from the store before it commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use kiln_wire::{AttemptId, Blob, DrvPath, Lease, PathInfo, Sha256Hash};

/// Verified outputs, by attempt.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    outputs: Mutex<BTreeMap<(DrvPath, AttemptId), Vec<Output>>>,
}

/// What was claimed, and the facts of the bytes that are stored: another producer may have compressed the same NAR before.
#[derive(Debug)]
struct Output {
    claimed: PathInfo,
    stored: Blob,
}

impl Verified {
    /// Notes an output whose stored bytes were checked against every claim.
    pub(crate) fn note(&self, lease: &Lease, claimed: PathInfo, stored: Blob) {
        let mut all = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = all.entry((lease.derivation.clone(), lease.attempt)).or_default();
        outputs.retain(|known| known.claimed.path != claimed.path);
        outputs.push(Output { claimed, stored });
    }

    /// Returns the facts that hold for an output if exactly this claim was verified.
    pub(crate) fn find(&self, lease: &Lease, claimed: &PathInfo) -> Option<PathInfo> {
        let all = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&(lease.derivation.clone(), lease.attempt))?.iter().find(|known| known.claimed == *claimed)?;
        Some(PathInfo { blob: known.stored, ..known.claimed.clone() })
    }

    /// Returns the blobs of all that is noted.
    pub(crate) fn blobs(&self) -> BTreeSet<Sha256Hash> {
        let all = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().flatten().map(|output| output.stored.sha256).collect()
    }

    /// Forgets everything: this coordinator leads no more.
    pub(crate) fn forget_all(&self) {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Forgets an attempt that has ended.
    pub(crate) fn forget(&self, derivation: &DrvPath, attempt: AttemptId) {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner).remove(&(derivation.clone(), attempt));
    }
}
