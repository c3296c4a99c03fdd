//! A hook that works by itself: where no agent is wanted, none can be had, or the one there was is gone.

use std::io::BufRead;
use std::process::ExitCode;

use anyhow::Context;
use kiln_nix::hook::{Settings, line};

use super::asked::Asked;
use super::relay::Left;
use super::service::{Accepted, Answer, Farm, Hook, decline_for_good};
use super::voice::{self, Log, Voice, say};
use super::way::Way;
use crate::daemons::told_to_stop;
use crate::words;

/// Answers Nix until a build is taken, and builds it; goes on where an agent has left it.
pub(super) fn run(way: &Way, settings: Settings, asked: &mut Asked<impl BufRead>, log: Log, left: Left) -> anyhow::Result<ExitCode> {
    // Two threads: Nix starts as many hooks as there are builds.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start the runtime")?;
    let (voice, said) = Voice::new();
    let aloud = runtime.spawn(voice::aloud(said, log));
    let code = answer(&runtime, way, settings, asked, voice, left);
    // What was said is heard before the end.
    let spoken = runtime.block_on(aloud);
    tracing::debug!(?spoken, "the end");
    // A thread that waits for a lock must not hold up the end.
    runtime.shutdown_background();
    code.map(ExitCode::from)
}

fn answer(
    runtime: &tokio::runtime::Runtime,
    way: &Way,
    settings: Settings,
    asked: &mut Asked<impl BufRead>,
    voice: Voice,
    left: Left,
) -> anyhow::Result<u8> {
    let open = || -> anyhow::Result<Hook> {
        let farm = runtime.block_on(Farm::open(way, false))?;
        Hook::new(farm, way, settings.clone(), voice.clone())
    };
    let (mut hook, mut question) = (None, None);
    match left {
        Left::Nothing => {}
        Left::Question(left) => question = Some(left),
        Left::Taken(question, inputs) => {
            let inputs = inputs.map_or_else(|| asked.inputs(), Ok)?;
            // Nix has its answer, and takes no other.
            let taken = open().and_then(|hook| Ok((runtime.block_on(hook.take_up(&question))?, hook)));
            return Ok(match taken {
                Ok((accepted, hook)) => build(runtime, &hook, accepted, &inputs),
                Err(error) => {
                    say(&line::error(&format!("kiln: go on with a build that an agent had: {error:#}")));
                    super::service::FAILED_OTHERWISE
                }
            });
        }
    }
    loop {
        let next = question.take().map_or_else(|| asked.question(), |left| Ok(Some(left)))?;
        let Some(question) = next else { return Ok(words::SUCCESS) };
        if hook.is_none() {
            match open() {
                Ok(opened) => hook = Some(opened),
                Err(error) => {
                    runtime.block_on(decline_for_good(&voice, &error));
                    return Ok(words::SUCCESS);
                }
            }
        }
        let Some(hook) = &hook else { return Ok(words::SUCCESS) };
        match runtime.block_on(hook.answer(&question))? {
            Answer::No => {}
            Answer::NoForGood => return Ok(words::SUCCESS),
            Answer::Taken(accepted) => return Ok(build(runtime, hook, *accepted, &asked.inputs()?)),
        }
    }
}

fn build(runtime: &tokio::runtime::Runtime, hook: &Hook, accepted: Accepted, inputs: &[u8]) -> u8 {
    let unwanted = async {
        tokio::select! {
            () = nix_is_gone() => {}
            told = told_to_stop() => tracing::debug!(?told, "stopping"),
        }
    };
    runtime.block_on(hook.build(accepted, inputs, unwanted))
}

/// Waits until nobody reads what this process says: a Nix that was killed kills no hook.
async fn nix_is_gone() {
    let opened = tokio::net::unix::pipe::OpenOptions::new().open_sender("/proc/self/fd/2");
    match opened {
        Ok(pipe) => {
            // Whatever else becomes of looking says nothing of Nix.
            if pipe.ready(tokio::io::Interest::ERROR).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        // Not started by Nix, but by a person.
        Err(_) => std::future::pending().await,
    }
}
