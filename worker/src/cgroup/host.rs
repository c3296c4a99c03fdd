//! The host's side: which hierarchies there are, the worker's place in them, and what a crashed worker left behind.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::group::{Group, kill_directory, remove_directory};
use super::procfs::{Own, own_groups};
use super::{CgroupError, Limits};

/// What kind of control groups the builds get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything from the unified hierarchy.
    V2,
    /// Limits from v1 controllers; killing and tracking from the unified hierarchy.
    Hybrid,
    /// v1 only.
    V1,
    /// None: only the process id namespace holds a build together, and memory is not limited.
    None,
}

/// Where the groups of this worker's builds are made.
#[derive(Clone, Debug)]
pub struct Cgroups {
    mode: Mode,
    pub(super) homes: Homes,
}

/// The directory that holds the builds' groups, by what it controls. With v2 these are all the same directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Homes {
    pub memory: Option<PathBuf>,
    pub pids: Option<PathBuf>,
    pub cpu: Option<PathBuf>,
    pub io: Option<PathBuf>,
    /// v1 only, where there is no unified hierarchy to count processor time.
    pub cpuacct: Option<PathBuf>,
    pub unified: Option<PathBuf>,
    /// Whether the controllers are those of the unified hierarchy.
    pub v2: bool,
}

/// The leaf that a worker moves into with v2, where only leaves may hold processes.
const LEAF: &str = "kiln.worker";

impl Cgroups {
    /// Looks at the host and prepares a place for the builds of the worker called `worker`, removing what an earlier process of
    /// that name left behind. With v2 this may move the calling process into a leaf below its own group.
    ///
    /// Never fails for what the host lacks: [`Mode::None`] is an answer.
    ///
    /// # Errors
    /// [`CgroupError`] if leftovers cannot be removed or the name is no name.
    pub fn detect(worker: &str) -> Result<Self, CgroupError> {
        check_name(worker)?;
        let read = |path| fs::read_to_string(path).map_err(CgroupError::io("read", path));
        let own = own_groups(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
        let home = format!("kiln.builds-{worker}");
        let found = pure_v2(&own, &home).or_else(|| with_v1(&own, &home));
        let (mode, homes) = found.unwrap_or((Mode::None, Homes::default()));
        let cgroups = Self { mode, homes };
        cgroups.remove_leftovers()?;
        Ok(cgroups)
    }

    /// Returns a place without any control: for hosts and tests that want none.
    pub fn none() -> Self {
        Self { mode: Mode::None, homes: Homes::default() }
    }

    /// Returns what kind of groups the builds get.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the mode and what is controlled, in words for people: `hybrid (memory, pids, cpu)`.
    pub fn describe(&self) -> String {
        let mode = match self.mode {
            Mode::V2 => "v2",
            Mode::Hybrid => "hybrid",
            Mode::V1 => "v1",
            Mode::None => return "none".to_owned(),
        };
        let homes = [("memory", &self.homes.memory), ("pids", &self.homes.pids), ("cpu", &self.homes.cpu), ("io", &self.homes.io)];
        let limits: Vec<&str> = homes.iter().filter(|(_, home)| home.is_some()).map(|(name, _)| *name).collect();
        format!("{mode} ({})", if limits.is_empty() { "no limits".to_owned() } else { limits.join(", ") })
    }

    /// Makes the group of one build.
    ///
    /// # Errors
    /// [`CgroupError`] if it exists already or a limit cannot be set.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Group, CgroupError> {
        check_name(name)?;
        Group::create(&self.homes, name, limits)
    }

    /// Removes the place itself, when no build runs and none will: the last thing a worker does.
    ///
    /// # Errors
    /// [`CgroupError`] if a build still has its group there.
    pub fn remove_home(&self) -> Result<(), CgroupError> {
        self.homes.distinct().into_iter().try_for_each(|home| fs::remove_dir(&home).map_err(CgroupError::io("remove", &home)))
    }

    fn remove_leftovers(&self) -> Result<(), CgroupError> {
        for home in self.homes.distinct() {
            for entry in fs::read_dir(&home).map_err(CgroupError::io("list", &home))? {
                let dir = entry.map_err(CgroupError::io("list", &home))?.path();
                if dir.is_dir() {
                    kill_directory(&dir)?;
                    remove_directory(&dir)?;
                }
            }
        }
        Ok(())
    }
}

