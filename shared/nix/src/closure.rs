//! The derivations that roots need, read through a function of the caller's, in an order in which inputs come first.
//!
//! Never recurs over the graph. Checks that each file has the path that follows from its bytes; [`Closure::check_outputs`] checks
//! output paths. Does not know which outputs are built already.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kiln_wire::limits::JOBS_PER_SUBMISSION_MAX;
use kiln_wire::{DrvPath, JobSpec, StoreDir};

use crate::derivation::{Derivation, DerivationError, path_of_parsed};
use crate::job::{self, JobError};
use crate::modulo::{Modulo, ModuloError, OutputMismatch};
use crate::outline::Outline;

/// Derivations, inputs before what needs them.
#[derive(Clone, Debug)]
pub struct Closure {
    store_dir: StoreDir,
    derivations: Vec<(DrvPath, Derivation)>,
}

/// Why a closure could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError<E: std::error::Error + 'static> {
    /// The caller's function failed.
    #[error("read derivation `{path}`")]
    Read {
        /// Which file.
        path: DrvPath,
        /// Why.
        #[source]
        err: E,
    },
    /// A file is no derivation.
    #[error("read derivation `{path}`")]
    Parse {
        /// Which file.
        path: DrvPath,
        /// Why.
        #[source]
        err: DerivationError,
    },
    /// A file has another path than its bytes say.
    #[error("read derivation `{path}`: its content belongs at `{computed}`")]
    WrongPath {
        /// Where it was.
        path: DrvPath,
        /// Where it belongs.
        computed: DrvPath,
    },
    /// Derivations that others need are not there.
    #[error("load closure: {} derivations are missing, the first is `{}`", .paths.len(), .paths.first().map_or("", |path| path.as_str()))]
    Missing {
        /// All of them, in order of path.
        paths: Vec<DrvPath>,
    },
    /// Derivations need each other. Only a store whose paths do not follow from content can hold such files.
    #[error("load closure: derivations need each other: {}", .path.iter().map(|path| path.as_str()).collect::<Vec<_>>().join(" needs "))]
    Cycle {
        /// The cycle: each needs the next; the last equals the first.
        path: Vec<DrvPath>,
    },
    /// More derivations than one submission may have.
    #[error("load closure: it has more than {JOBS_PER_SUBMISSION_MAX} derivations; submit parts of it")]
    TooMany,
}

impl Closure {
    /// Loads every derivation that `roots` need. `read` returns a file's bytes, or `None` if there is no such file.
    /// O(bytes + edges); everything is held in memory.
    ///
    /// # Errors
    /// [`ClosureError`]; what is missing is listed whole, of cycles one is named.
    pub fn load<E, B>(
        store_dir: &StoreDir,
        roots: impl IntoIterator<Item = DrvPath>,
        mut read: impl FnMut(&DrvPath) -> Result<Option<B>, E>,
    ) -> Result<Self, ClosureError<E>>
    where
        E: std::error::Error + 'static,
        B: AsRef<[u8]>,
    {
        let mut found: HashMap<DrvPath, Derivation> = HashMap::new();
        let mut seen: BTreeSet<DrvPath> = roots.into_iter().collect();
        let mut left: Vec<DrvPath> = seen.iter().cloned().collect();
        let mut missing = Vec::new();
        while let Some(path) = left.pop() {
            let Some(bytes) = read(&path).map_err(|err| ClosureError::Read { path: path.clone(), err })? else {
                missing.push(path);
                continue;
            };
            let derivation = parse_at(store_dir, &path, bytes.as_ref())?;
            for input in derivation.inputs.keys() {
                if !seen.contains(input) {
                    seen.insert(input.clone());
                    left.push(input.clone());
                }
            }
            if seen.len() > JOBS_PER_SUBMISSION_MAX {
                return Err(ClosureError::TooMany);
            }
            found.insert(path, derivation);
        }
        if !missing.is_empty() {
            missing.sort();
            return Err(ClosureError::Missing { paths: missing });
        }
        let order = sorted(&found).map_err(|path| ClosureError::Cycle { path })?;
        let mut take = |path: DrvPath| found.remove(&path).map(|derivation| (path, derivation));
        Ok(Self { store_dir: store_dir.clone(), derivations: order.into_iter().filter_map(&mut take).collect() })
    }

