//! Growth: an input of a job made a derivation of which the job needs outputs. Reads what was made, and stages the jobs that build it.
//!
//! What was made is a builder's word: it is held against its path, and submitted as a client would, so that the same rules hold for it.
//! Source: ADR 0032.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_core::{Answer, Refused, Resolution};
use kiln_nix::derivation::Derivation;
use kiln_nix::job::JobError;
use kiln_nix::resolve::{Needed, Realised, ResolveError, needed};
use kiln_store::StoreError;
use kiln_wire::client::{Refusal, RefusalKind};
use kiln_wire::limits::RESOLVED_INPUTS_PER_JOB_MAX;
use kiln_wire::{DrvPath, JobSpec, OutputName, RequestId, Root, StorePath};
use tokio::sync::SemaphorePermit;

use crate::derivations::DerivationError;
use crate::driver::propose_patiently;
use crate::garbage::touch;
use crate::parts::Parts;
use crate::raft::ConsensusError;
use crate::{realised, submit};

/// What was made and cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrownError {
    #[error("an input made what it needs outputs of")]
    Derivation(#[from] DerivationError),
    #[error("an input made `{derivation}`, which has no output `{output}` that it needs")]
    NoOutput { derivation: DrvPath, output: OutputName },
    #[error("its inputs made derivations that cannot be built for it: {}", .0.message)]
    Refused(Refusal),
    #[error(
        "it needs {rows} outputs of its inputs and of what they make, and may need {RESOLVED_INPUTS_PER_JOB_MAX}; make it of several derivations"
    )]
    TooManyRows { rows: usize },
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Job(#[from] JobError),
    #[error("look for what was made")]
    Store(#[from] StoreError),
    #[error("stage what builds it")]
    Stage(#[from] ConsensusError),
    #[error("stage what builds it")]
    Staged(#[from] Refused),
}

impl GrownError {
    /// Whether what was made is at fault: a store or a farm that is away says nothing of it.
    pub(crate) fn is_for_good(&self) -> bool {
        match self {
            Self::Derivation(error) => !matches!(error, DerivationError::Store { .. }),
            Self::Refused(refusal) => refusal.kind != RefusalKind::Unavailable,
            Self::NoOutput { .. } | Self::TooManyRows { .. } | Self::Resolve(_) | Self::Job(_) => true,
            Self::Staged(refused) => matches!(refused, Refused::TooManyJobs { .. }),
            Self::Store(_) | Self::Stage(_) => false,
        }
    }
}

/// Adds to `realised` where the outputs are that a derivation needs of those that its inputs made. If some are to be built first, stages what
/// builds them and returns what the derivation comes to for now.
///
/// # Errors
/// [`GrownError`] says what was made that cannot be built, or what failed.
pub(crate) async fn look<'a>(
    parts: &'a Arc<Parts>,
    path: &DrvPath,
    derivation: &Derivation,
    realised: &mut Realised,
) -> Result<Option<(Resolution, SemaphorePermit<'a>)>, GrownError> {
    let mut settled = Settled::new();
    loop {
        let lacking = unsettled(find(parts, path, derivation, realised, &settled).await?, &settled);
        if lacking.is_empty() {
            return Ok(None);
        }
        let rows = needed(path, derivation, realised)?.len();
        if rows > RESOLVED_INPUTS_PER_JOB_MAX {
            return Err(GrownError::TooManyRows { rows });
        }
        let roots: Vec<Root> = lacking.into_iter().map(|(derivation, outputs)| Root { derivation, outputs }).collect();
        // Each stages what may be a whole closure, and there is room for few.
        let turn = parts.growths.acquire().await.expect("never closed");
        let jobs = submit::jobs(parts, &roots).await.map_err(GrownError::Refused)?;
        let built: BTreeSet<&DrvPath> = jobs.iter().map(|job| &job.derivation).collect();
        let (needs, there): (Vec<Root>, Vec<Root>) = roots.into_iter().partition(|root| built.contains(&root.derivation));
        if !needs.is_empty() {
            let needs = needs.into_iter().map(|root| root.derivation).collect();
            return Ok(Some((stage(parts, path, jobs, needs).await?, turn)));
        }
        // An upstream cache had it, or it was built before; what it makes may lead further.
        settled.extend(
            there.into_iter().flat_map(|Root { derivation, outputs }| outputs.into_iter().map(move |output| (derivation.clone(), output))),
        );
    }
}

/// Outputs that are there: nothing is built for them.
type Settled = BTreeSet<(DrvPath, OutputName)>;

/// Outputs that are not there, of derivations that were made.
type Lacking = BTreeMap<DrvPath, BTreeSet<OutputName>>;

/// Leaves out what is settled. Of one derivation some outputs may be, and others not.
fn unsettled(mut lacking: Lacking, settled: &Settled) -> Lacking {
    for (made, outputs) in &mut lacking {
        outputs.retain(|output| !settled.contains(&(made.clone(), output.clone())));
    }
    lacking.retain(|_, outputs| !outputs.is_empty());
    lacking
}

/// Stages what the farm lacks of some jobs.
async fn stage(parts: &Arc<Parts>, path: &DrvPath, mut jobs: Vec<JobSpec>, needs: Vec<DrvPath>) -> Result<Resolution, GrownError> {
    let request = draw_request(path);
    jobs.retain(|job| !parts.farm(|farm| farm.has_job(&job.derivation)));
    for stage in submit::stages(request, jobs, parts.clock.now()) {
        let answers = propose_patiently(parts.clone(), stage).await?.answers;
        if let Some(refused) = answers.into_iter().find_map(refusal) {
            return Err(refused.into());
        }
    }
    Ok(Resolution::Grow { request, needs })
}

fn refusal(answer: Answer) -> Option<Refused> {
    match answer {
        Answer::Refused(refused) => Some(refused),
        Answer::Submitted { .. } => None,
    }
}

/// Looks for outputs of derivations that were made, again and again as each tells of the next. Returns which are not there, or of a job that
/// is not `settled`.
async fn find(
    parts: &Parts,
    path: &DrvPath,
    derivation: &Derivation,
    realised: &mut Realised,
    settled: &Settled,
) -> Result<Lacking, GrownError> {
    let mut lacking = Lacking::new();
    let mut looked: BTreeSet<(DrvPath, OutputName)> = BTreeSet::new();
    loop {
        let mut is_new = false;
        for Needed { input, output, .. } in needed(path, derivation, realised)? {
            let is_known = realised.get(&input).is_some_and(|outputs| outputs.contains_key(&output));
            let is_own = derivation.inputs.get(&input).is_some_and(|wanted| wanted.all().contains(&output));
            if is_known || is_own || !looked.insert((input.clone(), output.clone())) {
                continue;
            }
            let recipe = recipe(parts, &input).await?;
            if recipe.is_impure() && !derivation.is_impure() && !derivation.is_fixed_output() {
                return Err(JobError::NeedsImpure { derivation: path.clone(), input }.into());
            }
            match at(parts, &input, &recipe, &output, settled.contains(&(input.clone(), output.clone()))).await? {
                Some(at) => {
                    realised.entry(input).or_default().insert(output, at);
                    is_new = true;
                }
                None => drop(lacking.entry(input).or_default().insert(output)),
            }
        }
        if !is_new {
            return Ok(lacking);
        }
    }
}

/// Returns a derivation that was made.
async fn recipe(parts: &Parts, made: &DrvPath) -> Result<Arc<Derivation>, GrownError> {
    touch(parts, [made.as_path()]).await;
    Ok(parts.derivations.get(parts, made).await?)
}

/// Returns where an output of a derivation that was made is, if it is there. Unless that `is_settled`, what a job of the farm makes is not: who
/// needs it waits for that job, and so for its publication.
async fn at(
    parts: &Parts,
    made: &DrvPath,
    recipe: &Derivation,
    output: &OutputName,
    is_settled: bool,
) -> Result<Option<StorePath>, GrownError> {
    let no_output = || GrownError::NoOutput { derivation: made.clone(), output: output.clone() };
    let known = recipe.outputs.get(output).ok_or_else(no_output)?.path();
    if !is_settled && parts.farm(|farm| farm.has_job(made)) {
        return Ok(None);
    }
    match known {
        Some(known) => {
            touch(parts, [known]).await;
            Ok(parts.path_info(known).await?.map(|info| info.path))
        }
        // Made anew for everybody who asks.
        None if recipe.is_impure() => Ok(None),
        None => Ok(realised::published(parts, made, output).await?.map(|info| info.path)),
    }
}

/// Draws a number that no submission has.
fn draw_request(path: &DrvPath) -> RequestId {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded from the system's randomness.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write(path.as_str().as_bytes());
    RequestId(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_there_settles_no_other() {
        let drv = |letter: &str| DrvPath::parse(&format!("{}-x.drv", letter.repeat(32))).expect("a path");
        let names = |text: &str| text.split_whitespace().map(|name| OutputName::parse(name).expect("a name")).collect::<BTreeSet<_>>();
        let lacking = Lacking::from([(drv("a"), names("out dev")), (drv("b"), names("out"))]);
        let settled = |of: &str, outputs: &str| names(outputs).into_iter().map(|output| (drv(of), output)).collect::<Settled>();
        assert_eq!(unsettled(lacking.clone(), &Settled::new()), lacking);
        assert_eq!(unsettled(lacking.clone(), &settled("a", "out")), Lacking::from([(drv("a"), names("dev")), (drv("b"), names("out"))]));
        assert_eq!(unsettled(lacking, &settled("b", "out dev")), Lacking::from([(drv("a"), names("out dev"))]));
    }
}
