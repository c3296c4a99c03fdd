//! What a hook was told to work with: which farm, as whom, with which programs. Hooks that were told the same share an agent.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kiln_nix::hash::{Algorithm, Hasher};

use super::Args;
use super::locks::Locks;
use super::said::PROTOCOL;
use crate::args::{DirArgs, FarmArgs};
use crate::beacon;

/// What a hook works with. Paths are absolute.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) farm: FarmArgs,
    pub(super) locks: PathBuf,
    pub(super) builds_max: usize,
    pub(super) nix_daemon: PathBuf,
    /// How long an agent waits for the next hook.
    pub(super) linger_seconds: u64,
}

impl Way {
    /// Reads what the arguments, the environment and the file say.
    ///
    /// # Errors
    /// Exit code 2 if the file cannot be read.
    pub(super) fn of(args: &Args) -> anyhow::Result<Self> {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let FarmArgs { farm, identity } = args.farm.clone().or_file(&args.config)?;
        let is_dir = |farm: &String| !farm.starts_with("kiln://");
        let farm = farm.map(|farm| if is_dir(&farm) { absolute(farm.into()).to_string_lossy().into_owned() } else { farm });
        let locks = args.locks.clone().map_or_else(Locks::usual_dir, Ok)?;
        // A bare name is looked for by PATH.
        let is_bare = args.nix_daemon.components().count() == 1;
        Ok(Self {
            farm: FarmArgs { farm, identity: identity.map(absolute) },
            locks: absolute(locks),
            builds_max: args.builds_max,
            nix_daemon: if is_bare { args.nix_daemon.clone() } else { absolute(args.nix_daemon.clone()) },
            linger_seconds: args.linger,
        })
    }

    /// Returns the arguments that say the same.
    pub(super) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut say = |name: &str, value: &OsStr| args.extend([name.into(), value.into()]);
        // The file was read; what it says stands below.
        say("--config", OsStr::new("/dev/null/none"));
        if let Some(farm) = &self.farm.farm {
            say("--farm", OsStr::new(farm));
        }
        if let Some(identity) = &self.farm.identity {
            say("--identity", identity.as_os_str());
        }
        say("--locks", self.locks.as_os_str());
        say("--builds-max", OsStr::new(&self.builds_max.to_string()));
        say("--nix-daemon", self.nix_daemon.as_os_str());
        say("--linger", OsStr::new(&self.linger_seconds.to_string()));
        args
    }

    /// Returns what the agent of this way is called. Another program, another farm, another certificate, another environment for Nix: another
    /// agent, and the one of before ends when nobody comes any more.
    ///
    /// # Errors
    /// If this program cannot be found.
    pub(super) fn agent_name(&self) -> anyhow::Result<String> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut take = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        take(&PROTOCOL.to_le_bytes());
        take(&facts(&std::fs::metadata("/proc/self/exe").context("look at this program")?));
        self.to_args().iter().for_each(|word| take(word.as_bytes()));
        let mut environment: Vec<(OsString, OsString)> = std::env::vars_os().filter(|(name, _)| matters(name.as_bytes())).collect();
        environment.sort();
        environment.iter().for_each(|(name, value)| [name, value].iter().for_each(|word| take(word.as_bytes())));
        // Whoever makes a farm or a certificate anew writes these anew. A file that is not there is a fact too.
        let farm_dir = match &self.farm.farm {
            Some(farm) => farm.clone().into(),
            None => DirArgs { dir: std::env::var_os("KILN_DIR").map(PathBuf::from) }.dir(),
        };
        take(&facts_of(&beacon::path(&farm_dir)));
        let mut identity: Vec<PathBuf> = match &self.farm.identity {
            Some(dir) => std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect(),
            None => Vec::new(),
        };
        identity.sort();
        identity.iter().for_each(|file| take(&facts_of(file)));
        let name: String = hasher.finish().to_base16().chars().take(NAME_DIGITS).collect();
        Ok(format!("agent-{name}"))
    }
}

/// Returns whether a variable of the environment can make a difference to Nix, or to how a farm is found.
fn matters(name: &[u8]) -> bool {
    let prefixes: [&[u8]; 5] = [b"NIX_", b"KILN_", b"XDG_", b"LD_", b"LC_"];
    let names: [&[u8]; 5] = [b"HOME", b"PATH", b"USER", b"TMPDIR", b"LANG"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || names.contains(&name)
}

fn facts_of(path: &Path) -> Vec<u8> {
    std::fs::metadata(path).map(|meta| facts(&meta)).unwrap_or_default()
}

/// Returns what changes when a file is written anew.
fn facts(meta: &Metadata) -> Vec<u8> {
    let numbers = [meta.dev(), meta.ino(), meta.len(), meta.mtime().cast_unsigned(), meta.mtime_nsec().cast_unsigned()];
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Digits of the hash in a name: two ways do not meet by chance.
const NAME_DIGITS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn way(dir: &Path) -> Way {
        Way {
            farm: FarmArgs { farm: Some("kiln://a:1".to_owned()), identity: Some(dir.to_owned()) },
            locks: "/run/kiln-hook".into(),
            builds_max: 8,
            nix_daemon: "nix-daemon".into(),
            linger_seconds: 10,
        }
    }

    #[test]
    fn hooks_that_were_told_otherwise_have_an_agent_of_their_own() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("cert.pem"), "one").expect("write");
        let name = |change: &dyn Fn(&mut Way)| {
            let mut way = way(dir.path());
            change(&mut way);
            way.agent_name().expect("a name")
        };
        let same = name(&|_| {});
        assert_eq!(name(&|_| {}), same);
        let changes: [&dyn Fn(&mut Way); 4] = [
            &|way| way.farm.farm = Some("kiln://b:1".to_owned()),
            &|way| way.farm.identity = None,
            &|way| way.nix_daemon = "/opt/nix-daemon".into(),
            &|way| way.builds_max = 9,
        ];
        let mut names: std::collections::BTreeSet<String> = changes.iter().map(|change| name(*change)).collect();
        // A certificate that was renewed in its place.
        std::fs::write(dir.path().join("new.pem"), "another").expect("write");
        std::fs::rename(dir.path().join("new.pem"), dir.path().join("cert.pem")).expect("rename");
        names.extend([name(&|_| {}), same]);
        assert_eq!(names.len(), changes.len() + 2);
    }
}