    /// Returns the derivations, inputs first; ties in order of path.
    pub fn derivations(&self) -> &[(DrvPath, Derivation)] {
        &self.derivations
    }

    /// Recomputes every output path from content and returns those that differ from what the derivation says, inputs first.
    /// Also returns the hashes, for who wants to add more.
    ///
    /// # Errors
    /// [`ModuloError`] if a derivation has outputs that Nix would not build.
    pub fn check_outputs(&self) -> Result<(Modulo, Vec<OutputMismatch>), ModuloError> {
        let mut modulo = Modulo::new(self.store_dir.clone());
        let mut wrong = Vec::new();
        for (path, derivation) in &self.derivations {
            wrong.extend(modulo.check_outputs(path, derivation)?);
        }
        Ok((modulo, wrong))
    }

    /// Returns one job for each derivation, inputs first, with all of its inputs.
    ///
    /// # Errors
    /// [`JobError`] names the first derivation that the farm cannot build, and why.
    pub fn jobs(&self) -> Result<Vec<JobSpec>, JobError> {
        let all: HashMap<&DrvPath, Outline> = self.derivations.iter().map(|(path, derivation)| (path, Outline::of(derivation))).collect();
        self.derivations.iter().map(|(path, _)| job::spec(path, &all[path], |input| all.get(input))).collect()
    }
}

fn parse_at<E: std::error::Error>(store_dir: &StoreDir, path: &DrvPath, bytes: &[u8]) -> Result<Derivation, ClosureError<E>> {
    let refuse = |err| ClosureError::Parse { path: path.clone(), err };
    let derivation = Derivation::parse_canonical(store_dir, path.name(), bytes).map_err(refuse)?;
    let computed = path_of_parsed(store_dir, &derivation, bytes).map_err(refuse)?;
    if computed != *path {
        return Err(ClosureError::WrongPath { path: path.clone(), computed });
    }
    Ok(derivation)
}

/// Returns the paths with inputs first, or one cycle. Source: Kahn 1962.
fn sorted(found: &HashMap<DrvPath, Derivation>) -> Result<Vec<DrvPath>, Vec<DrvPath>> {
    let mut waits: HashMap<&DrvPath, usize> = HashMap::with_capacity(found.len());
    let mut dependents: HashMap<&DrvPath, Vec<&DrvPath>> = HashMap::with_capacity(found.len());
    for (path, derivation) in found {
        waits.insert(path, derivation.inputs.len());
        for input in derivation.inputs.keys() {
            dependents.entry(input).or_default().push(path);
        }
    }
    let mut ready: BTreeSet<&DrvPath> = waits.iter().filter(|(_, left)| **left == 0).map(|(path, _)| *path).collect();
    let mut order = Vec::with_capacity(found.len());
    while let Some(path) = ready.pop_first() {
        order.push(path.clone());
        for dependent in dependents.get(path).into_iter().flatten() {
            let left = waits.get_mut(dependent).expect("every derivation has a count");
            *left -= 1;
            if *left == 0 {
                ready.insert(dependent);
            }
        }
    }
    if order.len() == found.len() { Ok(order) } else { Err(one_cycle(found, &waits)) }
}

