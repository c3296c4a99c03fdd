//! `builtin:buildenv`: one tree of links to the files of many packages, what `nix-env` calls a user environment.
//!
//! The tree is made in memory by [`union`] and written once it is whole. A directory that one package has becomes a link to it; one
//! that several have becomes a directory of links, as deep as it must. Which package wins a file is said by its priority (the lowest
//! number wins); two of the same priority are an error. Source: Nix's `builtins/buildenv.cc`.

mod union;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kiln_wire::FailureClass;
use rustix::fs::{CWD, Mode, mkdirat, symlinkat};

use super::closure::ClosureError;
use super::{Bounds, Closure, Ended, RecipeError, shown, variable};
use crate::trash::open_dir;
use union::{Directory, Node, Union};

/// How recipes call it.
pub const NAME: &str = "builtin:buildenv";

/// The link to the environment's own description.
const MANIFEST: &[u8] = b"manifest.nix";

/// What an environment is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The packages, in the order in which they are taken.
    packages: Vec<Package>,
    /// What the link `manifest.nix` says.
    manifest: Vec<u8>,
}

/// One output of one package. Ordered by what wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    priority: i32,
    path: Vec<u8>,
}

/// An environment that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildenvError {
    /// A package is not there.
    #[error("package `{path}` is not among the job's inputs")]
    Absent {
        /// Its path.
        path: String,
    },
    /// Two packages have a file of the same name and neither goes first.
    #[error(
        "files `{one}` and `{other}` have the same priority {priority}; give one of the two packages another (the lowest number wins), \
         as with `nix-env --set-flag priority NUMBER PACKAGE`"
    )]
    SamePriority {
        /// The file that is there.
        one: String,
        /// The file that would come.
        other: String,
        /// The priority of both.
        priority: i32,
    },
    /// One package has a directory where another has a file. No priority helps.
    #[error("collision between directory `{directory}` and non-directory `{file}`")]
    Kinds {
        /// The one.
        directory: String,
        /// The other.
        file: String,
    },
    /// A name leads in circles or out of the inputs.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// Directories are merged deeper than any output may be.
    #[error("`{path}` would lie more than {depth_max} directories deep")]
    TooDeep {
        /// The directory to be merged.
        path: String,
        /// The limit.
        depth_max: usize,
    },
    /// The tree is too large.
    #[error("the environment has more than {limit} {unit}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// Too much is left out with a line in the log for each.
    #[error("wrote more than {limit_bytes} bytes of log, its limit")]
    LogBytes {
        /// The limit.
        limit_bytes: u64,
    },
    /// It was stopped, or took too long.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The disk refuses.
    #[error("write `{path}`")]
    Write {
        /// Where in the output.
        path: String,
        /// Why not.
        #[source]
        err: io::Error,
    },
}

impl BuildenvError {
    /// Returns who is at fault.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Closure(err) if err.is_infrastructure() => FailureClass::Infrastructure,
            Self::Absent { .. } | Self::SamePriority { .. } | Self::Kinds { .. } | Self::Closure(_) | Self::TooDeep { .. } => {
                FailureClass::BuildFailure
            }
            Self::TooLarge { .. } | Self::LogBytes { .. } => FailureClass::LimitExceeded,
            Self::Ended(err) => err.class(),
            Self::Write { .. } => FailureClass::Infrastructure,
        }
    }
}

impl Request {
    /// Reads a recipe's variables.
    ///
    /// # Errors
    /// [`RecipeError`] if one is missing or makes no sense.
    pub fn of(variables: &BTreeMap<String, Vec<u8>>) -> Result<Self, RecipeError> {
        let list = variable(variables, NAME, "derivations")?;
        let refuse = |rule| RecipeError::Variable { builder: NAME, name: "derivations", rule };
        let mut words = list.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let mut packages = Vec::new();
        while let Some(active) = words.next() {
            let mut word = |what: &str| words.next().ok_or_else(|| refuse(format!("it ends before {what}")));
            let priority = word("a package's priority")?;
            let priority = integer(priority).ok_or_else(|| refuse(format!("`{}` is no priority", shown(priority))))?;
            let outputs = word("a package's number of outputs")?;
            let outputs = integer(outputs).and_then(|count| usize::try_from(count).ok());
            let outputs = outputs.ok_or_else(|| refuse("a package has no number of outputs".into()))?;
            for _ in 0..outputs {
                let path = word("all of a package's outputs")?.to_vec();
                if active != b"false" {
                    packages.push(Package { priority, path });
                }
            }
        }
        packages.sort_unstable();
        let manifest = variable(variables, NAME, "manifest")?;
        if manifest.is_empty() || manifest.len() > LINK_BYTES_MAX || manifest.contains(&0) {
            let rule = "it cannot be the text of a symbolic link".into();
            return Err(RecipeError::Variable { builder: NAME, name: "manifest", rule });
        }
        Ok(Self { packages, manifest: manifest.to_vec() })
    }
}

/// Longest text of a symbolic link.
const LINK_BYTES_MAX: usize = 4095;

/// Reads a number as C's `stoi` does, which ignores what comes after the digits: `5.000000` is how Nix prints a fraction.
fn integer(word: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(word).ok()?;
    let sign = usize::from(text.starts_with(['+', '-']));
    let end = text[sign..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |at| sign + at);
    text[..end].parse().ok()
}

/// Makes the environment at `out`, where nothing may lie. `note` gets a line for each thing that is left out.
///
/// # Errors
/// [`BuildenvError`]. Something may then lie at `out`.
pub fn make(request: &Request, closure: &Closure, bounds: &Bounds, out: &Path, note: &mut dyn FnMut(&str)) -> Result<(), BuildenvError> {
    let mut union = Union::new(closure, bounds, note);
    for package in &request.packages {
        union.package(&package.path, package.priority)?;
    }
    let mut root = union.propagated()?;
    root.insert(MANIFEST.to_vec(), Node::Link { target: request.manifest.clone(), priority: 0 });
    write(CWD, out.as_os_str().as_bytes(), &root, bounds)
}

/// Writes a directory and all in it, by descriptors: its names are those of inputs. As deep as [`union::DEPTH_MAX`].
fn write(parent: BorrowedFd<'_>, name: &[u8], directory: &Directory, bounds: &Bounds) -> Result<(), BuildenvError> {
    let failed = |name: &[u8], err: io::Error| BuildenvError::Write { path: shown(name), err };
    mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(|err| failed(name, err.into()))?;
    let fd = std::ffi::CString::new(name).map_err(io::Error::from).and_then(|name| Ok(open_dir(parent, &name)?));
    let fd = fd.map_err(|err| failed(name, err))?;
    for (name, node) in directory {
        bounds.check()?;
        match node {
            Node::Directory(inside) => write(fd.as_fd(), name, inside, bounds)?,
            Node::Link { target, .. } => {
                symlinkat(target.as_slice(), &fd, name.as_slice()).map_err(|err| failed(name, err.into()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
