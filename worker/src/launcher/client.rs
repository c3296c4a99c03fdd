//! The worker's side: starts a launcher, and holds one conversation for each build.

use std::collections::BTreeSet;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kiln_wire::frame;
use kiln_wire::{Failure, FailureClass};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;

use super::message::{Answer, Ask, Claim, TalkError, Task, decode, read_message, write_message};
use super::policy::Policy;
use super::serve::{Start, serve_in_thread};
use super::socket::{pair, receive_start, send_conversation, send_start};
use crate::failure::{caused, chain};
use crate::sandbox::{Cancel, Ended};

/// A running launcher. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Launcher {
    shared: Arc<Shared>,
    guarantees: Vec<(String, String)>,
    lacking: BTreeSet<String>,
}

#[derive(Debug)]
struct Shared {
    control: OwnedFd,
    carrier: Mutex<Option<Carrier>>,
}

impl Drop for Shared {
    /// A launcher that nobody closed ends too, by itself.
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
    }
}

/// What a launcher runs in.
#[derive(Debug)]
enum Carrier {
    Process(Child),
    Thread(JoinHandle<()>),
}

/// A launcher that cannot be started, or a build that it did not run. Never the build's fault.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// There is no socket, process or thread to be had.
    #[error("start the worker's launcher")]
    Start(#[source] io::Error),
    /// The launcher cannot work on this machine, or with this configuration.
    #[error("start the worker's launcher: {0}")]
    Unfit(String),
    /// It did not run the build.
    #[error("{0}")]
    NotRun(String),
    /// It is gone, or talks nonsense, or was asked for too much.
    #[error("the worker's launcher does not answer")]
    Gone(#[source] TalkError),
}

impl LauncherError {
    /// Returns whose fault it is.
    pub fn class(&self) -> FailureClass {
        match self {
            // The same on every worker.
            Self::Gone(TalkError::TooLong { .. }) => FailureClass::BuildFailure,
            Self::Start(_) | Self::Unfit(_) | Self::NotRun(_) | Self::Gone(_) => FailureClass::Infrastructure,
        }
    }
}

impl Launcher {
    /// Starts a launcher as a process of its own, which runs `program launcher`.
    ///
    /// # Errors
    /// [`LauncherError::Start`], [`LauncherError::Unfit`].
    pub fn in_process(policy: &Policy, program: &Path) -> Result<Self, LauncherError> {
        let (ours, theirs) = pair().map_err(LauncherError::Start)?;
        let command = Command::new(program)
            .arg("launcher")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            // Ctrl-C is the worker's to hear.
            .process_group(0)
            .spawn();
        let child = command.map_err(LauncherError::Start)?;
        Self::meet(policy, ours, Carrier::Process(child))
    }

    /// Starts a launcher as a thread of this process: where that has the privileges anyway, or none at all.
    ///
    /// # Errors
    /// [`LauncherError::Start`], [`LauncherError::Unfit`].
    pub fn in_thread(policy: &Policy) -> Result<Self, LauncherError> {
        let (ours, theirs) = pair().map_err(LauncherError::Start)?;
        let thread = std::thread::Builder::new().name("kiln-launcher".into()).spawn(move || {
            if let Err(err) = serve_in_thread(&theirs) {
                tracing::debug!(err = %chain(&err), "the launcher ended");
            }
        });
        Self::meet(policy, ours, Carrier::Thread(thread.map_err(LauncherError::Start)?))
    }

    fn meet(policy: &Policy, control: OwnedFd, carrier: Carrier) -> Result<Self, LauncherError> {
        let gone = |err: io::Error| LauncherError::Gone(err.into());
        let shared = Shared { control, carrier: Mutex::new(Some(carrier)) };
        let policy = frame::to_bytes(policy).map_err(|err| LauncherError::Gone(err.into()))?;
        send_start(&shared.control, &policy).map_err(gone)?;
        match decode(&receive_start(&shared.control).map_err(gone)?).map_err(LauncherError::Gone)? {
            Start::Ready { guarantees, lacking } => Ok(Self { shared: Arc::new(shared), guarantees, lacking }),
            Start::Failed(reason) => Err(LauncherError::Unfit(reason)),
        }
    }

    /// Returns what builds get from it, and what the worker gave up, by name, in words for people.
    pub fn guarantees(&self) -> &[(String, String)] {
        &self.guarantees
    }

    /// Returns those of the configured features that it cannot give on this machine; its guarantees say why.
    pub fn lacking(&self) -> &BTreeSet<String> {
        &self.lacking
    }

    /// Adds something that the worker itself keeps to.
    pub(crate) fn promising(mut self, name: &str, words: &str) -> Self {
        self.guarantees.push((name.to_owned(), words.to_owned()));
        self
    }

    /// Begins the run of a builder.
    ///
    /// # Errors
    /// [`LauncherError::Gone`].
    pub fn start(&self, task: Task) -> Result<Run, LauncherError> {
        let gone = |err: io::Error| LauncherError::Gone(err.into());
        let (stream, theirs) = UnixStream::pair().map_err(gone)?;
        send_conversation(&self.shared.control, theirs.as_fd()).map_err(gone)?;
        drop(theirs);
        write_message(&stream, &Ask::Run(Box::new(task))).map_err(LauncherError::Gone)?;
        Ok(Run { stream })
    }

    /// Returns what changes, or loses its sender, when the launcher has ended.
    ///
    /// # Errors
    /// When no thread or descriptor is to be had.
    pub fn end(&self) -> io::Result<watch::Receiver<()>> {
        let control = self.shared.control.try_clone()?;
        let (sender, receiver) = watch::channel(());
        std::thread::Builder::new().name("kiln-launcher-end".into()).spawn(move || {
            // It says nothing after its start: what can be read is its end.
            while poll(&mut [PollFd::new(&control, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
            drop(sender);
        })?;
        Ok(receiver)
    }

    /// Lets the launcher end, waits until it has, and with it every control group of its builds. Blocks.
    pub fn close(&self) {
        // What is closed already needs no closing.
        let _ = rustix::net::shutdown(&self.shared.control, rustix::net::Shutdown::Both);
        let carrier = self.shared.carrier.lock().unwrap_or_else(PoisonError::into_inner).take();
        let failed = match carrier {
            Some(Carrier::Process(mut child)) => {
                child.wait().map_or_else(|err| Some(err.to_string()), |status| (!status.success()).then(|| status.to_string()))
            }
            Some(Carrier::Thread(thread)) => thread.join().is_err().then(|| "it panicked".to_owned()),
            None => None,
        };
        if let Some(reason) = failed {
            tracing::warn!(reason, "the launcher did not end well");
        }
    }
}

/// A build at the launcher. Dropping it stops what runs and throws away what is left.
#[derive(Debug)]
pub struct Run {
    stream: UnixStream,
}

impl Run {
    /// Waits for the end of the run, which `cancel` brings about. `log` gets the builder's output as it comes. Blocks.
    ///
    /// # Errors
    /// [`LauncherError::NotRun`] if the sandbox could not be set up, [`LauncherError::Gone`].
    pub fn until_end(&mut self, cancel: &Cancel, log: &mut dyn FnMut(&[u8])) -> Result<Ended, LauncherError> {
        let gone = |err: io::Error| LauncherError::Gone(err.into());
        let mut told = false;
        loop {
            if !told && self.is_cancelled_first(cancel).map_err(gone)? {
                write_message(&self.stream, &Ask::Stop).map_err(LauncherError::Gone)?;
                told = true;
            }
            match self.answer()? {
                Answer::Log(bytes) => log(&bytes),
                Answer::Ended(ended) => return Ok(ended),
                Answer::NotRun(reason) => return Err(LauncherError::NotRun(reason)),
                Answer::Claimed(_) | Answer::Refused(_) => return Err(unexpected()),
            }
        }
    }

    /// Waits until the launcher says something, or the attempt is cancelled; whether it was cancelled.
    fn is_cancelled_first(&self, cancel: &Cancel) -> io::Result<bool> {
        loop {
            let mut fds = [PollFd::new(cancel, PollFlags::IN), PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(err.into()),
                Ok(_) => return Ok(!fds[0].revents().is_empty()),
            }
        }
    }

    /// Makes the launcher hand over the outputs, canonical and this worker's; returns the directory that they lie in while `self` lives.
    ///
    /// # Errors
    /// Why the outputs cannot be had, without the derivation's name.
    pub fn claim(&mut self, claim: Claim) -> Result<PathBuf, Failure> {
        let lost = |err: LauncherError| caused(FailureClass::Infrastructure, "", &err);
        write_message(&self.stream, &Ask::Claim(claim)).map_err(|err| lost(LauncherError::Gone(err)))?;
        match self.answer().map_err(lost)? {
            Answer::Claimed(dir) => Ok(dir.into()),
            Answer::Refused(failure) => Err(failure),
            Answer::Log(_) | Answer::Ended(_) | Answer::NotRun(_) => Err(lost(unexpected())),
        }
    }

    fn answer(&mut self) -> Result<Answer, LauncherError> {
        match read_message(&self.stream).map_err(LauncherError::Gone)? {
            Some(answer) => Ok(answer),
            None => Err(LauncherError::Gone(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
        }
    }
}

impl Drop for Run {
    /// Waits until the build's files are out of the way, so that its user is free for the next.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        // Log that nobody wants, and then the end.
        let _ = io::copy(&mut &self.stream, &mut io::sink());
    }
}

fn unexpected() -> LauncherError {
    LauncherError::Gone(io::Error::new(io::ErrorKind::InvalidData, "an answer to something else").into())
}
