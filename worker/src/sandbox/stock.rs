//! Stores that stand ready: directories with the mount points of inputs, and the inputs mounted on them on the [`Stage`]. A build gets one
//! to itself; when it has ended, what it made is moved out, and the next build that wants nearly the same inputs gets it.
//!
//! Making and removing a mount point for each input costs a disk ten times what the kernel takes for the mount. Exactness comes first: an
//! input counts as the same only if it is the same inode, a build sees the declared inputs and no other, and it can change neither the
//! directory's mount points (they are root's, and the directory is sticky) nor anything else that a later build would find in it.
//! Absences: does not decide where a build's own files lie; keeps nothing for a build whose directory is a file system of its own, whose
//! store lies below `/tmp`, or that is root of a range of ids.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Gid, fchown, fstat};

use super::arrivals::Arrivals;
use super::attributes::{WRITABLE, take_mount};
use super::inputs::{self, Given, Input};
use super::prepared::{Prepared, STORE};
use super::sources::Sources;
use super::stage::{Place, Stage};
use super::tree::open_dir;
use super::{SandboxError, Spec};

/// The stores that wait for a build, and the stage on which they and those in use stand.
#[derive(Debug)]
pub(super) struct Stock {
    stage: Stage,
    sources: Sources,
    arrivals: Arrivals,
    waiting: Mutex<Vec<Prepared>>,
    next: AtomicU64,
}

/// A store that one build has to itself.
#[derive(Debug)]
pub(super) struct Lease {
    hold: Hold,
    /// The store with its inputs mounted, for the child to take.
    pub tree: OwnedFd,
}

/// What leaves the stage when this is dropped.
#[derive(Debug)]
struct Hold {
    stock: &'static Stock,
    prepared: Option<Prepared>,
}

/// Stores that wait: a worker has about as many as it has slots.
const WAITING_MAX: usize = 64;
/// Mounts of all that wait: a fifth of what the kernel allows in one namespace, where those in use stand too.
const WAITING_MOUNTS_MAX: usize = 20_000;
/// A mount keeps the bytes of an input that was collected meanwhile.
const WAITING_TIME_MAX: Duration = Duration::from_secs(300);
/// Inputs of one store, above which it is not kept and leaves the stage as soon as it was copied.
const KEPT_INPUTS_MAX: usize = 5_000;
/// Taking an input out of a store waits for all processors, which costs about as much as adding this many.
const GONE_COST: usize = 3;

impl Stock {
    /// Starts with nothing.
    ///
    /// # Errors
    /// The kernel's, if it grants no mount namespace.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            stage: Stage::open()?,
            sources: Sources::open(),
            arrivals: Arrivals::open(),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// Prepares the store of `spec` in its directory `root`. `make` makes an empty one there if none stands ready.
    ///
    /// # Errors
    /// [`SandboxError`] names the input or the directory.
    pub(super) fn lease(
        &'static self,
        spec: &Spec,
        root: &OwnedFd,
        make: impl FnOnce() -> Result<(), SandboxError>,
    ) -> Result<Lease, SandboxError> {
        let failed = |step| SandboxError::host(step, spec.outputs_dir());
        let is_kept = is_kept(spec, root);
        let same = if is_kept { self.find(spec, root, |waiting, home| same(waiting, home, spec)) } else { None };
        let mut hold = match same {
            Some(hold) if hold.is_fresh() => hold,
            stale => self.fit(spec, root, is_kept, stale, make)?,
        };
        // Made for one group, it may be used by another.
        let store = open_dir(root, Path::new(&spec.store_on_disk())).map_err(failed("open"))?;
        fchown(&store, None, Some(Gid::from_raw(spec.host_id.gid))).map_err(io::Error::from).map_err(failed("hand over"))?;
        let place = hold.prepared().place;
        let tree = if is_kept { self.stage.copy(place) } else { self.stage.take_off(place) };
        if is_kept {
            hold.prepared().watch(&self.arrivals);
        } else {
            hold.prepared = None;
        }
        Ok(Lease { hold, tree: tree.map_err(failed("copy the mounts of"))? })
    }

