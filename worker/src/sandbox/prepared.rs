//! One store: a directory on the disk with the mount points of inputs, the inputs mounted on them, and how it comes to hold others.
//!
//! By directory descriptor, nothing followed: names in the directory may be those that a builder chose. Absences: does not know who may use it.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, Mode, RawDir, mkdirat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::arrivals::{Arrivals, Number};
use super::attributes::{SEALED, take_mount};
use super::inputs::{self, Difference, Given, Input, Kept, Kind};
use super::sources::Moment;
use super::stage::{Place, Stage};
use super::tree::{create, open_dir};
use super::{SandboxError, Spec};

/// A store with its inputs.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Where its mounts stand.
    pub place: Place,
    /// The directory that holds it while it waits: the one that holds those of builds.
    pub home: PathBuf,
    /// In the order of their names.
    inputs: Vec<Kept>,
    /// The first bytes of these names, in the same order, side by side: they are parts of hashes and differ.
    starts: Vec<u64>,
    /// The inputs as the last build gave them.
    pub given: Given,
    /// The directories that the inputs lie in.
    pub dirs: Vec<PathBuf>,
    /// When each of its inputs was what is mounted, if later changes are seen.
    pub looked: Option<Moment>,
    /// When it was last put back.
    pub since: Instant,
    /// Tells what came into its directory, if that is watched.
    number: Option<Number>,
}

/// Where a build's store lies in its directory, unless it lies below `/tmp`.
pub(super) const STORE: &str = "store";
/// Entries beside the inputs, above which a directory is not used again: it stays as large as it ever was.
const MADE_MAX: usize = 1_000;
/// Mounts that are taken at a time: each is a descriptor, of which a process may have no more than a thousand.
const BATCH: usize = 64;

impl Prepared {
    /// Starts with an empty store.
    pub(super) fn new(place: Place, home: &Path, number: Option<Number>) -> Self {
        Self {
            place,
            home: home.to_owned(),
            inputs: Vec::new(),
            starts: Vec::new(),
            given: Given::default(),
            dirs: Vec::new(),
            looked: None,
            since: Instant::now(),
            number,
        }
    }

