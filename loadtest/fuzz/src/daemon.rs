//! What a client of Nix's worker protocol says to a daemon: requests are gathered and read the same in whatever pieces they come, and so
//! is what is streamed after them.
//!
//! An input is a byte that chooses an operation, one that says how large the pieces are, then the bytes of the connection.

use kiln_nix::daemon::{Assembler, Encoder, Frames, Item, Operation, ProtocolError, Request, Step, ValidPath};
use kiln_wire::StoreDir;

use crate::{Target, Verdict};

/// A list of paths is read into a set: an empty string takes 8 bytes there and is refused, a path 40 and more.
pub(crate) const TARGET: Target = Target { name: "daemon", run, heap_bytes: 1 << 20, heap_per_byte: 64 };

fn run(bytes: &[u8]) -> Verdict {
    let [chosen, size, connection @ ..] = bytes else { return Verdict::Refused };
    let size = usize::from(*size) + 1;
    let store_dir = StoreDir::default();
    let operation = Operation::ALL.get(usize::from(*chosen));
    let items = operation.map_or(ValidPath::ITEMS, |operation| operation.items());
    let Some((arguments, after)) = gathered(items, connection, size) else { return Verdict::Refused };
    if operation.is_none_or(|operation| operation.is_followed_by_frames()) {
        unframed(after, size);
    }
    match operation {
        Some(operation) => Verdict::of(&Request::decode(*operation, &store_dir, &arguments)),
        None => stated(&store_dir, &arguments),
    }
}

/// Gathers arguments in pieces and at once; none if they are refused or not whole.
fn gathered<'a>(items: &'static [Item], connection: &'a [u8], size: usize) -> Option<(Vec<u8>, &'a [u8])> {
    let mut whole = Assembler::new(items);
    let taken = whole.take(connection);
    let mut pieces = Assembler::new(items);
    let mut taken_in_pieces: Result<usize, ProtocolError> = Ok(0);
    for piece in connection.chunks(size) {
        match (&taken_in_pieces, pieces.take(piece)) {
            (Ok(before), Ok(more)) => taken_in_pieces = Ok(before + more),
            (_, Err(error)) => {
                taken_in_pieces = Err(error);
                break;
            }
            (Err(_), Ok(_)) => break,
        }
    }
    assert_eq!(taken, taken_in_pieces);
    assert_eq!(whole.is_complete(), pieces.is_complete());
    let taken = taken.ok()?;
    let (arguments, after) = connection.split_at(taken);
    assert!(whole.is_complete() || after.is_empty(), "what is not whole takes all");
    whole.is_complete().then(|| {
        assert_eq!(whole.into_bytes(), arguments);
        (arguments.to_vec(), after)
    })
}

/// Takes frames apart in pieces and in as large ones as there are.
fn unframed(stream: &[u8], size: usize) {
    let read = |size: usize| {
        let (mut frames, mut content, mut at) = (Frames::default(), Vec::new(), 0);
        while at < stream.len() {
            let (taken, step) = frames.take(&stream[at..(at + size).min(stream.len())]);
            at += taken;
            match step {
                Step::Data(data) => content.extend_from_slice(data),
                Step::End => return (content, Some(at)),
                Step::More => assert!(taken > 0, "it goes on"),
            }
        }
        (content, None)
    };
    assert_eq!(read(size), read(stream.len()));
}

/// What is accepted of a path's facts is written back as the same bytes, up to what a set does not keep.
fn stated(store_dir: &StoreDir, bytes: &[u8]) -> Verdict {
    let read = ValidPath::decode(store_dir, bytes);
    if let Ok(read) = &read {
        let mut written = Encoder::default();
        read.encode(store_dir, &mut written);
        assert_eq!(ValidPath::decode(store_dir, &written.into_bytes()).as_ref(), Ok(read));
    }
    Verdict::of(&read)
}
