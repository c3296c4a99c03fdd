//! The client's side of the protocol, as far as a build hook needs it: to ask a Nix of this machine which paths it has, and to give it
//! others. Speaks [`VERSION`], which every daemon from Nix 2.8 on understands.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use kiln_wire::limits::NIX_REQUEST_BYTES_MAX;
use kiln_wire::{StoreDir, StorePath};

use super::encoder::Encoder;
use super::fields::{WORD_BYTES, padded, word};
use super::operation::Operation;
use super::valid_path::ValidPath;
use super::version::{CLIENT_MAGIC, SERVER_MAGIC, Version};

/// What is spoken.
pub const VERSION: Version = Version::OLDEST;

/// Why a daemon's answer is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon is gone, or cannot be heard.
    #[error("hear the local Nix")]
    Read(#[source] io::Error),
    /// It says something that is not of the protocol.
    #[error("hear the local Nix: it says `{found}` where {wanted} is due")]
    Unexpected {
        /// What was due.
        wanted: &'static str,
        /// What came.
        found: String,
    },
    /// It could not do what it was asked.
    #[error("the local Nix says: {0}")]
    Refused(String),
}

/// Returns what opens a connection. The daemon's answer is read by [`read_greeting`].
pub fn greeting() -> Vec<u8> {
    let mut bytes = Encoder::default();
    // No processor to run on, and no space to reserve.
    bytes.number(CLIENT_MAGIC).number(VERSION.number()).number(0).number(0);
    bytes.into_bytes()
}

/// Returns the question which of `paths` are valid. [`read_paths`] reads the answer.
pub fn query_valid_paths(store_dir: &StoreDir, paths: &BTreeSet<StorePath>) -> Vec<u8> {
    let mut bytes = Encoder::default();
    // Not to be substituted.
    bytes.number(Operation::QueryValidPaths as u64).paths(store_dir, paths).truth(false);
    bytes.into_bytes()
}

/// Returns the question which valid paths refer to `path`. [`read_paths`] reads the answer.
pub fn query_referrers(store_dir: &StoreDir, path: &StorePath) -> Vec<u8> {
    let mut bytes = Encoder::default();
    bytes.number(Operation::QueryReferrers as u64).text(store_dir.join(path));
    bytes.into_bytes()
}

/// Returns what comes before the frames that add paths, whoever signed them. They have a count, and of each path what is stated of it
/// and its archive. [`read_done`] reads the answer.
pub fn add_multiple_to_store() -> Vec<u8> {
    let mut bytes = Encoder::default();
    bytes.number(Operation::AddMultipleToStore as u64).truth(false).truth(true);
    bytes.into_bytes()
}

/// Returns how many paths follow, as frames have it.
pub fn count(paths: usize) -> Vec<u8> {
    let mut bytes = Encoder::default();
    bytes.number(paths as u64);
    bytes.into_bytes()
}

/// Returns what is stated of a path, as frames have it.
pub fn stated(store_dir: &StoreDir, path: &ValidPath) -> Vec<u8> {
    let mut bytes = Encoder::default();
    path.encode(store_dir, &mut bytes);
    bytes.into_bytes()
}

/// Divides what is written into frames.
#[derive(Debug)]
pub struct FrameWriter<W>(W);

