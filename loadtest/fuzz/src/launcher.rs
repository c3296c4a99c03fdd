//! The socket between a worker and its launcher, which has root's rights: a stream of messages from a worker that may have been taken
//! over, of answers, and the policy. A message that is read, written and read again is the same.
//!
//! An input is a byte that chooses what is read (one of three), then the stream's bytes.

use std::fmt::Debug;

use kiln_wire::frame;
use kiln_worker::launcher::{Answer, Ask, Policy, decode, read_message, write_message};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Target, Verdict};

/// As for `frames`: serde takes a sequence's word for its length up to 1 MiB; an empty text of one byte is a vector of 24.
pub(crate) const TARGET: Target = Target { name: "launcher", run, heap_bytes: 8 << 20, heap_per_byte: 256 };

fn run(bytes: &[u8]) -> Verdict {
    let Some((head, stream)) = bytes.split_first() else { return Verdict::Refused };
    match head % 3 {
        0 => messages::<Ask>(stream),
        1 => messages::<Answer>(stream),
        _ => policy(stream),
    }
}

fn messages<T: Serialize + DeserializeOwned + PartialEq + Debug>(mut stream: &[u8]) -> Verdict {
    let mut verdict = Verdict::Refused;
    loop {
        match read_message::<T>(&mut stream) {
            Ok(None) => return verdict,
            Err(_) => return Verdict::Refused,
            Ok(Some(read)) => {
                let mut written = Vec::new();
                write_message(&mut written, &read).expect("a message that fitted is written");
                let again = read_message::<T>(written.as_slice()).expect("what is written is read");
                assert_eq!(again.as_ref(), Some(&read));
                verdict = Verdict::Accepted;
            }
        }
    }
}

/// The policy is one message of the control socket, without a length before it.
fn policy(bytes: &[u8]) -> Verdict {
    let policy = decode::<Policy>(bytes);
    if let Ok(policy) = &policy {
        let written = frame::to_bytes(policy).expect("a policy is written");
        let again = decode::<Policy>(&written).expect("what is written is read");
        assert_eq!(frame::to_bytes(&again).expect("a policy is written"), written);
    }
    Verdict::of(&policy)
}
