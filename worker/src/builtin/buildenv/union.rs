//! The tree of an environment in the making. In memory: it reads the inputs and writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::super::closure::Kind;
use super::super::{Bounds, Closure, shown};
use super::BuildenvError;

/// Directories below the root, as deep as a NAR may be.
pub const DEPTH_MAX: usize = 64;

/// Links and directories of one environment, so that inputs that merge without end stay small in memory. Large ones have some ten
/// thousand.
const NODES_MAX: u64 = 1 << 20;
/// Bytes of their names and targets.
const BYTES_MAX: u64 = 256 << 20;
/// Priority of the first package that another one brings along; each gets its own, so that they never conflict.
const PRIORITY_PROPAGATED: i32 = 1000;
/// Where a package names those that it brings along.
const PROPAGATED: &[u8] = b"nix-support/propagated-user-env-packages";
/// Longest such list.
const PROPAGATED_BYTES_MAX: u64 = 1 << 20;

/// Ends of paths that never show up in an environment: they mean something in their package only, or every package has them.
const LEFT_OUT: [&[u8]; 7] =
    [b"/propagated-build-inputs", b"/nix-support", b"/perllocal.pod", b"/info/dir", b"/log", b"/manifest.nix", b"/manifest.json"];

/// A directory of links and directories.
pub type Directory = BTreeMap<Vec<u8>, Node>;

/// What has a name in an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Merged from several packages.
    Directory(Directory),
    /// To a file or directory of one.
    Link {
        /// Where it leads.
        target: Vec<u8>,
        /// The package's priority.
        priority: i32,
    },
}

/// An environment in the making.
pub struct Union<'a> {
    closure: &'a Closure,
    bounds: &'a Bounds,
    note: &'a mut dyn FnMut(&str),
    root: Directory,
    /// Names of the directories from the root to the one that is merged into.
    at: Vec<Vec<u8>>,
    done: BTreeSet<Vec<u8>>,
    postponed: BTreeSet<Vec<u8>>,
    nodes: u64,
    bytes: u64,
    said_bytes: u64,
}

impl<'a> Union<'a> {
    /// Starts with an empty tree.
    pub fn new(closure: &'a Closure, bounds: &'a Bounds, note: &'a mut dyn FnMut(&str)) -> Self {
        let (done, postponed) = (BTreeSet::new(), BTreeSet::new());
        Self { closure, bounds, note, root: Directory::new(), at: Vec::new(), done, postponed, nodes: 0, bytes: 0, said_bytes: 0 }
    }

    /// Adds a package, once.
    ///
    /// # Errors
    /// [`BuildenvError`] if it conflicts or cannot be read.
    pub fn package(&mut self, path: &[u8], priority: i32) -> Result<(), BuildenvError> {
        if !self.done.insert(path.to_vec()) {
            return Ok(());
        }
        let mut root = std::mem::take(&mut self.root);
        self.merge(path, &mut root, priority)?;
        self.root = root;
        let Some(list) = self.closure.resolve(&join(path, PROPAGATED))? else { return Ok(()) };
        let list = self.closure.read(list, PROPAGATED_BYTES_MAX)?;
        let words = list.split(|byte| matches!(byte, b' ' | b'\n')).filter(|word| !word.is_empty());
        self.postponed.extend(words.filter(|word| !self.done.contains(*word)).map(<[u8]>::to_vec));
        Ok(())
    }

    /// Adds what the packages bring along, round by round, and returns the tree.
    ///
    /// # Errors
    /// As [`Union::package`].
    pub fn propagated(mut self) -> Result<Directory, BuildenvError> {
        let mut priority = PRIORITY_PROPAGATED;
        while !self.postponed.is_empty() {
            for path in std::mem::take(&mut self.postponed) {
                self.package(&path, priority)?;
                priority += 1;
            }
        }
        Ok(self.root)
    }

