//! Makes a stranger's bytes safe to show on a terminal: what could move its cursor, change its title or have it answer is shown, not
//! done. Logs, and the names that a builder chose, are such bytes. Does not concern what goes into a file or a pipe.

use std::fmt::Write as _;

/// Tames a log that comes in pieces: a character or a sequence may lie across two of them. Colours are done: `ESC [ … m` with numbers
/// changes nothing but how text looks.
#[derive(Default)]
pub struct Tame {
    /// The beginning of something whose end has not come.
    rest: Vec<u8>,
}

impl Tame {
    /// Takes the next piece and returns what can be shown by now.
    pub fn push(&mut self, piece: &[u8]) -> String {
        self.rest.extend_from_slice(piece);
        let mut shown = String::new();
        let mut at = 0;
        while at < self.rest.len() {
            match next(&self.rest[at..]) {
                Next::Plain(text) => {
                    shown.push_str(text);
                    at += text.len();
                }
                Next::Escape { bytes, code } => {
                    // Writing to a string does not fail.
                    let _ = write!(shown, "{}", char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER).escape_default());
                    at += bytes;
                }
                Next::Broken { bytes } => {
                    shown.push(char::REPLACEMENT_CHARACTER);
                    at += bytes;
                }
                Next::Return => at += 1,
                Next::Unfinished => break,
            }
        }
        self.rest.drain(..at);
        shown
    }

    /// Returns what was held back because its end might have come.
    pub fn finish(self) -> String {
        line(&String::from_utf8_lossy(&self.rest))
    }
}

/// What lies at the beginning of bytes.
enum Next<'a> {
    /// Shown as it is.
    Plain(&'a str),
    /// A character that is shown by its code.
    Escape { bytes: usize, code: u32 },
    /// No UTF-8.
    Broken { bytes: usize },
    /// The first half of the end of a line.
    Return,
    /// More must come before this can be told.
    Unfinished,
}

/// Tames text that is whole, on one line, without colours.
pub fn line(text: &str) -> String {
    text.chars().map(|c| if steers(c) || c == '\n' { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Tames text that is whole and may have several lines, without colours.
pub fn text(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Controls, and what turns the direction of writing: text would not be read as it is.
fn steers(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What comes first in `bytes`, which are not empty.
fn next(bytes: &[u8]) -> Next<'_> {
    let bytes = &bytes[..bytes.len().min(WINDOW_BYTES)];
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(err) if err.valid_up_to() > 0 => std::str::from_utf8(&bytes[..err.valid_up_to()]).unwrap_or_default(),
        Err(err) => return err.error_len().map_or(Next::Unfinished, |bytes| Next::Broken { bytes }),
    };
    let plain = valid.find(steers).unwrap_or(valid.len());
    if plain > 0 {
        return Next::Plain(&valid[..plain]);
    }
    match bytes {
        [b'\r', b'\n', ..] => Next::Return,
        [b'\r'] => Next::Unfinished,
        [ESCAPE, ..] => match colour(valid) {
            // No colour has what is no text.
            Next::Unfinished if valid.len() < bytes.len() => ESCAPED,
            next => next,
        },
        _ => {
            let first = valid.chars().next().unwrap_or_default();
            Next::Escape { bytes: first.len_utf8(), code: u32::from(first) }
        }
    }
}

/// A colour, at an escape character.
fn colour(text: &str) -> Next<'_> {
    let Some(parameters) = text[1..].strip_prefix('[') else {
        return if text.len() == 1 { Next::Unfinished } else { ESCAPED };
    };
    let length = parameters.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(parameters.len());
    match parameters.as_bytes().get(length) {
        _ if length > COLOUR_BYTES_MAX => ESCAPED,
        Some(b'm') => Next::Plain(&text[..length + 3]),
        Some(_) => ESCAPED,
        None => Next::Unfinished,
    }
}

/// Bytes that are looked at for what comes first: more than any sequence that is done, and little, as each may be its own.
const WINDOW_BYTES: usize = 256;
const ESCAPE: u8 = 0x1b;
/// An escape character that begins no colour.
const ESCAPED: Next<'static> = Next::Escape { bytes: 1, code: ESCAPE as u32 };
/// A colour by red, green and blue, with a background, takes some forty.
const COLOUR_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn tamed(bytes: &[u8], piece: usize) -> String {
        let mut tame = Tame::default();
        let mut shown: String = bytes.chunks(piece).map(|piece| tame.push(piece)).collect();
        shown.push_str(&tame.finish());
        shown
    }

    #[test]
    fn a16_a_log_cannot_steer_the_terminal_however_it_is_cut() {
        let table: [(&[u8], &str); 18] = [
            (b"plain\ttext\n", "plain\ttext\n"),
            ("ü → 日本\n".as_bytes(), "ü → 日本\n"),
            (b"\x1b[1;31mred\x1b[0m and \x1b[mplain", "\x1b[1;31mred\x1b[0m and \x1b[mplain"),
            (b"\x1b]0;title\x07done", "\\u{1b}]0;title\\u{7}done"),
            (b"\x1b]8;;http://x\x1b\\link", "\\u{1b}]8;;http://x\\u{1b}\\link"),
            (b"\x1b[2J\x1b[H\x1b[6n", "\\u{1b}[2J\\u{1b}[H\\u{1b}[6n"),
            (b"\x1b[?1049h\x1bc\x1bP+q\x1b\\", "\\u{1b}[?1049h\\u{1b}c\\u{1b}P+q\\u{1b}\\"),
            ("\u{9b}2J\u{9d}0;x\u{9c}".as_bytes(), "\\u{9b}2J\\u{9d}0;x\\u{9c}"),
            (b"one\r\ntwo\rover\x08\x7f\0", "one\ntwo\\rover\\u{8}\\u{7f}\\u{0}"),
            (b"\xff\xfe\xc3(", "\u{fffd}\u{fffd}\u{fffd}("),
            ("\u{202e}gnp.exe\u{2066}".as_bytes(), "\\u{202e}gnp.exe\\u{2066}"),
            (b"\x1b\xffon", "\\u{1b}\u{fffd}on"),
            (b"\x1b[31\xe2\x82\xacon", "\\u{1b}[31\u{20ac}on"),
            (b"\x1b[31\xff\x1b[32mon", "\\u{1b}[31\u{fffd}\x1b[32mon"),
            (b"end\xe2\x82", "end\u{fffd}"),
            (b"end\x1b", "end\\u{1b}"),
            (b"end\x1b[31", "end\\u{1b}[31"),
            (b"end\r", "end\\r"),
        ];
        for (bytes, want) in table {
            for piece in [1, 2, 3, 5, 1000] {
                assert_eq!(tamed(bytes, piece), want, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a16_what_never_ends_is_not_waited_for() {
        let mut tame = Tame::default();
        let shown = tame.push(&[b"\x1b[", &vec![b'1'; 1 << 20][..]].concat());
        assert!(shown.starts_with("\\u{1b}[1111") && tame.rest.len() <= COLOUR_BYTES_MAX);
        let mut tame = Tame::default();
        (0..1000).for_each(|_| drop(tame.push(b"\x1b[1")));
        assert!(tame.rest.len() <= COLOUR_BYTES_MAX);
    }

    #[test]
    fn a16_names_and_messages_cannot_either() {
        assert_eq!(line("out/\u{1b}[2J\nx"), "out/\\u{1b}[2J\\nx");
        assert_eq!(text("one\ntwo\u{7}\t\u{202e}"), "one\ntwo\\u{7}\t\\u{202e}");
    }
}
