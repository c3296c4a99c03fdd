//! Submission: from roots to jobs. Checks every derivation of the closure, leaves out what the store has, and hands the rest to the farm.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kiln_core::{Answer, Asker, CHECKING, Command, DESCRIBING, GROWING, RESOLVING, Refused};
use kiln_link::{LinkError, Role, Sender};
use kiln_wire::client::{Refusal, Submission};
use kiln_wire::frame;
use kiln_wire::limits::{BUILD_NAME_BYTES_MAX, JOB_BYTES_PER_ENTRY_MAX, JOBS_PER_ENTRY_MAX, RESOLVED_INPUTS_PER_JOB_MAX};
use kiln_wire::{BuildId, DrvPath, JobSpec, RequestId, Root, StorePath, Timestamp};

use crate::absent::Absent;
use crate::driver::Chain;
use crate::drv_closure::DrvClosure;
use crate::garbage::touch;
use crate::heavy::heavy;
use crate::needed::{self, Unknown};
use crate::parts::Parts;
use crate::raft::ConsensusError;
use crate::{drv_closure, readable, realised, refuse, shares, substitute};

/// Makes a build of a submission, unless whoever asks goes away before the farm has heard of it: what upstream caches have may take long to
/// bring. A [`Refusal`] says what is missing, wrong or over a limit; nothing has changed then.
///
/// # Errors
/// [`LinkError`] says how it went away.
pub(crate) async fn while_wanted(
    parts: &Arc<Parts>,
    peer: &Role,
    submission: Submission,
    sender: &Sender,
) -> Result<Result<BuildId, Refusal>, LinkError> {
    let begun = parts.traces.begin();
    let asker = match shares::asker(parts, peer, submission.urgency.clone(), submission.trace) {
        Ok(asker) => asker,
        Err(refusal) => return Ok(Err(refusal)),
    };
    // Dropped, it leaves nothing but paths that are valid.
    let prepared = tokio::select! {
        biased;
        prepared = prepare(parts, &submission) => prepared,
        gone = sender.gone() => return Err(gone),
    };
    Ok(match prepared {
        Ok(jobs) => {
            let submitted = hand_over(parts.clone(), (submission, asker), jobs, None).await;
            parts.traces.submitted(begun, submitted.as_ref().ok());
            submitted
        }
        Err(refusal) => Err(refusal),
    })
}

/// Makes a build of a submission that the farm itself has.
///
/// # Errors
/// A [`Refusal`] as of [`while_wanted`].
pub(crate) async fn anew(parts: &Arc<Parts>, submission: Submission, asker: Option<Asker>) -> Result<BuildId, Refusal> {
    let jobs = prepare(parts, &submission).await?;
    hand_over(parts.clone(), (submission, asker), jobs, None).await
}

/// Returns the jobs of a submission.
async fn prepare(parts: &Arc<Parts>, submission: &Submission) -> Result<Vec<JobSpec>, Refusal> {
    check_submission(submission)?;
    jobs(parts, &submission.roots).await
}

/// Returns the jobs that make what roots want and nobody has. Everything that these need is in the store then.
///
/// # Errors
/// A [`Refusal`] that says what is missing, wrong or over a limit.
pub(crate) async fn jobs(parts: &Arc<Parts>, roots: &[Root]) -> Result<Vec<JobSpec>, Refusal> {
    let closure = read(parts, roots).await?;
    // What is committed and not published stays a job, so that the build waits for it: who is told that it is built must find it.
    // What upstream caches have is taken from there before the farm hears of the build.
    let jobs = substitute::jobs(parts, &closure, roots).await?;
    check_jobs(parts, &closure, &jobs).await?;
    Ok(jobs)
}

async fn check_jobs(parts: &Parts, closure: &DrvClosure, jobs: &[JobSpec]) -> Result<(), Refusal> {
    check_version(parts, closure, jobs)?;
    check_resolved_inputs(jobs, RESOLVED_INPUTS_PER_JOB_MAX)?;
    check_sources(parts, closure, jobs).await
}

