//! The grammar of a NAR, checked while its bytes arrive in pieces of any size.
//!
//! kiln-nix reads a NAR from a reader; an upload instead is pushed in as it comes from the network, so this is a machine that is
//! fed. It accepts what Nix's own reader accepts and a file system can hold, and keeps only the names of open directories.
//! Does not restore anything and does not hash. Source: NIX-INTEROP.md section 5, `archive.cc` of Nix.

use kiln_nix::nar::{DEPTH_MAX, NAME_BYTES_MAX, TARGET_BYTES_MAX};

use crate::debug::BuildIdOf;

/// No word of the grammar is longer.
const WORD_BYTES_MAX: usize = 16;

/// Bytes that are no NAR.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("read NAR at byte {offset_bytes}: {rule}")]
pub struct GrammarError {
    /// Where in the NAR the offending token starts.
    pub offset_bytes: u64,
    /// The rule it breaks.
    pub rule: &'static str,
}

/// Files with debugging information that are looked for in one NAR; more are not found.
const BUILD_IDS_MAX: usize = 4096;

/// The token that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Magic,
    NodeOpen,
    TypeWord,
    Type,
    ExecutableOrContents,
    ExecutableValue,
    ContentsWord,
    Contents,
    TargetWord,
    Target,
    NodeClose,
    EntryOrClose,
    EntryOpen,
    NameWord,
    Name,
    NodeWord,
    EntryClose,
    End,
}

/// The part of a token that comes next.
#[derive(Clone, Copy, Debug)]
enum Part {
    Length { have: usize },
    Body { left: u64 },
    Padding { left: usize },
}

/// Checks one NAR.
#[derive(Debug)]
pub(crate) struct Grammar {
    next: Next,
    part: Part,
    length: [u8; 8],
    padding: usize,
    token: Vec<u8>,
    /// For each open directory the name of its last entry.
    directories: Vec<Vec<u8>>,
    offset_bytes: u64,
    token_offset_bytes: u64,
    build_ids: Vec<BuildIdOf>,
}

impl Grammar {
    pub(crate) fn new() -> Self {
        Self {
            next: Next::Magic,
            part: Part::Length { have: 0 },
            length: [0; 8],
            padding: 0,
            token: Vec::new(),
            directories: Vec::new(),
            offset_bytes: 0,
            token_offset_bytes: 0,
            build_ids: Vec::new(),
        }
    }

