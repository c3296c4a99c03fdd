//! Reading an archive with every bound enforced. What is done with each object is the visitor's.

use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

use nix_archive::nar::{self as theirs, Event, ReadEvent};

use super::{NAME_BYTES_MAX, NarError, TARGET_BYTES_MAX};

/// What an archive holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Regular files.
    pub files: u64,
    /// Directories, the root included if it is one.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Bytes of all regular files.
    pub content_bytes: u64,
}

/// One object of an archive, root first. The root has no name.
pub(super) enum Object<'a> {
    /// A directory starts.
    Enter(Option<&'a [u8]>),
    /// The innermost directory ends.
    Leave,
    /// A file.
    File { name: Option<&'a [u8]>, executable: bool, size_bytes: u64, contents: &'a mut dyn Read },
    /// A symlink.
    Symlink { name: Option<&'a [u8]>, target: &'a [u8] },
}

/// Bytes read ahead: headers are a few bytes each, and larger contents pass by the buffer.
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// Reads one archive to the end of `reader` and checks it. Reads every byte, so a [`super::Tee`] below sees them all.
///
/// # Errors
/// [`NarError`] names the rule that the archive breaks.
pub fn check(reader: impl Read) -> Result<Counts, NarError> {
    let mut counts = Counts::default();
    visit(reader, |object| {
        match object {
            Object::Enter(_) => counts.directories += 1,
            Object::Leave => {}
            Object::File { size_bytes, .. } => {
                counts.files += 1;
                counts.content_bytes = counts.content_bytes.saturating_add(size_bytes);
            }
            Object::Symlink { .. } => counts.symlinks += 1,
        }
        Ok(())
    })?;
    Ok(counts)
}

/// Copies the content of an archive that is one file, not executable, to `writer`.
///
/// # Errors
/// [`NarError::NotOneFile`] for other archives, [`NarError`] for what is none, [`NarError::Read`] if the writer fails.
pub fn read_single_file(reader: impl Read, writer: &mut impl Write) -> Result<(), NarError> {
    visit(reader, |object| match object {
        Object::Enter(_) | Object::Leave => Err(NarError::NotOneFile { found: "a directory" }),
        Object::Symlink { .. } => Err(NarError::NotOneFile { found: "a symlink" }),
        Object::File { executable: true, .. } => Err(NarError::NotOneFile { found: "an executable file" }),
        Object::File { contents, .. } => io::copy(contents, writer).map(|_| ()).map_err(NarError::Read),
    })
}

/// Hands each object to `act`, root first. An error of `act` ends the reading and is returned.
pub(super) fn visit(reader: impl Read, act: impl FnMut(Object<'_>) -> Result<(), NarError>) -> Result<(), NarError> {
    visit_buffered(&mut BufReader::with_capacity(BUFFER_BYTES, reader), act)
}

/// As [`visit`], for a reader that takes many small reads well. Reads nothing ahead.
pub(super) fn visit_buffered(reader: &mut impl Read, mut act: impl FnMut(Object<'_>) -> Result<(), NarError>) -> Result<(), NarError> {
    let mut place = Place::default();
    let mut refused = None;
    let read = theirs::decode_events_reader(reader, |event| {
        place.take(event, &mut act).map_err(|err| {
            refused = Some(err);
            theirs::Error::Io(io::Error::other("refused by the visitor"))
        })
    });
    match (refused, read) {
        (Some(err), _) => Err(err),
        (None, read) => read.map_err(from_read),
    }
}

/// Where in the tree the reader is, for messages.
#[derive(Default)]
struct Place {
    directories: Vec<Vec<u8>>,
}

impl Place {
    fn take<R: Read + ?Sized>(
        &mut self,
        event: ReadEvent<'_, R>,
        act: &mut impl FnMut(Object<'_>) -> Result<(), NarError>,
    ) -> Result<(), NarError> {
        match event {
            Event::DirectoryStart { name } => {
                check_name(name)?;
                self.directories.push(name.unwrap_or_default().to_vec());
                act(Object::Enter(name))
            }
            Event::DirectoryEnd { .. } => {
                self.directories.pop();
                act(Object::Leave)
            }
            Event::Regular { name, executable, mut contents } => {
                check_name(name)?;
                let size_bytes = contents.size();
                let mut watched = Watched { inner: &mut contents, failed: None };
                let acted = act(Object::File { name, executable, size_bytes, contents: &mut watched });
                // An error of the archive's stream explains more than what the visitor made of it.
                watched.failed.map_or(acted, |err| Err(NarError::Read(err)))
            }
            Event::Symlink { name, target } => {
                check_name(name)?;
                if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
                    return Err(NarError::Target { path: self.path(name) });
                }
                act(Object::Symlink { name, target })
            }
        }
    }

    fn path(&self, name: Option<&[u8]>) -> PathBuf {
        let parts = self.directories.iter().map(Vec::as_slice).chain(name);
        parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }
}

/// The decoder bounds names by 1 MiB and refuses the bad characters; file systems stop at 255 bytes.
fn check_name(name: Option<&[u8]>) -> Result<(), NarError> {
    match name {
        Some(name) if name.len() > NAME_BYTES_MAX => Err(NarError::Name { name: shown(name) }),
        Some(_) | None => Ok(()),
    }
}

/// Keeps the error of the archive's stream apart from errors of where its contents go.
struct Watched<'a, R: ?Sized> {
    inner: &'a mut R,
    failed: Option<io::Error>,
}

impl<R: Read + ?Sized> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|err| {
            let kind = err.kind();
            self.failed = Some(err);
            io::Error::new(kind, "the archive's stream failed")
        })
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(100).collect()
}

fn from_read(err: theirs::Error) -> NarError {
    let cut = |text: String| text.chars().take(100).collect::<String>();
    match err {
        theirs::Error::UnexpectedEof => NarError::Truncated,
        theirs::Error::TrailingBytes => NarError::TrailingBytes,
        theirs::Error::BadPadding => NarError::Padding,
        theirs::Error::InvalidName(name) => NarError::Name { name: cut(name) },
        theirs::Error::UnsortedEntries(name, previous) => NarError::Order { name: cut(name), previous: cut(previous) },
        theirs::Error::MaxDepth(_) => NarError::Depth,
        theirs::Error::Io(err) if err.kind() == io::ErrorKind::UnexpectedEof => NarError::Truncated,
        theirs::Error::Io(err) => NarError::Read(err),
        other => NarError::Format { rule: cut(other.to_string()) },
    }
}
