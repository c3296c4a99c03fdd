//! Blobs between two real endpoints.

mod common;

use common::{noise, pair, stream};
use kiln_link::{BlobError, GROUP_BYTES, LinkError, blob_root};
use kiln_wire::Blake3Hash;

fn root(bytes: &[u8]) -> Blake3Hash {
    blob_root(bytes).expect("memory reads")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_any_size_arrives_from_memory_and_from_a_file() {
    let pair = pair().await;
    for size in [0usize, 1, 1023, 1024, 16_383, 16_384, 16_385, 32_768, (1 << 20) + 1, 40 << 20] {
        let bytes = noise(size);
        let mut file = tempfile::tempfile().expect("file");
        std::io::Write::write_all(&mut file, &bytes).expect("writes");
        for from_file in [false, true] {
            let ((mut sender, mut answer), (mut back, mut receiver)) = stream(&pair).await;
            let send = async {
                let sent = if from_file {
                    sender.send_blob(file.try_clone().expect("clone"), size as u64, 0).await
                } else {
                    sender.send_blob(bytes.clone(), size as u64, 0).await
                };
                assert_eq!(sent.expect("sends"), root(&bytes));
                sender.finish().await.expect("the peer has it");
                assert_eq!(answer.recv::<String>().await.expect("answer").as_deref(), Some("stored"));
            };
            let receive = async {
                let mut found = Vec::new();
                let sink = |piece: &[u8]| -> std::io::Result<()> {
                    found.extend_from_slice(piece);
                    Ok(())
                };
                receiver.recv_blob(root(&bytes), size as u64, 0, sink).await.expect("receives");
                assert!(found == bytes, "{size} bytes");
                assert_eq!(receiver.recv::<String>().await.expect("the stream ended with the blob"), None);
                back.send("stored").await.expect("sends");
                back.finish().await.expect("the peer has it");
            };
            tokio::join!(send, receive);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_resumes_at_any_group_and_at_the_end() {
    let pair = pair().await;
    let bytes = noise((1 << 20) + 777);
    let size = bytes.len() as u64;
    for offset in [0, GROUP_BYTES, 7 * GROUP_BYTES, 32 * GROUP_BYTES, 63 * GROUP_BYTES, 64 * GROUP_BYTES, size] {
        let ((mut sender, _), (_back, mut receiver)) = stream(&pair).await;
        let mut found = Vec::new();
        let sink = |piece: &[u8]| -> std::io::Result<()> {
            found.extend_from_slice(piece);
            Ok(())
        };
        let (sent, received) =
            tokio::join!(sender.send_blob(bytes.clone(), size, offset), receiver.recv_blob(root(&bytes), size, offset, sink));
        assert_eq!(sent.expect("sends"), root(&bytes));
        received.expect("receives");
        assert!(found == bytes[usize::try_from(offset).expect("small")..], "from {offset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_before_a_transfer_resumes_is_found_and_nothing_wrong_reaches_the_sink() {
    let pair = pair().await;
    let bytes = noise((1 << 20) + 777);
    let size = bytes.len() as u64;
    let offset = 32 * GROUP_BYTES;
    let from = usize::try_from(offset).expect("small");
    // In what is sent again, at its start, in its middle and at its end; and in what the peer has, of which only hashes are sent.
    for flipped in [from, from + 200_000, bytes.len() - 1, from - 1] {
        let mut other = bytes.clone();
        other[flipped] ^= 1;
        let ((mut sender, _), (_back, mut receiver)) = stream(&pair).await;
        let mut found = Vec::new();
        let sink = |piece: &[u8]| -> std::io::Result<()> {
            found.extend_from_slice(piece);
            Ok(())
        };
        let (_sent, received) = tokio::join!(sender.send_blob(other, size, offset), receiver.recv_blob(root(&bytes), size, offset, sink));
        assert!(matches!(received, Err(LinkError::Blob(BlobError::Corrupt { .. }))), "flip at {flipped}: {received:?}");
        assert!(bytes[from..].starts_with(&found), "flip at {flipped}");
    }
}

/// Sends `bytes` as a blob of `claimed` bytes and returns what the receiver says, and what its sink got.
async fn transfer(bytes: &[u8], expect: Blake3Hash, claimed: u64) -> (Result<(), LinkError>, Vec<u8>) {
    let pair = pair().await;
    let ((mut sender, _), (_back, mut receiver)) = stream(&pair).await;
    let mut found = Vec::new();
    let sink = |piece: &[u8]| -> std::io::Result<()> {
        found.extend_from_slice(piece);
        Ok(())
    };
    let (_sent, received) =
        tokio::join!(sender.send_blob(bytes.to_vec(), bytes.len() as u64, 0), receiver.recv_blob(expect, claimed, 0, sink));
    (received, found)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_blob_or_another_size_is_refused_and_nothing_of_it_reaches_the_sink() {
    let bytes = noise(100_000);
    let mut other = bytes.clone();
    other[50_000] ^= 1;
    for (sent, claimed) in [
        (&other[..], 100_000),
        (&bytes[..99_999], 100_000),
        (&bytes[..], 99_999),
        (&bytes[..], 100_001),
        (&[][..], 100_000),
        (&bytes[..], 0),
    ] {
        let (received, found) = transfer(sent, root(&bytes), claimed).await;
        assert!(matches!(received, Err(LinkError::Blob(_) | LinkError::Aborted)), "{} as {claimed}: {received:?}", sent.len());
        assert!(bytes.starts_with(&found), "{} as {claimed}", sent.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_more_than_the_blob_is_refused() {
    let pair = pair().await;
    let ((mut sender, _), (_back, mut receiver)) = stream(&pair).await;
    // The encoding of a blob of one group is the group itself, so a message can pose as one.
    let size = kiln_wire::frame::to_frame(&"blob").expect("small").len() as u64;
    let frame = kiln_wire::frame::to_frame(&"blob").expect("small");
    sender.send("blob").await.expect("sends");
    sender.send("more").await.expect("sends");
    let received = receiver.recv_blob(root(&frame), size, 0, |_| Ok::<(), std::io::Error>(())).await;
    assert!(matches!(received, Err(LinkError::Blob(BlobError::Long { .. }))), "{received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_vanishes_leaves_a_verified_prefix_and_its_length() {
    let pair = pair().await;
    let ((mut sender, _), (_back, mut receiver)) = stream(&pair).await;
    let frame = kiln_wire::frame::to_frame(&"blob").expect("small");
    let mut blob = frame.clone();
    blob.extend_from_slice(&[7; 100]);
    sender.send("blob").await.expect("sends");
    drop(sender);
    let received = receiver.recv_blob(root(&blob), blob.len() as u64, 0, |_| Ok::<(), std::io::Error>(())).await;
    assert!(matches!(received, Err(LinkError::Blob(BlobError::Short { offset_bytes: 0, .. }))), "{received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_fails_stops_the_sender() {
    let pair = pair().await;
    let ((mut sender, _), (_back, mut receiver)) = stream(&pair).await;
    let bytes = noise(40 << 20);
    let size = bytes.len() as u64;
    let expect = root(&bytes);
    let full = |_: &[u8]| Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
    let (sent, received) = tokio::join!(sender.send_blob(bytes, size, 0), receiver.recv_blob(expect, size, 0, full));
    assert!(matches!(sent, Err(LinkError::Stopped)), "{sent:?}");
    assert!(matches!(received, Err(LinkError::Blob(BlobError::Sink { offset_bytes: 0, .. }))), "{received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_sources_that_cannot_be_are_refused() {
    let pair = pair().await;
    let ((mut sender, _), (_back, mut receiver)) = stream(&pair).await;
    for (size, offset) in [(100_000u64, 1u64), (100_000, 16_383), (100_000, 114_688), (u64::MAX, 0)] {
        let sent = sender.send_blob(vec![0; 10], size, offset).await;
        assert!(matches!(sent, Err(LinkError::Blob(BlobError::Range { .. }))), "{size} {offset}: {sent:?}");
        let received = receiver.recv_blob(root(b""), size, offset, |_| Ok::<(), std::io::Error>(())).await;
        assert!(matches!(received, Err(LinkError::Blob(BlobError::Range { .. }))), "{size} {offset}: {received:?}");
    }
    let sent = sender.send_blob(vec![0; 10], 11, 0).await;
    assert!(matches!(sent, Err(LinkError::Blob(BlobError::SourceSize { size_bytes: 11, found_bytes: 10 }))), "{sent:?}");
}

#[test]
fn blobs_also_flow_on_a_runtime_with_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let bytes = noise(3 << 20);
    let (received, found) = runtime.block_on(transfer(&bytes, root(&bytes), bytes.len() as u64));
    received.expect("receives");
    assert!(found == bytes);
}
