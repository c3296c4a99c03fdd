//! Graphs that are made up, for what real ones cannot show: a chain, and the small ones of tests.

use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::graph_file::Graph;
use kiln_wire::{DerivedInput, DrvPath, JobKind, JobLimits, JobSpec, OutputName, Resources, StorePath};

/// Returns a graph whose jobs need the jobs with these numbers, all lower than their own. Job 3 is called `job3`.
pub(crate) fn graph(inputs: &[Vec<usize>]) -> Graph {
    let out = OutputName::parse("out").expect("`out` is a name");
    let derivation = |number: usize| DrvPath::parse(&format!("{}-job{number}.drv", hash(number, '0'))).expect("a derivation's path");
    let job = |(number, inputs): (usize, &Vec<usize>)| JobSpec {
        derivation: derivation(number),
        system: "x86_64-linux".to_owned(),
        required_features: BTreeSet::new(),
        outputs: BTreeMap::from([(
            out.clone(),
            Some(StorePath::parse(&format!("{}-job{number}", hash(number, '1'))).expect("a store path")),
        )]),
        inputs: inputs.iter().map(|input| DerivedInput { derivation: derivation(*input), outputs: [out.clone()].into() }).collect(),
        kind: JobKind::Ordinary,
        prefer_local: false,
        resources: Resources { cores: 1, memory_mib: 0 },
        limits: JobLimits::default(),
        resolve: false,
    };
    Graph { name: "made".to_owned(), jobs: inputs.iter().enumerate().map(job).collect(), roots: BTreeMap::new() }
}

/// Returns a chain.
pub(crate) fn chain(length: usize) -> Graph {
    let inputs: Vec<Vec<usize>> = (0..length).map(|number| number.checked_sub(1).into_iter().collect()).collect();
    graph(&inputs)
}

fn hash(number: usize, kind: char) -> String {
    format!("{kind}{number:0>31}")
}
