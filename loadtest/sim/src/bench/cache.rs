//! Which worker has the outputs of which job. Workers keep what they made and fetched, and have room for all of it.

use super::fleet::{Fleet, WorkerNo};
use super::workload::{JobNo, Workload};

/// A row of bits for each job, a bit for each worker.
#[derive(Clone, Debug)]
pub(crate) struct Caches {
    words: usize,
    bits: Vec<u64>,
}

impl Caches {
    /// Returns empty caches.
    pub fn new(load: &Workload, fleet: &Fleet) -> Self {
        let words = fleet.workers.len().div_ceil(64);
        Self { words, bits: vec![0; words * load.tasks.len()] }
    }

    /// Notes that a worker has a job's outputs. Returns whether it lacked them.
    pub fn hold(&mut self, job: JobNo, worker: WorkerNo) -> bool {
        let word = &mut self.bits[job.at() * self.words + worker.at() / 64];
        let bit = 1 << (worker.at() % 64);
        let lacked = *word & bit == 0;
        *word |= bit;
        lacked
    }

    /// Returns whether a worker has a job's outputs.
    pub fn has(&self, job: JobNo, worker: WorkerNo) -> bool {
        self.bits[job.at() * self.words + worker.at() / 64] & (1 << (worker.at() % 64)) != 0
    }

    /// Brings everything that a job needs to a worker. Returns how many bytes had to be moved.
    pub fn fetch(&mut self, load: &Workload, job: JobNo, worker: WorkerNo) -> u64 {
        let lacking = load.task(job).inputs.iter().filter(|input| self.hold(**input, worker));
        lacking.map(|input| load.task(*input).output_bytes).sum()
    }

    /// Returns how many bytes of a job's inputs a worker lacks.
    pub fn lacking_bytes(&self, load: &Workload, job: JobNo, worker: WorkerNo) -> u64 {
        let lacking = load.task(job).inputs.iter().filter(|input| !self.has(**input, worker));
        lacking.map(|input| load.task(*input).output_bytes).sum()
    }
}
