//! Reads from the kernel's text which control groups this process is in and where their hierarchies are mounted. Pure.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// One mounted hierarchy, as seen from this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which group of the hierarchy lies there.
    pub root: PathBuf,
}

/// The directories of this process's own groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    /// By v1 controller (`memory`, `pids`, …).
    pub v1: BTreeMap<String, PathBuf>,
    /// Of the unified hierarchy.
    pub unified: Option<PathBuf>,
}

/// Combines `/proc/self/cgroup` and `/proc/self/mountinfo`. Hierarchies that are not mounted, or whose mount does not show our
/// own group, are left out.
pub(super) fn own_groups(cgroup: &str, mountinfo: &str) -> Own {
    let (v1_mounts, unified_mount) = mounts(mountinfo);
    let mut own = Own::default();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if id == "0" && controllers.is_empty() {
            own.unified = unified_mount.as_ref().and_then(|mounted| directory(mounted, path));
            continue;
        }
        for controller in controllers.split(',') {
            if let Some(dir) = v1_mounts.get(controller).and_then(|mounted| directory(mounted, path)) {
                own.v1.insert(controller.to_owned(), dir);
            }
        }
    }
    own
}

fn mounts(mountinfo: &str) -> (BTreeMap<String, Mounted>, Option<Mounted>) {
    let mut v1 = BTreeMap::new();
    let mut unified = None;
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let before: Vec<&str> = before.split(' ').collect();
        let after: Vec<&str> = after.split(' ').collect();
        let (Some(root), Some(point), Some(kind), Some(options)) = (before.get(3), before.get(4), after.first(), after.get(2)) else {
            continue;
        };
        let mounted = Mounted { point: unescape(point), root: unescape(root) };
        match *kind {
            "cgroup" => options.split(',').for_each(|option| {
                v1.entry(option.to_owned()).or_insert_with(|| mounted.clone());
            }),
            "cgroup2" => {
                unified.get_or_insert(mounted);
            }
            _ => {}
        }
    }
    (v1, unified)
}

/// Returns where `path`, a group's path in its hierarchy, lies on this host.
fn directory(mounted: &Mounted, path: &str) -> Option<PathBuf> {
    let below = Path::new(path).strip_prefix(&mounted.root).ok()?;
    // A group outside our control group namespace is shown with `..`; its directory is not under the mount.
    below.components().all(|part| matches!(part, Component::Normal(_))).then(|| mounted.point.join(below))
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash.
pub(crate) fn unescape(text: &str) -> PathBuf {
    let replaced = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(replaced.iter().fold(text.to_owned(), |text, (code, character)| text.replace(code, character)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:25 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 25 0:28 / /with\\040space rw shared:1 - tmpfs tmpfs rw";
    const PURE: &str = "32 25 0:27 /outer /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw";

    /// Text of the two files, v1 directories by controller, unified directory.
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Option<&'a str>);

    #[test]
    fn own_groups_are_found_below_their_mounts() {
        let table: [Row<'_>; 5] = [
            (
                "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/c\n",
                HYBRID,
                &[
                    ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
                    ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
                    ("memory", "/sys/fs/cgroup/memory/a/b"),
                ],
                Some("/sys/fs/cgroup/unified/c"),
            ),
            ("0::/outer/inner\n", PURE, &[], Some("/sys/fs/cgroup/inner")),
            ("0::/elsewhere\n", PURE, &[], None),
            ("0::/../up\n", "32 25 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", &[], None),
            ("8:pids:/x\n", HYBRID, &[], None),
        ];
        for (cgroup, mountinfo, v1, unified) in table {
            let want = Own {
                v1: v1.iter().map(|(name, dir)| ((*name).to_owned(), PathBuf::from(dir))).collect(),
                unified: unified.map(PathBuf::from),
            };
            assert_eq!(own_groups(cgroup, mountinfo), want, "{cgroup}");
        }
    }
}
