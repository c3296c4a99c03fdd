//! Hash values as types, so that a NAR's SHA-256 and a blob's BLAKE3 cannot be exchanged by mistake.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A SHA-256 digest. Nix names NARs and compressed NAR files by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sha256Hash(#[serde(with = "serde_bytes")] pub [u8; 32]);

/// A BLAKE3 digest. Byte streams between farm members are verified against it while they flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Blake3Hash(#[serde(with = "serde_bytes")] pub [u8; 32]);

/// A digest that is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read hash `{text}`: want 64 hexadecimal digits")]
pub struct HashError {
    /// What was read, cut at 80 characters.
    pub text: String,
}

macro_rules! hex_digest {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = HashError;

            fn from_str(text: &str) -> Result<Self, HashError> {
                parse_hex(text).map(Self).ok_or_else(|| HashError { text: text.chars().take(80).collect() })
            }
        }
    };
}

hex_digest!(Sha256Hash);
hex_digest!(Blake3Hash);

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut digest = [0u8; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_digest_survives_its_text() {
        let digest = Sha256Hash(core::array::from_fn(|i| u8::try_from(i * 7).expect("31 * 7 fits a byte")));
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn text_that_is_no_digest_is_refused() {
        let long = "a".repeat(66);
        let not_ascii = "é".repeat(32);
        for text in ["", "00", "g000000000000000000000000000000000000000000000000000000000000000", &long, &not_ascii] {
            assert!(text.parse::<Sha256Hash>().is_err(), "{text}");
        }
    }
}