    /// How many inputs are mounted.
    pub(super) fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Returns how it differs from `wanted`, if in at most `most` places.
    pub(super) fn difference(&self, wanted: &[Input<'_>], most: usize) -> Option<Difference> {
        inputs::difference(&self.inputs, wanted, most)
    }

    /// Whether an input has this name.
    pub(super) fn has_input(&self, name: &[u8]) -> bool {
        let start = start(name);
        let first = self.starts.partition_point(|other| *other < start);
        let alike = self.starts[first..].iter().take_while(|other| **other == start).count();
        self.inputs[first..first + alike].iter().any(|input| input.name().as_bytes() == name)
    }

    /// Makes it hold `wanted`, by what it differs in. `store` is its directory.
    ///
    /// # Errors
    /// [`SandboxError`] names the input. Then it is good for nothing.
    pub(super) fn change(
        &mut self,
        stage: &Stage,
        store: &OwnedFd,
        difference: &Difference,
        wanted: &mut [Input<'_>],
    ) -> Result<(), SandboxError> {
        // A mount point that is removed elsewhere than where it is mounted on takes the mount with it.
        for position in &difference.gone {
            let input = &self.inputs[*position];
            input.remove(store).map_err(SandboxError::host("remove the mount point of input", input.name()))?;
        }
        let mut position = 0;
        self.inputs.retain(|_| {
            position += 1;
            difference.gone.binary_search(&(position - 1)).is_err()
        });
        for batch in difference.new.chunks(BATCH) {
            let mut mounts = Vec::with_capacity(batch.len());
            for position in batch {
                let input = &mut wanted[*position];
                mounts.extend(place(store, input)?);
                self.inputs.push(input.keep()?);
            }
            stage.mount(self.place, mounts).map_err(SandboxError::host("mount the inputs in", &self.home))?;
        }
        if !difference.new.is_empty() {
            self.inputs.sort_by(|a, b| a.name().cmp(b.name()));
        }
        self.starts = self.inputs.iter().map(|input| start(input.name().as_bytes())).collect();
        Ok(())
    }

    /// Starts to watch what comes into its directory.
    pub(super) fn watch(&self, arrivals: &Arrivals) {
        self.number.into_iter().for_each(|number| arrivals.start(number));
    }

    /// Moves it into a build's directory.
    pub(super) fn move_in(&self, root: &OwnedFd) -> io::Result<()> {
        Ok(renameat(CWD, self.waiting_path(), root, STORE)?)
    }

    /// Moves it out of a build's directory, and what the build made into a new directory in its place. Returns whether it can be used
    /// again; if not, all lies where it lay.
    pub(super) fn move_out(&self, spec: &Spec, arrivals: &Arrivals) -> io::Result<bool> {
        let root = open_dir(CWD, &spec.root_dir)?;
        let store = open_dir(&root, Path::new(STORE))?;
        let made = match self.number.and_then(|number| arrivals.since_start(number)) {
            Some(came) => Vec::from_iter(came),
            None => match self.made(&store)? {
                Some(made) => made,
                None => return Ok(false),
            },
        };
        if let Err(err) = renameat(&root, STORE, CWD, self.waiting_path()) {
            tracing::debug!(%err, path = %self.waiting_path().display(), "a store cannot be kept");
            return Ok(false);
        }
        mkdirat(&root, STORE, Mode::from_raw_mode(0o755))?;
        let outputs = open_dir(&root, Path::new(STORE))?;
        for name in made {
            match renameat(&store, &name, &outputs, &name) {
                // It came and went.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(err) => return Err(err.into()),
            }
        }
        Ok(true)
    }

    /// Removes its directory while it waits. Nothing is in it but mount points.
    pub(super) fn remove(&self, home: &OwnedFd) -> io::Result<()> {
        let store = open_dir(home, Path::new(&self.waiting_name()))?;
        self.inputs.iter().try_for_each(|input| input.remove(&store))?;
        Ok(unlinkat(home, self.waiting_name(), AtFlags::REMOVEDIR)?)
    }

    /// Returns the names in the directory that are no inputs, or nothing if they are too many.
    fn made(&self, store: &OwnedFd) -> io::Result<Option<Vec<CString>>> {
        let is_made = |name: &CStr| !matches!(name.to_bytes(), b"." | b"..") && !self.has_input(name.to_bytes());
        let mut made = Vec::new();
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(store, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if is_made(entry.file_name()) {
                made.push(entry.file_name().to_owned());
            }
            if made.len() > MADE_MAX {
                return Ok(None);
            }
        }
        Ok(Some(made))
    }

    fn waiting_path(&self) -> PathBuf {
        self.home.join(self.waiting_name())
    }

    /// Builds' own directories have other names, and no two workers have a directory in common.
    fn waiting_name(&self) -> String {
        format!(".store-{}-{}", std::process::id(), self.place.0)
    }
}

impl Kept {
    /// Removes the mount point of this input from the directory `store`.
    fn remove(&self, store: impl AsFd) -> io::Result<()> {
        Ok(unlinkat(store, self.name(), if self.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() })?)
    }
}

/// The first bytes of a name as a number that orders as they do.
fn start(name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = name.len().min(8);
    bytes[..length].copy_from_slice(&name[..length]);
    u64::from_be_bytes(bytes)
}

/// Makes the mount point of an input, and returns what is to be mounted there under its name.
fn place(store: &OwnedFd, input: &mut Input<'_>) -> Result<Option<(CString, OwnedFd)>, SandboxError> {
    let (name, source) = (input.name, input.source);
    let (step, made) = match input.look()? {
        Kind::Link { target } => {
            let linked = symlinkat(target.as_os_str().as_bytes(), store, name).map_err(io::Error::from);
            return linked.map(|()| None).map_err(SandboxError::host("copy the link of input", name));
        }
        Kind::Directory { .. } => ("make the mount point of input", mkdirat(store, name, Mode::from_raw_mode(0o555))),
        Kind::File { .. } => ("create the mount point of input", create(store, name.as_bytes(), 0o444).map(drop)),
    };
    made.map_err(io::Error::from).map_err(SandboxError::host(step, name))?;
    let tree = take_mount(CWD, source, &SEALED).map_err(SandboxError::host("bind", source))?;
    Ok(Some((CString::new(name).expect("a store path has no zero byte"), tree)))
}
