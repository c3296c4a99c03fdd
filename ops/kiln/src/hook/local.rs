//! The Nix of this machine, to which outputs are given: a daemon of its own on a pipe, which keeps the locks that its parent has.

use std::collections::BTreeSet;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, anyhow};
use kiln_nix::daemon::ValidPath;
use kiln_nix::daemon::caller::{self, CallError, FrameWriter};
use kiln_wire::{StoreDir, StorePath};

/// A daemon of the local Nix. Ends when this does.
pub(super) struct LocalNix {
    child: Ends,
    to: BufWriter<ChildStdin>,
    from: BufReader<ChildStdout>,
    store_dir: StoreDir,
    is_greeted: bool,
}

/// A process that does not outlive its name.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl LocalNix {
    /// Starts it, which goes on while others work. Nix holds the locks of `locked` already and must not wait for them.
    pub(super) fn start<'a>(
        program: &Path,
        store: &str,
        store_dir: &StoreDir,
        locked: impl IntoIterator<Item = &'a StorePath>,
    ) -> anyhow::Result<Self> {
        let failed = || format!("start `{}`, by which outputs come into the store of this machine", program.display());
        let mut command = Command::new(program);
        command.arg("--stdio");
        if !store.is_empty() {
            command.args(["--option", "store", store]);
        }
        // What a path was a moment ago is looked up again: others add and delete while this one waits.
        command.args(["--option", "narinfo-cache-positive-ttl", "0", "--option", "narinfo-cache-negative-ttl", "0"]);
        let locked: Vec<String> = locked.into_iter().map(|path| store_dir.join(path)).collect();
        command.env("NIX_HELD_LOCKS", locked.join(" ")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(failed)?;
        let (to, from) = child.stdin.take().zip(child.stdout.take()).with_context(failed)?;
        let (to, from) = (BufWriter::with_capacity(WRITE_BYTES, to), BufReader::new(from));
        let mut local = Self { child: Ends(child), to, from, store_dir: store_dir.clone(), is_greeted: false };
        local.to.write_all(&caller::greeting()).and_then(|()| local.to.flush()).with_context(failed)?;
        Ok(local)
    }

    /// Hears its greeting, which comes once. Blocks.
    pub(super) fn greet(&mut self) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.is_greeted, true) {
            caller::read_greeting(&mut self.from)?;
        }
        Ok(())
    }

    /// Returns the valid paths that refer to `path`. Blocks.
    pub(super) fn referrers(&mut self, path: &StorePath) -> anyhow::Result<BTreeSet<StorePath>> {
        let asked = self.to.write_all(&caller::query_referrers(&self.store_dir, path)).and_then(|()| self.to.flush());
        asked.context("ask the local Nix")?;
        Ok(caller::read_paths(&self.store_dir, &mut self.from)?)
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
        let Self { child, to, from, store_dir, .. } = self;
        // Heard while it is told: what a daemon says meanwhile must not fill the pipe.
        std::thread::scope(|scope| {
            let hearing = scope.spawn(|| caller::read_done(from));
            let told = tell(to, store_dir, paths, &mut archive);
            if told.is_err() {
                // It waits for the rest of what was begun, and whoever hears it for its answer. It may be gone already.
                let _gone = child.0.kill();
            }
            let heard = hearing.join().map_err(|_| anyhow!("hear the local Nix"))?;
            match (told, heard) {
                // Why it takes nothing says more than that it does not.
                (Err(_), Err(refused @ CallError::Refused(_))) => Err(refused.into()),
                (Err(error), _) => Err(error),
                (Ok(()), heard) => Ok(heard?),
            }
        })
    }

    /// Lets it end in order. Blocks.
    pub(super) fn end(self) {
        let Self { mut child, to, from, .. } = self;
        drop((to, from));
        // It has nothing to do any more; whatever it says, the outputs are there.
        let _ended = child.0.wait();
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

#[cfg(test)]
mod tests {
    use kiln_nix::daemon::Facts;
    use kiln_wire::Sha256Hash;

    use super::*;

    #[test]
    fn an_archive_that_cannot_be_had_ends_the_daemon_that_waits_for_it() {
        // Takes whatever comes and says nothing before it has come to its end.
        let mut command = Command::new("sh");
        command.args(["-c", "cat >/dev/null; exit"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start a shell");
        let (to, from) = child.stdin.take().zip(child.stdout.take()).expect("pipes");
        let store_dir = StoreDir::default();
        let mut local = LocalNix { child: Ends(child), to: BufWriter::new(to), from: BufReader::new(from), store_dir, is_greeted: true };
        let facts = Facts {
            deriver: None,
            nar_hash: Sha256Hash([0; 32]),
            references: BTreeSet::new(),
            registered_at_seconds: 0,
            nar_size_bytes: 1,
            ultimate: false,
            signatures: Vec::new(),
            content_address: String::new(),
        };
        let path = StorePath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar").expect("a path");
        let added = local.add(&[ValidPath { path, facts }], |_, _| Err(anyhow!("the farm is away")));
        assert_eq!(added.expect_err("nothing was added").to_string(), "the farm is away");
        local.end();
    }
}
