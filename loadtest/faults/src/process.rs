//! One program of the farm: started on its host, killed, frozen, stopped; and the book of what all of them say.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::facts::Said;
use crate::hosts::Host;
use crate::lines;
use crate::run;

/// What all processes of a run said about attempts. Clones share it.
#[derive(Clone, Debug)]
pub struct Book {
    begin: Instant,
    said: Arc<Mutex<Vec<Said>>>,
}

impl Book {
    /// Opens an empty book: times count from here.
    pub fn open() -> Self {
        Self { begin: Instant::now(), said: Arc::default() }
    }

    /// Returns microseconds since the book was opened, by the machine's monotonic clock.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Returns what was said so far. Nobody is heard meanwhile.
    pub fn said(&self) -> MutexGuard<'_, Vec<Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes every line of a stream, with the time of its arrival, in a file and where it is a fact in the book; until the stream ends.
    fn listen(&self, host: Host, stream: impl Read + Send + 'static, mut file: File) {
        let book = self.clone();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let at_us = book.now_us();
                let text = String::from_utf8_lossy(&line);
                if let Some(fact) = lines::read(&text) {
                    book.said().push(Said { at_us, host, fact });
                }
                if writeln!(file, "{at_us:>12} {}", text.trim_end()).is_err() {
                    // The log is for people: the run goes on without it, and the disk being full is found elsewhere.
                    eprintln!("warning: a line of {host} is not in its log");
                }
                line.clear();
            }
        });
    }
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    host: Host,
    child: Child,
    frozen: bool,
}

impl Process {
    /// Starts a command, whose output goes to the file `log` (appended) and to the book.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(host: Host, command: &mut Command, log: &Path, book: &Book) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log).with_context(|| format!("open `{}`", log.display()))?;
        let out = file.try_clone().with_context(|| format!("open `{}`", log.display()))?;
        let mut child = command.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).spawn().with_context(|| format!("start {host}"))?;
        let stderr = child.stderr.take().context("its standard error is a pipe")?;
        book.listen(host, stderr, file);
        Ok(Self { host, child, frozen: false })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {}", self.host))
    }

    /// Stops it where it stands, until [`Process::thaw`].
    ///
    /// # Errors
    /// If the process is gone.
    pub fn freeze(&mut self) -> anyhow::Result<()> {
        self.frozen = true;
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn thaw(&mut self) -> anyhow::Result<()> {
        self.frozen = false;
        self.signal(Signal::SIGCONT)
    }

    /// Returns how it ended, if it has.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look at {}", self.host))
    }

    /// Fails if it ended by itself.
    ///
    /// # Errors
    /// If so: how.
    pub fn must_live(&mut self) -> anyhow::Result<()> {
        match self.ended()? {
            Some(status) => bail!("{} ended by itself: {status}", self.host),
            None => Ok(()),
        }
    }

    /// Kills it as a power cut would, and waits until it is gone.
    ///
    /// # Errors
    /// If it ended by itself before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.must_live()?;
        self.signal(Signal::SIGKILL)?;
        let status = self.child.wait().with_context(|| format!("wait for {}", self.host))?;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!("{} ended by itself just before it was killed: {status}", self.host);
        }
        Ok(())
    }

    /// Tells it to stop, and waits.
    ///
    /// # Errors
    /// If it does not end in time, or not well.
    pub fn stop(&mut self, signal: Signal, time: Duration) -> anyhow::Result<()> {
        if self.frozen {
            self.thaw()?;
        }
        self.must_live()?;
        self.signal(signal)?;
        let host = self.host;
        let status = run::wait_for(&format!("{host} stops"), time, || self.ended())?;
        if !status.success() {
            bail!("{host} did not stop well: {status}");
        }
        Ok(())
    }
}

impl Drop for Process {
    /// Whatever still runs is killed: a run that failed leaves nothing.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A worker first gets the time to take its builds with it.
            let _thawed = self.signal(Signal::SIGCONT);
            let _told = self.signal(Signal::SIGINT);
            let end = Instant::now() + GRACE;
            while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _killed = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// How long a process that is told to stop may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);