impl Homes {
    /// Returns each directory once.
    pub(super) fn distinct(&self) -> BTreeSet<PathBuf> {
        [&self.memory, &self.pids, &self.cpu, &self.io, &self.cpuacct, &self.unified].into_iter().flatten().cloned().collect()
    }
}

/// Uses the unified hierarchy alone, if it has the memory controller for us.
fn pure_v2(own: &Own, home: &str) -> Option<(Mode, Homes)> {
    let own = without_leaf(own.unified.as_deref()?);
    let offered = words(&own.join("cgroup.controllers"));
    if !offered.contains("memory") {
        return None;
    }
    enable(&own, &offered).ok()?;
    let home = own.join(home);
    make(&home).ok()?;
    enable(&home, &offered).ok()?;
    let enabled = words(&home.join("cgroup.subtree_control"));
    let control = |name: &str| enabled.contains(name).then(|| home.clone());
    let homes = Homes {
        memory: control("memory"),
        pids: control("pids"),
        cpu: control("cpu"),
        io: control("io"),
        cpuacct: None,
        unified: Some(home.clone()),
        v2: true,
    };
    homes.memory.is_some().then_some((Mode::V2, homes))
}

fn with_v1(own: &Own, home: &str) -> Option<(Mode, Homes)> {
    let place = |dir: Option<&PathBuf>| {
        let home = dir?.join(home);
        make(&home).ok().map(|()| home)
    };
    let unified = place(own.unified.as_ref().map(|dir| without_leaf(dir)).as_ref());
    let cpuacct = if unified.is_some() { None } else { place(own.v1.get("cpuacct")) };
    let [memory, pids, cpu, io] = ["memory", "pids", "cpu", "blkio"].map(|name| place(own.v1.get(name)));
    let homes = Homes { memory, pids, cpu, io, cpuacct, unified, v2: false };
    let mode = match (homes.unified.is_some(), homes.distinct().len()) {
        (_, 0) => return None,
        (true, _) => Mode::Hybrid,
        (false, _) => Mode::V1,
    };
    Some((mode, homes))
}

fn without_leaf(dir: &Path) -> PathBuf {
    match (dir.ends_with(LEAF), dir.parent()) {
        (true, Some(parent)) => parent.to_owned(),
        (_, Some(_) | None) => dir.to_owned(),
    }
}

/// Gives the children of `dir` the controllers that we use. Only groups without processes may do so, hence the move to a leaf.
fn enable(dir: &Path, offered: &BTreeSet<String>) -> io::Result<()> {
    let wanted: Vec<String> =
        ["memory", "pids", "cpu", "io"].into_iter().filter(|name| offered.contains(*name)).map(|name| format!("+{name}")).collect();
    let control = dir.join("cgroup.subtree_control");
    let refused = match fs::write(&control, wanted.join(" ")) {
        Ok(()) => return Ok(()),
        Err(err) => err,
    };
    if refused.raw_os_error() != Some(libc::EBUSY) {
        return Err(refused);
    }
    let leaf = dir.join(LEAF);
    make(&leaf)?;
    for pid in fs::read_to_string(dir.join("cgroup.procs"))?.lines() {
        // A process that ended meanwhile needs no moving.
        let _ = fs::write(leaf.join("cgroup.procs"), pid);
    }
    fs::write(&control, wanted.join(" "))
}

fn words(file: &Path) -> BTreeSet<String> {
    fs::read_to_string(file).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Names become directory names, so they must not lead elsewhere.
fn check_name(name: &str) -> Result<(), CgroupError> {
    is_name(name).then_some(()).ok_or_else(|| CgroupError::Name { name: name.chars().take(80).collect() })
}

/// Whether `name` may name a group: letters, digits, `-`, `_` and `.`, at most 200, and no dot first.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", ".hidden", "a b", "\u{e9}", &"x".repeat(201)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["a", "attempt-17", "w_1.x"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_host_without_control_groups_is_described_as_such() {
        assert_eq!(Cgroups::none().describe(), "none");
    }
}
