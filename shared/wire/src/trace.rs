//! Where in a trace something belongs. Source: W3C Trace Context, `traceparent`.
//!
//! Says nothing of what is recorded: a farm that records no traces hands the context on all the same.

use alloc::format;
use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

/// A span of a trace, which others may be children of. Travels as the text that the standard gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Traceparent {
    /// The trace. Not all zero.
    pub trace: [u8; 16],
    /// The span. Not all zero.
    pub span: [u8; 8],
}

/// A text that is no context, or one of a trace that is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read a trace context: it is not of the form `00-<32 hex digits>-<16 hex digits>-01`")]
pub struct TraceparentError;

impl Traceparent {
    /// Reads `00-TRACE-SPAN-FLAGS`. What comes behind, a later version of the standard may say; of a trace that its maker does not record there
    /// is nothing to belong to.
    ///
    /// # Errors
    /// [`TraceparentError`].
    pub fn parse(text: &str) -> Result<Self, TraceparentError> {
        let mut parts = text.splitn(5, '-');
        let mut part = || parts.next().ok_or(TraceparentError);
        let ([version], trace, span, [flags]) = (hex::<1>(part()?)?, hex(part()?)?, hex(part()?)?, hex::<1>(part()?)?);
        let is_whole = version != 0xff && (version != 0 || parts.next().is_none());
        let is_real = trace != [0; 16] && span != [0; 8];
        if is_whole && is_real && flags & 1 == 1 { Ok(Self { trace, span }) } else { Err(TraceparentError) }
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"));
        f.write_str("00-")?;
        hex(f, &self.trace)?;
        f.write_str("-")?;
        hex(f, &self.span)?;
        f.write_str("-01")
    }
}

impl TryFrom<String> for Traceparent {
    type Error = TraceparentError;

    fn try_from(text: String) -> Result<Self, TraceparentError> {
        Self::parse(&text)
    }
}

impl From<Traceparent> for String {
    fn from(context: Traceparent) -> Self {
        format!("{context}")
    }
}

/// Reads lower-case digits, as the standard wants them.
fn hex<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], TraceparentError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * BYTES {
        return Err(TraceparentError);
    }
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(TraceparentError),
    };
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_context_is_read_as_the_standard_writes_it() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = Traceparent::parse(good).expect("the standard's own example");
        assert_eq!(read.to_string(), good);
        for (text, is_read) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", true),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later", true),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", false),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
            ("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01", false),
            ("", false),
        ] {
            assert_eq!(Traceparent::parse(text).is_ok(), is_read, "{text}");
        }
    }
}
