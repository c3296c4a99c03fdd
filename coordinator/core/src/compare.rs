//! What differs between two builds of one set: package by package, because hashes and versions change from build to build. Pure.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::{BuildState, BuildView};
use kiln_wire::{DrvPath, Evaluated, OutputName, StorePath};

use crate::estimate::split_name;

/// Failures of a build, held against those of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Of packages of which none failed before.
    pub newly: Vec<DrvPath>,
    /// Of packages of which some failed before too.
    pub still: Vec<DrvPath>,
    /// Failed before, and no job of their packages fails: fixed, gone, or not reached so far.
    pub fixed: Vec<DrvPath>,
}

impl Failures {
    /// Holds jobs that failed against those that failed before.
    pub fn between(before: Vec<DrvPath>, after: Vec<DrvPath>) -> Self {
        let packages = |jobs: &[DrvPath]| -> BTreeSet<_> { jobs.iter().map(|job| package(job).to_owned()).collect() };
        let (then, now) = (packages(&before), packages(&after));
        let (still, newly) = after.into_iter().partition(|job| then.contains(package(job)));
        let fixed = before.into_iter().filter(|job| !now.contains(package(job))).collect();
        Self { newly, still, fixed }
    }
}

/// Attributes that fail in a build, held against those that failed in another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Failed only in the later one.
    pub newly: Vec<String>,
    /// Failed in both.
    pub still: Vec<String>,
    /// Failed only in the earlier one, and the later one has them.
    pub fixed: Vec<String>,
}

/// A root that a build made, with where its outputs are.
pub type Made = (DrvPath, BTreeMap<OutputName, StorePath>);

/// How a build differs from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Jobs that failed of themselves.
    pub failures: Failures,
    /// Attributes that were not built, because they failed or needed what did. Builds that go on do not say it.
    pub unbuilt: Attributes,
    /// Attributes that do not evaluate.
    pub unevaluated: Attributes,
    /// Roots of packages that both made, and made differently: before, and after.
    pub changed: Vec<(Made, Made)>,
    /// Roots of packages that only the other made. A build does not say what it found made already: they may be what they were.
    pub only_before: Vec<Made>,
    /// Roots of packages that only this one made. As before it may have been made by a build before the other.
    pub only_after: Vec<Made>,
    /// Roots that both made, and made alike.
    pub alike: u64,
}

impl Comparison {
    /// Compares two builds. Of several roots of one package those that are alike are paired first, the others in the order of their paths.
    pub fn between(before: &BuildView, after: &BuildView) -> Self {
        let failed =
            |view: &BuildView| view.failures.iter().filter(|job| job.state == "failed").map(|job| job.derivation.clone()).collect();
        // What a build that goes on has not built yet says nothing.
        let have_ended = [before, after].iter().all(|view| view.state != BuildState::Active);
        let unbuilt = if have_ended { unbuilt_between(&before.evaluated, &after.evaluated) } else { Attributes::default() };
        let unevaluated = unevaluated_between(&before.evaluated, &after.evaluated);
        let failures = Failures::between(failed(before), failed(after));
        let mut compared = Self { failures, unbuilt, unevaluated, ..Self::default() };
        let (mut then, now) = (by_package(before), by_package(after));
        for (name, made) in now {
            let mut old = then.remove(&name).unwrap_or_default();
            let mut new = Vec::new();
            for root in made {
                match old.iter().position(|(_, outputs)| *outputs == root.1) {
                    Some(at) => {
                        old.remove(at);
                        compared.alike += 1;
                    }
                    None => new.push(root),
                }
            }
            let pairs = old.len().min(new.len());
            compared.only_before.extend(old.split_off(pairs));
            compared.only_after.extend(new.split_off(pairs));
            compared.changed.extend(old.into_iter().zip(new));
        }
        compared.only_before.extend(then.into_values().flatten());
        compared
    }
}

/// Returns which attributes were not built, of two builds that have ended. Those that one did not reach, because it ended before, did not fail
/// there; and they are not built again.
pub fn unbuilt_between(before: &Evaluated, after: &Evaluated) -> Attributes {
    let of = |evaluated: &Evaluated, takes: &dyn Fn(&DrvPath) -> bool| -> BTreeSet<String> {
        evaluated.attributes.iter().filter(|(root, _)| takes(root)).flat_map(|(_, names)| names.iter().cloned()).collect()
    };
    let failed = |evaluated: &Evaluated| of(evaluated, &|root| evaluated.unbuilt.contains(root) && !evaluated.unreached.contains(root));
    let (then, now) = (failed(before), failed(after));
    let built = of(after, &|root| !after.unbuilt.contains(root));
    Attributes {
        newly: now.difference(&then).cloned().collect(),
        still: now.intersection(&then).cloned().collect(),
        fixed: then.intersection(&built).cloned().collect(),
    }
}

