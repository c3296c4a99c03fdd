//! The part of the disk that a build gets, by what holds it to its limits.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::gauge::Gauge;
use super::mounted::{self, Mounted};
use super::project::{self, Project};
use super::volume::{self, Volume};
use super::{Choice, DiskError, Limits, open_dir};

/// How builds are held to their limits.
#[derive(Debug)]
pub(super) enum Backend {
    Project,
    Volume,
    /// Holds the formatted template.
    Image(File),
    Memory,
    Polling,
    None,
}

/// One build's part of the disk, given back when this is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "its parts are held for what their end does")]
pub(super) enum Space {
    /// An ordinary directory.
    Plain,
    Project(Project),
    Volume(Volume),
    Mounted(Mounted),
}

impl Backend {
    /// Finds what `choice` means for builds below `dir`.
    pub(super) fn choose(choice: Choice, dir: &Path, limits: Limits) -> Result<Self, DiskError> {
        let refused = |err| DiskError::Choice { choice: choice.name(), dir: dir.to_owned(), err };
        let tried = |backend: io::Result<Self>| backend.map_err(refused);
        match choice {
            Choice::Auto => Ok(Self::best(dir)),
            Choice::ProjectQuota => tried(try_project(dir)),
            Choice::Btrfs => tried(try_volume(dir)),
            Choice::Loop => tried(try_image(dir, limits)),
            Choice::Tmpfs => tried(probe(dir, |path| mounted::probe(path, |path| Mounted::memory(path, limits))).map(|()| Self::Memory)),
            Choice::Polling => Ok(Self::Polling),
            Choice::None => Ok(Self::None),
        }
    }

    fn best(dir: &Path) -> Self {
        for (name, tried) in [("project-quota", try_project as fn(&Path) -> io::Result<Self>), ("btrfs", try_volume)] {
            match tried(dir) {
                Ok(backend) => return backend,
                Err(err) => tracing::debug!(dir = %dir.display(), name, %err, "no limits of the disk by this"),
            }
        }
        Self::Polling
    }

    /// Whether it mounts file systems.
    pub(super) fn mounts(&self) -> bool {
        match self {
            Self::Image(_) | Self::Memory => true,
            Self::Project | Self::Volume | Self::Polling | Self::None => false,
        }
    }

    /// Returns what builds are held to and how, in words for people.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Project => "project quota (bytes, files)",
            Self::Volume => "btrfs quota (bytes), polling (files)",
            Self::Image(_) => "loop image (bytes, files)",
            Self::Memory => "tmpfs (bytes, files)",
            Self::Polling => "polling (bytes, files)",
            Self::None => "no limits",
        }
    }

    /// Prepares the empty directory `path`, and returns what counts its use and the limits in its terms.
    pub(super) fn prepare(&self, path: &Path, limits: Limits) -> io::Result<(Space, Gauge, Limits)> {
        match self {
            Self::Project => {
                let project = Project::new(open_dir(path)?, limits)?;
                let gauge = Gauge::Project { root: open_dir(path)?, number: project.number() };
                Ok((Space::Project(project), gauge, limits))
            }
            Self::Volume => {
                let volume = Volume::new(path, limits.bytes_max)?;
                let gauge = Gauge::Volume { root: open_dir(path)?, id: volume.id() };
                Ok((Space::Volume(volume), gauge, limits))
            }
            Self::Image(template) => mounted_space(path, Mounted::image(path, template)?, false),
            Self::Memory => mounted_space(path, Mounted::memory(path, limits)?, true),
            Self::Polling => Ok((Space::Plain, Gauge::Walk(open_dir(path)?), limits)),
            Self::None => Ok((Space::Plain, Gauge::Walk(open_dir(path)?), Limits::NONE)),
        }
    }
}

fn mounted_space(path: &Path, mounted: Mounted, in_memory: bool) -> io::Result<(Space, Gauge, Limits)> {
    let size = mounted.size()?;
    Ok((Space::Mounted(mounted), Gauge::Mounted { root: open_dir(path)?, in_memory }, size))
}

fn try_project(dir: &Path) -> io::Result<Backend> {
    probe(dir, |path| project::probe(open_dir(path)?)).map(|()| Backend::Project)
}

fn try_volume(dir: &Path) -> io::Result<Backend> {
    probe(dir, volume::probe).map(|()| Backend::Volume)
}

fn try_image(dir: &Path, limits: Limits) -> io::Result<Backend> {
    let template = mounted::template(dir, limits)?;
    probe(dir, |path| mounted::probe(path, |path| Mounted::image(path, &template)))?;
    Ok(Backend::Image(template))
}

/// Tries something with an empty directory, and takes that down again.
fn probe(dir: &Path, attempt: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let path: PathBuf = dir.join("probe");
    std::fs::create_dir(&path)?;
    let tried = attempt(&path);
    match std::fs::remove_dir(&path) {
        // A subvolume is gone already.
        Err(err) if err.kind() == io::ErrorKind::NotFound => tried,
        removed => tried.and(removed),
    }
}
