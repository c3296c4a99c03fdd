//! Resolution: puts the committed paths of a job's inputs into its derivation, and looks whether what that makes is there. Where inputs made
//! derivations of which it needs outputs, [`crate::grown`] has those built first.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kiln_core::{Answer, Command, Refused, Resolution, ResolvedInput};
use kiln_nix::derivation::{Derivation, Output};
use kiln_nix::resolve::{Realised, ResolveError, Resolved, needed, resolve as put_in};
use kiln_store::StoreError;
use kiln_wire::limits::FAILURE_MESSAGE_BYTES_MAX;
use kiln_wire::{BuiltOutput, DrvPath, Leader};
use tokio::sync::SemaphorePermit;

use crate::brought_back::{BroughtBack, Next};
use crate::derivations::DerivationError;
use crate::driver::{Chain, propose_patiently};
use crate::garbage::touch;
use crate::grown::{self, GrownError};
use crate::parts::Parts;
use crate::pauses::Pauses;
use crate::{leading, realised};

/// A derivation that cannot be resolved.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Derivation(#[from] DerivationError),
    #[error("look for what it makes")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Grown(#[from] GrownError),
}

impl Failed {
    /// Whether the recipe is at fault. A store that refuses, or that holds something damaged, says nothing of the recipe: people mend it.
    fn is_for_good(&self) -> bool {
        match self {
            Self::Derivation(DerivationError::Parse { .. } | DerivationError::NotOne { .. } | DerivationError::Missing(_))
            | Self::Resolve(_) => true,
            Self::Grown(error) => error.is_for_good(),
            Self::Derivation(DerivationError::Store { .. }) | Self::Store(_) => false,
        }
    }
}

/// Resolves a job and proposes what it comes to; a store that fails is waited for. Ends early once the job waits for it no more, or once
/// another leadership than `leader` is known of: twice is as good as once.
pub(crate) async fn resolve(parts: Arc<Parts>, leader: Leader, derivation: DrvPath) {
    let work = async {
        tokio::select! {
            () = no_longer_wanted(&parts, &derivation) => {}
            () = resolve_wanted(&parts, &derivation) => {}
        }
    };
    if leading::while_under(parts.consensus.leadership(), leader, work).await.is_none() {
        tracing::debug!(job = %derivation, term = parts.term(), "another coordinator resolves it");
    }
}

/// Waits until a job waits no more to be resolved. What upstream caches have of its inputs may take hours to bring.
async fn no_longer_wanted(parts: &Parts, derivation: &DrvPath) {
    while parts.farm(|farm| farm.is_to_be_resolved(derivation)) {
        tokio::time::sleep(WANTED_PAUSE).await;
    }
}

async fn resolve_wanted(parts: &Arc<Parts>, derivation: &DrvPath) {
    let (mut pauses, mut brought_back) = (Pauses::default(), BroughtBack::default());
    while parts.farm(|farm| farm.is_to_be_resolved(derivation)) {
        let mut looked = resolution(parts, derivation).await;
        if let Err(Failed::Resolve(error @ ResolveError::Unrealised { input, output, .. })) = &looked {
            match brought_back.bring(parts, input, output).await {
                Next::Wait => {
                    pauses.after(error).await;
                    continue;
                }
                // It may have come with the build's end.
                Next::GiveUp => looked = resolution(parts, derivation).await,
            }
        }
        let Found { inputs, to, turn } = match looked {
            Err(error) if error.is_for_good() => Found { inputs: one_of_each(parts, derivation), to: impossible(&error), turn: None },
            Err(Failed::Grown(GrownError::Stage(error))) => {
                tracing::warn!(job = %derivation, term = parts.term(), error = %Chain(&error), "stage what a derivation needs; the next leader does");
                return;
            }
            Err(error) => {
                pauses.after(&error).await;
                continue;
            }
            Ok(found) => found,
        };
        let command = Command::Resolve { derivation: derivation.clone(), inputs, to, now: parts.clock.now() };
        let refused = match propose_patiently(parts.clone(), command).await {
            Ok(applied) => refusal(applied.answers),
            Err(error) => {
                tracing::warn!(job = %derivation, term = parts.term(), error = %Chain(&error), "report a resolved derivation; the next leader resolves it again");
                return;
            }
        };
        // Nothing is staged for it any more.
        drop(turn);
        match refused {
            // What it was made from is committed no more, what was staged is gone, or something here is wrong: nobody else would try it again.
            Some(refused @ (Refused::WrongResolution(_) | Refused::StageDropped(_) | Refused::UnknownInput { .. })) => {
                pauses.after(&refused).await;
            }
            Some(refused @ (Refused::Cycle(_) | Refused::TooManyJobs { .. } | Refused::GrownTooFar { .. })) => {
                let message = format!("what its inputs made cannot be built for it: {refused}");
                let (inputs, to) = (one_of_each(parts, derivation), Resolution::Impossible { message });
                let command = Command::Resolve { derivation: derivation.clone(), inputs, to, now: parts.clock.now() };
                if let Err(error) = propose_patiently(parts.clone(), command).await {
                    tracing::warn!(job = %derivation, term = parts.term(), error = %Chain(&error), "report a derivation that cannot be built");
                    return;
                }
            }
            Some(_) | None => return,
        }
    }
}

