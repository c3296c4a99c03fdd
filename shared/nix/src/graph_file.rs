//! Dependency graphs kept as JSON lines: a `meta` line, then one derivation a line, inputs before what needs them. Benchmarks,
//! simulations and tests feed real graphs to the planner with it; no derivation is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use kiln_wire::limits::JOBS_PER_SUBMISSION_MAX;
use kiln_wire::{DerivedInput, DrvPath, JobKind, JobLimits, JobSpec, OutputName, OutputNames, Resources, StorePath};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::hash::nix32;
use crate::job::{CORES_PARALLEL, CORES_SERIAL};

/// A graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// Its name.
    pub name: String,
    /// Its derivations, inputs first.
    pub jobs: Vec<JobSpec>,
    /// What people asked for, by the name they used.
    pub roots: BTreeMap<String, DrvPath>,
}

/// Why a graph cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The reader failed.
    #[error("read graph, line {line}")]
    Read {
        /// Counted from 1.
        line: usize,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("read graph, line {line}: {rule}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        rule: String,
    },
}

#[derive(Deserialize)]
struct Head {
    meta: Meta,
}

#[derive(Deserialize)]
struct Meta {
    graph: String,
    derivations: usize,
    edges: usize,
    #[serde(default)]
    roots: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Node {
    id: usize,
    name: String,
    hash: String,
    system: String,
    builder: String,
    outputs: Vec<OutputName>,
    inputs: Vec<usize>,
    #[serde(default)]
    input_outputs: BTreeMap<String, OutputNames>,
    #[serde(default)]
    fod: bool,
    #[serde(default)]
    features: BTreeSet<String>,
    #[serde(default)]
    prefer_local: bool,
    #[serde(default)]
    parallel: bool,
}

/// Reads a graph. Output paths, which such files lack, are made up from the derivation's path and the output's name.
///
/// # Errors
/// [`GraphError`] names the line.
pub fn read(lines: impl BufRead) -> Result<Graph, GraphError> {
    let mut meta = None;
    let mut jobs: Vec<JobSpec> = Vec::new();
    let mut edges = 0;
    for (number, text) in (1..).zip(lines.lines()) {
        let text = text.map_err(|err| GraphError::Read { line: number, err })?;
        let refuse = |rule: String| GraphError::Line { line: number, rule };
        if meta.is_none() {
            meta = Some(serde_json::from_str::<Head>(&text).map_err(|err| refuse(err.to_string()))?.meta);
            continue;
        }
        let node: Node = serde_json::from_str(&text).map_err(|err| refuse(err.to_string()))?;
        edges += node.inputs.len();
        if jobs.len() == JOBS_PER_SUBMISSION_MAX {
            return Err(refuse(format!("more than {JOBS_PER_SUBMISSION_MAX} derivations")));
        }
        jobs.push(job(&node, &jobs).map_err(refuse)?);
    }
    let end = |rule: String| GraphError::Line { line: jobs.len() + 2, rule };
    let meta = meta.ok_or_else(|| end("the `meta` line is missing".to_owned()))?;
    if (jobs.len(), edges) != (meta.derivations, meta.edges) {
        return Err(end(format!(
            "has {} derivations and {edges} edges, its head says {} and {}",
            jobs.len(),
            meta.derivations,
            meta.edges
        )));
    }
    let root = |(name, id): (String, usize)| match jobs.get(id) {
        Some(job) => Ok((name, job.derivation.clone())),
        None => Err(end(format!("root `{name}` is derivation {id}, which is not there"))),
    };
    let roots = meta.roots.into_iter().map(root).collect::<Result<_, _>>()?;
    Ok(Graph { name: meta.graph, jobs, roots })
}

fn job(node: &Node, before: &[JobSpec]) -> Result<JobSpec, String> {
    if node.id != before.len() {
        return Err(format!("has id {}, want {}", node.id, before.len()));
    }
    let derivation = DrvPath::parse(&format!("{}-{}.drv", node.hash, node.name)).map_err(|err| err.to_string())?;
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for id in &node.inputs {
        let input = before.get(*id).ok_or_else(|| format!("input {id} does not come before it"))?;
        let wanted = match node.input_outputs.get(&id.to_string()) {
            Some(outputs) => outputs.clone(),
            None => OutputNames::from([OutputName::parse("out").expect("`out` is a name")]),
        };
        inputs.push(DerivedInput { derivation: input.derivation.clone(), outputs: wanted });
    }
    let outputs = node.outputs.iter().map(|output| Ok((output.clone(), Some(stand_in(&derivation, output)?))));
    Ok(JobSpec {
        system: node.system.clone(),
        required_features: node.features.clone(),
        outputs: outputs.collect::<Result<_, String>>()?,
        inputs,
        kind: match (node.builder.starts_with("builtin:"), node.fod) {
            (true, _) => JobKind::Builtin,
            (false, true) => JobKind::FixedOutput,
            (false, false) => JobKind::Ordinary,
        },
        prefer_local: node.prefer_local,
        resources: Resources { cores: if node.parallel { CORES_PARALLEL } else { CORES_SERIAL }, memory_mib: 0 },
        limits: JobLimits::default(),
        resolve: false,
        derivation,
    })
}

fn stand_in(derivation: &DrvPath, output: &OutputName) -> Result<StorePath, String> {
    let digest = Sha256::digest(format!("{derivation}!{output}"));
    let suffix = if output.as_str() == "out" { String::new() } else { format!("-{output}") };
    StorePath::parse(&format!("{}-{}{suffix}", nix32(&digest[..20]), derivation.name())).map_err(|err| err.to_string())
}