/// Makes a build of a submission whose roots are built again, though the store has what they made.
///
/// # Errors
/// A [`Refusal`] as of [`while_wanted`]; also if something that is to be built again was not built yet, or is being built.
pub(crate) async fn check(parts: Arc<Parts>, peer: &Role, submission: Submission) -> Result<BuildId, Refusal> {
    if parts.consensus.version() < CHECKING {
        let message = format!("check: the farm is not at version {CHECKING} yet: upgrade all of its coordinators first");
        return Err(refuse::invalid(message));
    }
    check_submission(&submission)?;
    let asker = shares::asker(&parts, peer, submission.urgency.clone(), submission.trace)?;
    let closure = read(&parts, &submission.roots).await?;
    if submission.roots.is_empty() {
        return Err(refuse::invalid("check: no derivation is named"));
    }
    let outputs = outputs_to_check(&closure, &submission.roots)?;
    let absent = missing(&parts, outputs.iter().cloned().collect()).await?;
    if let Some(first) = absent.first() {
        let more = if absent.len() > 1 { format!(" nor {} others", absent.len() - 1) } else { String::new() };
        return Err(refuse::invalid(format!(
            "check: the farm does not have `{first}`{more}, so that there is nothing to hold it against: build it first"
        )));
    }
    let parts_of = parts.clone();
    let lacking = |asked: Vec<StorePath>| {
        let (again, others): (Vec<_>, Vec<_>) = asked.into_iter().partition(|path| outputs.contains(path));
        let parts = parts_of.clone();
        async move { Ok([again, missing(&parts, others).await?].concat()) }
    };
    let mut jobs = needed::jobs(&closure, &submission.roots, lacking, |outputs| realised(&parts, outputs)).await?;
    let derivations: BTreeSet<DrvPath> = submission.roots.iter().map(|root| root.derivation.clone()).collect();
    for job in &mut jobs {
        // Its outputs exist: who needs them waits for no check of them.
        job.inputs.retain(|input| !derivations.contains(&input.derivation));
    }
    check_jobs(&parts, &closure, &jobs).await?;
    hand_over(parts, (submission, asker), jobs, Some(derivations.into_iter().collect())).await
}

/// Reads the derivations that roots need, and checks them.
async fn read(parts: &Parts, roots: &[Root]) -> Result<DrvClosure, Refusal> {
    let closure = DrvClosure::load(parts, roots).await?;
    check_output_paths(parts, &closure).await?;
    Ok(closure)
}

/// Returns all outputs of `roots`: those that nobody asked for are made again too.
fn outputs_to_check(closure: &DrvClosure, roots: &[Root]) -> Result<BTreeSet<StorePath>, Refusal> {
    let mut outputs = BTreeSet::new();
    for root in roots {
        for (name, output) in closure.outlines[&root.derivation].outputs() {
            let unknown = || {
                let full = &root.derivation;
                refuse::invalid(format!(
                    "check `{full}`: the path of output `{name}` follows from what is built, so that there is none to hold it against"
                ))
            };
            outputs.insert(output.clone().ok_or_else(unknown)?);
        }
    }
    Ok(outputs)
}

/// Hands a submission's jobs to the farm. Those named by `check` are built though their outputs exist.
async fn hand_over(
    parts: Arc<Parts>,
    (submission, asker): (Submission, Option<Asker>),
    jobs: Vec<JobSpec>,
    check: Option<Vec<DrvPath>>,
) -> Result<BuildId, Refusal> {
    let now = parts.clock.now();
    let mut commands = stages(submission.request, jobs, now);
    if let Some(derivations) = check {
        commands.push(Command::Check { request: submission.request, derivations, now });
    }
    let Submission { request, name, roots, keep_going, urgency: _, trace: _, evaluation } = submission;
    // A farm at an older version builds the same, and knows no names.
    if let Some(evaluation) = evaluation.filter(|evaluation| !evaluation.is_empty() && parts.consensus.version() >= DESCRIBING) {
        commands.push(Command::Describe { request, evaluation: *evaluation, now });
    }
    let submit = Command::Submit { request, name, roots, keep_going, asker, now };
    staged_first(commands, submit, |command| {
        let pending = parts.consensus.propose_nowait(vec![command]);
        async { Ok(pending?.applied().await?.answers) }
    })
    .await
}