/// Everything that still waits lies on a cycle or needs one, so following waiting inputs must come back to a path.
fn one_cycle(found: &HashMap<DrvPath, Derivation>, waits: &HashMap<&DrvPath, usize>) -> Vec<DrvPath> {
    let waiting = |path: &DrvPath| waits.get(path).is_some_and(|left| *left > 0);
    let mut place: BTreeMap<&DrvPath, usize> = BTreeMap::new();
    let mut walk: Vec<&DrvPath> = Vec::new();
    let mut next = found.keys().filter(|path| waiting(path)).min();
    while let Some(path) = next {
        if let Some(start) = place.get(path) {
            return walk[*start..].iter().copied().chain([path]).cloned().collect();
        }
        place.insert(path, walk.len());
        walk.push(path);
        next = found[path].inputs.keys().find(|input| waiting(input));
    }
    walk.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kiln_wire::OutputName;

    use super::*;
    use crate::derivation::InputOutputs;

    fn path(letter: char) -> DrvPath {
        DrvPath::parse(&format!("{}-{letter}.drv", letter.to_string().repeat(32))).expect("a derivation's path")
    }

    /// `"a→b c"`: a needs b and c.
    fn graph(text: &str) -> HashMap<DrvPath, Derivation> {
        let mut found = HashMap::new();
        for (name, needs) in text.split(';').filter_map(|part| part.trim().split_once('→')) {
            let out = OutputName::parse("out").expect("a name");
            let wanted = InputOutputs { outputs: BTreeSet::from([out]), dynamic: BTreeMap::new() };
            let letters = needs.split_whitespace().flat_map(str::chars);
            let derivation = Derivation {
                name: name.to_owned(),
                outputs: BTreeMap::new(),
                inputs: letters.map(|letter| (path(letter), wanted.clone())).collect(),
                sources: BTreeSet::new(),
                system: String::new(),
                builder: String::new(),
                args: Vec::new(),
                env: BTreeMap::new(),
            };
            found.insert(path(name.chars().next().expect("a letter")), derivation);
        }
        found
    }

    #[test]
    fn inputs_come_first_and_a_cycle_is_named_first_edge_first() {
        let table = [
            ("", Ok("")),
            ("a→", Ok("a")),
            ("a→b; b→c; c→", Ok("cba")),
            ("a→; b→; c→a b", Ok("abc")),
            ("d→b c; b→a; c→a; a→", Ok("abcd")),
            ("a→a", Err("aa")),
            ("a→b; b→a", Err("aba")),
            ("a→b; b→c; c→b; d→", Err("bcb")),
            ("a→d b; b→c; c→a; d→", Err("abca")),
        ];
        for (text, want) in table {
            let letters = |paths: Vec<DrvPath>| paths.iter().map(DrvPath::name).collect::<String>();
            let order = sorted(&graph(text)).map(letters).map_err(letters);
            assert_eq!(order.as_deref().map_err(String::as_str), want, "{text}");
        }
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_needs_no_stack() {
        let path = |number: usize| DrvPath::parse(&format!("{}-{number}.drv", "0".repeat(32))).expect("a derivation's path");
        let template = graph("a→b").into_values().next().expect("one");
        let wanted = template.inputs.values().next().expect("one input").clone();
        let node = |number: usize| {
            let inputs = if number == 0 { BTreeMap::new() } else { BTreeMap::from([(path(number - 1), wanted.clone())]) };
            (path(number), Derivation { inputs, ..template.clone() })
        };
        let order = sorted(&(0..100_000).map(node).collect()).expect("no cycle");
        assert_eq!((order.first(), order.last()), (Some(&path(0)), Some(&path(99_999))));
    }

    #[test]
    fn a_reader_that_fails_is_named_with_its_path() {
        let failed = Closure::load(&StoreDir::default(), [path('a')], |_| Err::<Option<Vec<u8>>, _>(std::io::Error::other("no disk")));
        let err = failed.expect_err("the reader failed");
        assert!(matches!(&err, ClosureError::Read { path: at, .. } if *at == path('a')), "{err}");
        let nothing = Closure::load(&StoreDir::default(), [path('b'), path('a')], |_| Ok::<Option<Vec<u8>>, Infallible>(None));
        assert!(matches!(nothing, Err(ClosureError::Missing { paths }) if paths == [path('a'), path('b')]));
    }
}
