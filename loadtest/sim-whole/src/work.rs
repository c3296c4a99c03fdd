//! What is built: a graph of small derivations whose outputs are known in advance, so that workers need no sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_nix::derivation::{Derivation, InputOutputs, Output, path_of_parsed};
use kiln_nix::modulo::Modulo;
use kiln_nix::scan::Candidates;
use kiln_store::{BlobBytes, Packer};
use kiln_wire::client::DerivationFile;
use kiln_wire::{BuiltOutput, DrvPath, OutputName, Root, StoreDir, StorePath};

use crate::entropy::draw;

/// One derivation and what building it makes.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its file.
    pub file: DerivationFile,
    /// What comes out.
    pub output: BuiltOutput,
    /// The packed bytes of that.
    pub blob: Vec<u8>,
    /// How long it takes.
    pub build_ms: u64,
}

/// A graph, inputs before those that need them.
#[derive(Clone, Debug)]
pub struct Graph {
    /// By path.
    pub jobs: Arc<BTreeMap<DrvPath, Job>>,
    /// In order.
    pub order: Vec<DrvPath>,
    /// What nobody else needs.
    pub roots: Vec<Root>,
}

/// Draws a graph of so many jobs; each needs up to two earlier ones.
pub fn graph(count: u64) -> Graph {
    let store_dir = StoreDir::default();
    let out = OutputName::parse("out").expect("a name");
    let mut modulo = Modulo::new(store_dir.clone());
    let mut jobs: BTreeMap<DrvPath, Job> = BTreeMap::new();
    let mut order: Vec<DrvPath> = Vec::new();
    let mut needed = BTreeSet::new();
    for number in 0..count {
        let wanted: BTreeSet<DrvPath> =
            (0..draw(3).min(number)).map(|_| order[usize::try_from(draw(number)).expect("small")].clone()).collect();
        needed.extend(wanted.iter().cloned());
        let inputs =
            wanted.into_iter().map(|input| (input, InputOutputs { outputs: [out.clone()].into(), ..InputOutputs::default() })).collect();
        let (path, bytes, output) = derivation(&store_dir, &mut modulo, &format!("job-{number}"), &out, inputs);
        let (output, blob) = built(&path, output, path.as_str().as_bytes());
        let job = Job { file: DerivationFile { path: path.clone(), bytes }, output, blob, build_ms: 50 + draw(1500) };
        jobs.insert(path.clone(), job);
        order.push(path);
    }
    let roots = order.iter().filter(|path| !needed.contains(*path)).cloned();
    let roots = roots.map(|derivation| Root { derivation, outputs: Default::default() }).collect();
    Graph { jobs: Arc::new(jobs), order, roots }
}

/// Packs what is built for a derivation.
pub fn built(path: &DrvPath, output: StorePath, content: &[u8]) -> (BuiltOutput, Vec<u8>) {
    let packer = Packer { level: 1, spool_dir: std::env::temp_dir() };
    let packed = packer.pack_file(path.name(), content, &Candidates::new([])).expect("packs");
    let info = packed.path_info(output, Some(path.clone()), None);
    let blob = match packed.spool.into_bytes() {
        BlobBytes::Memory(bytes) => bytes.to_vec(),
        BlobBytes::File(_) => unreachable!("a file of a hundred bytes stays in memory"),
    };
    (BuiltOutput { name: OutputName::parse("out").expect("a name"), info }, blob)
}

/// Makes a derivation whose output path follows from its content.
fn derivation(
    store_dir: &StoreDir,
    modulo: &mut Modulo,
    name: &str,
    out: &OutputName,
    inputs: BTreeMap<DrvPath, InputOutputs>,
) -> (DrvPath, Vec<u8>, StorePath) {
    let with_output = |output: &StorePath| Derivation {
        name: name.into(),
        outputs: [(out.clone(), Output::InputAddressed(output.clone()))].into(),
        inputs: inputs.clone(),
        sources: BTreeSet::new(),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec!["-c".into(), format!("echo {name} > $out")],
        env: [("out".to_owned(), store_dir.join(output).into_bytes())].into(),
    };
    let any = StorePath::parse(&format!("{}-{name}", "0".repeat(32))).expect("a path");
    let draft = with_output(&any);
    let bytes = draft.print(store_dir);
    let draft_path = path_of_parsed(store_dir, &draft, &bytes).expect("a path");
    let computed = modulo.add(&draft_path, &draft).expect("its inputs are known");
    let output = computed.outputs[out].clone().expect("an input-addressed output");
    let real = with_output(&output);
    let bytes = real.print(store_dir);
    let path = path_of_parsed(store_dir, &real, &bytes).expect("a path");
    modulo.add(&path, &real).expect("its inputs are known");
    (path, bytes, output)
}
