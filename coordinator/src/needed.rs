//! What a submission needs built: the part of its closure that nobody has.

use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::{Outline, job};
use kiln_wire::client::Refusal;
use kiln_wire::{DrvPath, JobSpec, OutputName, Root, StorePath};

use crate::driver::Chain;
use crate::drv_closure::DrvClosure;
use crate::refuse;

/// Returns the jobs, inputs first: what the roots need and nobody has; `missing` says which of some paths the store lacks. Below an
/// output that exists nothing is looked at, so the closure is walked from the roots down in waves: those whose users have all been
/// looked at, together. `realised` says where outputs are that have been built, of those whose paths the derivation does not say.
pub(crate) async fn jobs<M, R>(
    closure: &DrvClosure,
    roots: &[Root],
    missing: impl Fn(Vec<StorePath>) -> M,
    realised: impl Fn(Vec<Unknown>) -> R,
) -> Result<Vec<JobSpec>, Refusal>
where
    M: Future<Output = Result<Vec<StorePath>, Refusal>>,
    R: Future<Output = Result<Vec<(Unknown, StorePath)>, Refusal>>,
{
    let mut wanted: BTreeMap<&DrvPath, BTreeSet<OutputName>> = BTreeMap::new();
    for root in roots {
        wanted.entry(&root.derivation).or_default().extend(wanted_outputs(root, &closure.outlines[&root.derivation]));
    }
    let mut users: BTreeMap<&DrvPath, usize> = closure.ordered.iter().map(|path| (path, 0)).collect();
    for input in closure.outlines.values().flat_map(|outline| outline.inputs().map(|(input, _)| input)) {
        *users.entry(input).or_default() += 1;
    }
    let mut wave: Vec<&DrvPath> = closure.ordered.iter().filter(|path| users[*path] == 0).collect();
    let mut jobs = Vec::new();
    while !wave.is_empty() {
        let lacking = lacking(closure, &wave, &wanted, &missing, &realised).await?;
        for path in std::mem::take(&mut wave) {
            let outline = &closure.outlines[path];
            let is_job = lacking.contains(path);
            for (input, needs) in outline.inputs() {
                if is_job {
                    wanted.entry(input).or_default().extend(needs.iter().filter_map(|need| need.output.clone()));
                }
                let left = users.entry(input).or_default();
                *left -= 1;
                if *left == 0 {
                    wave.push(input);
                }
            }
            if is_job {
                jobs.push(
                    job::spec(path, outline, |input| closure.outlines.get(input).map(|input| &**input))
                        .map_err(|error| refuse::invalid(format!("submit: {}", Chain(&error))))?,
                );
            }
        }
    }
    let made: BTreeSet<DrvPath> = jobs.iter().map(|job| job.derivation.clone()).collect();
    for job in &mut jobs {
        job.inputs.retain(|input| made.contains(&input.derivation));
    }
    jobs.reverse();
    Ok(jobs)
}

fn wanted_outputs(root: &Root, outline: &Outline) -> BTreeSet<OutputName> {
    if root.outputs.is_empty() { outline.outputs().iter().map(|(name, _)| name.clone()).collect() } else { root.outputs.clone() }
}

/// An output whose path the derivation does not say.
pub(crate) type Unknown = (DrvPath, OutputName);