    /// Takes the next bytes; hands the pieces of files' contents to `contents`.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut contents: impl FnMut(&[u8])) -> Result<(), GrammarError> {
        while !bytes.is_empty() {
            let taken = match self.part {
                Part::Length { have } => self.take_length(have, bytes)?,
                Part::Body { left } => {
                    let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    match self.next {
                        Next::Contents => contents(&bytes[..count]),
                        _ => self.token.extend_from_slice(&bytes[..count]),
                    }
                    self.part = Part::Body { left: left - count as u64 };
                    count
                }
                Part::Padding { left } => {
                    let count = left.min(bytes.len());
                    if bytes[..count].iter().any(|byte| *byte != 0) {
                        return Err(self.refuse("padding bytes must be zero"));
                    }
                    self.part = Part::Padding { left: left - count };
                    count
                }
            };
            bytes = &bytes[taken..];
            self.offset_bytes += taken as u64;
            self.settle()?;
        }
        Ok(())
    }

    /// Returns the files with debugging information that have come by.
    pub(crate) fn take_build_ids(&mut self) -> Vec<BuildIdOf> {
        std::mem::take(&mut self.build_ids)
    }

    /// Says whether the NAR is complete.
    pub(crate) fn finish(&self) -> Result<(), GrammarError> {
        match self.next {
            Next::End => Ok(()),
            _ => Err(GrammarError { offset_bytes: self.offset_bytes, rule: "it ends too early" }),
        }
    }

    fn refuse(&self, rule: &'static str) -> GrammarError {
        GrammarError { offset_bytes: self.token_offset_bytes, rule }
    }

    fn take_length(&mut self, have: usize, bytes: &[u8]) -> Result<usize, GrammarError> {
        if have == 0 {
            self.token_offset_bytes = self.offset_bytes;
        }
        if self.next == Next::End {
            return Err(self.refuse("nothing may follow the root node"));
        }
        let count = (8 - have).min(bytes.len());
        self.length[have..have + count].copy_from_slice(&bytes[..count]);
        self.part = Part::Length { have: have + count };
        if have + count == 8 {
            let left = u64::from_le_bytes(self.length);
            let (bytes_max, rule) = match self.next {
                Next::Contents => (u64::MAX - 8, "a file's length is out of range"),
                Next::Name => (NAME_BYTES_MAX as u64, "an entry's name is longer than 255 bytes"),
                Next::Target => (TARGET_BYTES_MAX as u64, "a link's target is longer than 4095 bytes"),
                _ => (WORD_BYTES_MAX as u64, "a word of the grammar is expected"),
            };
            if left > bytes_max {
                return Err(self.refuse(rule));
            }
            self.padding = usize::try_from((8 - left % 8) % 8).expect("less than 8");
            self.part = Part::Body { left };
        }
        Ok(count)
    }

    /// Moves on past parts that are complete.
    fn settle(&mut self) -> Result<(), GrammarError> {
        if let Part::Body { left: 0 } = self.part {
            self.part = Part::Padding { left: self.padding };
        }
        if let Part::Padding { left: 0 } = self.part {
            self.part = Part::Length { have: 0 };
            self.next = self.accept()?;
            self.token.clear();
        }
        Ok(())
    }

    /// Judges a complete token and says which comes next.
    fn accept(&mut self) -> Result<Next, GrammarError> {
        match self.next {
            Next::Magic => self.word(b"nix-archive-1", Next::NodeOpen, "a NAR starts with `nix-archive-1`"),
            Next::NodeOpen if self.directories.len() >= DEPTH_MAX => Err(self.refuse("directories are nested deeper than 64")),
            Next::NodeOpen => self.word(b"(", Next::TypeWord, "a node starts with `(`"),
            Next::TypeWord => self.word(b"type", Next::Type, "a node's first field is `type`"),
            Next::Type => self.node_type(),
            Next::ExecutableOrContents if self.token == b"executable" => Ok(Next::ExecutableValue),
            Next::ExecutableOrContents => self.word(b"contents", Next::Contents, "a file has `executable` or `contents`"),
            Next::ExecutableValue => self.word(b"", Next::ContentsWord, "`executable` has an empty value"),
            Next::ContentsWord => self.word(b"contents", Next::Contents, "`contents` follows `executable`"),
            Next::Contents => Ok(Next::NodeClose),
            Next::TargetWord => self.word(b"target", Next::Target, "a link has a `target`"),
            Next::Target if self.token.is_empty() || self.token.contains(&0) => {
                Err(self.refuse("a link's target must not be empty or hold a NUL"))
            }
            Next::Target => Ok(Next::NodeClose),
            Next::NodeClose => {
                let after = self.after_node();
                self.word(b")", after, "a node ends with `)`")
            }
            Next::EntryOrClose if self.token == b")" => {
                self.directories.pop();
                Ok(self.after_node())
            }
            Next::EntryOrClose => self.word(b"entry", Next::EntryOpen, "a directory holds `entry` fields and ends with `)`"),
            Next::EntryOpen => self.word(b"(", Next::NameWord, "an entry starts with `(`"),
            Next::NameWord => self.word(b"name", Next::Name, "an entry's first field is `name`"),
            Next::Name => self.name(),
            Next::NodeWord => self.word(b"node", Next::NodeOpen, "an entry's second field is `node`"),
            Next::EntryClose => self.word(b")", Next::EntryOrClose, "an entry ends with `)`"),
            Next::End => Err(self.refuse("nothing may follow the root node")),
        }
    }

    fn word(&self, expected: &[u8], next: Next, rule: &'static str) -> Result<Next, GrammarError> {
        match self.token == expected {
            true => Ok(next),
            false => Err(self.refuse(rule)),
        }
    }

    fn node_type(&mut self) -> Result<Next, GrammarError> {
        match self.token.as_slice() {
            b"regular" => {
                self.build_ids.extend(BuildIdOf::file(&self.directories).filter(|_| self.build_ids.len() < BUILD_IDS_MAX));
                Ok(Next::ExecutableOrContents)
            }
            b"symlink" => Ok(Next::TargetWord),
            b"directory" => {
                self.directories.push(Vec::new());
                Ok(Next::EntryOrClose)
            }
            _ => Err(self.refuse("a node is `regular`, `symlink` or `directory`")),
        }
    }

    fn name(&mut self) -> Result<Next, GrammarError> {
        let name = self.token.as_slice();
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Err(self.refuse("an entry's name must not be empty, `.` or `..`, or hold a slash or NUL"));
        }
        let last = self.directories.last_mut().expect("a name stands in an open directory");
        if !last.is_empty() && *last >= self.token {
            return Err(self.refuse("entries must be sorted by name, each name once"));
        }
        core::mem::swap(last, &mut self.token);
        Ok(Next::NodeWord)
    }

    fn after_node(&self) -> Next {
        match self.directories.is_empty() {
            true => Next::End,
            false => Next::EntryClose,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes tokens; `~` stands for an empty one.
    fn nar(words: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in words.split(' ').filter(|word| !word.is_empty()) {
            let token: &[u8] = if word == "~" { b"" } else { word.as_bytes() };
            bytes.extend_from_slice(&(token.len() as u64).to_le_bytes());
            bytes.extend_from_slice(token);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    fn check(bytes: &[u8], chunk: usize) -> Result<Vec<u8>, GrammarError> {
        let mut grammar = Grammar::new();
        let mut contents = Vec::new();
        for piece in bytes.chunks(chunk) {
            grammar.feed(piece, |part| contents.extend_from_slice(part))?;
        }
        grammar.finish().map(|()| contents)
    }

    fn nested(depth: usize) -> String {
        let open = "( type directory entry ( name d node ".repeat(depth);
        format!("nix-archive-1 {open}( type symlink target t ){}", " ) )".repeat(depth))
    }

    #[test]
    fn a_well_formed_archive_is_accepted_in_pieces_of_any_size() {
        let table = [
            ("nix-archive-1 ( type regular contents hello )".to_owned(), "hello"),
            ("nix-archive-1 ( type regular executable ~ contents ~ )".to_owned(), ""),
            ("nix-archive-1 ( type symlink target /x )".to_owned(), ""),
            ("nix-archive-1 ( type directory )".to_owned(), ""),
            (
                "nix-archive-1 ( type directory entry ( name a node ( type regular contents 12345678 ) ) \
                 entry ( name b node ( type directory ) ) entry ( name ba node ( type regular contents x ) ) )"
                    .to_owned(),
                "12345678x",
            ),
            (nested(63), ""),
        ];
        for (words, contents) in &table {
            for chunk in [1 << 20, 13, 8, 1] {
                assert_eq!(check(&nar(words), chunk).expect(words), contents.as_bytes(), "{words} by {chunk}");
            }
        }
    }

    #[test]
    fn a_broken_archive_is_refused_with_its_rule() {
        let entry = |name: &str| format!("nix-archive-1 ( type directory entry ( name {name} node ( type directory ) ) )");
        let table = [
            ("".to_owned(), "ends too early"),
            ("nix-archive-2 ( type directory )".to_owned(), "starts with `nix-archive-1`"),
            ("nix-archive-1 ( type directory".to_owned(), "ends too early"),
            ("nix-archive-1 ( type directory ) )".to_owned(), "nothing may follow"),
            ("nix-archive-1 ( type fifo )".to_owned(), "`regular`, `symlink` or `directory`"),
            ("nix-archive-1 ( type regular executable x contents y )".to_owned(), "empty value"),
            ("nix-archive-1 ( type regular )".to_owned(), "`executable` or `contents`"),
            ("nix-archive-1 ( type symlink target ~ )".to_owned(), "target must not be empty"),
            ("nix-archive-1 ( type symlink target a\0b )".to_owned(), "target must not be empty"),
            (format!("nix-archive-1 ( type symlink target {} )", "x".repeat(5000)), "longer than 4095"),
            (entry("~"), "must not be empty"),
            (entry("."), "must not be empty"),
            (entry(".."), "must not be empty"),
            (entry("a/b"), "must not be empty"),
            (entry("a\0b"), "must not be empty"),
            (entry(&"n".repeat(256)), "longer than 255"),
            (
                "nix-archive-1 ( type directory entry ( name b node ( type directory ) ) entry ( name a node ( type directory ) ) )"
                    .to_owned(),
                "sorted",
            ),
            (
                "nix-archive-1 ( type directory entry ( name a node ( type directory ) ) entry ( name a node ( type directory ) ) )"
                    .to_owned(),
                "sorted",
            ),
            ("nix-archive-1 ( type directory surprise )".to_owned(), "holds `entry` fields"),
            (nested(64), "deeper than 64"),
            (nested(100_000), "deeper than 64"),
        ];
        for (words, rule) in &table {
            for chunk in [1 << 20, 1] {
                let error = check(&nar(words), chunk).expect_err(words);
                assert!(error.rule.contains(rule), "{words:.80}: {error}");
            }
        }
        let mut long = nar("nix-archive-1 ( type directory");
        long.extend_from_slice(&(1u64 << 63).to_le_bytes());
        assert_eq!(check(&long, 8).expect_err("a length of 2^63").rule, "a word of the grammar is expected");
        let mut padded = nar("nix-archive-1 ( type regular contents x )");
        padded[13 + 8] = 1;
        assert_eq!(check(&padded, 8).expect_err("non-zero padding").rule, "padding bytes must be zero");
    }
}
