//! Wire frames: a stream of messages of each type, arriving in pieces; a message that is read, written and read again is the same.
//!
//! An input is a byte that chooses the type of message (one of four) and the pieces' length, then the stream's bytes.

use std::fmt::Debug;

use kiln_wire::client::{Request, Response};
use kiln_wire::frame::{self, Assembler, Step};
use kiln_wire::worker::{FromWorker, ToWorker};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Target, Verdict};

/// serde takes a sequence's word for its length up to 1 MiB, at each level of nesting; the smallest element (an attempt's view) is
/// two bytes on the wire and 150 in memory.
pub(crate) const TARGET: Target = Target { name: "frames", run, heap_bytes: 8 << 20, heap_per_byte: 512 };

fn run(bytes: &[u8]) -> Verdict {
    let Some((head, stream)) = bytes.split_first() else { return Verdict::Refused };
    let pieces = stream.chunks([1, 3, 7, 64, 4096, usize::MAX][usize::from(head >> 2) % 6]);
    match head % 4 {
        0 => messages::<Request>(pieces),
        1 => messages::<Response>(pieces),
        2 => messages::<FromWorker>(pieces),
        _ => messages::<ToWorker>(pieces),
    }
}

/// Reads messages to the end of the stream, as kiln-link does.
fn messages<'a, T: Serialize + DeserializeOwned + PartialEq + Debug>(pieces: impl Iterator<Item = &'a [u8]>) -> Verdict {
    let mut assembler = Assembler::default();
    let mut verdict = Verdict::Refused;
    for mut piece in pieces {
        while !piece.is_empty() {
            let before_bytes = piece.len();
            let Ok((taken, step)) = assembler.take(piece) else { return Verdict::Refused };
            piece = &piece[taken..];
            let body = match step {
                Step::More => {
                    assert!(piece.is_empty(), "what asks for more has taken all");
                    break;
                }
                Step::End => return if piece.is_empty() { verdict } else { Verdict::Refused },
                Step::Whole(body) => body,
                Step::Ahead(size) => {
                    let (body, rest) = piece.split_at(size);
                    piece = rest;
                    body.to_vec()
                }
            };
            assert!(piece.len() < before_bytes, "a message has bytes");
            if !message::<T>(&body) {
                return Verdict::Refused;
            }
            verdict = Verdict::Accepted;
        }
    }
    if assembler.is_between() { verdict } else { Verdict::Refused }
}

/// Reads one message; says whether it was one.
fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) -> bool {
    let Ok(read) = frame::from_bytes::<T>(body) else { return false };
    let written = frame::to_frame(&read).expect("a message that fitted is written; its names may be longer than it was");
    let again = frame::from_bytes::<T>(&written[frame::HEADER_BYTES..]);
    assert_eq!(again.expect("what is written is read"), read);
    true
}