/// Returns those of a wave of which an output is wanted that the store lacks, or that nobody can know before the build.
async fn lacking<'a, M, R>(
    closure: &DrvClosure,
    wave: &[&'a DrvPath],
    wanted: &BTreeMap<&DrvPath, BTreeSet<OutputName>>,
    missing: impl Fn(Vec<StorePath>) -> M,
    realised: impl Fn(Vec<Unknown>) -> R,
) -> Result<BTreeSet<&'a DrvPath>, Refusal>
where
    M: Future<Output = Result<Vec<StorePath>, Refusal>>,
    R: Future<Output = Result<Vec<(Unknown, StorePath)>, Refusal>>,
{
    let mut lacking = BTreeSet::new();
    let mut known: Vec<(StorePath, &DrvPath)> = Vec::new();
    let mut unknown: BTreeMap<Unknown, &'a DrvPath> = BTreeMap::new();
    for path in wave {
        let outline = &closure.outlines[*path];
        for name in wanted.get(path).into_iter().flatten() {
            let no_output = || refuse::invalid(format!("submit: `{}` has no output `{name}`, which something wants of it", path.name()));
            match outline.output(name).ok_or_else(no_output)? {
                Some(output) => known.push((output.clone(), path)),
                // Made anew for everybody who asks.
                None if outline.is_impure() => {
                    lacking.insert(*path);
                }
                None => {
                    unknown.insert(((*path).clone(), name.clone()), path);
                }
            }
        }
    }
    if !unknown.is_empty() {
        for (output, at) in realised(unknown.keys().cloned().collect()).await? {
            known.extend(unknown.remove(&output).map(|path| (at, path)));
        }
        lacking.extend(unknown.into_values());
    }
    let missing: BTreeSet<StorePath> = missing(known.iter().map(|(output, _)| output.clone()).collect()).await?.into_iter().collect();
    // Fixed outputs of several derivations may be the same one.
    lacking.extend(known.into_iter().filter(|(output, _)| missing.contains(output)).map(|(_, path)| path));
    Ok(lacking)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use kiln_nix::Derivation;
    use kiln_wire::StoreDir;

    use super::*;

    fn hashed(name: &str) -> String {
        let letter = name.chars().next().expect("a name");
        format!("{}-{name}", letter.to_string().repeat(32))
    }

    fn drv(name: &str) -> DrvPath {
        DrvPath::parse(&format!("{}.drv", hashed(name))).expect("a path")
    }

    /// Returns the output of that name. `source` is fixed: its path follows from its hash and the derivation's name, `f`.
    fn output(name: &str) -> StorePath {
        let text = if name == "source" { "y5r9bgz70pj12fg3cg8rqpwzyll3ab04-f".to_owned() } else { hashed(name) };
        StorePath::parse(&text).expect("a path")
    }

    /// Makes a closure of derivations, inputs first, each with its one output and its inputs.
    fn closure(of: &[(&str, &str, &[&str])]) -> DrvClosure {
        let parsed = |(name, made, inputs): &(&str, &str, &[&str])| {
            let inputs: Vec<String> = inputs.iter().map(|input| format!(r#"("/nix/store/{}",["out"])"#, drv(input))).collect();
            let out = format!("/nix/store/{}", output(made));
            let (name, fixed) = match *made {
                "source" => ("f", format!(r#""sha256","{}""#, "a".repeat(64))),
                _ => (*name, r#""","""#.to_owned()),
            };
            let text =
                format!(r#"Derive([("out","{out}",{fixed})],[{}],[],"x86_64-linux","/bin/sh",[],[("out","{out}")])"#, inputs.join(","));
            Arc::new(Outline::of(&Derivation::parse(&StoreDir::default(), name, text.as_bytes()).expect("parses")))
        };
        DrvClosure {
            ordered: of.iter().map(|(name, ..)| drv(name)).collect(),
            outlines: of.iter().map(|one| (drv(one.0), parsed(one))).collect(),
        }
    }

    #[tokio::test]
    async fn what_the_store_has_is_no_job_and_each_level_of_the_graph_is_one_question() {
        // Two fetches of one file under two derivations, below two libraries, below the root.
        let closure =
            closure(&[("f", "source", &[]), ("g", "source", &[]), ("a", "a", &["f"]), ("b", "b", &["g"]), ("r", "r", &["a", "b"])]);
        let roots = [Root { derivation: drv("r"), outputs: BTreeSet::new() }];
        for (has, expected, questions) in [
            (&[][..], &["a", "b", "f", "g", "r"][..], 3),
            (&["source"], &["a", "b", "r"], 3),
            (&["a"], &["b", "g", "r"], 3),
            (&["a", "b"], &["r"], 3),
            (&["r"], &[], 3),
        ] {
            let asked = Cell::new(0);
            let missing = |paths: Vec<StorePath>| {
                asked.set(asked.get() + 1);
                std::future::ready(Ok(paths.into_iter().filter(|path| !has.iter().any(|name| output(name) == *path)).collect()))
            };
            let nothing = |_| std::future::ready(Ok(Vec::new()));
            let jobs = jobs(&closure, &roots, missing, nothing).await.expect("a closure without faults");
            let mut names: Vec<DrvPath> = jobs.iter().map(|job| job.derivation.clone()).collect();
            for (at, job) in jobs.iter().enumerate() {
                let is_before = |input: &DrvPath| jobs[..at].iter().any(|before| before.derivation == *input);
                assert!(job.inputs.iter().all(|input| is_before(&input.derivation)), "the store has {has:?}: inputs come first");
            }
            names.sort();
            assert_eq!(names, expected.iter().map(|name| drv(name)).collect::<Vec<_>>(), "the store has {has:?}");
            assert_eq!(asked.get(), questions, "the store has {has:?}");
        }
    }

    #[tokio::test]
    async fn what_is_realised_is_no_job_and_what_needs_it_is_to_be_resolved() {
        let floating = |name: &str, inputs: &[&str]| {
            let inputs: Vec<String> = inputs.iter().map(|input| format!(r#"("/nix/store/{}",["out"])"#, drv(input))).collect();
            let text = format!(r#"Derive([("out","","r:sha256","")],[{}],[],"x86_64-linux","/bin/sh",[],[("out","")])"#, inputs.join(","));
            Arc::new(Outline::of(&Derivation::parse(&StoreDir::default(), name, text.as_bytes()).expect("parses")))
        };
        let outlines = [(drv("a"), floating("a", &[])), (drv("b"), floating("b", &["a"]))].into();
        let closure = DrvClosure { ordered: vec![drv("a"), drv("b")], outlines };
        let roots = [Root { derivation: drv("b"), outputs: BTreeSet::new() }];
        for (realised, there, expected) in [
            (&[][..], &[][..], &[("a", false), ("b", true)][..]),
            (&["a"], &["a"], &[("b", true)]),
            (&["a"], &[], &[("a", false), ("b", true)]),
            (&["b"], &["b"], &[]),
        ] {
            let missing = |paths: Vec<StorePath>| {
                let lacks = |path: &StorePath| !there.iter().any(|name| output(name) == *path);
                std::future::ready(Ok(paths.into_iter().filter(lacks).collect()))
            };
            let known = |outputs: Vec<Unknown>| {
                let at = |of: Unknown| realised.iter().find(|name| drv(name) == of.0).map(|name| (of, output(name)));
                std::future::ready(Ok(outputs.into_iter().filter_map(at).collect()))
            };
            let jobs = jobs(&closure, &roots, missing, known).await.expect("a closure without faults");
            let found: Vec<_> = jobs.iter().map(|job| (job.derivation.clone(), job.resolve)).collect();
            assert_eq!(found, expected.iter().map(|(name, resolve)| (drv(name), *resolve)).collect::<Vec<_>>(), "{realised:?} {there:?}");
            assert!(jobs.iter().all(|job| job.inputs.iter().all(|input| jobs.iter().any(|other| other.derivation == input.derivation))));
        }
    }
}
