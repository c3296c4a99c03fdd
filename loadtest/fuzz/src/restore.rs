//! Unpacking: an archive that is taken becomes a tree whose archive has the same bytes, and whatever it holds, nothing is made outside
//! the destination.

use std::fs;
use std::path::Path;

use kiln_nix::nar;

use crate::{Target, Verdict, directory};

/// As for `nar`; the kernel holds the tree.
pub(crate) const TARGET: Target = Target { name: "restore", run, heap_bytes: 3 << 19, heap_per_byte: 32 };

fn run(bytes: &[u8]) -> Verdict {
    let scratch = directory();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).expect("makes a directory in its own");
    let destination = scratch.path().join("inside");
    let restored = nar::restore(bytes, &destination);
    let mut found: Vec<_> = names(scratch.path());
    found.retain(|name| name != "inside");
    assert_eq!(found, ["outside"], "nothing is made beside the destination");
    assert!(names(&outside).is_empty(), "nothing is made where a symlink leads: {:?}", names(&outside));
    let taken = nar::check(bytes);
    assert_eq!(restored.is_ok(), taken.is_ok(), "a file system takes what the reader takes: {restored:?}, {taken:?}");
    if restored.is_ok() {
        let mut packed = Vec::with_capacity(bytes.len());
        nar::dump(&destination, &mut packed).unwrap_or_else(|err| panic!("pack what was unpacked: {err:?}"));
        assert!(packed == bytes, "what was unpacked is packed as the same bytes");
    }
    Verdict::of(&restored)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("its own directory can be read");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}
