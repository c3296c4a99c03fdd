//! Arguments that several commands share: which farm, and as whom.

use std::path::{Path, PathBuf};

use kiln_wire::{Priority, ProjectName, Urgency};

use crate::words::bad_input;

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

/// How urgent a build is.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct UrgencyArgs {
    /// The project that the build is for: a tenant's projects share what the tenant has of the farm
    #[arg(long, env = "KILN_PROJECT", value_name = "NAME")]
    project: Option<String>,
    /// How urgent it is among the builds of its project, from -100 to 100
    #[arg(long, value_name = "POINTS", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i8).range(-100..=100))]
    priority: i8,
    /// A security fix: goes ahead of everything that is not, and may end what has run for five minutes at most. Not everybody may
    #[arg(long)]
    security: bool,
}

impl UrgencyArgs {
    /// Returns what is said of the build's turn.
    ///
    /// # Errors
    /// Exit code 2 if the project's name breaks the rule.
    pub fn urgency(&self) -> anyhow::Result<Urgency> {
        let project = self.project.as_deref().map(ProjectName::parse).transpose().map_err(bad_input)?;
        Ok(Urgency { project, priority: Priority::from(self.priority), security: self.security })
    }
}

/// Which farm the programs of a machine talk to, as a file says it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FarmFile {
    /// As `--farm`.
    farm: Option<String>,
    /// As `--identity`.
    identity: Option<PathBuf>,
}

impl FarmArgs {
    /// Returns these, and where they name no farm, what the file says, if it is there.
    ///
    /// # Errors
    /// Exit code 2 if the file cannot be read.
    pub fn or_file(self, path: &Path) -> anyhow::Result<Self> {
        if self.farm.is_some() || !path.exists() {
            return Ok(self);
        }
        let refuse = |error: &dyn std::fmt::Display| bad_input(format!("read `{}`: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| refuse(&error))?;
        let file: FarmFile = toml::from_str(&text).map_err(|error| refuse(&error))?;
        Ok(Self { farm: file.farm, identity: self.identity.or(file.identity) })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_the_farm_where_nothing_else_does() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("client.toml");
        let named = |farm: Option<&str>| FarmArgs { farm: farm.map(str::to_owned), identity: None };
        let found = |farm| named(farm).or_file(&file).map(|args| (args.farm, args.identity));
        assert_eq!(found(None).expect("no file"), (None, None));
        std::fs::write(&file, "farm = \"kiln://a:1\"\nidentity = \"/etc/kiln/ann\"\n").expect("write");
        assert_eq!(found(None).expect("read"), (Some("kiln://a:1".to_owned()), Some("/etc/kiln/ann".into())));
        assert_eq!(found(Some("kiln://b:1")).expect("not read"), (Some("kiln://b:1".to_owned()), None));
        std::fs::write(&file, "host = \"a\"\n").expect("write");
        assert!(found(None).expect_err("refused").to_string().contains("client.toml"));
    }
}
