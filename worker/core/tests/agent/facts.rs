//! Short ways to write leases, assignments and outcomes.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::worker::{Assignment, Offer};
use kiln_wire::{
    AttemptId, Blake3Hash, Blob, BuiltOutput, DerivedInput, DrvPath, Epoch, JobKind, JobLimits, JobSpec, Leader, Lease, NodeId, Outcome,
    OutputName, PathInfo, Resources, Sha256Hash, StoreDir, StorePath, Usage, WorkerId,
};

const HASH: &str = "00000000000000000000000000000000-";

pub fn drv(name: &str) -> DrvPath {
    DrvPath::parse(&format!("{HASH}{name}.drv")).expect("test names are valid")
}

pub fn worker(name: &str) -> WorkerId {
    WorkerId::parse(name).expect("test names are valid")
}

pub fn leader(term: u64) -> Leader {
    Leader { term, node: NodeId(1) }
}

pub fn offer(slots: u32) -> Offer {
    Offer {
        systems: BTreeSet::from(["x86_64-linux".to_owned()]),
        features: BTreeSet::new(),
        capacity: Resources { cores: slots, memory_mib: 1000 },
        slots,
        guarantees: BTreeMap::new(),
        ..Offer::default()
    }
}

pub fn lease(job: &str, attempt: u64, worker_name: &str, epoch: u64) -> Lease {
    Lease { derivation: drv(job), attempt: AttemptId(attempt), worker: worker(worker_name), epoch: Epoch(epoch) }
}

pub fn assignment(lease: Lease, term: u64, resources: Resources) -> Assignment {
    Assignment {
        leader: leader(term),
        lease,
        store_dir: StoreDir::default(),
        derivation: Vec::new(),
        inputs: Vec::new(),
        input_outputs: BTreeMap::new(),
        resources,
        limits: JobLimits::default(),
        resolved: None,
        trace: None,
    }
}

pub fn out() -> OutputName {
    OutputName::parse("out").expect("`out` is a name")
}

fn path(job: &str) -> StorePath {
    StorePath::parse(&format!("{HASH}{job}")).expect("test names are valid")
}

pub fn spec(job: &str, inputs: &[String]) -> JobSpec {
    JobSpec {
        derivation: drv(job),
        system: "x86_64-linux".to_owned(),
        required_features: BTreeSet::new(),
        outputs: BTreeMap::from([(out(), Some(path(job)))]),
        inputs: inputs.iter().map(|input| DerivedInput { derivation: drv(input), outputs: [out()].into() }).collect(),
        kind: JobKind::Ordinary,
        prefer_local: false,
        resources: Resources { cores: 1, memory_mib: 0 },
        limits: JobLimits::default(),
        resolve: false,
    }
}

pub fn built(job: &str) -> Outcome {
    let info = PathInfo {
        path: path(job),
        nar_hash: Sha256Hash([1; 32]),
        nar_size_bytes: 1,
        references: BTreeSet::new(),
        deriver: None,
        content_address: None,
        blob: Blob { size_bytes: 1, blake3: Blake3Hash([1; 32]), sha256: Sha256Hash([1; 32]) },
    };
    Outcome::Built { outputs: vec![BuiltOutput { name: out(), info }], usage: Usage::default() }
}

/// A seeded sequence of numbers (splitmix64, Steele, Lea, Flood 2014): the same seed gives the same test.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