/// Proposes what is staged, and `submit` once all of that is applied: a chunk that the log did not take would be missing from the build.
/// Each chunk is an entry of its own, so that a large graph does not hold up the log; several are under way, in their order.
async fn staged_first<F>(staged: Vec<Command>, submit: Command, propose: impl Fn(Command) -> F) -> Result<BuildId, Refusal>
where
    F: Future<Output = Result<Vec<Answer>, ConsensusError>>,
{
    let unavailable = |error| refuse::unavailable("submit", &error);
    let mut proposals = std::pin::pin!(futures::stream::iter(staged).map(&propose).buffered(ENTRIES_UNDER_WAY_MAX));
    while let Some(answers) = proposals.next().await {
        if let Some(Err(refusal)) = answers.map_err(unavailable)?.into_iter().find_map(build_of) {
            return Err(refusal);
        }
    }
    let answers = propose(submit).await.map_err(unavailable)?;
    answers.into_iter().find_map(build_of).unwrap_or_else(|| Err(refuse::invalid("submit: the farm gave no answer; submit again")))
}

/// Returns the commands that stage jobs, each an entry of the log.
pub(crate) fn stages(request: RequestId, jobs: Vec<JobSpec>, now: Timestamp) -> Vec<Command> {
    let counts: Vec<usize> = entries(&jobs, encoded_bytes).iter().map(|entry| entry.len()).collect();
    let mut jobs = jobs.into_iter();
    counts.into_iter().map(|count| Command::Stage { request, jobs: jobs.by_ref().take(count).collect(), now }).collect()
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

/// What people call a build and its roots are a client's texts that every coordinator keeps.
fn check_submission(submission: &Submission) -> Result<(), Refusal> {
    check_name(&submission.name)?;
    let objection = submission.evaluation.as_ref().and_then(|evaluation| evaluation.objection(&submission.roots));
    objection.map_or(Ok(()), |rule| Err(refuse::invalid(format!("submit: what is said of the evaluation: {rule}"))))
}

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
    if let Refused::BeingBuilt(_) = refused {
        return refuse::unavailable("submit", refused);
    }
    let mut refusal = refuse::invalid(format!("submit: {refused}"));
    if let Refused::Cycle(cycle) = refused {
        refusal.paths = cycle.iter().map(|path| path.as_path().clone()).collect();
    }
    refusal
}

/// Refuses a derivation whose output path does not follow from its content. Most were checked when they were brought; of the others each is
/// read once more.
pub(crate) async fn check_output_paths(parts: &Parts, closure: &DrvClosure) -> Result<(), Refusal> {
    let unchecked: Vec<DrvPath> = closure.ordered.iter().filter(|path| !parts.checked.is_sound(path)).cloned().collect();
    for paths in unchecked.chunks(CHECKED_TOGETHER_MAX) {
        let reads = futures::stream::iter(paths.to_vec()).map(|path| async move {
            let read = parts.derivations.get(parts, &path).await;
            (path, read)
        });
        let read: Vec<_> = reads.buffered(LOOKUPS_MAX).collect().await;
        // Hashing takes a while: other tasks of this thread move elsewhere meanwhile.
        heavy(|| {
            read.into_iter().try_for_each(|(path, derivation)| {
                let derivation = derivation.map_err(|error| drv_closure::unreadable(&error))?;
                parts.checked.check(&path, &derivation).map_err(|error| refuse::invalid(format!("submit: {}", Chain(&error))))
            })
        })?;
    }
    Ok(())
}