fn refusal(answers: Vec<Answer>) -> Option<Refused> {
    answers.into_iter().find_map(|answer| match answer {
        Answer::Refused(refused) => Some(refused),
        Answer::Submitted { .. } => None,
    })
}

/// A message may hold a client's text of any length, and is cut before the log has it.
fn impossible(error: &Failed) -> Resolution {
    let message: String = Chain(error).to_string().chars().take(FAILURE_MESSAGE_BYTES_MAX).collect();
    Resolution::Impossible { message }
}

/// Returns an output of each input that is a job: all that can be said where the recipe cannot be read or resolved.
fn one_of_each(parts: &Parts, derivation: &DrvPath) -> Vec<ResolvedInput> {
    let mut inputs = committed(parts, derivation);
    inputs.dedup_by(|one, other| one.derivation == other.derivation);
    inputs
}

/// Returns where the outputs of those inputs are that are jobs of the farm.
fn committed(parts: &Parts, derivation: &DrvPath) -> Vec<ResolvedInput> {
    parts.farm(|farm| {
        let of = |input: &DrvPath| {
            let at = |built: &BuiltOutput| ResolvedInput {
                derivation: input.clone(),
                output: built.name.clone(),
                path: built.info.path.clone(),
            };
            farm.outputs_of(input).unwrap_or_default().iter().map(at).collect::<Vec<_>>()
        };
        farm.inputs_of(derivation).unwrap_or_default().into_iter().flat_map(of).collect()
    })
}

/// What a job comes to.
struct Found<'a> {
    inputs: Vec<ResolvedInput>,
    to: Resolution,
    /// Of a growth, until what is staged for it is taken.
    turn: Option<SemaphorePermit<'a>>,
}

async fn resolution<'a>(parts: &'a Arc<Parts>, path: &DrvPath) -> Result<Found<'a>, Failed> {
    let derivation = parts.derivations.get(parts, path).await?;
    let inputs = committed(parts, path);
    let mut realised = Realised::new();
    for ResolvedInput { derivation, output, path } in &inputs {
        realised.entry(derivation.clone()).or_default().insert(output.clone(), path.clone());
    }
    // Those that are no jobs were there when the job was submitted.
    for (input, wanted) in derivation.inputs.iter().filter(|(input, _)| !realised.contains_key(*input)).collect::<Vec<_>>() {
        let recipe = parts.derivations.get(parts, input).await?;
        for name in wanted.all() {
            let known = recipe.outputs.get(&name).and_then(Output::path).cloned();
            let at = match known {
                Some(known) => Some(known),
                None => realised::output(parts, input, &name).await?.map(|info| info.path),
            };
            realised.entry(input.clone()).or_default().extend(at.map(|at| (name, at)));
        }
    }
    let grow = if derivation.is_dynamic() { grown::look(parts, path, &derivation, &mut realised).await? } else { None };
    let used: BTreeSet<_> = needed(path, &derivation, &realised)?.into_iter().map(|one| (one.input, one.output)).collect();
    let is_used = |input: &ResolvedInput| used.contains(&(input.derivation.clone(), input.output.clone()));
    let inputs = inputs.into_iter().filter(is_used).collect();
    if let Some((to, turn)) = grow {
        return Ok(Found { inputs, to, turn: Some(turn) });
    }
    let resolved = put_in(&parts.store_dir, path, &derivation, &realised)?;
    let to = keep(parts, resolved, parts.farm(|farm| farm.is_check(path))).await?;
    Ok(Found { inputs, to, turn: None })
}

