//! What a replay runs: the jobs of real graphs, who asked for them and when.
//!
//! Reads graphs; durations and sizes come from [`super::draws`]. Invariant: inputs have lower numbers than what needs them, so that number
//! order is topological.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::Path;

use kiln_nix::graph_file::{self, Graph};
use kiln_wire::{DrvPath, JobKind, JobSpec, StorePath};

/// A job's number in its workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobNo(pub u32);

impl JobNo {
    /// Returns its place in [`Workload::tasks`].
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

/// Where a job's duration comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Fixed-output: a download.
    Fetch,
    /// `preferLocalBuild`: a text, a link farm, a file of configuration.
    Text,
    /// `big-parallel`.
    Giant,
    /// Anything else.
    Ordinary,
}

/// What a worker must have. Soft features do not count: see [`FEATURES_SOFT`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    /// The platform, or `builtin`.
    pub system: String,
    /// Hard features.
    pub features: BTreeSet<String>,
}

/// One job of a replay.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// As the farm gets it.
    pub spec: JobSpec,
    /// All lower than its own number.
    pub inputs: Vec<JobNo>,
    /// Who needs it.
    pub dependents: Vec<JobNo>,
    pub kind: Kind,
    /// Its place in [`Workload::classes`].
    pub class: usize,
    /// Its place in [`Workload::submissions`].
    pub submission: usize,
    /// From the start of its builder to its end.
    pub duration_ms: u64,
    /// What is known of that before; none if nothing is.
    pub estimate_ms: Option<u64>,
    /// That, or a guess.
    pub expected_ms: u64,
    /// Of all its outputs.
    pub output_bytes: u64,
}

impl Task {
    /// Returns the derivation's name.
    pub fn name(&self) -> &str {
        self.spec.derivation.name()
    }
}

/// What somebody asked for at once.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    pub name: String,
    /// Since the start of the replay.
    pub at_ms: u64,
    /// Whose it is, as the farm hears.
    pub tenant: String,
    /// Its share of the fleet, beside that of other tenants.
    pub weight: u32,
    pub jobs: std::ops::Range<u32>,
}

/// How a submission is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub name: &'a str,
    /// Since the start of the replay.
    pub at_ms: u64,
    /// Whose it is.
    pub tenant: &'a str,
    pub weight: u32,
}

/// Everything that a replay runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workload {
    pub tasks: Vec<Task>,
    pub classes: Vec<Class>,
    pub submissions: Vec<Submission>,
}

impl Workload {
    /// Adds a submission: a copy of a graph for each salt. Copies with different salts share no derivation.
    pub fn add(&mut self, graph: &Graph, salts: std::ops::Range<u32>, asked: Asked<'_>) {
        let first = self.count();
        let submission = self.submissions.len();
        for salt in salts {
            self.add_copy(graph, salt, submission);
        }
        let Asked { name, at_ms, tenant, weight } = asked;
        self.submissions.push(Submission { name: name.to_owned(), at_ms, tenant: tenant.to_owned(), weight, jobs: first..self.count() });
    }

    fn add_copy(&mut self, graph: &Graph, salt: u32, submission: usize) {
        let mut known: BTreeMap<&DrvPath, JobNo> = BTreeMap::new();
        for (number, job) in (self.count()..).map(JobNo).zip(&graph.jobs) {
            let mut inputs: Vec<JobNo> = job.inputs.iter().map(|input| known[&input.derivation]).collect();
            inputs.sort_unstable();
            inputs.dedup();
            for input in &inputs {
                self.tasks[input.at()].dependents.push(number);
            }
            known.insert(&job.derivation, number);
            let class = self.class(job);
            self.tasks.push(Task {
                spec: salted(job, salt),
                inputs,
                dependents: Vec::new(),
                kind: kind(job),
                class,
                submission,
                duration_ms: 0,
                estimate_ms: None,
                expected_ms: 0,
                output_bytes: 0,
            });
        }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.tasks.len()).expect("a workload has fewer than 2^32 jobs")
    }

    /// Returns the numbers of all jobs, inputs first.
    pub fn numbers(&self) -> impl DoubleEndedIterator<Item = JobNo> + use<> {
        (0..self.count()).map(JobNo)
    }

    /// Returns a job.
    pub fn task(&self, job: JobNo) -> &Task {
        &self.tasks[job.at()]
    }

    /// Returns how many edges the graph has.
    pub fn edges(&self) -> usize {
        self.tasks.iter().map(|task| task.inputs.len()).sum()
    }

    /// Returns when a job is asked for.
    pub fn asked_ms(&self, job: JobNo) -> u64 {
        self.submissions[self.task(job).submission].at_ms
    }

    fn class(&mut self, job: &JobSpec) -> usize {
        let class = Class { system: job.system.clone(), features: hard(&job.required_features) };
        let known = self.classes.iter().position(|other| *other == class);
        known.unwrap_or_else(|| {
            self.classes.push(class);
            self.classes.len() - 1
        })
    }
}

