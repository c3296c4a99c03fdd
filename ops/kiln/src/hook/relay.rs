//! The hook's side of an agent: finds it or starts it, and passes on what Nix and the agent say to each other. Starts no runtime and
//! connects to no farm: that Nix starts a process for each build should cost no more than that.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use kiln_nix::hook::Settings;
use kiln_wire::frame;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

use super::asked::Asked;
use super::locks::{self, Locks};
use super::said::{Answered, Frames, FromHook, PROTOCOL, ToHook};
use super::service::FAILED_OTHERWISE;
use super::voice::{Log, say};
use super::way::Way;
use crate::words;

/// What an agent has left undone.
#[derive(Debug)]
pub(super) enum Left {
    /// It was asked nothing.
    Nothing,
    /// It has not answered this question.
    Question(Vec<u8>),
    /// It took the build of this question; Nix may have said already what the build needs.
    Taken(Vec<u8>, Option<Vec<u8>>),
}

/// How it went.
pub(super) enum Relayed {
    /// The hook ends with this.
    Over(u8),
    /// The agent is gone, or there is none.
    Lost(Left),
}

/// Answers Nix by way of an agent.
///
/// # Errors
/// What Nix says cannot be understood.
pub(super) fn run(way: &Way, settings: &Settings, asked: &mut Asked<impl BufRead>, log: &mut Log) -> anyhow::Result<Relayed> {
    let Some(mut question) = asked.question()? else { return Ok(Relayed::Over(words::SUCCESS)) };
    let mut agent = match Agent::reach(way, settings) {
        Ok(agent) => agent,
        Err(error) => {
            tracing::debug!(%error, "there is no agent");
            return Ok(Relayed::Lost(Left::Question(question)));
        }
    };
    loop {
        match agent.ask(&question, log) {
            Ok(Answered::No) => {}
            Ok(Answered::NoForGood) => return Ok(Relayed::Over(words::SUCCESS)),
            Ok(Answered::Taken) => break,
            Err(error) => {
                tracing::debug!(%error, "the agent does not answer");
                return Ok(Relayed::Lost(Left::Question(question)));
            }
        }
        question = match asked.question()? {
            Some(next) => next,
            None => return Ok(Relayed::Over(words::SUCCESS)),
        };
    }
    let inputs = asked.inputs()?;
    match agent.follow(&inputs, log) {
        Ok(code) => Ok(Relayed::Over(code)),
        Err(error) => {
            tracing::debug!(%error, "the agent is gone");
            Ok(Relayed::Lost(Left::Taken(question, Some(inputs))))
        }
    }
}

/// An agent, as a hook hears it.
struct Agent {
    stream: UnixStream,
    frames: Frames,
}

impl Agent {
    /// Finds the agent of this way, or starts it.
    fn reach(way: &Way, settings: &Settings) -> anyhow::Result<Self> {
        let name = way.agent_name()?;
        let locks = Locks::open(way.locks.clone(), way.builds_max)?;
        // By the directory, not by its name: a socket's name must be short.
        let dir = std::fs::File::options().read(true).custom_flags(DIRECTORY).open(&way.locks).context("open the directory of locks")?;
        let socket = format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&dir));
        let stream = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(_) => {
                // One hook starts it, and the others find it.
                let starting = locks.file(AGENTS)?;
                starting.lock().context("lock the start of an agent")?;
                match UnixStream::connect(&socket) {
                    Ok(stream) => stream,
                    Err(_) => start(way, &name, &socket)?,
                }
            }
        };
        ensure!(is_ours(&stream)?, "somebody else listens at `{name}`");
        let mut agent = Self { stream, frames: Frames::default() };
        agent.say(&FromHook::Hello { protocol: PROTOCOL, settings: settings.clone() })?;
        match agent.hear()? {
            ToHook::Welcome { protocol: PROTOCOL } => Ok(agent),
            other => bail!("the agent begins with {other:?}"),
        }
    }

    /// Asks a question of Nix.
    fn ask(&mut self, question: &[u8], log: &mut Log) -> anyhow::Result<Answered> {
        self.say(&FromHook::Question(question.to_vec()))?;
        // The answer and what it means come together, so that none is said to Nix without the other.
        let mut said = String::new();
        loop {
            match self.hear()? {
                ToHook::Say(text) => said.push_str(&text),
                ToHook::Log(bytes) => log.write(&bytes)?,
                ToHook::Answered(answered) => {
                    say(&said);
                    return Ok(answered);
                }
                other => bail!("the agent answers with {other:?}"),
            }
        }
    }

    /// Passes on what the agent says of a build, to its end.
    fn follow(&mut self, inputs: &[u8], log: &mut Log) -> anyhow::Result<u8> {
        self.say(&FromHook::Inputs(inputs.to_vec()))?;
        loop {
            match self.hear()? {
                ToHook::Say(text) => say(&text),
                ToHook::Log(bytes) => {
                    if log.write(&bytes).is_err() {
                        // Nix is gone, and nobody wants the build.
                        return Ok(FAILED_OTHERWISE);
                    }
                }
                ToHook::Ended(code) => return Ok(code),
                other => bail!("the agent says {other:?} of a build"),
            }
        }
    }

    fn say(&mut self, message: &FromHook) -> anyhow::Result<()> {
        self.stream.write_all(&frame::to_frame(message)?).context("speak to the agent")
    }

    /// Hears the next message that says something. An agent that says nothing for too long is as good as gone. Does not return if Nix is gone.
    fn hear(&mut self) -> anyhow::Result<ToHook> {
        loop {
            match self.frames.next()? {
                Some(ToHook::Alive) => continue,
                Some(message) => return Ok(message),
                None => {}
            }
            let nix = std::io::stderr();
            let mut waited = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN), PollFd::new(nix.as_fd(), PollFlags::empty())];
            let found = poll(&mut waited, PollTimeout::from(SILENCE_MS_MAX)).context("hear the agent")?;
            ensure!(found > 0, "the agent says nothing");
            if waited[1].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) {
                // A Nix that was killed kills no hook. The agent sees this one go.
                std::process::exit(FAILED_OTHERWISE.into());
            }
            let mut bytes = [0; READ_BYTES];
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the agent is gone"),
                Ok(count) => self.frames.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("hear the agent"),
            }
        }
    }
}

/// Starts an agent on a socket that listens already: whoever comes is heard once it is up. It has nothing of what Nix gave to this
/// process: Nix waits until nobody has that any more.
fn start(way: &Way, name: &str, socket: &str) -> anyhow::Result<UnixStream> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context("remove the socket of an agent that is gone"),
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at `{name}`"))?;
    // The very program that runs, whatever has its name by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("kiln").args(["build-hook", "--agent", name]).args(way.to_args()).current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start an agent")?;
    UnixStream::connect(socket).context("reach the agent that was started")
}

/// Returns whether the other end is a process of the same user.
pub(super) fn is_ours(stream: &impl AsFd) -> anyhow::Result<bool> {
    let peer = getsockopt(&stream.as_fd(), sockopt::PeerCredentials).context("look who is at the other end")?;
    Ok(peer.uid() == locks::own_uid()?)
}

/// The lock of whoever starts or ends an agent.
pub(super) const AGENTS: &str = "agents";
/// `O_DIRECTORY`.
const DIRECTORY: i32 = nix::fcntl::OFlag::O_DIRECTORY.bits();
/// Longest time without a word of an agent: it says each [`super::agent::ALIVE_EVERY`] that it is there.
const SILENCE_MS_MAX: u16 = 30_000;
/// Bytes heard at a time.
const READ_BYTES: usize = 16 << 10;
