//! Runs a whole graph through a farm with a simulated fleet: submit, then plan after every single finish until nothing is left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::{Path, PathBuf};

use kiln_core::{Command, Effect, Farm, Limits, plan};
use kiln_nix::graph_file::{self, Graph};
use kiln_wire::limits::JOBS_PER_ENTRY_MAX;
use kiln_wire::worker::Offer;
use kiln_wire::{
    Blake3Hash, Blob, BuildId, BuiltOutput, DrvPath, JobKind, JobSpec, Lease, LogIndex, Outcome, PathInfo, RequestId, Resources, Root,
    Sha256Hash, Timestamp, Usage, WorkerId,
};

/// Returns the real graphs that lie beside the repository, or in `KILN_SHARED`.
pub fn graph_files() -> Vec<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let shared = std::env::var_os("KILN_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let dir = shared.join("data/graphs");
    let entries = std::fs::read_dir(&dir)
        .unwrap_or_else(|err| panic!("the graphs are missing: read {}: {err}; KILN_SHARED names their place", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("the directory can be read").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "zst"));
    files.sort();
    assert!(!files.is_empty(), "no graphs in {}", dir.display());
    files
}

pub fn load(file: &Path) -> Graph {
    let compressed = std::fs::File::open(file).expect("the graph can be read");
    let lines = zstd::Decoder::new(compressed).expect("the graph is compressed with zstd");
    graph_file::read(std::io::BufReader::new(lines)).unwrap_or_else(|err| panic!("{}: {err}", file.display()))
}

/// A farm and the fleet that works for it.
pub struct Drain {
    pub farm: Farm,
    pub index: u64,
    pub now: Timestamp,
    specs: BTreeMap<DrvPath, JobSpec>,
    ends: BinaryHeap<Reverse<(Timestamp, Lease)>>,
}

impl Drain {
    /// Registers workers that can run everything in `graph`.
    pub fn new(graph: &Graph, workers: u32, slots: u32) -> Self {
        let specs = graph.jobs.iter().map(|job| (job.derivation.clone(), job.clone())).collect();
        let mut drain = Self { farm: Farm::new(), index: 0, now: Timestamp(0), specs, ends: BinaryHeap::new() };
        let systems: BTreeSet<String> = graph.jobs.iter().map(|job| job.system.clone()).collect();
        let features: BTreeSet<String> = graph.jobs.iter().flat_map(|job| job.required_features.clone()).collect();
        for number in 0..workers {
            let offer = Offer {
                systems: systems.clone(),
                features: features.clone(),
                capacity: Resources { cores: slots * 4, memory_mib: 65_536 },
                slots,
                guarantees: BTreeMap::new(),
                ..Offer::default()
            };
            let worker = WorkerId::parse(&format!("w{number:04}")).expect("a valid name");
            drain.apply(Command::Register { worker, offer, attempts: Vec::new(), since: None, judge: false, now: drain.now });
        }
        drain
    }

    pub fn apply(&mut self, command: Command) -> Vec<Effect> {
        self.index += 1;
        self.farm.apply(LogIndex(self.index), command)
    }

    pub fn submit(&mut self, graph: &Graph) -> BuildId {
        let (request, now) = (RequestId(1), self.now);
        for jobs in graph.jobs.chunks(JOBS_PER_ENTRY_MAX) {
            self.apply(Command::Stage { request, jobs: jobs.to_vec(), now });
        }
        let roots = graph.roots.values().map(|root| Root { derivation: root.clone(), outputs: BTreeSet::new() }).collect();
        self.apply(Command::Submit { request, name: graph.name.clone(), roots, keep_going: false, asker: None, now });
        self.farm.builds().last().expect("the graph is a build of the farm")
    }

    /// Plans once and starts what the plan says. Returns the number of leases that were given.
    pub fn plan(&mut self) -> usize {
        let (plan, _) = plan(&self.farm, self.now, &Limits::STANDARD);
        if plan.placements.is_empty() {
            return 0;
        }
        let effects = self.apply(Command::Assign { placements: plan.placements, now: self.now });
        let mut given = 0;
        for effect in effects {
            match effect {
                Effect::Dispatch { lease, .. } => {
                    let end = self.now.after_ms(duration_ms(&self.specs[&lease.derivation]));
                    self.ends.push(Reverse((end, lease)));
                    given += 1;
                }
                Effect::Notify { .. } => {}
                other => panic!("the farm refuses its own plan: {other:?}"),
            }
        }
        given
    }

    /// Ends the next attempt, and publishes what it made. Returns false if nothing runs.
    pub fn finish_next(&mut self) -> bool {
        let Some(Reverse((end, lease))) = self.ends.pop() else { return false };
        self.now = end;
        let outcome = outcome(&self.specs[&lease.derivation]);
        let derivation = lease.derivation.clone();
        self.apply(Command::Finish { lease, outcome, learn: true, judge: false, now: end });
        self.apply(Command::Publish { derivation, now: end });
        true
    }
}

fn outcome(spec: &JobSpec) -> Outcome {
    let info = |path| PathInfo {
        path,
        nar_hash: Sha256Hash([7; 32]),
        nar_size_bytes: 1,
        references: BTreeSet::new(),
        deriver: Some(spec.derivation.clone()),
        content_address: None,
        blob: Blob { size_bytes: 1, blake3: Blake3Hash([7; 32]), sha256: Sha256Hash([7; 32]) },
    };
    let outputs = spec.outputs.iter().filter_map(|(name, path)| Some(BuiltOutput { name: name.clone(), info: info(path.clone()?) }));
    Outcome::Built { outputs: outputs.collect(), usage: Usage::default() }
}

/// A guess by kind, spread by the derivation's hash so that attempts do not end all at once.
fn duration_ms(spec: &JobSpec) -> u64 {
    let mean_ms = match spec.kind {
        JobKind::Builtin => 2_000,
        JobKind::FixedOutput => 3_000,
        JobKind::Ordinary if spec.prefer_local => 300,
        JobKind::Ordinary => 27_000,
    };
    let spread: u64 = spec.derivation.as_str().bytes().take(8).map(u64::from).sum();
    mean_ms * (50 + spread % 100) / 100
}
