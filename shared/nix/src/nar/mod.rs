//! Nix archives: a file tree as one stream of bytes, the same bytes for the same tree.
//!
//! Goals: streams both ways with memory bounded by depth and names; one pass can check, hash, scan and unpack. Every rule of the
//! format is enforced while reading, and the bounds of file systems on names and targets too. Does not compress.
//! The grammar is read and written by the crate `nix-archive`.

mod git;
mod listing;
mod read;
mod restore;
mod sink;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use kiln_wire::limits::GIT_TREES_BYTES_MAX;

pub use git::{git_hash, git_hash_path};
pub use listing::{Listing, Node};
pub use read::{Counts, check, read_single_file};
pub use restore::restore;
pub use sink::{HashWriter, NarDigest, Tee};

/// Bytes of an entry's name: what Linux file systems take.
pub const NAME_BYTES_MAX: usize = 255;

/// Bytes of a symlink's target: what Linux takes, without its final NUL.
pub const TARGET_BYTES_MAX: usize = 4095;

/// Objects within each other, the outermost included. Nix has the same bound.
pub const DEPTH_MAX: usize = 64;

/// Why an archive is refused, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The bytes are no archive.
    #[error("read NAR: {rule}")]
    Format {
        /// The rule that they break.
        rule: String,
    },
    /// The stream ends within the archive.
    #[error("read NAR: it ends too early")]
    Truncated,
    /// Something follows the archive.
    #[error("read NAR: bytes follow its end")]
    TrailingBytes,
    /// Padding has bytes other than zero.
    #[error("read NAR: padding is not zero")]
    Padding,
    /// An entry's name is none that a file may have.
    #[error("read NAR: entry name `{name}` must be 1 to {NAME_BYTES_MAX} bytes without `/` and NUL, and neither `.` nor `..`")]
    Name {
        /// The name, cut at 100 characters.
        name: String,
    },
    /// Entries are not in order, or one comes twice.
    #[error("read NAR: entry `{name}` comes after `{previous}`; names must grow")]
    Order {
        /// The entry, cut at 100 characters.
        name: String,
        /// The one before it, cut at 100 characters.
        previous: String,
    },
    /// Directories lie too deep within each other.
    #[error("read NAR: objects are nested deeper than {DEPTH_MAX}")]
    Depth,
    /// A symlink's target is none.
    #[error("read NAR: target of symlink `{path}` must be 1 to {TARGET_BYTES_MAX} bytes without NUL")]
    Target {
        /// The symlink, from the archive's root.
        path: PathBuf,
    },
    /// One file was wanted and the archive holds something else.
    #[error("read NAR: want one file that is not executable, it holds {found}")]
    NotOneFile {
        /// What it holds.
        found: &'static str,
    },
    /// It holds more objects than its reader lists.
    #[error("list NAR: its listing takes more than {bytes_max} bytes")]
    LongListing {
        /// What it may take.
        bytes_max: u64,
    },
    /// Its directories hold more than is kept in memory while they are hashed.
    #[error("hash NAR as Git does: its open directories take more than {GIT_TREES_BYTES_MAX} bytes of memory; address it by its NAR")]
    LongTrees,
    /// The stream of the archive failed.
    #[error("read NAR")]
    Read(#[source] io::Error),
    /// The place to unpack to is taken.
    #[error("unpack NAR to `{path}`: it exists already; choose a path that does not")]
    Exists {
        /// The place.
        path: PathBuf,
    },
    /// A file could not be made.
    #[error("unpack NAR: make `{path}`")]
    Restore {
        /// Which, with the destination.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// A tree holds something that an archive cannot.
    #[error("pack `{path}`: an archive holds regular files, directories and symlinks only")]
    FileType {
        /// The object.
        path: PathBuf,
    },
    /// A tree changed while it was read.
    #[error("pack `{path}`: it changed size while it was read")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A tree is nested deeper than an archive may be.
    #[error("pack `{path}`: its objects are nested deeper than {DEPTH_MAX}")]
    TreeDepth {
        /// The tree.
        path: PathBuf,
    },
    /// A tree could not be read, or the archive could not be written.
    #[error("pack `{path}`")]
    Dump {
        /// The tree.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
}

/// Writes the archive of the tree at `path`, which may be a file or a symlink, to `writer`. Follows no symlink.
/// Only the owner's right to execute is kept of a file's mode.
///
/// # Errors
/// [`NarError::FileType`], [`NarError::Changed`], [`NarError::TreeDepth`] or [`NarError::Dump`].
pub fn dump(path: &Path, writer: &mut (impl Write + ?Sized)) -> Result<(), NarError> {
    nix_archive::nar::encode_path(writer, path, nix_archive::nar::CaseHack::Disabled).map_err(|err| from_dump(path, err))
}

/// Returns hash and size of the archive of the tree at `path`, without keeping it.
///
/// # Errors
/// As [`dump`].
pub fn hash_path(path: &Path) -> Result<NarDigest, NarError> {
    let mut writer = HashWriter::new(io::sink());
    dump(path, &mut writer)?;
    Ok(writer.finish().0)
}

/// Returns the bytes of the archive of one file, not executable, whose `contents` have `size_bytes`.
pub fn of_file(contents: impl Read, size_bytes: u64) -> impl Read {
    let mut head = Vec::new();
    for token in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b"contents"] {
        push(&mut head, token);
    }
    head.extend_from_slice(&size_bytes.to_le_bytes());
    let mut tail = vec![0; padding(size_bytes)];
    push(&mut tail, b")");
    io::Cursor::new(head).chain(contents).chain(io::Cursor::new(tail))
}

fn push(bytes: &mut Vec<u8>, token: &[u8]) {
    bytes.extend_from_slice(&(token.len() as u64).to_le_bytes());
    bytes.extend_from_slice(token);
    bytes.resize(bytes.len() + padding(token.len() as u64), 0);
}

/// Returns how many zeros follow this many bytes.
fn padding(size_bytes: u64) -> usize {
    usize::try_from(size_bytes.wrapping_neg() % 8).expect("less than 8")
}

fn from_dump(path: &Path, err: nix_archive::nar::Error) -> NarError {
    match err {
        nix_archive::nar::Error::Io(err) => NarError::Dump { path: path.to_owned(), err },
        nix_archive::nar::Error::FileChanged(file) => NarError::Changed { path: file },
        nix_archive::nar::Error::UnsupportedFileType(file) => NarError::FileType { path: file },
        nix_archive::nar::Error::MaxDepth(_) => NarError::TreeDepth { path: path.to_owned() },
        // The rest is about reading archives, or about a caller of the encoder that breaks its rules; theirs does not.
        other => NarError::Dump { path: path.to_owned(), err: io::Error::other(other.to_string()) },
    }
}
