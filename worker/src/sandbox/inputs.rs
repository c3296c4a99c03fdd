//! The inputs of a build as they lie on the disk, and how one set of them differs from another.
//!
//! Absences: mounts nothing.

use std::cmp::Ordering;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{SandboxError, Spec};

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Input<'a> {
    /// Its base name in the store.
    pub name: &'a str,
    /// Where it lies on the host.
    pub source: &'a Path,
    /// Nothing until it was looked at.
    pub kind: Option<Kind>,
}

/// What an input is, so exactly that a mount of it still shows the same if it is equal: a mount keeps its inode, so that no other gets the
/// number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory {
        device: u64,
        inode: u64,
    },
    File {
        device: u64,
        inode: u64,
    },
    /// Copied, not mounted.
    Link {
        target: PathBuf,
    },
}

/// An input that outlives its specification.
#[derive(Debug)]
pub(super) struct Kept {
    name: String,
    source: PathBuf,
    kind: Kind,
}

/// Returns the inputs of `spec` in the order of their names. Looks at none of them.
pub(super) fn of(spec: &Spec) -> Vec<Input<'_>> {
    let mut inputs: Vec<Input<'_>> = spec.inputs.iter().map(|(path, source)| Input { name: path.as_str(), source, kind: None }).collect();
    if !inputs.is_sorted_by(|a, b| a.name <= b.name) {
        inputs.sort_by(|a, b| a.name.cmp(b.name));
    }
    inputs
}

/// Returns the directories that the inputs of `spec` lie in, most often one.
pub(super) fn directories(spec: &Spec) -> Vec<&Path> {
    let mut dirs: Vec<&Path> = Vec::new();
    for dir in spec.inputs.iter().filter_map(|(_, source)| source.parent()) {
        if dirs.last() != Some(&dir) && !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

impl Input<'_> {
    /// Looks at what lies there, if that was not done yet.
    pub(super) fn look(&mut self) -> Result<&Kind, SandboxError> {
        let kind = match self.kind.take() {
            Some(kind) => kind,
            None => {
                let found = fs::symlink_metadata(self.source).map_err(SandboxError::host("look at input", self.source))?;
                let (device, inode) = (found.dev(), found.ino());
                if found.is_symlink() {
                    Kind::Link { target: fs::read_link(self.source).map_err(SandboxError::host("read input", self.source))? }
                } else if found.is_dir() {
                    Kind::Directory { device, inode }
                } else {
                    Kind::File { device, inode }
                }
            }
        };
        Ok(self.kind.insert(kind))
    }

    /// Looks at it, and returns what is kept of it.
    pub(super) fn keep(&mut self) -> Result<Kept, SandboxError> {
        let kind = self.look()?.clone();
        Ok(Kept { name: self.name.to_owned(), source: self.source.to_owned(), kind })
    }
}

impl Kept {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }

    /// Whether it is this input, as far as that was looked at.
    fn is(&self, input: &Input<'_>) -> bool {
        self.name == input.name && self.source == input.source && input.kind.as_ref().is_none_or(|kind| *kind == self.kind)
    }
}

/// The names and places of a specification's inputs, as it gives them, in one piece: what a thousand inputs are compared with should not
/// lie in two thousand places.
#[derive(Debug, Default)]
pub(super) struct Given(Vec<u8>);

impl Given {
    pub(super) fn new(spec: &Spec) -> Self {
        let mut bytes = Vec::new();
        for (name, source) in &spec.inputs {
            for part in [name.as_str().as_bytes(), source.as_os_str().as_bytes()] {
                bytes.extend_from_slice(part);
                bytes.push(0);
            }
        }
        Self(bytes)
    }

    /// Whether `spec` gives the same.
    pub(super) fn is(&self, spec: &Spec) -> bool {
        let parts = spec.inputs.iter().flat_map(|(name, source)| [name.as_str().as_bytes(), source.as_os_str().as_bytes()]);
        let mut rest = self.0.as_slice();
        for part in parts {
            // No store path and no path of the host holds a zero.
            match rest.strip_prefix(part).and_then(|rest| rest.strip_prefix(b"\0")) {
                Some(left) => rest = left,
                None => return false,
            }
        }
        rest.is_empty()
    }
}

/// Which of the kept have to go and which of the wanted have to come, by position.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub gone: Vec<usize>,
    pub new: Vec<usize>,
}

/// Compares two sets, both in order. Gives up, with nothing, once they differ in more than `most` places.
pub(super) fn difference(kept: &[Kept], wanted: &[Input<'_>], most: usize) -> Option<Difference> {
    let mut found = Difference::default();
    let (mut at, mut to) = (0, 0);
    while at < kept.len() || to < wanted.len() {
        let order = match (kept.get(at), wanted.get(to)) {
            (Some(kept), Some(wanted)) if kept.is(wanted) => Ordering::Equal,
            // One of the same name that is another goes first.
            (Some(kept), Some(wanted)) => kept.name.as_str().cmp(wanted.name).then(Ordering::Less),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Equal => (at, to) = (at + 1, to + 1),
            Ordering::Less => {
                found.gone.push(at);
                at += 1;
            }
            Ordering::Greater => {
                found.new.push(to);
                to += 1;
            }
        }
        if found.gone.len() + found.new.len() > most {
            return None;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `a1 b2`: names of one letter, each with its inode.
    fn inputs(text: &'static str) -> Vec<Input<'static>> {
        let input = |word: &'static str| Input {
            name: &word[..1],
            source: Path::new("/store"),
            kind: Some(Kind::Directory { device: 1, inode: word[1..].parse().expect("an inode") }),
        };
        text.split_whitespace().map(input).collect()
    }

    #[test]
    fn what_differs_between_two_sets_goes_and_comes_and_nothing_else() {
        // Kept, wanted, positions of those that go, of those that come.
        let table: [(&str, &str, &[usize], &[usize]); 8] = [
            ("", "", &[], &[]),
            ("a1 b2", "a1 b2", &[], &[]),
            ("a1 b2", "a1", &[1], &[]),
            ("a1", "a1 b2", &[], &[1]),
            ("b2", "a1 b2 c3", &[], &[0, 2]),
            ("a1 b2 c3", "b2", &[0, 2], &[]),
            // The same name, another directory: an input that was collected and fetched again.
            ("a1 b2 c3", "a1 b9 c3", &[1], &[1]),
            ("a1 c3", "b2 d4", &[0, 1], &[0, 1]),
        ];
        for (kept, wanted, gone, new) in table {
            let (kept, wanted): (Vec<Kept>, _) =
                (inputs(kept).iter_mut().map(|input| input.keep().expect("looked at")).collect(), inputs(wanted));
            let want = Difference { gone: gone.to_vec(), new: new.to_vec() };
            let places = gone.len() + new.len();
            assert_eq!(difference(&kept, &wanted, places), Some(want));
            assert_eq!(difference(&kept, &wanted, places.wrapping_sub(1)).is_none(), places > 0);
        }
    }
}
