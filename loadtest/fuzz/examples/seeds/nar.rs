//! Archives: one of each kind of object and of each bound, and one that breaks each rule. A word per token; `~` is an empty one.

use kiln_nix::nar::{DEPTH_MAX, NAME_BYTES_MAX, TARGET_BYTES_MAX};

/// Returns the seeds by name.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let mentions = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let entry = |name: &str, node: &str| format!("entry ( name {name} node ( type {node} ) )");
    let directory = |entries: &[String]| format!("nix-archive-1 ( type directory {} )", entries.join(" "));
    let file = "regular contents x";
    let table = [
        ("file", "nix-archive-1 ( type regular contents hello )".to_owned()),
        ("file-empty", "nix-archive-1 ( type regular contents ~ )".to_owned()),
        ("file-executable", "nix-archive-1 ( type regular executable ~ contents #!/bin/sh )".to_owned()),
        ("file-mentions", format!("nix-archive-1 ( type regular contents /nix/store/{mentions}-a )")),
        ("symlink", "nix-archive-1 ( type symlink target ../../etc/passwd )".to_owned()),
        ("symlink-longest", format!("nix-archive-1 ( type symlink target {} )", "t".repeat(TARGET_BYTES_MAX))),
        ("symlink-too-long", format!("nix-archive-1 ( type symlink target {} )", "t".repeat(TARGET_BYTES_MAX + 1))),
        ("directory-empty", directory(&[])),
        ("directory", directory(&[entry("a", file), entry("b", "directory"), entry("c", "symlink target a")])),
        ("deepest", nested(DEPTH_MAX - 1)),
        ("too-deep", nested(DEPTH_MAX)),
        ("name-longest", directory(&[entry(&"n".repeat(NAME_BYTES_MAX), file)])),
        ("name-too-long", directory(&[entry(&"n".repeat(NAME_BYTES_MAX + 1), file)])),
        ("name-empty", directory(&[entry("~", file)])),
        ("name-dot", directory(&[entry(".", file)])),
        ("name-dots", directory(&[entry("..", file)])),
        ("name-slash", directory(&[entry("a/b", file)])),
        ("name-absolute", directory(&[entry("/tmp/escaped", file)])),
        ("name-nul", directory(&[entry("a\0b", file)])),
        ("name-upwards", directory(&[entry("../outside/escaped", file)])),
        ("names-unsorted", directory(&[entry("b", file), entry("a", file)])),
        ("names-twice", directory(&[entry("a", "symlink target ../outside"), entry("a", "directory")])),
        ("through-symlink", directory(&[entry("a", "symlink target ../outside"), entry("a/escaped", file)])),
        ("kind-unknown", "nix-archive-1 ( type fifo )".to_owned()),
        ("version-unknown", "nix-archive-2 ( type directory )".to_owned()),
        ("unfinished", "nix-archive-1 ( type directory entry ( name a".to_owned()),
        ("followed", format!("{} )", directory(&[]))),
    ];
    let mut seeds: Vec<_> = table.into_iter().map(|(name, words)| (name.to_owned(), nar(&words))).collect();
    let mut claimed = nar("nix-archive-1 ( type regular contents");
    claimed.extend_from_slice(&(u64::MAX / 2).to_le_bytes());
    seeds.push(("length-claimed".to_owned(), claimed));
    let mut padded = nar("nix-archive-1 ( type regular contents hello )");
    padded[94] = 1;
    seeds.push(("padding".to_owned(), padded));
    seeds.push(("nothing".to_owned(), Vec::new()));
    seeds
}

fn nested(depth: usize) -> String {
    let open = "( type directory entry ( name d node ".repeat(depth);
    format!("nix-archive-1 {open}( type symlink target t ){}", " ) )".repeat(depth))
}

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
