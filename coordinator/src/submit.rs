//! Submission: from roots to jobs. Checks every derivation of the closure, leaves out what the store has, and hands the rest to the farm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use kiln_core::{Answer, Command, Refused};
use kiln_nix::derivation::Derivation;
use kiln_nix::job;
use kiln_wire::client::{Refusal, Submission};
use kiln_wire::frame;
use kiln_wire::limits::{BUILD_NAME_BYTES_MAX, JOB_BYTES_PER_ENTRY_MAX, JOBS_PER_ENTRY_MAX, JOBS_PER_SUBMISSION_MAX};
use kiln_wire::{BuildId, DrvPath, JobSpec, OutputName, Root, StorePath};

use crate::derivations::DerivationError;
use crate::driver::{Chain, propose};
use crate::heavy::heavy;
use crate::parts::Parts;
use crate::refuse;

/// Makes a build of a submission.
///
/// # Errors
/// A [`Refusal`] that says what is missing, wrong or over a limit; nothing has changed then.
pub(crate) async fn submit(parts: Arc<Parts>, submission: Submission) -> Result<BuildId, Refusal> {
    check_name(&submission.name)?;
    let closure = load_closure(&parts, &submission.roots).await?;
    // A large closure takes seconds of hashing: other tasks of this thread move elsewhere meanwhile.
    heavy(|| check_output_paths(&parts, &closure))?;
    let jobs = jobs(&parts, &closure, &submission.roots).await?;
    check_sources(&parts, &closure, &jobs).await?;
    let mut commands: Vec<Command> = Vec::new();
    let now = parts.clock.now();
    for chunk in entries(&jobs, encoded_bytes) {
        commands.push(Command::Stage { request: submission.request, jobs: chunk.to_vec(), now });
    }
    let Submission { request, name, roots, keep_going } = submission;
    commands.push(Command::Submit { request, name, roots, keep_going, now });
    // Each staged chunk is an entry of its own, so that a large graph does not hold up the log.
    let mut answers = Vec::new();
    for command in commands {
        let applied = propose(parts.clone(), vec![command]).await;
        answers.extend(applied.map_err(|error| refuse::unavailable("submit", &error))?.answers);
    }
    answers.into_iter().find_map(build_of).unwrap_or_else(|| Err(refuse::invalid("submit: the farm gave no answer; submit again")))
}

/// Divides jobs, in their order, into what goes into one log entry each: neither too many nor too large together.
fn entries<T>(jobs: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut entries = Vec::new();
    let (mut start, mut held) = (0, 0);
    for (at, job) in jobs.iter().enumerate() {
        let size = bytes(job);
        if at > start && (at - start == JOBS_PER_ENTRY_MAX || held + size > JOB_BYTES_PER_ENTRY_MAX) {
            entries.push(&jobs[start..at]);
            (start, held) = (at, 0);
        }
        held += size;
    }
    if start < jobs.len() {
        entries.push(&jobs[start..]);
    }
    entries
}

/// Bytes of a job in the log; one that cannot be written is refused there.
fn encoded_bytes(job: &JobSpec) -> usize {
    frame::to_bytes(job).map_or(0, |bytes| bytes.len())
}

/// A name is a client's text that every coordinator keeps.
fn check_name(name: &str) -> Result<(), Refusal> {
    match name.len() {
        0..=BUILD_NAME_BYTES_MAX => Ok(()),
        bytes => Err(refuse::invalid(format!(
            "submit: the build's name has {bytes} bytes, over the limit of {BUILD_NAME_BYTES_MAX}; give it a shorter one"
        ))),
    }
}

fn build_of(answer: Answer) -> Option<Result<BuildId, Refusal>> {
    match answer {
        Answer::Submitted { build, .. } => Some(Ok(build)),
        Answer::Refused(refused) => Some(Err(refused_submission(&refused))),
    }
}

fn refused_submission(refused: &Refused) -> Refusal {
    let mut refusal = refuse::invalid(format!("submit: {refused}"));
    if let Refused::Cycle(cycle) = refused {
        refusal.paths = cycle.iter().map(|path| path.as_path().clone()).collect();
    }
    refusal
}

/// The derivations of a closure, inputs before what needs them.
struct Closure {
    ordered: Vec<DrvPath>,
    parsed: BTreeMap<DrvPath, Arc<Derivation>>,
}

/// Loads every derivation that the roots need, by a walk without recursion.
async fn load_closure(parts: &Parts, roots: &[Root]) -> Result<Closure, Refusal> {
    enum Step {
        Enter(DrvPath),
        Leave(DrvPath),
    }
    let mut closure = Closure { ordered: Vec::new(), parsed: BTreeMap::new() };
    let mut missing = BTreeSet::new();
    let mut steps: Vec<Step> = roots.iter().map(|root| Step::Enter(root.derivation.clone())).collect();
    while let Some(step) = steps.pop() {
        match step {
            Step::Leave(path) => closure.ordered.push(path),
            Step::Enter(path) if closure.parsed.contains_key(&path) => {}
            Step::Enter(path) => match parts.derivations.get(&parts.store, &path).await {
                Ok(parsed) => {
                    steps.push(Step::Leave(path.clone()));
                    steps.extend(parsed.inputs.keys().map(|input| Step::Enter(input.clone())));
                    closure.parsed.insert(path, parsed);
                }
                Err(DerivationError::Missing(path)) => {
                    missing.insert(path);
                }
                Err(error) => return Err(unreadable(&error)),
            },
        }
        if closure.parsed.len() > JOBS_PER_SUBMISSION_MAX {
            return Err(refuse::invalid(format!("submit: the closure has over {JOBS_PER_SUBMISSION_MAX} derivations; submit it in parts")));
        }
    }
    if missing.is_empty() {
        return Ok(closure);
    }
    Err(refuse::missing("submit", "derivations", missing.iter().map(|path| path.as_path().clone()).collect()))
}