/// Returns which attributes do not evaluate, of two builds.
pub fn unevaluated_between(before: &Evaluated, after: &Evaluated) -> Attributes {
    let there: BTreeSet<&String> = after.attributes.values().flatten().collect();
    let (then, now) = (&before.errors, &after.errors);
    let list = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect();
    Attributes {
        newly: list(&mut now.keys().filter(|name| !then.contains_key(*name))),
        still: list(&mut now.keys().filter(|name| then.contains_key(*name))),
        fixed: list(&mut then.keys().filter(|name| !now.contains_key(*name) && there.contains(name))),
    }
}

fn by_package(view: &BuildView) -> BTreeMap<String, Vec<Made>> {
    let mut roots = BTreeMap::<_, Vec<Made>>::new();
    for (root, outputs) in &view.outputs {
        roots.entry(package(root).to_owned()).or_default().push((root.clone(), outputs.clone()));
    }
    roots
}

/// Returns the package of a derivation: its hash and its version change from build to build.
pub fn package(job: &DrvPath) -> &str {
    split_name(job.name()).0
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use kiln_wire::client::{JobCounts, JobView};
    use kiln_wire::{BuildId, Evaluated, Timestamp};

    use super::*;

    fn drv(text: &str) -> DrvPath {
        let (letter, name) = text.split_at(1);
        DrvPath::parse(&format!("{}{name}.drv", letter.repeat(32))).expect("a path")
    }

    /// Reads `a-zlib-1.2>x` as a root with an output whose hash is made of that letter, `!a-zlib` as a job that failed, `?a-zlib` as one that could
    /// not be begun.
    fn build(text: &str) -> BuildView {
        let mut view = BuildView {
            build: BuildId(1),
            name: String::new(),
            submitted_at: Timestamp(0),
            state: BuildState::Failed,
            counts: JobCounts::default(),
            remaining_ms: None,
            outputs: BTreeMap::new(),
            failures: Vec::new(),
            running: Vec::new(),
            waiting: BTreeMap::new(),
            evaluated: Evaluated::default(),
        };
        let failed = |job: &str, state: &str| JobView {
            derivation: drv(job),
            state: state.into(),
            reason: String::new(),
            builds: Vec::new(),
            attempts: Vec::new(),
            upward_rank_ms: 0,
            attributes: Vec::new(),
        };
        for word in text.split_whitespace() {
            match (word.strip_prefix('!'), word.strip_prefix('?'), word.split_once('>')) {
                (Some(job), ..) => view.failures.push(failed(job, "failed")),
                (_, Some(job), _) => view.failures.push(failed(job, "dependency-failed")),
                (_, _, Some((root, hash))) => {
                    let path = StorePath::parse(&format!("{}-x", hash.repeat(32))).expect("a path");
                    view.outputs.insert(drv(root), BTreeMap::from([(OutputName::parse("out").expect("a name"), path)]));
                }
                (None, None, None) => panic!("{word}"),
            }
        }
        view
    }

    fn words(jobs: &[DrvPath]) -> String {
        jobs.iter()
            .map(|job| format!("{}{} ", &job.as_str()[..1], &job.as_str()[32..job.as_str().len() - 4]))
            .collect::<String>()
            .trim_end()
            .into()
    }

    #[test]
    fn failures_are_told_apart_by_package() {
        for (before, after, newly, still, fixed) in [
            ("", "!a-zlib-1.2", "a-zlib-1.2", "", ""),
            ("!a-zlib-1.2", "!b-zlib-1.3", "", "b-zlib-1.3", ""),
            ("!a-zlib-1.2", "", "", "", "a-zlib-1.2"),
            ("!a-zlib-1.2 !a-curl-8", "!b-bash-5 ?b-curl-8", "b-bash-5", "", "a-curl-8 a-zlib-1.2"),
            ("?a-zlib-1.2", "!a-zlib-1.2", "a-zlib-1.2", "", ""),
        ] {
            let mut failures = Comparison::between(&build(before), &build(after)).failures;
            failures.fixed.sort_by(|one, other| one.name().cmp(other.name()));
            let found = [failures.newly, failures.still, failures.fixed].map(|jobs| words(&jobs));
            assert_eq!(found, [newly, still, fixed], "{before} / {after}");
        }
    }

    #[test]
    fn attributes_are_told_apart_by_their_names() {
        // `a+` was built, `a-` was not, `a~` was not reached, `a!` does not evaluate.
        let evaluated = |text: &str| {
            let mut evaluated = Evaluated::default();
            for (place, word) in text.split_whitespace().enumerate() {
                let (name, how) = word.split_at(word.len() - 1);
                let root = DrvPath::parse(&format!("{place:032}-{name}.drv")).expect("a path");
                match how {
                    "!" => drop(evaluated.errors.insert(name.into(), "no".into())),
                    "-" | "+" | "~" => {
                        evaluated.attributes.insert(root.clone(), alloc::vec![name.into()]);
                        if how == "~" {
                            evaluated.unreached.insert(root.clone());
                        }
                        if how != "+" {
                            evaluated.unbuilt.insert(root);
                        }
                    }
                    other => panic!("{other}"),
                }
            }
            evaluated
        };
        for (before, after, unbuilt, unevaluated) in [
            ("a+ b- c-", "a- b- c+", ["a", "b", "c"], ["", "", ""]),
            ("a! b! c+", "a+ b! c!", ["", "", ""], ["c", "b", "a"]),
            ("a- b!", "", ["", "", ""], ["", "", ""]),
            ("", "a- b!", ["a", "", ""], ["b", "", ""]),
            ("a!", "a-", ["a", "", ""], ["", "", "a"]),
            ("a+ b- c~", "a~ b~ c-", ["c", "", ""], ["", "", ""]),
        ] {
            let (before, after) = (evaluated(before), evaluated(after));
            let (built, evaluates) = (unbuilt_between(&before, &after), unevaluated_between(&before, &after));
            let told = |of: Attributes| [of.newly, of.still, of.fixed].map(|names| names.join(" "));
            assert_eq!(
                (told(built), told(evaluates)),
                (unbuilt.map(String::from), unevaluated.map(String::from)),
                "{before:?} / {after:?}"
            );
            let mut ended = [build(""), build("")];
            (ended[0].evaluated, ended[1].evaluated) = (before, after);
            assert_eq!(Comparison::between(&ended[0], &ended[1]).unbuilt.newly.join(" "), unbuilt[0]);
            ended[1].state = BuildState::Active;
            assert_eq!(Comparison::between(&ended[0], &ended[1]).unbuilt, Attributes::default(), "it goes on");
        }
    }

    #[test]
    fn roots_are_paired_by_package_and_those_that_are_alike_first() {
        for (before, after, changed, only_before, only_after, alike) in [
            ("a-zlib-1.2>x", "a-zlib-1.2>x", "", "", "", 1),
            ("a-zlib-1.2>x", "b-zlib-1.2>x", "", "", "", 1),
            ("a-zlib-1.2>x", "b-zlib-1.3>y", "a-zlib-1.2 b-zlib-1.3", "", "", 0),
            ("a-zlib-1.2>x", "b-curl-8>y", "", "a-zlib-1.2", "b-curl-8", 0),
            ("a-python-2.7>x b-python-3.1>y", "c-python-2.7>x d-python-3.2>z", "b-python-3.1 d-python-3.2", "", "", 1),
            ("a-python-2.7>x b-python-3.1>y", "d-python-3.2>z", "a-python-2.7 d-python-3.2", "b-python-3.1", "", 0),
            ("a-python-2.7>x", "c-python-2.7>y d-python-3.2>z", "a-python-2.7 c-python-2.7", "", "d-python-3.2", 0),
        ] {
            let compared = Comparison::between(&build(before), &build(after));
            let roots = |made: &[Made]| words(&made.iter().map(|(root, _)| root.clone()).collect::<Vec<_>>());
            let pairs: Vec<Made> = compared.changed.iter().flat_map(|(then, now)| [then.clone(), now.clone()]).collect();
            assert_eq!(
                (roots(&pairs), roots(&compared.only_before), roots(&compared.only_after), compared.alike),
                (changed.into(), only_before.into(), only_after.into(), alike),
                "{before} / {after}"
            );
        }
    }
}