    /// Makes a store hold the inputs of `spec`: the stale one, which lies there already, or the one that differs least, or a new one.
    fn fit(
        &'static self,
        spec: &Spec,
        root: &OwnedFd,
        is_kept: bool,
        stale: Option<Hold>,
        make: impl FnOnce() -> Result<(), SandboxError>,
    ) -> Result<Hold, SandboxError> {
        let failed = |step| SandboxError::host(step, spec.outputs_dir());
        let mut inputs = inputs::of(spec);
        let dirs = inputs::directories(spec);
        // Before any of them is looked at.
        let now = self.sources.now(dirs.iter().copied());
        let near = |waiting: &[Prepared], home: &Path| if is_kept { nearest(waiting, home, &inputs) } else { None };
        let mut hold = match stale.or_else(|| self.find(spec, root, near)) {
            Some(hold) => hold,
            None => {
                make()?;
                self.stand(spec, root).map_err(failed("bind directory"))?
            }
        };
        if !hold.is_fresh() {
            inputs.iter_mut().try_for_each(|input| input.look().map(|_| ()))?;
        }
        let difference = hold.prepared().difference(&inputs, usize::MAX).expect("any difference is within this bound");
        let store = open_dir(root, Path::new(&spec.store_on_disk())).map_err(failed("open"))?;
        let prepared = hold.prepared.as_mut().expect("taken only at the end");
        prepared.change(&self.stage, &store, &difference, &mut inputs)?;
        prepared.looked = now;
        prepared.given = Given::new(spec);
        prepared.dirs = dirs.into_iter().map(Path::to_owned).collect();
        Ok(hold)
    }

    /// Takes the store that `choose` chooses out of the stock, and moves it into the directory `root` of `spec`.
    fn find(&'static self, spec: &Spec, root: &OwnedFd, choose: impl FnOnce(&[Prepared], &Path) -> Option<usize>) -> Option<Hold> {
        let home = spec.root_dir.parent()?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let at = choose(&waiting, home)?;
        let prepared = waiting.swap_remove(at);
        drop(waiting);
        if let Err(err) = prepared.move_in(root) {
            // Whoever owns the directory may have cleared it.
            tracing::debug!(%err, home = %home.display(), "a store that stood ready cannot be moved");
            self.give_away(prepared);
            return None;
        }
        Some(Hold { stock: self, prepared: Some(prepared) })
    }

    /// Puts the empty store of `spec` on the stage.
    fn stand(&'static self, spec: &Spec, root: &OwnedFd) -> io::Result<Hold> {
        let place = Place(self.next.fetch_add(1, Ordering::Relaxed));
        self.stage.stand(place, take_mount(root, spec.store_on_disk(), &WRITABLE)?)?;
        let home = spec.root_dir.parent().unwrap_or(Path::new("/"));
        let store = open_dir(root, Path::new(&spec.store_on_disk()))?;
        let number = self.arrivals.watch(store.as_fd());
        Ok(Hold { stock: self, prepared: Some(Prepared::new(place, home, number)) })
    }

    /// Takes a store off the stage and removes its directory, in the background.
    fn give_away(&self, prepared: Prepared) {
        self.stage.strike(prepared.place);
        match open_dir(CWD, &prepared.home) {
            // What cannot be removed is found when the worker starts again.
            Ok(home) => self.stage.later(move || drop(prepared.remove(&home))),
            Err(err) => tracing::debug!(path = %prepared.home.display(), %err, "the directory of a store that stood ready is gone"),
        }
    }

