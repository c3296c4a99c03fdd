//! What an archive holds, without the contents: the `.ls` file of a binary cache (JSON, version 1), from which clients read single
//! files of a large archive by their offset.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Read, Write};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::NarError;
use super::read::{BUFFER_BYTES, Object, visit_buffered};

/// The listing of one archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// The format's version, 1.
    pub version: u32,
    /// The outermost object.
    pub root: Node,
}

/// One object of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file.
    Regular {
        /// Its length.
        size_bytes: u64,
        /// Whether it may be run.
        executable: bool,
        /// Where in the archive its contents start.
        offset_bytes: u64,
    },
    /// A directory.
    Directory(BTreeMap<Vec<u8>, Node>),
    /// A symlink.
    Symlink(Vec<u8>),
}

impl Listing {
    /// Reads one archive to the end of `reader`.
    ///
    /// # Errors
    /// [`NarError`] names the rule that the archive breaks.
    pub fn read(reader: impl Read) -> Result<Self, NarError> {
        Self::read_within(reader, u64::MAX)
    }

    /// As [`Listing::read`], for an archive that a stranger made: it stops when the listing has more than about `bytes_max` of memory.
    ///
    /// # Errors
    /// [`NarError::LongListing`], and as [`Listing::read`].
    pub fn read_within(reader: impl Read, bytes_max: u64) -> Result<Self, NarError> {
        let position = Cell::new(0);
        let mut tree = Tree { open: Vec::new(), root: None };
        let mut bytes = 0;
        // Counted above the buffer: when a file is visited, exactly the bytes before its contents have been read.
        let mut reader = Counting { reader: BufReader::with_capacity(BUFFER_BYTES, reader), position: &position };
        visit_buffered(&mut reader, |object| {
            bytes += OBJECT_BYTES + texts_bytes(&object);
            if bytes > bytes_max {
                return Err(NarError::LongListing { bytes_max });
            }
            match object {
                Object::Enter(name) => tree.open(name),
                Object::Leave => tree.close(),
                Object::File { name, executable, size_bytes, .. } => {
                    tree.put(name, Node::Regular { size_bytes, executable, offset_bytes: position.get() });
                }
                Object::Symlink { name, target } => tree.put(name, Node::Symlink(target.to_vec())),
            }
            Ok(())
        })?;
        Ok(Self { version: 1, root: tree.root.expect("an archive that was read has a root") })
    }

    /// Returns the JSON that Nix writes into a cache's `.ls` file. Names that are not UTF-8 get U+FFFD.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a listing is plain data with texts as keys")
    }

    /// Writes the JSON of [`Listing::to_json`] to `out`. Returns whether it has `bytes_max` bytes at most; a part is written otherwise.
    ///
    /// # Errors
    /// What `out` gives.
    pub fn write_json(&self, out: impl Write, bytes_max: u64) -> io::Result<bool> {
        let mut out = Within { out: BufWriter::new(out), left_bytes: bytes_max, is_passed: false };
        let written = serde_json::to_writer(&mut out, self).map_err(io::Error::from).and_then(|()| out.flush());
        match written {
            Err(_) if out.is_passed => Ok(false),
            written => written.map(|()| true),
        }
    }

    /// Returns each object with its path from the root, which is empty, in the archive's order.
    pub fn paths(&self) -> Vec<(Vec<u8>, &Node)> {
        let mut found = Vec::new();
        let mut left = vec![(Vec::new(), &self.root)];
        while let Some((path, node)) = left.pop() {
            if let Node::Directory(entries) = node {
                left.extend(entries.iter().rev().map(|(name, node)| {
                    let below = if path.is_empty() { name.clone() } else { [path.as_slice(), name].join(b"/".as_slice()) };
                    (below, node)
                }));
            }
            found.push((path, node));
        }
        found
    }
}

fn texts_bytes(object: &Object<'_>) -> u64 {
    let (name, target) = match object {
        Object::Enter(name) | Object::File { name, .. } => (*name, None),
        Object::Symlink { name, target } => (*name, Some(target.len())),
        Object::Leave => (None, None),
    };
    (name.map_or(0, <[u8]>::len) + target.unwrap_or_default()) as u64
}

/// What an object takes beside its name, in a map and on the heap.
const OBJECT_BYTES: u64 = 128;

struct Tree {
    /// Names and entries of the directories that are being read, innermost last.
    open: Vec<Directory>,
    root: Option<Node>,
}

struct Directory {
    name: Vec<u8>,
    entries: BTreeMap<Vec<u8>, Node>,
}

impl Tree {
    fn open(&mut self, name: Option<&[u8]>) {
        self.open.push(Directory { name: name.unwrap_or_default().to_vec(), entries: BTreeMap::new() });
    }

    fn put(&mut self, name: Option<&[u8]>, node: Node) {
        match self.open.last_mut() {
            Some(directory) => {
                directory.entries.insert(name.unwrap_or_default().to_vec(), node);
            }
            None => self.root = Some(node),
        }
    }

    fn close(&mut self) {
        let Directory { name, entries } = self.open.pop().expect("directories end as often as they start");
        self.put(Some(&name), Node::Directory(entries));
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Regular { size_bytes, executable, offset_bytes } => {
                map.serialize_entry("type", "regular")?;
                map.serialize_entry("size", size_bytes)?;
                if *executable {
                    map.serialize_entry("executable", &true)?;
                }
                map.serialize_entry("narOffset", offset_bytes)?;
            }
            Self::Directory(entries) => {
                map.serialize_entry("type", "directory")?;
                map.serialize_entry("entries", &Entries(entries))?;
            }
            Self::Symlink(target) => {
                map.serialize_entry("type", "symlink")?;
                map.serialize_entry("target", &String::from_utf8_lossy(target))?;
            }
        }
        map.end()
    }
}

struct Entries<'a>(&'a BTreeMap<Vec<u8>, Node>);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, node)| (String::from_utf8_lossy(name), node)))
    }
}

/// Takes so many bytes, and fails at the next.
struct Within<W> {
    out: W,
    left_bytes: u64,
    is_passed: bool,
}

impl<W: Write> Write for Within<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left_bytes {
            self.is_passed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = self.out.write(bytes)?;
        self.left_bytes -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Counting<'a, R> {
    reader: R,
    position: &'a Cell<u64>,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.reader.read(buffer)?;
        self.position.set(self.position.get() + taken as u64);
        Ok(taken)
    }
}
