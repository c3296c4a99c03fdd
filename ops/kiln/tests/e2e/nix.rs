//! Which Nix a test runs: that of this machine, or that of Debian 13, which stands beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A version of Nix. Files of tests that hold for both are compiled twice; the name of the module says for which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nix {
    /// Debian 12's `nix-bin`, 2.8: installed here.
    Installed,
    /// Debian 13's, 2.26: fetched by `ops/lib/debian-13-nix`.
    Debian13,
}

impl Nix {
    /// Returns the version that a module of tests is for.
    pub fn of(module_path: &str) -> Self {
        if module_path.ends_with("_debian_13") { Self::Debian13 } else { Self::Installed }
    }

    /// Has a command find the programs of this version before all others.
    pub fn be_found(self, command: &mut Command) {
        let own = std::env::var("PATH").expect("there is a PATH");
        command.env(
            "PATH",
            match self {
                Self::Installed => own,
                Self::Debian13 => format!("{}:{own}", debian_13().display()),
            },
        );
    }
}

/// The lines that every `nix.conf` of a test has. Debian's Nix has a shell of its own in sandboxes, which is not installed everywhere and
/// which no builder of a test needs.
pub const RULES: &str = "experimental-features = nix-command\nsubstituters =\nsandbox-paths =\n";

/// Returns the directory with Debian 13's Nix; it is fetched if it is not there.
fn debian_13() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../lib/debian-13-nix");
        let fetched = Command::new(script).stderr(Stdio::inherit()).output().expect("the script runs");
        assert!(fetched.status.success(), "{script}: {:?}", fetched.status);
        PathBuf::from(String::from_utf8(fetched.stdout).expect("text").trim())
    })
}