    /// Gives away all that wait in `home`, and waits until they are gone.
    pub(super) fn clear(&self, home: &Path) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let of_home: Vec<Prepared> = waiting.extract_if(.., |prepared| prepared.home == home).collect();
        drop(waiting);
        of_home.into_iter().for_each(|prepared| self.give_away(prepared));
        self.stage.wait();
    }

    fn put_back(&self, prepared: Prepared) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(prepared);
        waiting.sort_by_key(|prepared| prepared.since);
        let mut mounts: usize = waiting.iter().map(|prepared| prepared.len()).sum();
        let mut too_many = 0;
        for prepared in waiting.iter() {
            let fit = waiting.len() - too_many <= WAITING_MAX && mounts <= WAITING_MOUNTS_MAX;
            if fit && prepared.since.elapsed() < WAITING_TIME_MAX {
                break;
            }
            mounts -= prepared.len();
            too_many += 1;
        }
        let given: Vec<Prepared> = waiting.drain(..too_many).collect();
        drop(waiting);
        given.into_iter().for_each(|prepared| self.give_away(prepared));
    }
}

/// Whether the store of `spec` can serve another build later.
fn is_kept(spec: &Spec, root: &OwnedFd) -> bool {
    let device = |dir: &OwnedFd| fstat(dir).map(|found| found.st_dev);
    let home = spec.root_dir.parent().and_then(|home| open_dir(CWD, home).ok());
    let beside = home.is_some_and(|home| device(&home).is_ok() && device(&home) == device(root));
    // A launcher without root may have but one user, and its builds then own the store and could change it for those to come.
    let is_anothers = spec.host_id.uid != rustix::process::geteuid().as_raw();
    // Root of a range can look below the mounts.
    let is_range = spec.host_id.is_range();
    !is_range && spec.store_below_tmp().is_none() && spec.inputs.len() <= KEPT_INPUTS_MAX && beside && is_anothers
}

/// Returns which of `waiting` holds just the inputs of `spec`.
fn same(waiting: &[Prepared], home: &Path, spec: &Spec) -> Option<usize> {
    waiting.iter().position(|prepared| prepared.given.is(spec) && prepared.home == home)
}

/// Returns which of `waiting` is to be changed least, if that is less than making a new one.
fn nearest(waiting: &[Prepared], home: &Path, inputs: &[Input<'_>]) -> Option<usize> {
    let mut best = None;
    let mut least = inputs.len();
    for (at, prepared) in waiting.iter().enumerate().filter(|(_, prepared)| prepared.home == home) {
        if let Some(difference) = prepared.difference(inputs, least) {
            let cost = difference.gone.len() * GONE_COST + difference.new.len();
            if cost < least {
                (best, least) = (Some(at), cost);
            }
        }
    }
    best
}

impl Hold {
    fn prepared(&self) -> &Prepared {
        self.prepared.as_ref().expect("taken only at the end")
    }

    /// Whether nothing that is mounted in it has changed since it was looked at.
    fn is_fresh(&self) -> bool {
        let prepared = self.prepared();
        let sources = &self.stock.sources;
        // The changes until now have to be seen first.
        let sees = sources.now(prepared.dirs.iter().map(PathBuf::as_path)).is_some();
        sees && prepared.looked.is_some_and(|since| !sources.changed(since, |name| prepared.has_input(name)))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.prepared.take().into_iter().for_each(|prepared| self.stock.stage.strike(prepared.place));
    }
}

impl Lease {
    /// Ends the lease after the last process of the build. Then what the build made lies in [`Spec::outputs_dir`].
    ///
    /// # Errors
    /// [`SandboxError`] if that cannot be moved.
    pub(super) fn end(mut self, spec: &Spec) -> Result<(), SandboxError> {
        let Some(prepared) = self.hold.prepared.as_mut() else { return Ok(()) };
        let moved = prepared
            .move_out(spec, &self.hold.stock.arrivals)
            .map_err(SandboxError::host("take what was built out of", spec.root_dir.join(STORE)))?;
        if moved && let Some(mut prepared) = self.hold.prepared.take() {
            prepared.since = Instant::now();
            self.hold.stock.put_back(prepared);
        }
        Ok(())
    }
}
