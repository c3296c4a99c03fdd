//! Shapes of work: recorded graphs, and plain ones that isolate one cost. Names, platforms, features, outputs and edges; no recipes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::Context;
use kiln_nix::graph_file;
use kiln_wire::{DrvPath, JobKind, JobSpec, OutputName};

/// One derivation of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, cut to what the tests' S3 server can name a file.
    pub name: String,
    /// The platform it wants.
    pub system: String,
    /// Features that its worker must have.
    pub features: BTreeSet<String>,
    /// What it makes.
    pub outputs: BTreeSet<OutputName>,
    /// What it needs: places of nodes before it, and which of their outputs.
    pub inputs: BTreeMap<usize, BTreeSet<OutputName>>,
    /// Whether it is fetched, and by what.
    pub kind: JobKind,
    /// Whether it asks to be built near its client.
    pub prefer_local: bool,
    /// Whether it uses several processors.
    pub parallel: bool,
}

/// Work to be done, inputs before what needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What people call it.
    pub name: String,
    /// The derivations.
    pub nodes: Vec<Node>,
}

impl Shape {
    /// Makes derivations that need nothing of each other.
    pub fn wide(count: usize) -> Self {
        Self { name: format!("{count} independent"), nodes: (0..count).map(|at| plain(format!("wide-{at}"), BTreeMap::new())).collect() }
    }

    /// Makes chains of derivations, each of which needs the one before it.
    pub fn chains(chains: usize, length: usize) -> Self {
        let node = |at: usize| {
            let before = at.checked_sub(chains).map(|before| (before, BTreeSet::from([out()])));
            plain(format!("chain-{}-{}", at % chains, at / chains), before.into_iter().collect())
        };
        Self { name: format!("{chains} chains of {length}"), nodes: (0..chains * length).map(node).collect() }
    }

    /// Reads a recorded graph, `NAME.jsonl.zst`. With `count` it is repeated, or cut, until there are that many derivations.
    ///
    /// # Errors
    /// The file, and what is wrong with it.
    pub fn read(file: &Path, count: Option<usize>) -> anyhow::Result<Self> {
        let named = || format!("read graph `{}`", file.display());
        let text = zstd::Decoder::new(File::open(file).with_context(named)?).with_context(named)?;
        let graph = graph_file::read(BufReader::new(text)).with_context(named)?;
        let count = count.unwrap_or(graph.jobs.len());
        let places: BTreeMap<&DrvPath, usize> = graph.jobs.iter().enumerate().map(|(at, job)| (&job.derivation, at)).collect();
        let mut nodes = Vec::with_capacity(count);
        while nodes.len() < count && !graph.jobs.is_empty() {
            let first = nodes.len();
            nodes.extend(graph.jobs.iter().take(count - first).map(|job| recorded(job, &places, first)));
        }
        Ok(Self { name: graph.name, nodes })
    }

    /// Returns the platforms and the features that workers need to run all of it.
    pub fn needs(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let systems = self.nodes.iter().map(|node| node.system.clone()).collect();
        (systems, self.nodes.iter().flat_map(|node| node.features.clone()).collect())
    }
}

fn recorded(job: &JobSpec, places: &BTreeMap<&DrvPath, usize>, first: usize) -> Node {
    let name = job.derivation.name().trim_end_matches(".drv");
    Node {
        name: name.get(..NAME_BYTES_MAX).unwrap_or(name).to_owned(),
        system: job.system.clone(),
        features: job.required_features.clone(),
        outputs: job.outputs.keys().cloned().collect(),
        inputs: job.inputs.iter().map(|input| (first + places[&input.derivation], input.outputs.clone().into())).collect(),
        kind: job.kind,
        prefer_local: job.prefer_local,
        parallel: job.resources.cores > 1,
    }
}

fn plain(name: String, inputs: BTreeMap<usize, BTreeSet<OutputName>>) -> Node {
    Node {
        name,
        system: SYSTEM.to_owned(),
        features: BTreeSet::new(),
        outputs: BTreeSet::from([out()]),
        inputs,
        kind: JobKind::Ordinary,
        prefer_local: false,
        parallel: false,
    }
}

fn out() -> OutputName {
    OutputName::parse("out").expect("`out` is a name")
}

/// What plain derivations want to run on.
const SYSTEM: &str = "x86_64-linux";
/// Names that are longer are cut here, as in `kiln-faults`.
const NAME_BYTES_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_need_what_is_one_row_before() {
        let shape = Shape::chains(3, 2);
        let inputs: Vec<Vec<usize>> = shape.nodes.iter().map(|node| node.inputs.keys().copied().collect()).collect();
        assert_eq!(inputs, [vec![], vec![], vec![], vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn a_recorded_graph_is_repeated_until_there_is_enough_of_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("g.jsonl.zst");
        let text = r#"{"meta":{"graph":"g","derivations":2,"edges":1,"roots":{"a":1}}}
{"id":0,"name":"low","hash":"0hm2f1psjpcwg8fijsmr4wwxrx59s092","system":"builtin","builder":"builtin:fetchurl","outputs":["out"],"fod":true,"inputs":[]}
{"id":1,"name":"top","hash":"1hm2f1psjpcwg8fijsmr4wwxrx59s092","system":"x","builder":"b","outputs":["out"],"features":["kvm"],"inputs":[0]}
"#;
        std::fs::write(&file, zstd::encode_all(text.as_bytes(), 1).expect("compressed")).expect("written");
        let shape = Shape::read(&file, Some(5)).expect("a graph");
        let inputs: Vec<Vec<usize>> = shape.nodes.iter().map(|node| node.inputs.keys().copied().collect()).collect();
        assert_eq!(inputs, [vec![], vec![0], vec![], vec![2], vec![]]);
        assert_eq!(shape.nodes[0].kind, JobKind::Builtin);
        let strings = |names: [&str; 2]| names.map(str::to_owned).into();
        assert_eq!(shape.needs(), (strings(["builtin", "x"]), BTreeSet::from(["kvm".to_owned()])));
    }
}