/// Refuses jobs whose input sources the store lacks.
async fn check_sources(parts: &Parts, closure: &DrvClosure, jobs: &[JobSpec]) -> Result<(), Refusal> {
    let sources = |job: &JobSpec| closure.outlines[&job.derivation].sources().iter().cloned();
    let wanted: BTreeSet<StorePath> = jobs.iter().flat_map(sources).collect();
    let (derivations, others): (Vec<StorePath>, Vec<StorePath>) = wanted.into_iter().partition(|path| path.name().ends_with(".drv"));
    let is_committed = |path: &StorePath| parts.farm(|farm| farm.path_info(path).is_some());
    let (coming, missing_at_first): (Vec<_>, Vec<_>) = missing(parts, others).await?.into_iter().partition(is_committed);
    // Asked for again: the farm may have let go of what it has published since.
    let missing = missing(parts, missing_at_first).await?.into_iter().collect();
    let absent = readable::make_valid(parts, derivations).await?;
    absent.and(Absent { coming: coming.into_iter().collect(), missing }).refuse("submit", "input sources")
}

/// Returns those of some paths that the store lacks.
async fn missing(parts: &Parts, paths: Vec<StorePath>) -> Result<Vec<StorePath>, Refusal> {
    // What is found is not deleted before the build holds it.
    touch(parts, &paths).await;
    parts.store.missing(&paths).await.map_err(|error| refuse::unavailable("submit", &error))
}

