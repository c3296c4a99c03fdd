//! `kiln build-hook --agent`: keeps the connection to the farm, and a local Nix that takes outputs, for the hooks of one user that come
//! one after another. Started by the first of them; ends when none has come for a while.
//!
//! What a hook has here lasts as long as its connection: Nix kills hooks without a word, and then the build is cancelled. A hook whose
//! agent is gone goes on by itself ([`super::alone`]), so that nothing here needs to be kept.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kiln_wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::locks::Locks;
use super::relay::{AGENTS, is_ours};
use super::said::{Frames, FromHook, PROTOCOL, ToHook};
use super::service::{Answer, Farm, Hook, decline_for_good};
use super::voice::Voice;
use super::way::Way;
use crate::daemons::told_to_stop;
use crate::words;

/// What all hooks share.
struct Shared {
    way: Way,
    /// Opened by the first that needs it.
    farm: OnceCell<Arc<Farm>>,
}

/// Serves hooks on the socket that is standard input, which has this name among the locks.
pub(super) fn run(way: Way, name: &str) -> anyhow::Result<ExitCode> {
    // Nix kills the process group of a hook, and waits until nobody has a descriptor that it gave to one.
    rustix::process::setsid().context("leave the process group of the hook")?;
    close_inherited()?;
    let listener = std::io::stdin().as_fd().try_clone_to_owned().context("take the socket")?;
    let listener = StdListener::from(listener);
    listener.set_nonblocking(true).context("take the socket")?;
    let place = Place::new(&way, name)?;
    // Two threads: there is little to do, and a machine that builds elsewhere has other work.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let listener = UnixListener::from_std(listener).context("listen")?;
        tokio::select! {
            served = serve(Arc::new(Shared { way, farm: OnceCell::new() }), listener, &place) => served,
            // Hooks that are left go on by themselves.
            told = told_to_stop() => told,
        }
    })?;
    runtime.shutdown_background();
    Ok(ExitCode::from(words::SUCCESS))
}

/// The name at which hooks find the agent.
struct Place {
    locks: Locks,
    socket: PathBuf,
    inode: u64,
}

impl Place {
    fn new(way: &Way, name: &str) -> anyhow::Result<Self> {
        let locks = Locks::open(way.locks.clone(), way.builds_max)?;
        let socket = way.locks.join(name);
        let inode = socket.symlink_metadata().with_context(|| format!("look at `{}`", socket.display()))?.ino();
        let place = Self { locks, socket, inode };
        // For people, and for whoever has to end it.
        std::fs::write(way.locks.join(format!("{name}.pid")), format!("{}\n", std::process::id())).context("write who this is")?;
        Ok(place)
    }

    fn is_ours(&self) -> bool {
        self.socket.symlink_metadata().is_ok_and(|meta| meta.ino() == self.inode)
    }

    /// Gives up the name. While a hook is about to start another agent, that one sees to it.
    fn leave(&self) -> anyhow::Result<()> {
        let starting = self.locks.file(AGENTS)?;
        if starting.try_lock().is_ok() && self.is_ours() {
            std::fs::remove_file(self.socket.with_extension("pid")).context("remove who this is")?;
            std::fs::remove_file(&self.socket).context("give up the socket")?;
        }
        Ok(())
    }
}

async fn serve(shared: Arc<Shared>, listener: UnixListener, place: &Place) -> anyhow::Result<()> {
    let linger = Duration::from_secs(shared.way.linger_seconds);
    let mut hooks = JoinSet::new();
    let mut idle_since = Instant::now();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("hear a hook")?;
                begin(&shared, stream, &mut hooks)?;
            }
            Some(ended) = hooks.join_next() => {
                tracing::debug!(?ended, "a hook is served");
                idle_since = Instant::now();
            }
            () = tokio::time::sleep_until(idle_since + linger), if hooks.is_empty() => break,
        }
    }
    place.leave()?;
    // Whoever came meanwhile is served: nobody else comes.
    while let Ok(accepted) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        begin(&shared, accepted.context("hear a hook")?.0, &mut hooks)?;
    }
    while hooks.join_next().await.is_some() {}
    Ok(())
}

fn begin(shared: &Arc<Shared>, stream: UnixStream, hooks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    if is_ours(&stream)? {
        hooks.spawn(hook(shared.clone(), stream));
    }
    Ok(())
}