    /// Merges the directory `source` into the one at `self.at`.
    fn merge(&mut self, source: &[u8], into: &mut Directory, priority: i32) -> Result<(), BuildenvError> {
        let place = self.closure.resolve(source)?.ok_or_else(|| BuildenvError::Absent { path: shown(source) })?;
        if place.kind == Kind::File {
            let text = format!("warning: not including `{}` in the user environment because it's not a directory\n", shown(source));
            return self.say(&text);
        }
        if self.at.len() > DEPTH_MAX {
            return Err(BuildenvError::TooDeep { path: shown(source), depth_max: DEPTH_MAX });
        }
        for name in self.closure.list(&place)? {
            self.bounds.check()?;
            if name.starts_with(b".") {
                continue;
            }
            let path = join(source, &name);
            let Some(found) = self.closure.resolve(&path)? else {
                self.say(&format!("warning: skipping dangling symlink `{}`\n", shown(&path)))?;
                continue;
            };
            if LEFT_OUT.iter().any(|end| path.ends_with(end)) {
                continue;
            }
            let before = into.remove(&name);
            let after = match found.kind {
                Kind::Directory => self.directory(path, before, &name, priority)?,
                Kind::File => self.file(path, before, &name, priority)?,
            };
            into.insert(name, after);
        }
        Ok(())
    }

    fn directory(&mut self, path: Vec<u8>, before: Option<Node>, name: &[u8], priority: i32) -> Result<Node, BuildenvError> {
        let mut inside = match before {
            None => return self.link(path, name, priority),
            Some(Node::Directory(inside)) => inside,
            Some(Node::Link { target, priority: earlier }) => {
                let other = self.closure.resolve(&target)?.ok_or_else(|| BuildenvError::Absent { path: shown(&target) })?;
                if other.kind == Kind::File {
                    return Err(BuildenvError::Kinds { directory: shown(&path), file: shown(&other.path) });
                }
                self.count(name, &[])?;
                let mut inside = Directory::new();
                self.merge_below(name, &other.path, &mut inside, earlier)?;
                inside
            }
        };
        self.merge_below(name, &path, &mut inside, priority)?;
        Ok(Node::Directory(inside))
    }

    fn merge_below(&mut self, name: &[u8], source: &[u8], inside: &mut Directory, priority: i32) -> Result<(), BuildenvError> {
        self.at.push(name.to_vec());
        self.merge(source, inside, priority)?;
        self.at.pop();
        Ok(())
    }

    fn file(&mut self, path: Vec<u8>, before: Option<Node>, name: &[u8], priority: i32) -> Result<Node, BuildenvError> {
        match before {
            Some(Node::Directory(_)) => {
                let at = self.at.iter().map(Vec::as_slice).chain([name]).collect::<Vec<_>>().join(&b'/');
                Err(BuildenvError::Kinds { directory: shown(&at), file: shown(&path) })
            }
            Some(Node::Link { target, priority: earlier }) if earlier == priority => {
                Err(BuildenvError::SamePriority { one: shown(&target), other: shown(&path), priority })
            }
            Some(link @ Node::Link { priority: earlier, .. }) if earlier < priority => Ok(link),
            Some(Node::Link { .. }) | None => self.link(path, name, priority),
        }
    }

    fn link(&mut self, target: Vec<u8>, name: &[u8], priority: i32) -> Result<Node, BuildenvError> {
        self.count(name, &target)?;
        Ok(Node::Link { target, priority })
    }

    /// Inputs decide how much there is to say.
    fn say(&mut self, text: &str) -> Result<(), BuildenvError> {
        self.said_bytes += text.len() as u64;
        let limit_bytes = self.bounds.log_bytes_max();
        if self.said_bytes > limit_bytes {
            return Err(BuildenvError::LogBytes { limit_bytes });
        }
        (self.note)(text);
        Ok(())
    }

    /// Counts all that was ever made, so that the work is bounded too.
    fn count(&mut self, name: &[u8], target: &[u8]) -> Result<(), BuildenvError> {
        self.nodes += 1;
        self.bytes += (name.len() + target.len()) as u64;
        let bytes_max = BYTES_MAX.min(self.bounds.output_bytes_max());
        match () {
            () if self.nodes > NODES_MAX => Err(BuildenvError::TooLarge { limit: NODES_MAX, unit: "entries" }),
            () if self.bytes > bytes_max => Err(BuildenvError::TooLarge { limit: bytes_max, unit: "bytes of names" }),
            () => Ok(()),
        }
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if dir.ends_with(b"/") { b"" } else { b"/" };
    [dir, slash, name].concat()
}
