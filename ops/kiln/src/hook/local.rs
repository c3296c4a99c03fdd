//! The Nix of this machine, to which outputs are given: a daemon of its own on a pipe, which keeps the locks that its parent has.

use std::collections::BTreeSet;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, anyhow};
use kiln_nix::daemon::ValidPath;
use kiln_nix::daemon::caller::{self, FrameWriter};
use kiln_wire::{StoreDir, StorePath};

/// A daemon of the local Nix. Ends when this does.
pub(super) struct LocalNix {
    child: Child,
    to: BufWriter<ChildStdin>,
    from: BufReader<ChildStdout>,
    store_dir: StoreDir,
}

impl LocalNix {
    /// Starts it, which goes on while others work. Nix holds the locks of `locked` already and must not wait for them.
    pub(super) fn start(program: &Path, store: &str, store_dir: &StoreDir, locked: &[StorePath]) -> anyhow::Result<Self> {
        let failed = || format!("start `{}`, by which outputs come into the store of this machine", program.display());
        let mut command = Command::new(program);
        command.arg("--stdio");
        if !store.is_empty() {
            command.args(["--option", "store", store]);
        }
        let locked: Vec<String> = locked.iter().map(|path| store_dir.join(path)).collect();
        command.env("NIX_HELD_LOCKS", locked.join(" ")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(failed)?;
        let (to, from) = child.stdin.take().zip(child.stdout.take()).with_context(failed)?;
        let mut local =
            Self { child, to: BufWriter::with_capacity(WRITE_BYTES, to), from: BufReader::new(from), store_dir: store_dir.clone() };
        local.to.write_all(&caller::greeting()).and_then(|()| local.to.flush()).with_context(failed)?;
        Ok(local)
    }

    /// Hears its greeting. Blocks.
    pub(super) fn greet(&mut self) -> anyhow::Result<()> {
        Ok(caller::read_greeting(&mut self.from)?)
    }

    /// Returns those of `paths` that are valid. Blocks.
    pub(super) fn valid(&mut self, paths: &BTreeSet<StorePath>) -> anyhow::Result<BTreeSet<StorePath>> {
        let asked = self.to.write_all(&caller::query_valid_paths(&self.store_dir, paths)).and_then(|()| self.to.flush());
        asked.context("ask the local Nix")?;
        Ok(caller::read_paths(&self.store_dir, &mut self.from)?)
    }

    /// Adds paths, each after those that it refers to; `archive` writes the archive of one. Blocks.
    pub(super) fn add(
        &mut self,
        paths: &[ValidPath],
        mut archive: impl FnMut(&StorePath, &mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Self { to, from, store_dir, .. } = self;
        // Heard while it is told: what a daemon says meanwhile must not fill the pipe.
        std::thread::scope(|scope| {
            let hearing = scope.spawn(|| caller::read_done(from));
            let told = tell(to, store_dir, paths, &mut archive);
            let heard = hearing.join().map_err(|_| anyhow!("hear the local Nix"))?;
            // Why it takes nothing says more than that it does not.
            heard?;
            told
        })
    }

    /// Lets it end in order.
    pub(super) fn end(self) {
        let Self { mut child, to, from, .. } = self;
        drop((to, from));
        // It has nothing to do any more; whatever it says, the outputs are there.
        let _ended = child.wait();
    }
}

fn tell(
    to: &mut BufWriter<ChildStdin>,
    store_dir: &StoreDir,
    paths: &[ValidPath],
    archive: &mut impl FnMut(&StorePath, &mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let failed = "give outputs to the local Nix";
    to.write_all(&caller::add_multiple_to_store()).context(failed)?;
    let mut frames = BufWriter::with_capacity(WRITE_BYTES, FrameWriter::new(to));
    frames.write_all(&caller::count(paths.len())).context(failed)?;
    for path in paths {
        frames.write_all(&caller::stated(store_dir, path)).context(failed)?;
        archive(&path.path, &mut frames)?;
    }
    let frames = frames.into_inner().map_err(|error| error.into_error()).context(failed)?;
    frames.end().context(failed)
}

/// Bytes written at a time.
const WRITE_BYTES: usize = 64 << 10;