/// Returns where outputs are that were built and published, of some whose paths only builds tell.
pub(crate) async fn realised(parts: &Parts, outputs: Vec<Unknown>) -> Result<Vec<(Unknown, StorePath)>, Refusal> {
    let lookups = futures::stream::iter(outputs).map(|of| async move {
        let info = realised::published(parts, &of.0, &of.1).await.map_err(|error| refuse::unavailable("submit", &error))?;
        Ok(info.map(|info| (of, info.path)))
    });
    let found: Vec<_> = lookups.buffered(LOOKUPS_MAX).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// In a farm that is being upgraded older coordinators could not read such jobs, or what they come to.
fn check_version(parts: &Parts, closure: &DrvClosure, jobs: &[JobSpec]) -> Result<(), Refusal> {
    let version = parts.consensus.version();
    let is_dynamic = |job: &JobSpec| closure.outlines.get(&job.derivation).is_some_and(|outline| outline.is_dynamic());
    let refused = |job: &JobSpec, what: &str| {
        let derivation = &job.derivation;
        Err(refuse::invalid(format!(
            "submit: `{derivation}` needs outputs {what}, which a farm at version {version} cannot build; upgrade every coordinator"
        )))
    };
    if let Some(job) = jobs.iter().find(|job| job.resolve && version < RESOLVING) {
        return refused(job, "whose paths only builds tell");
    }
    match jobs.iter().find(|job| version < GROWING && is_dynamic(job)) {
        None => Ok(()),
        Some(job) => refused(job, "of derivations that builds make (xp-dyn-drv)"),
    }
}

/// What a job is resolved to goes into one log entry, with a row for each output that it needs of its inputs.
fn check_resolved_inputs(jobs: &[JobSpec], inputs_max: usize) -> Result<(), Refusal> {
    let needed = |job: &JobSpec| job.inputs.iter().map(|input| input.outputs.len()).sum::<usize>();
    match jobs.iter().filter(|job| job.resolve).find(|job| needed(job) > inputs_max) {
        None => Ok(()),
        Some(job) => Err(refuse::invalid(format!(
            "submit: `{}` needs {} outputs of its inputs, and those whose paths only builds tell may need {inputs_max}; make it of several derivations",
            job.derivation,
            needed(job)
        ))),
    }
}

/// Entries of one submission that are proposed before the first of them is applied, mostly about 2 MiB and at most 8: what others propose is not held up.
const ENTRIES_UNDER_WAY_MAX: usize = 8;
/// Derivations that are read, then checked, in turns: some MiB.
const CHECKED_TOGETHER_MAX: usize = 512;
/// Realisations, or derivations, read at a time for one submission.
const LOOKUPS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use kiln_core::ResolvedInput;
    use kiln_wire::{DerivedInput, JobKind, JobLimits, OutputName, RequestId, Resources, Timestamp};

    use super::*;

    #[tokio::test]
    async fn nothing_is_submitted_unless_all_of_it_was_staged() {
        use std::sync::Mutex;
        let stage = |request| Command::Stage { request: RequestId(request), jobs: Vec::new(), now: Timestamp(0) };
        let submit = || Command::Submit {
            request: RequestId(9),
            name: String::new(),
            roots: Vec::new(),
            keep_going: false,
            asker: None,
            now: Timestamp(0),
        };
        let refused = || Answer::Refused(Refused::StageDropped(RequestId(9)));
        // Which of three chunks finds the queue full.
        for failing in [None, Some(0), Some(2)] {
            let seen = Mutex::new(Vec::new());
            let propose = |command: Command| {
                let (is_submit, failed) = match &command {
                    Command::Stage { request, .. } => (false, Some(request.0) == failing),
                    _ => (true, false),
                };
                seen.lock().expect("no panic").push(is_submit);
                async move {
                    match (failed, is_submit) {
                        (true, _) => Err(ConsensusError::Busy),
                        (false, true) => Ok(vec![Answer::Submitted { request: RequestId(9), build: BuildId(1) }]),
                        (false, false) => Ok(Vec::new()),
                    }
                }
            };
            let submitted = staged_first((0..3).map(stage).collect(), submit(), propose).await;
            let proposed = seen.into_inner().expect("no panic");
            assert_eq!(submitted.is_ok(), failing.is_none(), "{failing:?}");
            assert_eq!(proposed.contains(&true), failing.is_none(), "{failing:?}: {proposed:?}");
        }
        let propose = |_| async { Ok(vec![refused()]) };
        assert!(staged_first(vec![stage(0)], submit(), propose).await.is_err(), "refused by the farm");
    }

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
    fn a_job_whose_resolution_the_log_would_not_take_is_refused() {
        let name = |text: &str| OutputName::parse(text).expect("a name");
        let drv = |letter: &str| DrvPath::parse(&format!("{}-x.drv", letter.repeat(32))).expect("a path");
        let input = |letter: &str, outputs: &[&str]| DerivedInput {
            derivation: drv(letter),
            outputs: outputs.iter().map(|output| name(output)).collect(),
        };
        let job = |resolve| JobSpec {
            derivation: drv("a"),
            system: "s".into(),
            required_features: BTreeSet::new(),
            outputs: [(name("out"), None)].into(),
            inputs: vec![input("b", &["out", "dev"]), input("c", &["out"])],
            kind: JobKind::Ordinary,
            prefer_local: false,
            resources: Resources { cores: 1, memory_mib: 0 },
            limits: JobLimits::default(),
            resolve,
        };
        assert!(check_resolved_inputs(&[job(true)], 3).is_ok());
        assert!(check_resolved_inputs(&[job(false)], 2).is_ok(), "nobody resolves it");
        let refusal = check_resolved_inputs(&[job(true)], 2).expect_err("over the limit");
        assert!(refusal.message.contains("needs 3 outputs"), "{}", refusal.message);
        // The longest rows that can be, written as the log writes them.
        let longest = |suffix: &str| format!("{}-{}{suffix}", "a".repeat(32), "n".repeat(211 - suffix.len()));
        let row = ResolvedInput {
            derivation: DrvPath::parse(&longest(".drv")).expect("a path"),
            output: name(&"o".repeat(211)),
            path: StorePath::parse(&longest("")).expect("a path"),
        };
        let bytes = frame::to_bytes(&row).expect("written").len();
        assert!(bytes * RESOLVED_INPUTS_PER_JOB_MAX < 12 << 20, "{bytes} bytes a row");
    }

    #[test]
    fn a_name_over_the_limit_is_refused_before_it_reaches_the_log() {
        assert!(check_name(&"n".repeat(BUILD_NAME_BYTES_MAX)).is_ok());
        let refusal = check_name(&"n".repeat(BUILD_NAME_BYTES_MAX + 1)).expect_err("over the limit");
        assert!(refusal.message.contains("257 bytes"), "{}", refusal.message);
    }
}
