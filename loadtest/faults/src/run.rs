//! Running programs of the machine, and stopping in order when somebody interrupts us.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Notes SIGINT and SIGTERM from here on: whatever waits then fails, and everything that was set up is torn down on the way out.
///
/// # Errors
/// If there is no runtime to listen with.
pub fn listen_for_interrupts() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime for signals")?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(())
}

/// Fails if somebody interrupted us.
///
/// # Errors
/// If so.
pub fn must_go_on() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Lets time pass.
///
/// # Errors
/// If somebody interrupts us.
pub fn pause(time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        must_go_on()?;
        std::thread::sleep(left.min(LOOK));
    }
    must_go_on()
}

/// Asks until there is an answer, at most for `time`.
///
/// # Errors
/// If none comes, or somebody interrupts us.
pub fn wait_for<T>(what: &str, time: Duration, mut ask: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let end = Instant::now() + time;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {} s", time.as_secs());
        }
        pause(LOOK)?;
    }
}

/// Runs a program to its end.
///
/// # Errors
/// What it said, if it failed.
pub fn run<Word: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = Word>) -> anyhow::Result<String> {
    finish(Command::new(program).args(args))
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// What it said, if it failed.
pub fn finish(command: &mut Command) -> anyhow::Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    if !done.status.success() {
        bail!("{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// How often something is looked at that does not say when it happens.
const LOOK: Duration = Duration::from_millis(20);
