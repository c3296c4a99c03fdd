//! Attack A24: small blobs that claim to be, or become, very large. One test, because it looks at the memory of its process.

mod common;

use std::fs;

use common::{HASHES, Place, built, chain, path};
use kiln_wire::{Blake3Hash, Blob, PathInfo, Sha256Hash};
use sha2::{Digest, Sha256};

/// A zstd frame by hand: its window, and `blocks` blocks that each stand for 128 KiB of zeros.
fn frame(window: u8, blocks: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, window];
    for block in 1..=blocks {
        // Last or not, "one byte again and again", 128 KiB of it.
        let header = u32::from(block == blocks) | 1 << 1 | (128 << 10) << 3;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// The byte that says 2 to this power.
fn window(log: u8) -> u8 {
    (log - 10) << 3
}

fn described(blob: &[u8], nar_size_bytes: u64) -> PathInfo {
    PathInfo {
        path: path(HASHES[0], "bomb"),
        nar_hash: Sha256Hash([7; 32]),
        nar_size_bytes,
        references: Default::default(),
        deriver: None,
        content_address: None,
        blob: Blob {
            size_bytes: blob.len() as u64,
            blake3: Blake3Hash(*blake3::hash(blob).as_bytes()),
            sha256: Sha256Hash(Sha256::digest(blob).into()),
        },
    }
}

fn memory_peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("read the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn a24_neither_a_claimed_window_nor_a_claimed_size_nor_a_ratio_takes_memory() {
    let place = Place::on_disk().await;
    let (honest_window, mib) = (window(20), 1 << 20);
    // 8 MiB of blob that stand for 256 GiB.
    let bomb = frame(honest_window, 2 << 20);
    let many_empty = [&frame(honest_window, 1)[..6], &[0; 3].repeat(1 << 20), &[1, 0, 0]].concat();
    let table = [
        ("1 KB that becomes 2 GiB", frame(honest_window, 16_000), 1000, "more than the declared"),
        ("a blob larger than any of its content", bomb.clone(), 1000, "over the limit"),
        ("1 GiB that becomes 256 GiB", bomb, 1 << 30, "`nix-archive-1`"),
        ("a window of 2 GiB for 1 KB", frame(window(31), 1), 1000, "decompress blob"),
        ("a window of 2 GiB for 2 GiB", frame(window(31), 1), 2 << 30, "decompress blob"),
        ("a window of 256 MiB for 2 GiB", frame(window(28), 1), 2 << 30, "decompress blob"),
        ("a million empty blocks", many_empty, 1 << 30, "it ends too early"),
        (
            "a million frames",
            frame(honest_window, 1)[..6].iter().copied().chain([1, 0, 0]).collect::<Vec<u8>>().repeat(100_000),
            1 << 30,
            "follow its zstd frame",
        ),
        ("a size that nothing has", vec![0; 100], u64::MAX, "over the limit"),
    ];
    let before = memory_peak_kib();
    let largest = table.iter().map(|(_, blob, ..)| blob.len()).max().expect("some") / 1024;
    for (what, blob, nar_size_bytes, words) in table {
        let info = described(&blob, nar_size_bytes);
        let ended = place.upload(&info, built([info.path.clone()]), &blob).and_then(|receiver| receiver.finish());
        let err = ended.map(drop).expect_err(what);
        assert!(err.is_peers_fault() && chain(&err).contains(words), "{what}: {}", chain(&err));
    }
    let grown = memory_peak_kib() - before;
    assert!(grown < 16 * mib / 1024 + largest as u64, "{grown} KiB more");
}
