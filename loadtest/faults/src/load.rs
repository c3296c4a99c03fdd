//! A build that goes on for as long as something is measured: jobs that take a moment and no processor time, each dispatched anew.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::farm::Farm;
use crate::lines::Fact;
use crate::run;
use crate::sets::Set;

/// A running `kiln build` whose end nobody waits for.
#[derive(Debug)]
pub struct Load {
    child: Child,
}

impl Load {
    /// Starts building the derivations of a list.
    ///
    /// # Errors
    /// If the list or the program cannot be used.
    pub fn start(farm: &Farm, list: &Path) -> anyhow::Result<Self> {
        let set = Set::read(list)?;
        let log = farm.dir().join("logs/build.log");
        let file = std::fs::File::create(&log).with_context(|| format!("make `{}`", log.display()))?;
        let mut command = farm.client(&[&["build", "--json"], &set.arguments()[..]].concat());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Ok(Self { child: command.spawn().context("start `kiln build`")? })
    }

    /// Waits until everything is built.
    ///
    /// # Errors
    /// If it takes too long, or something was not built.
    pub fn finish(mut self, time: Duration) -> anyhow::Result<()> {
        let status = run::wait_for("the build ends", time, || self.child.try_wait().context("look at `kiln build`"))?;
        anyhow::ensure!(status.success(), "the client ended: {status}; see build.log");
        Ok(())
    }

    /// Fails if there is nothing to build any more, or the client gave up.
    ///
    /// # Errors
    /// If so: how it ended.
    pub fn must_go_on(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait().context("look at `kiln build`")? {
            Some(status) if status.success() => bail!("the build ended before the measuring did: give it more derivations"),
            Some(status) => bail!("the client ended: {status}; see build.log"),
            None => Ok(()),
        }
    }

    /// Waits until workers get jobs: from then on, all derivations are handed over.
    ///
    /// # Errors
    /// If they get none for long, or something ended.
    pub fn wait_until_steady(&mut self, farm: &mut Farm) -> anyhow::Result<()> {
        let since = farm.book.now_us();
        let book = farm.book.clone();
        run::wait_for("workers get jobs", HANDED_OVER, || {
            self.must_go_on()?;
            farm.must_live()?;
            let begun = book.said().iter().filter(|said| said.at_us > since && matches!(said.fact, Fact::Began(..))).count();
            Ok((begun >= STEADY).then_some(()))
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Longest time for the first jobs to begin: thousands of derivations are handed over before.
const HANDED_OVER: Duration = Duration::from_secs(300);
/// Jobs begun that show that the farm works.
const STEADY: usize = 5;
