//! Short ways to write ids, jobs and outputs in tests. A job `gcc` is the derivation `000…0-gcc.drv`, so ties are broken by name.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::worker::Offer;
use kiln_wire::{
    Blake3Hash, Blob, BuiltOutput, DerivedInput, DrvPath, Failure, FailureClass, JobKind, JobLimits, JobSpec, Outcome, OutputName,
    PathInfo, Resources, Root, Sha256Hash, StorePath, Usage, WorkerId,
};

/// The hash part of every path in tests.
pub const HASH: &str = "00000000000000000000000000000000-";

pub fn drv(name: &str) -> DrvPath {
    DrvPath::parse(&format!("{HASH}{name}.drv")).expect("test names are valid")
}

pub fn worker(name: &str) -> WorkerId {
    WorkerId::parse(name).expect("test names are valid")
}

pub fn output_name(name: &str) -> OutputName {
    OutputName::parse(name).expect("test names are valid")
}

pub fn output_path(job: &str, output: &str) -> StorePath {
    let suffix = if output == "out" { String::new() } else { format!("-{output}") };
    StorePath::parse(&format!("{HASH}{job}{suffix}")).expect("test names are valid")
}

pub fn offer(slots: u32) -> Offer {
    Offer {
        systems: BTreeSet::from(["x86_64-linux".to_owned()]),
        features: BTreeSet::new(),
        capacity: Resources { cores: slots, memory_mib: 8192 },
        slots,
        guarantees: BTreeMap::new(),
        ..Offer::default()
    }
}

/// Returns an ordinary job with one output, one core and no memory request.
pub fn spec(name: &str, inputs: &[&str]) -> JobSpec {
    JobSpec {
        derivation: drv(name),
        system: "x86_64-linux".to_owned(),
        required_features: BTreeSet::new(),
        outputs: BTreeMap::from([(output_name("out"), Some(output_path(name, "out")))]),
        inputs: inputs.iter().map(|input| DerivedInput { derivation: drv(input), outputs: [output_name("out")].into() }).collect(),
        kind: JobKind::Ordinary,
        prefer_local: false,
        resources: Resources { cores: 1, memory_mib: 0 },
        limits: JobLimits::default(),
        resolve: false,
    }
}

pub fn root(name: &str) -> Root {
    Root { derivation: drv(name), outputs: BTreeSet::new() }
}

/// Returns facts about an output whose content is told apart by `content`.
pub fn info(path: StorePath, content: u8) -> PathInfo {
    PathInfo {
        path,
        nar_hash: Sha256Hash([content; 32]),
        nar_size_bytes: 100,
        references: BTreeSet::new(),
        deriver: None,
        content_address: None,
        blob: Blob { size_bytes: 50, blake3: Blake3Hash([content; 32]), sha256: Sha256Hash([content; 32]) },
    }
}

/// Returns a success with the outputs that `spec` declares.
pub fn built(spec: &JobSpec, content: u8) -> Outcome {
    let outputs = spec.outputs.iter().map(|(name, path)| {
        let path = path.clone().unwrap_or_else(|| output_path(spec.derivation.name(), name.as_str()));
        BuiltOutput { name: name.clone(), info: info(path, content) }
    });
    Outcome::Built { outputs: outputs.collect(), usage: Usage { wall_ms: 10, ..Usage::default() } }
}

pub fn failed(class: FailureClass, message: &str, memory_peak_mib: u64) -> Outcome {
    let usage = Usage { memory_peak_bytes: memory_peak_mib << 20, ..Usage::default() };
    Outcome::Failed { failure: Failure { class, message: message.to_owned() }, usage }
}

/// A seeded sequence of numbers (splitmix64, Steele, Lea, Flood 2014): the same seed gives the same test.
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Returns true once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let at = self.below(u64::try_from(items.len()).expect("small"));
        items.get(usize::try_from(at).expect("small"))
    }
}
