//! Arguments that several commands share: which farm, and as whom.

use std::path::PathBuf;

/// Which farm to talk to.
#[derive(Clone, Debug, clap::Args)]
pub struct FarmArgs {
    /// The farm: `kiln://HOST:PORT` of its coordinators (several with commas between), or the directory of a running `kiln up`
    #[arg(long, env = "KILN_FARM", value_name = "URL")]
    pub farm: Option<String>,
    /// Directory with this client's certificate (made by `kiln ca issue`); a `kiln up` directory brings its own
    #[arg(long, env = "KILN_IDENTITY", value_name = "DIR")]
    pub identity: Option<PathBuf>,
}

/// Where this machine's own farm keeps its state.
#[derive(Clone, Debug, clap::Args)]
pub struct DirArgs {
    /// Where the farm keeps its state [default: /var/lib/kiln for root, else ~/.local/state/kiln]
    #[arg(long, env = "KILN_DIR", value_name = "D")]
    pub dir: Option<PathBuf>,
}

impl DirArgs {
    /// Returns the directory, as an absolute path: workers and Nix are told of places below it.
    pub fn dir(&self) -> PathBuf {
        if let Some(dir) = &self.dir {
            return std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
        }
        let home = std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")));
        match home {
            Some(home) if !is_root() => home.join("kiln"),
            Some(_) | None => PathBuf::from("/var/lib/kiln"),
        }
    }
}

/// Returns whether this process runs as root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