/// Features that say how large a machine suits, not what it must have.
const FEATURES_SOFT: [&str; 1] = ["big-parallel"];

/// Reads a graph: lines of JSON, compressed with zstd if the name ends in `.zst`.
///
/// # Errors
/// Says which file, and what is wrong with it.
pub(crate) fn read(file: &Path) -> Result<Graph, String> {
    let explain = |err: &dyn std::fmt::Display| format!("read graph {}: {err}", file.display());
    let open = std::fs::File::open(file).map_err(|err| explain(&err))?;
    if file.extension().is_some_and(|extension| extension == "zst") {
        let lines = zstd::Decoder::new(open).map_err(|err| explain(&err))?;
        return graph_file::read(BufReader::new(lines)).map_err(|err| explain(&err));
    }
    graph_file::read(BufReader::new(open)).map_err(|err| explain(&err))
}

fn hard(features: &BTreeSet<String>) -> BTreeSet<String> {
    features.iter().filter(|feature| !FEATURES_SOFT.contains(&feature.as_str())).cloned().collect()
}

fn kind(job: &JobSpec) -> Kind {
    match job.kind {
        JobKind::Builtin | JobKind::FixedOutput => Kind::Fetch,
        JobKind::Ordinary if job.required_features.contains("big-parallel") => Kind::Giant,
        JobKind::Ordinary if job.prefer_local => Kind::Text,
        JobKind::Ordinary => Kind::Ordinary,
    }
}

/// Returns the job as another one with the same name: every hash in it is changed.
fn salted(job: &JobSpec, salt: u32) -> JobSpec {
    if salt == 0 {
        return job.clone();
    }
    let mut job = job.clone();
    job.derivation = salted_drv(&job.derivation, salt);
    for input in &mut job.inputs {
        input.derivation = salted_drv(&input.derivation, salt);
    }
    for path in job.outputs.values_mut().flatten() {
        *path = StorePath::parse(&salted_name(path.as_str(), salt)).expect("a changed hash is a hash");
    }
    job
}

fn salted_drv(path: &DrvPath, salt: u32) -> DrvPath {
    DrvPath::parse(&salted_name(path.as_str(), salt)).expect("a changed hash is a hash")
}

/// Turns the first eight letters, each by as many places as a digit of the salt says in base 32.
fn salted_name(name: &str, salt: u32) -> String {
    const LETTERS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let digits = (0..8).map(|place| (u64::from(salt) >> (5 * place)) as usize % 32);
    let turned = name.bytes().zip(digits).map(|(letter, digit)| {
        let at = LETTERS.iter().position(|other| *other == letter).expect("a hash is in base 32");
        char::from(LETTERS[(at + digit) % 32])
    });
    turned.chain(name.chars().skip(8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_salts_give_one_name() {
        let name = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv";
        let names: BTreeSet<String> = (0..1025).chain([u32::MAX]).map(|salt| salted_name(name, salt)).collect();
        assert_eq!((names.len(), names.contains(name)), (1026, true));
        assert!(names.iter().all(|name| DrvPath::parse(name).is_ok()));
    }
}
