//! Which files a worker may touch: its own directory, and reading of what names and certificates need. By Landlock, where the kernel has
//! it.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules};

/// Read by name lookups, certificate checks, and whoever counts processors and memory. What is missing is left out.
const READ: [&str; 9] =
    ["/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/proc", "/sys/fs/cgroup", "/sys/devices/system/cpu", "/dev/urandom"];
/// What may be a link to anywhere, by whoever manages the machine's network or certificates.
const LINKED: [&str; 4] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl/certs/ca-certificates.crt"];
/// Written by whoever throws something away.
const WRITTEN: [&str; 1] = ["/dev/null"];
/// The newest version that is made use of. Older kernels give what they have.
const NEWEST: ABI = ABI::V6;

/// Restricts this thread and those that it starts; returns what the kernel made of it, in words for people.
pub(super) fn restrict(dir: &Path) -> io::Result<String> {
    let status = ruleset(dir).map_err(io::Error::other)?;
    Ok(match status {
        RulesetStatus::FullyEnforced => "files by Landlock",
        RulesetStatus::PartiallyEnforced => "files by an older Landlock",
        RulesetStatus::NotEnforced => "all files that the user may touch: this kernel has no Landlock",
    }
    .to_owned())
}

fn ruleset(dir: &Path) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let read = AccessFs::from_read(NEWEST);
    let write = AccessFs::WriteFile | AccessFs::ReadFile;
    let created = Ruleset::default().handle_access(all)?.scope(Scope::from_all(NEWEST))?.create()?;
    let created = created.add_rules(path_beneath_rules([dir], all))?;
    let linked = LINKED.into_iter().filter_map(|path| std::fs::canonicalize(path).ok());
    let read_paths = READ.into_iter().map(PathBuf::from).chain(linked);
    let created = created.add_rules(path_beneath_rules(read_paths, read & !AccessFs::Execute))?;
    Ok(created.add_rules(path_beneath_rules(WRITTEN, write))?.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::thread;

    use super::*;

    #[test]
    fn a_worker_touches_its_own_directory_and_reads_what_names_need() {
        let (own, other) = (tempfile::tempdir().expect("temporary directory"), tempfile::tempdir().expect("temporary directory"));
        fs::write(other.path().join("secret"), "of somebody").expect("write");
        fs::create_dir(own.path().join("a")).expect("mkdir");
        fs::create_dir(own.path().join("b")).expect("mkdir");
        let inside = || {
            let words = restrict(own.path()).expect("a rule set");
            fs::write(own.path().join("a/file"), "x").expect("write inside");
            fs::rename(own.path().join("a/file"), own.path().join("b/file")).expect("rename inside");
            fs::read("/etc/passwd").expect("read what names need");
            let refused = [
                fs::read(other.path().join("secret")).map(drop),
                fs::write(other.path().join("new"), "x"),
                fs::write("/etc/kiln-was-here", "x"),
                fs::rename(own.path().join("b/file"), other.path().join("file")),
            ];
            (words, refused.map(|tried| tried.map_err(|err| err.kind())))
        };
        let (words, refused) = thread::scope(|scope| scope.spawn(inside).join().expect("no panic"));
        if words.starts_with("all files") {
            // This kernel has no Landlock, and that is what the farm is told.
            assert!(fs::read_to_string("/sys/kernel/security/lsm").map_or(true, |lsm| !lsm.contains("landlock")), "{words}");
            return;
        }
        // A rename to another file system is EXDEV, and so is one that Landlock refuses for what it would gain.
        for tried in refused {
            assert!(matches!(tried, Err(ErrorKind::PermissionDenied | ErrorKind::CrossesDevices)), "{tried:?}");
        }
    }
}
