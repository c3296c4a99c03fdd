//! Numbers, strings and lists in bytes that are all there.

use kiln_wire::limits::NIX_REQUEST_BYTES_MAX;
use kiln_wire::{StoreDir, StorePath};

/// Bytes of a number.
pub(super) const WORD_BYTES: usize = 8;

/// Why bytes are no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The arguments are longer than any request may be.
    #[error("read request: its arguments have more than {NIX_REQUEST_BYTES_MAX} bytes; ask in parts")]
    TooLong,
    /// The bytes end within an argument.
    #[error("read request: it ends within `{field}`")]
    Truncated {
        /// Which argument.
        field: &'static str,
    },
    /// Bytes are left after the last argument.
    #[error("read request: {bytes} bytes follow its arguments")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A string is filled up with something else than zeros.
    #[error("read request: the padding of `{field}` is not zero")]
    Padding {
        /// Which argument.
        field: &'static str,
    },
    /// An argument has a value that it may not have.
    #[error("read request: `{field}` is `{value}`: {rule}")]
    Value {
        /// Which argument.
        field: &'static str,
        /// Its value, cut at 300 characters.
        value: String,
        /// The rule that it breaks.
        rule: String,
    },
}

/// Reads arguments one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    store_dir: &'a StoreDir,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8], store_dir: &'a StoreDir) -> Self {
        Self { bytes, store_dir }
    }

    /// Ends the reading: there must be no more.
    pub(crate) fn finish(self) -> Result<(), ProtocolError> {
        match self.bytes.len() {
            0 => Ok(()),
            bytes => Err(ProtocolError::Trailing { bytes }),
        }
    }

    pub(crate) fn number(&mut self, field: &'static str) -> Result<u64, ProtocolError> {
        self.split(WORD_BYTES, field).map(word)
    }

    pub(crate) fn truth(&mut self, field: &'static str) -> Result<bool, ProtocolError> {
        self.number(field).map(|number| number != 0)
    }

    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let length = usize::try_from(self.number(field)?).map_err(|_| ProtocolError::Truncated { field })?;
        let whole = self.split(padded(length).ok_or(ProtocolError::Truncated { field })?, field)?;
        let (text, padding) = whole.split_at(length);
        if padding.iter().any(|byte| *byte != 0) {
            return Err(ProtocolError::Padding { field });
        }
        Ok(text)
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<&'a str, ProtocolError> {
        let bytes = self.bytes(field)?;
        std::str::from_utf8(bytes).map_err(|_| value(field, &String::from_utf8_lossy(bytes), "must be text in UTF-8"))
    }

    /// Reads a count and as many times what `read` reads. Memory grows with what is there, whatever the count says.
    pub(crate) fn list<T, L: Default + Extend<T>>(
        &mut self,
        field: &'static str,
        mut read: impl FnMut(&mut Self) -> Result<T, ProtocolError>,
    ) -> Result<L, ProtocolError> {
        let mut found = L::default();
        for _ in 0..self.number(field)? {
            found.extend([read(self)?]);
        }
        Ok(found)
    }

    /// Reads a full path in the store directory.
    pub(crate) fn path(&mut self, field: &'static str) -> Result<StorePath, ProtocolError> {
        let text = self.text(field)?;
        self.parse_path(field, text)
    }

    /// Reads a full path, or nothing.
    pub(super) fn path_if_any(&mut self, field: &'static str) -> Result<Option<StorePath>, ProtocolError> {
        match self.text(field)? {
            "" => Ok(None),
            text => self.parse_path(field, text).map(Some),
        }
    }

    pub(super) fn parse_path(&self, field: &'static str, text: &str) -> Result<StorePath, ProtocolError> {
        self.store_dir.strip(text).map_err(|error| value(field, text, error.rule))
    }

    fn split(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let (head, rest) = self.bytes.split_at_checked(length).ok_or(ProtocolError::Truncated { field })?;
        self.bytes = rest;
        Ok(head)
    }
}

/// Makes the error of a value that breaks a rule.
pub(crate) fn value(field: &'static str, value: &str, rule: impl ToString) -> ProtocolError {
    ProtocolError::Value { field, value: value.chars().take(300).collect(), rule: rule.to_string() }
}

/// Returns the bytes that a string of this length takes after its length.
pub(super) fn padded(length: usize) -> Option<usize> {
    length.checked_next_multiple_of(WORD_BYTES)
}

/// Reads a number; of fewer than eight bytes, as if zeros followed.
pub(super) fn word(bytes: &[u8]) -> u64 {
    bytes.iter().take(WORD_BYTES).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
