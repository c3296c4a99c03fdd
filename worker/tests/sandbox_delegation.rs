//! A worker stays in the part of the control groups that it was given. One test, because it moves this process.

mod sandbox_support;

use std::fs;
use std::path::{Path, PathBuf};

use kiln_worker::cgroup::Cgroups;
use sandbox_support::Bench;

/// Returns the mounted hierarchies: where, and this process's group in each.
fn hierarchies() -> Vec<(PathBuf, PathBuf)> {
    let (mounts, own) = (fs::read_to_string("/proc/self/mounts"), fs::read_to_string("/proc/self/cgroup"));
    let (mounts, own) = (mounts.expect("mounts"), own.expect("groups"));
    let group = |options: &str, unified: bool| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let found = if unified {
                controllers.is_empty()
            } else {
                !controllers.is_empty() && controllers.split(',').all(|name| options.split(',').any(|option| option == name))
            };
            found.then(|| PathBuf::from(path.trim_start_matches('/')))
        })
    };
    let found = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let unified = fields[2] == "cgroup2";
        let own = if unified || fields[2] == "cgroup" { group(fields[3], unified) } else { None };
        own.map(|own| (PathBuf::from(fields[1]), own))
    });
    found.collect()
}

/// Returns every group below `dir` whose path holds `name`.
fn named(dir: &Path, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    entries.flat_map(|path| if path.to_string_lossy().contains(name) { vec![path] } else { named(&path, name) }).collect()
}

#[test]
fn every_group_of_a_worker_and_its_builds_lies_below_the_workers_own() {
    let name = format!("delegated-{}", std::process::id());
    let before = hierarchies();
    assert!(!before.is_empty(), "these tests need control groups");
    for (mount, own) in &before {
        let outer = mount.join(own).join(&name);
        fs::create_dir(&outer).unwrap_or_else(|err| panic!("make {}: {err}", outer.display()));
        // Whoever delegates hands the controllers down. Version 1 has no such file.
        let _ = fs::write(mount.join(own).join("cgroup.subtree_control"), "+memory +pids +cpu +io");
        let cpuset = ["cpuset.cpus", "cpuset.mems"].map(|file| (mount.join(own).join(file), outer.join(file)));
        for (from, to) in cpuset.iter().filter(|(from, _)| from.exists() && !mount.ends_with("unified")) {
            fs::copy(from, to).expect("hand the processors down");
        }
        fs::write(outer.join("cgroup.procs"), "0").unwrap_or_else(|err| panic!("enter {}: {err}", outer.display()));
    }
    let inside = hierarchies();
    assert!(inside.iter().all(|(_, own)| own.ends_with(&name)), "{inside:?}");

    let mut bench = Bench::new("echo built");
    bench.cgroups.remove_home().expect("made outside the worker of this test");
    let worker = format!("worker-of-{name}");
    bench.cgroups = Cgroups::detect(&worker).expect("control groups");
    let group = bench.cgroups.create("a-build-that-stands", &bench.spec.resources).expect("a group");
    let ran = bench.run();
    assert!(ran.ended.succeeded(), "{:?} {}", ran.ended, ran.log);
    let mut found = 0;
    for (mount, own) in &before {
        for dir in named(mount, &worker) {
            found += 1;
            assert!(dir.starts_with(mount.join(own).join(&name)), "{} lies outside", dir.display());
            assert!(dir.join("a-build-that-stands").is_dir(), "{}", dir.display());
        }
    }
    assert!(found > 0, "no group of the worker was found");
    group.remove().expect("remove the group");
    drop(bench);
    for (mount, own) in &before {
        fs::write(mount.join(own).join("cgroup.procs"), "0").unwrap_or_else(|err| panic!("leave {}: {err}", mount.display()));
        let outer = mount.join(own).join(&name);
        // Version 2 made the worker a leaf of its own.
        let _ = fs::remove_dir(outer.join("kiln.worker"));
        fs::remove_dir(&outer).unwrap_or_else(|err| panic!("remove {}: {err}", outer.display()));
    }
}