/// Keeps a resolved derivation for the worker, and for whoever asks what made an output; returns what it comes to. One that `is_check` is
/// built whatever exists.
async fn keep(parts: &Parts, resolved: Resolved, is_check: bool) -> Result<Resolution, Failed> {
    let Resolved { path, derivation, bytes } = resolved;
    let known = derivation.outputs.values().filter_map(Output::path);
    touch(parts, known.chain([path.as_path()])).await;
    let existing = if is_check { None } else { existing(parts, &path, &derivation).await? };
    if let Some(outputs) = existing {
        parts.store.put_derivation(&path, bytes.into()).await?;
        return Ok(Resolution::Exists { derivation: path, outputs });
    }
    parts.store.put_derivation(&path, bytes.clone().into()).await?;
    let outputs = derivation.outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.path()?.clone()))).collect();
    parts.derivations.keep(path.clone(), bytes.into(), Arc::new(derivation));
    Ok(Resolution::Build { derivation: path, outputs })
}

/// Returns all that a resolved derivation makes, if it is there. What is impure is made anew each time.
async fn existing(parts: &Parts, path: &DrvPath, derivation: &Derivation) -> Result<Option<Vec<BuiltOutput>>, StoreError> {
    let mut outputs = Vec::new();
    for (name, output) in &derivation.outputs {
        let info = match output {
            Output::InputAddressed(known) | Output::Fixed { path: known, .. } => parts.path_info(known).await?,
            Output::Floating { .. } => realised::published(parts, path, name).await?,
            Output::Deferred | Output::Impure { .. } => None,
        };
        match info {
            Some(info) => outputs.push(BuiltOutput { name: name.clone(), info }),
            None => return Ok(None),
        }
    }
    Ok(Some(outputs))
}

/// How often a resolution looks whether anybody wants it: what it does meanwhile is not lost, only not needed.
const WANTED_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use kiln_nix::derivation::DerivationError as ParseError;

    use super::*;

    #[test]
    fn only_a_recipe_makes_its_job_impossible() {
        let path = || DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-x.drv").expect("a path");
        let refused = || StoreError::Directory { dir: "/spool".into(), err: std::io::ErrorKind::PermissionDenied.into() };
        let damaged = || StoreError::Oversize { key: "x.narinfo".into(), size_bytes: 2, bytes_max: 1 };
        let parse = DerivationError::Parse { path: path(), source: ParseError::TooLong { name: "x".into(), bytes: 1 } };
        let output = kiln_wire::OutputName::parse("out").expect("a name");
        let unrealised = ResolveError::Unrealised { derivation: path(), input: path(), output };
        let not_one = DerivationError::NotOne { path: path(), rule: "it is no file".into() };
        for (failed, is_for_good) in [
            (Failed::Store(refused()), false),
            (Failed::Store(damaged()), false),
            (Failed::Derivation(DerivationError::Store { path: path(), source: refused() }), false),
            (Failed::Derivation(DerivationError::Store { path: path(), source: damaged() }), false),
            (Failed::Derivation(DerivationError::Missing(path())), true),
            (Failed::Derivation(parse), true),
            (Failed::Derivation(not_one), true),
            (Failed::Resolve(unrealised), true),
        ] {
            assert_eq!(failed.is_for_good(), is_for_good, "{failed:?}");
        }
    }

    #[test]
    fn the_reason_is_cut_before_the_log_has_it() {
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-x.drv").expect("a path");
        let name = "n".repeat(1 << 20);
        let Resolution::Impossible { message } = impossible(&Failed::Resolve(ResolveError::Environment { derivation, name })) else {
            panic!("it is impossible")
        };
        assert_eq!(message.len(), FAILURE_MESSAGE_BYTES_MAX);
    }
}
