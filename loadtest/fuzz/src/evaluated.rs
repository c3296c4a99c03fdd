//! Lines of nix-eval-jobs: read the same however they come, and no more is made of them than there are.

use std::io::BufReader;

use kiln_nix::eval_jobs;
use kiln_wire::StoreDir;

use crate::{Target, Verdict};

/// A line is held once as text and once as what it says.
pub(crate) const TARGET: Target = Target { name: "evaluated", run, heap_bytes: 1 << 17, heap_per_byte: 64 };

fn run(bytes: &[u8]) -> Verdict {
    let store_dir = StoreDir::default();
    let read = eval_jobs::read(&store_dir, bytes);
    let size = 1 + bytes.len() % 13;
    let again = eval_jobs::read(&store_dir, BufReader::with_capacity(size, bytes));
    match (&read, &again) {
        (Ok(read), Ok(again)) => {
            assert_eq!(read, again, "pieces say the same as the whole");
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
            assert_eq!(read.jobs.len() + read.errors.len(), lines, "each line is an attribute");
        }
        (Err(read), Err(again)) => assert_eq!(read.to_string(), again.to_string(), "it is refused for the same"),
        (Ok(_), Err(err)) | (Err(err), Ok(_)) => panic!("in pieces it is another: {err}"),
    }
    Verdict::of(&read)
}