impl<W: Write> FrameWriter<W> {
    /// Starts.
    pub fn new(to: W) -> Self {
        Self(to)
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// What the writer says.
    pub fn end(mut self) -> io::Result<()> {
        self.0.write_all(&[0; WORD_BYTES])?;
        self.0.flush()
    }
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            self.0.write_all(&(bytes.len() as u64).to_le_bytes())?;
            self.0.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Reads the answer to a greeting.
///
/// # Errors
/// [`CallError`].
pub fn read_greeting(from: &mut impl Read) -> Result<(), CallError> {
    expect("the daemon's magic number", SERVER_MAGIC, read_word(from)?)?;
    let theirs = Version::from_number(read_word(from)?);
    if theirs < VERSION || theirs.major != VERSION.major {
        return Err(CallError::Unexpected { wanted: "version 1.34 or newer", found: theirs.to_string() });
    }
    // What program it is.
    read_text(from)?;
    read_notes(from)
}

/// Reads an answer that says nothing but that it is done.
///
/// # Errors
/// [`CallError`].
pub fn read_done(from: &mut impl Read) -> Result<(), CallError> {
    read_notes(from)
}

/// Reads an answer that is a set of paths.
///
/// # Errors
/// [`CallError`].
pub fn read_paths(store_dir: &StoreDir, from: &mut impl Read) -> Result<BTreeSet<StorePath>, CallError> {
    read_notes(from)?;
    let mut paths = BTreeSet::new();
    for _ in 0..read_word(from)? {
        let text = read_text(from)?;
        let path = store_dir.strip(&text).map_err(|_| CallError::Unexpected { wanted: "a store path", found: text })?;
        paths.insert(path);
    }
    Ok(paths)
}

/// Reads over notes to the end of them.
fn read_notes(from: &mut impl Read) -> Result<(), CallError> {
    loop {
        match read_word(from)? {
            LAST => return Ok(()),
            NEXT => drop(read_text(from)?),
            ERROR => return Err(read_error(from)?),
            START => {
                for _ in 0..3 {
                    read_word(from)?;
                }
                read_text(from)?;
                read_fields(from)?;
                read_word(from)?;
            }
            STOP => drop(read_word(from)?),
            RESULT => {
                read_word(from)?;
                read_word(from)?;
                read_fields(from)?;
            }
            other => return Err(CallError::Unexpected { wanted: "a note", found: format!("{other:#x}") }),
        }
    }
}

fn read_error(from: &mut impl Read) -> Result<CallError, CallError> {
    // Kind, level and a name.
    read_text(from)?;
    read_word(from)?;
    read_text(from)?;
    let message = read_text(from)?;
    // No daemon tells a position; traces have none either.
    read_word(from)?;
    for _ in 0..read_word(from)? {
        read_word(from)?;
        read_text(from)?;
    }
    Ok(CallError::Refused(message))
}

fn read_fields(from: &mut impl Read) -> Result<(), CallError> {
    for _ in 0..read_word(from)? {
        match read_word(from)? {
            0 => drop(read_word(from)?),
            _ => drop(read_text(from)?),
        }
    }
    Ok(())
}

fn expect(wanted: &'static str, due: u64, found: u64) -> Result<(), CallError> {
    if due == found { Ok(()) } else { Err(CallError::Unexpected { wanted, found: format!("{found:#x}") }) }
}

fn read_word(from: &mut impl Read) -> Result<u64, CallError> {
    let mut bytes = [0; WORD_BYTES];
    from.read_exact(&mut bytes).map_err(CallError::Read)?;
    Ok(word(&bytes))
}

/// Memory grows with what arrives, whatever the length says.
fn read_text(from: &mut impl Read) -> Result<String, CallError> {
    let too_long = |found: u64| CallError::Unexpected { wanted: "a shorter text", found: format!("{found} bytes") };
    let said = read_word(from)?;
    let length = usize::try_from(said).ok().filter(|length| *length <= NIX_REQUEST_BYTES_MAX).ok_or_else(|| too_long(said))?;
    let whole = padded(length).ok_or_else(|| too_long(said))?;
    let mut bytes = Vec::new();
    from.take(whole as u64).read_to_end(&mut bytes).map_err(CallError::Read)?;
    if bytes.len() < whole {
        return Err(CallError::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const NEXT: u64 = 0x6f6c_6d67;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const START: u64 = 0x5354_5254;
const STOP: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;

#[cfg(test)]
mod tests {
    use super::super::note::{ActivityKind, Field, Level, Note, ResultKind};
    use super::*;

    fn noted(notes: &[Note<'_>]) -> Encoder {
        let mut bytes = Encoder::default();
        notes.iter().for_each(|note| note.encode(VERSION, &mut bytes));
        bytes
    }

    #[test]
    fn what_our_daemon_says_is_understood() {
        let fields = [Field::Number(7), Field::Text(b"text")];
        let start = Note::Start { id: 1, level: Level::Info, kind: ActivityKind::Build, text: "on", fields: &fields, parent: 0 };
        let result = Note::Result { id: 1, kind: ResultKind::Progress, fields: &fields };
        let notes = [start, result, Note::Text("for people"), Note::Stop { id: 1 }];
        let store_dir = StoreDir::default();
        let path = StorePath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar").expect("a path");
        let mut bytes = noted(&[&notes[..], &[Note::Last]].concat());
        bytes.paths(&store_dir, [&path]);
        let bytes = bytes.into_bytes();
        let mut reader = &bytes[..];
        assert_eq!(read_paths(&store_dir, &mut reader).expect("paths"), BTreeSet::from([path]));
        assert!(reader.is_empty());
        for length in 0..bytes.len() {
            assert!(matches!(read_paths(&store_dir, &mut &bytes[..length]), Err(CallError::Read(_))), "cut at {length}");
        }
        let refused = noted(&[&notes[..], &[Note::Error("no such path")]].concat()).into_bytes();
        assert!(matches!(read_done(&mut &refused[..]), Err(CallError::Refused(text)) if text == "no such path"));
    }

    #[test]
    fn what_a_stranger_says_is_refused_and_takes_no_memory() {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        for (said, wanted) in [
            (words(&[0]), "magic"),
            (words(&[SERVER_MAGIC, 0x0121]), "1.34"),
            (words(&[SERVER_MAGIC, 0x0222]), "1.34"),
            (words(&[SERVER_MAGIC, 0x0122, u64::MAX]), "shorter"),
            (words(&[SERVER_MAGIC, 0x0122, 0, 99]), "a note"),
        ] {
            let error = read_greeting(&mut &said[..]).expect_err("refused");
            assert!(error.to_string().contains(wanted), "{error}");
        }
        let said = words(&[SERVER_MAGIC, 0x0126, 0, LAST]);
        read_greeting(&mut &said[..]).expect("a newer daemon speaks our version");
    }

    #[test]
    fn frames_hold_what_is_written_and_end() {
        let mut bytes = Vec::new();
        let mut frames = FrameWriter::new(&mut bytes);
        frames.write_all(b"abc").expect("memory");
        frames.write_all(b"").expect("memory");
        frames.end().expect("memory");
        assert_eq!(bytes, [&3_u64.to_le_bytes()[..], b"abc", &[0; 8]].concat());
    }
}