/// Serves one hook.
async fn hook(shared: Arc<Shared>, stream: UnixStream) -> anyhow::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut from = FromHooks { reader, frames: Frames::default() };
    let (voice, said) = Voice::new();
    let speaking = tokio::spawn(speak(said, writer));
    let served = converse(&shared, &mut from, &voice).await;
    drop(voice);
    speaking.await.context("speak to a hook")??;
    served
}

async fn converse(shared: &Shared, from: &mut FromHooks, voice: &Voice) -> anyhow::Result<()> {
    let settings = match from.next().await? {
        Some(FromHook::Hello { protocol: PROTOCOL, settings }) => settings,
        _ => bail!("a hook begins with something else"),
    };
    voice.tell(ToHook::Welcome { protocol: PROTOCOL }).await;
    let mut opened = None;
    let accepted = loop {
        let question = match from.next().await? {
            Some(FromHook::Question(question)) => question,
            Some(_) => bail!("a hook says something else where a question is due"),
            None => return Ok(()),
        };
        if opened.is_none() {
            let farm = shared.farm.get_or_try_init(|| Farm::open(&shared.way, true)).await;
            match farm.and_then(|farm| Hook::new(farm.clone(), &shared.way, settings.clone(), voice.clone())) {
                Ok(hook) => opened = Some(hook),
                Err(error) => {
                    let answer = decline_for_good(voice, &error).await;
                    voice.tell(ToHook::Answered(answer.answered())).await;
                    return Ok(());
                }
            }
        }
        let Some(hook) = &opened else { return Ok(()) };
        let answer = tokio::select! {
            answer = hook.answer(&question) => answer?,
            // It was killed, and what it would be told is for nobody.
            () = from.gone() => return Ok(()),
        };
        voice.tell(ToHook::Answered(answer.answered())).await;
        match answer {
            Answer::No => {}
            Answer::NoForGood => return Ok(()),
            Answer::Taken(accepted) => break *accepted,
        }
    };
    let inputs = match from.next().await? {
        Some(FromHook::Inputs(inputs)) => inputs,
        Some(_) => bail!("a hook says something else where inputs are due"),
        None => return Ok(()),
    };
    if let Some(hook) = &opened {
        let code = hook.build(accepted, &inputs, from.gone()).await;
        voice.tell(ToHook::Ended(code)).await;
    }
    Ok(())
}

/// Passes on what is said to a hook, and when nothing is, that this is there.
async fn speak(mut said: mpsc::Receiver<ToHook>, mut to: OwnedWriteHalf) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval_at(Instant::now() + ALIVE_EVERY, ALIVE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut words = Vec::new();
    loop {
        tokio::select! {
            count = said.recv_many(&mut words, WORDS_AT_ONCE) => if count == 0 { return Ok(()) },
            _ = tick.tick() => words.push(ToHook::Alive),
        }
        let mut bytes = Vec::new();
        for word in words.drain(..) {
            bytes.append(&mut frame::to_frame(&word)?);
        }
        to.write_all(&bytes).await.context("speak to a hook")?;
    }
}

/// What a hook says.
struct FromHooks {
    reader: OwnedReadHalf,
    frames: Frames,
}

impl FromHooks {
    /// Returns the next message; none if the hook is gone. Cancel safe.
    async fn next(&mut self) -> anyhow::Result<Option<FromHook>> {
        let mut bytes = Vec::with_capacity(READ_BYTES);
        loop {
            if let Some(message) = self.frames.next()? {
                return Ok(Some(message));
            }
            bytes.clear();
            if self.reader.read_buf(&mut bytes).await.context("hear a hook")? == 0 {
                return Ok(None);
            }
            self.frames.push(&bytes);
        }
    }

    /// Returns once the hook is gone, or says what none says at this point.
    async fn gone(&mut self) {
        let said = self.next().await;
        tracing::debug!(?said, "a hook is gone");
    }
}

/// Closes what a parent left open beside the first three.
fn close_inherited() -> anyhow::Result<()> {
    let listed = std::fs::read_dir("/proc/self/fd").context("look what is open")?;
    let open: Vec<i32> = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The directory that was read is closed already.
        let _closed = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// How often a hook is told that the agent is there.
pub(super) const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// Words in one write.
const WORDS_AT_ONCE: usize = 64;
/// Bytes heard at a time.
const READ_BYTES: usize = 16 << 10;
