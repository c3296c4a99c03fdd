//! The stage: a mount namespace of the worker's own, entered by one thread, where stores stand with their inputs mounted. From there a build
//! gets a copy of such a tree of mounts in one call, where mounting each input anew costs the kernel five times as much.
//!
//! Kernels before 6.15 copy only trees that are mounted in the caller's namespace, hence the thread. Its namespace holds nothing of the
//! host's: no mount of the administrator's is kept busy here, and the copies that each build makes of the worker's own namespace stay small.
//! Absences: knows no inputs and no files; paths of the host mean nothing here, so that all that is mounted comes in as a descriptor.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};

use rustix::fs::{AtFlags, CWD, Mode, mkdirat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Stage {
    jobs: SyncSender<Job>,
}

/// A tree of mounts on the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub u64);

/// Jobs that may wait: who has more to do waits for the thread.
const JOBS_MAX: usize = 64;

impl Stage {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel's, if it grants no mount namespace.
    pub(super) fn open() -> io::Result<Self> {
        let (jobs, arriving) = sync_channel::<Job>(JOBS_MAX);
        let (ready, opened) = sync_channel(1);
        std::thread::Builder::new().name("kiln-stage".to_owned()).spawn(move || {
            let entered = enter();
            let stands = entered.is_ok();
            // Whoever opens the stage waits for this.
            let _ = ready.send(entered);
            if stands {
                arriving.into_iter().for_each(|job| job());
            }
        })?;
        opened.recv().map_err(|_| ended())??;
        Ok(Self { jobs })
    }

    /// Puts a tree that is mounted nowhere on a new place.
    pub(super) fn stand(&self, place: Place, tree: OwnedFd) -> io::Result<()> {
        self.ask(move || {
            mkdirat(CWD, place.name(), Mode::RWXU)?;
            attach(tree.as_fd(), place.name())
        })
    }

    /// Mounts each tree on the directory or file of that name at the top of what stands on the place.
    pub(super) fn mount(&self, place: Place, trees: Vec<(CString, OwnedFd)>) -> io::Result<()> {
        self.ask(move || {
            let top = place.name();
            trees.iter().try_for_each(|(name, tree)| attach(tree.as_fd(), [top.as_bytes(), b"/", name.as_bytes()].concat()))
        })
    }

    /// Returns a copy, mounted nowhere, of all that is mounted on the place.
    pub(super) fn copy(&self, place: Place) -> io::Result<OwnedFd> {
        self.ask(move || copy(place))
    }

    /// Returns what is mounted on the place, mounted nowhere, and leaves nothing there.
    pub(super) fn take_off(&self, place: Place) -> io::Result<OwnedFd> {
        self.ask(move || copy(place).and_then(|tree| strike(place).map(|()| tree)))
    }

    /// Unmounts all of the place. Does not wait for it.
    pub(super) fn strike(&self, place: Place) {
        self.later(move || {
            if let Err(err) = strike(place) {
                tracing::warn!(place = place.0, %err, "unmount a store that stood ready");
            }
        });
    }

    /// Does something on the thread once it has done all that was asked before, and does not wait for it.
    pub(super) fn later(&self, job: impl FnOnce() + Send + 'static) {
        // The thread ends only with its jobs' last sender.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Waits until all is done that was asked before.
    pub(super) fn wait(&self) {
        // A thread that has ended has nothing left to do.
        let _ = self.ask(|| Ok(()));
    }

    fn ask<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let (answer, answered) = sync_channel(1);
        let job = move || drop(answer.send(work()));
        self.jobs.send(Box::new(job)).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }
}

impl Place {
    fn name(self) -> String {
        self.0.to_string()
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread of the stage has ended")
}

fn copy(place: Place) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, place.name(), flags)?)
}

fn strike(place: Place) -> io::Result<()> {
    unmount(place.name(), UnmountFlags::DETACH)?;
    Ok(unlinkat(CWD, place.name(), AtFlags::REMOVEDIR)?)
}

fn attach(tree: BorrowedFd<'_>, at: impl rustix::path::Arg) -> io::Result<()> {
    Ok(move_mount(tree, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Moves the calling thread into a mount namespace with one empty file system, which becomes its root and working directory.
fn enter() -> io::Result<()> {
    // SAFETY: the descriptors stay shared; what is no longer shared is the root and working directory, of this thread alone.
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    // Any directory does; this one every host has.
    attach(root.as_fd(), "/proc")?;
    fchdir(&root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}