/// A file that is no derivation stays none; a store that fails may answer the next time.
fn unreadable(error: &DerivationError) -> Refusal {
    match error {
        DerivationError::Parse { .. } | DerivationError::Missing(_) => refuse::invalid(format!("submit: {}", Chain(error))),
        DerivationError::Store { .. } => refuse::unavailable("submit", error),
    }
}

/// Refuses a derivation whose output path does not follow from its content.
fn check_output_paths(parts: &Parts, closure: &Closure) -> Result<(), Refusal> {
    let mut checked = parts.checked.lock().unwrap_or_else(PoisonError::into_inner);
    for path in &closure.ordered {
        checked.check(path, &closure.parsed[path]).map_err(|error| refuse::invalid(format!("submit: {}", Chain(&error))))?;
    }
    Ok(())
}

/// Returns the jobs: what the roots need and nobody has, from the roots down. Below an output that exists nothing is looked at.
async fn jobs(parts: &Parts, closure: &Closure, roots: &[Root]) -> Result<Vec<JobSpec>, Refusal> {
    let mut wanted: BTreeMap<DrvPath, BTreeSet<OutputName>> = BTreeMap::new();
    let mut jobs = Vec::new();
    for root in roots {
        wanted.entry(root.derivation.clone()).or_default().extend(wanted_outputs(root, &closure.parsed[&root.derivation]));
    }
    // Against the order every user of a derivation has been seen before the derivation itself.
    for path in closure.ordered.iter().rev() {
        let Some(outputs) = wanted.get(path) else { continue };
        let derivation = &closure.parsed[path];
        if !lacks_output(parts, derivation, outputs).await? {
            continue;
        }
        for (input, wanted_of_input) in &derivation.inputs {
            wanted.entry(input.clone()).or_default().extend(wanted_of_input.outputs.iter().cloned());
        }
        jobs.push(job::spec(path, derivation).map_err(|error| refuse::invalid(format!("submit: {}", Chain(&error))))?);
    }
    let made: BTreeSet<DrvPath> = jobs.iter().map(|job| job.derivation.clone()).collect();
    for job in &mut jobs {
        job.inputs.retain(|input| made.contains(&input.derivation));
    }
    jobs.reverse();
    Ok(jobs)
}

fn wanted_outputs(root: &Root, derivation: &Derivation) -> BTreeSet<OutputName> {
    if root.outputs.is_empty() { derivation.outputs.keys().cloned().collect() } else { root.outputs.clone() }
}

async fn lacks_output(parts: &Parts, derivation: &Derivation, outputs: &BTreeSet<OutputName>) -> Result<bool, Refusal> {
    for name in outputs {
        let no_output = || refuse::invalid(format!("submit: `{}` has no output `{name}`, which something wants of it", derivation.name));
        let Some(path) = derivation.outputs.get(name).ok_or_else(no_output)?.path() else { return Ok(true) };
        // What is committed and not published stays a job, so that the build waits for it: who is told that it is built must find it.
        if parts.store.path_info(path).await.map_err(|error| refuse::unavailable("submit", &error))?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses jobs whose input sources the store lacks.
async fn check_sources(parts: &Parts, closure: &Closure, jobs: &[JobSpec]) -> Result<(), Refusal> {
    let sources = |job: &JobSpec| closure.parsed[&job.derivation].sources.clone();
    let wanted: BTreeSet<StorePath> = jobs.iter().flat_map(sources).collect();
    let wanted: Vec<StorePath> = wanted.into_iter().collect();
    let missing = parts.store.missing(&wanted).await.map_err(|error| refuse::unavailable("submit", &error))?;
    if missing.is_empty() { Ok(()) } else { Err(refuse::missing("submit", "input sources", missing)) }
}

#[cfg(test)]
mod tests {
    use kiln_store::StoreError;
    use kiln_wire::client::RefusalKind;

    use super::*;

    #[test]
    fn jobs_are_divided_by_number_and_by_size() {
        let mib = JOB_BYTES_PER_ENTRY_MAX;
        let many = vec![1; JOBS_PER_ENTRY_MAX + 1];
        for (sizes, lengths) in [
            (vec![], vec![]),
            (vec![5 * mib], vec![1]),
            (vec![1, 5 * mib, 1, 1], vec![1, 1, 2]),
            (vec![mib / 2, mib / 2, 1], vec![2, 1]),
            (many, vec![JOBS_PER_ENTRY_MAX, 1]),
        ] {
            let divided = entries(&sizes, |size| *size);
            assert_eq!(divided.iter().map(|entry| entry.len()).collect::<Vec<_>>(), lengths);
            assert_eq!(divided.concat(), sizes, "in their order");
        }
    }

    #[test]
    fn a_store_that_refuses_is_no_fault_of_the_submission() {
        let path = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        let source = StoreError::Directory { dir: "/spool".into(), err: std::io::ErrorKind::PermissionDenied.into() };
        let refusal = unreadable(&DerivationError::Store { path, source });
        assert_eq!(refusal.kind, RefusalKind::Unavailable);
    }

    #[test]
    fn a_name_over_the_limit_is_refused_before_it_reaches_the_log() {
        assert!(check_name(&"n".repeat(BUILD_NAME_BYTES_MAX)).is_ok());
        let refusal = check_name(&"n".repeat(BUILD_NAME_BYTES_MAX + 1)).expect_err("over the limit");
        assert!(refusal.message.contains("257 bytes"), "{}", refusal.message);
    }
}
