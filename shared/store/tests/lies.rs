//! Uploads that are not what they are said to be, and disks that change what they hold.

mod common;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};

use common::{HASHES, Place, blob_bytes, built, chain, look_for, path};
use kiln_store::{Packed, StoreError, unpack};
use kiln_wire::{Blake3Hash, Blob, PathInfo, Sha256Hash};
use sha2::{Digest, Sha256};

/// Facts of other bytes under the same name, so that only the content is at fault.
fn describe(blob: &[u8]) -> Blob {
    Blob {
        size_bytes: blob.len() as u64,
        blake3: Blake3Hash(*blake3::hash(blob).as_bytes()),
        sha256: Sha256Hash(Sha256::digest(blob).into()),
    }
}

fn reblob(info: &PathInfo, blob: Vec<u8>) -> (PathInfo, Vec<u8>) {
    (PathInfo { blob: describe(&blob), ..info.clone() }, blob)
}

fn change(info: &PathInfo, blob: &[u8], change: impl FnOnce(&mut PathInfo)) -> (PathInfo, Vec<u8>) {
    let mut info = info.clone();
    change(&mut info);
    (info, blob.to_vec())
}

fn compress(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).expect("compresses")
}

fn wide_window(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(27)).expect("a parameter");
    encoder.write_all(content).expect("in memory");
    encoder.finish().expect("in memory")
}

/// A true statement with its blob: refers to the first path, could refer to the second.
fn honest(place: &Place) -> (PathInfo, Vec<u8>, Vec<u8>, Packed) {
    let (own, other) = (path(HASHES[0], "app"), path(HASHES[1], "lib"));
    let tree = place.tree("tree", &format!("run {own}"), 300_000);
    let packed = place.packer().pack(&tree, &look_for(&[own.clone(), other])).expect("packs");
    let mut nar = Vec::new();
    kiln_nix::nar::dump(&tree, &mut nar).expect("dumps");
    (packed.path_info(own, None, None), blob_bytes(&packed), nar, packed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a25_a31_every_lie_is_refused_and_nothing_becomes_visible() {
    for place in Place::each().await {
        let (info, blob, nar, _) = honest(&place);
        let [_, other, foreign] = [0, 1, 2].map(|i| path(HASHES[i], "lib"));
        let cut = &blob[..blob.len() - 1];
        let bomb = compress(&[nar.as_slice(), &vec![0; 200 << 20]].concat());
        let mut broken_nar = nar.clone();
        broken_nar[8] ^= 1;
        let long_nar = [nar.as_slice(), &[0; 8]].concat();
        let table = [
            ("wrong NAR hash", change(&info, &blob, |info| info.nar_hash.0[3] ^= 1), "the NAR has SHA-256"),
            ("NAR size one too large", change(&info, &blob, |info| info.nar_size_bytes += 1), "the NAR has"),
            ("NAR size one too small", change(&info, &blob, |info| info.nar_size_bytes -= 1), "more than the declared"),
            ("NAR size over the limit", change(&info, &blob, |info| info.nar_size_bytes = u64::MAX), "over the limit"),
            ("blob size over the limit", change(&info, &blob, |info| info.blob.size_bytes = u64::MAX), "over the limit"),
            ("truncated blob", change(&info, cut, |_| ()), "inside its zstd frame"),
            ("truncated blob, described as such", reblob(&info, cut.to_vec()), "inside its zstd frame"),
            ("bytes after the blob", change(&info, &[&blob[..], b"x"].concat(), |_| ()), "the blob has"),
            ("bytes after the frame", reblob(&info, [&blob[..], b"x"].concat()), "follow its zstd frame"),
            ("several frames", reblob(&info, [compress(&nar[..1000]), compress(&nar[1000..])].concat()), "follow its zstd frame"),
            ("wrong FileHash", change(&info, &blob, |info| info.blob.sha256.0[0] ^= 1), "the blob has SHA-256"),
            ("wrong BLAKE3", change(&info, &blob, |info| info.blob.blake3.0[0] ^= 1), "the blob has BLAKE3"),
            ("omitted reference", change(&info, &blob, |info| info.references.clear()), "not stated: [0hm2"),
            ("invented reference", change(&info, &blob, |info| info.references.extend([other.clone()])), "not found there: [1bxa"),
            ("foreign reference", change(&info, &blob, |info| info.references.extend([foreign.clone()])), "not found there: [zc84"),
            ("bomb", reblob(&info, bomb), "more than the declared"),
            ("window too large", reblob(&info, wide_window(&nar)), "decompress blob"),
            ("no zstd", reblob(&info, nar.clone()), "decompress blob"),
            ("nothing", reblob(&info, Vec::new()), "inside its zstd frame"),
            ("broken NAR", reblob(&info, compress(&broken_nar)), "starts with `nix-archive-1`"),
            (
                "bytes after the NAR",
                {
                    let (info, blob) = reblob(&info, compress(&long_nar));
                    change(&info, &blob, |info| info.nar_size_bytes += 8)
                },
                "nothing may follow",
            ),
        ];
        for (case, (stated, bytes), expected) in table {
            let provenance = built([info.path.clone(), other.clone()]);
            let ended = place.upload(&stated, provenance, &bytes).and_then(|receiver| receiver.finish());
            let error = ended.map(drop).expect_err(case);
            assert!(error.is_peers_fault() && chain(&error).contains(expected), "{case}: {}", chain(&error));
            assert!(chain(&error).contains(info.path.as_str()), "{case}: {}", chain(&error));
            let opened = place.store.open_blob(&stated).await;
            assert!(matches!(opened, Err(StoreError::MissingBlob { .. })), "{case} became visible");
        }
        let receiver = place.upload(&info, built([info.path.clone(), other]), &blob).expect("the truth");
        place.store.finish_upload(receiver).await.expect("is stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a31_a_lie_about_a_stored_nar_is_refused_too() {
    let place = Place::in_memory().await;
    let (info, blob, ..) = honest(&place);
    let provenance = built([info.path.clone(), path(HASHES[1], "lib")]);
    let receiver = place.upload(&info, provenance.clone(), &blob).expect("takes the bytes");
    place.store.finish_upload(receiver).await.expect("stores");
    let (omitting, _) = change(&info, &blob, |info| info.references.clear());
    let error = place.store.adopt(&omitting, &provenance).await.expect_err("an omitted reference");
    assert!(error.is_peers_fault() && chain(&error).contains("not stated: [0hm2"), "{}", chain(&error));
    let (other_blob, _) = change(&info, &blob, |info| info.blob.sha256.0[0] ^= 1);
    assert_eq!(place.store.adopt(&other_blob, &provenance).await.expect("looks"), None, "no object of that hash");
    let (other_root, _) = change(&info, &blob, |info| info.blob.blake3.0[0] ^= 1);
    let error = place.store.adopt(&other_root, &provenance).await.expect_err("another BLAKE3");
    assert!(error.is_peers_fault() && chain(&error).contains("the blob has BLAKE3"), "{}", chain(&error));
}

fn flip(file: &std::path::Path, offset: u64) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(file).expect("opens");
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset)).expect("seeks");
    file.read_exact(&mut byte).expect("reads");
    file.seek(SeekFrom::Start(offset)).expect("seeks");
    file.write_all(&[byte[0] ^ 0x10]).expect("writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_flips_on_disk_is_found_and_named() {
    let place = Place::on_disk().await;
    let (info, blob, ..) = honest(&place);
    let provenance = built([info.path.clone()]);
    let receiver = place.upload(&info, provenance.clone(), &blob).expect("takes the bytes");
    place.store.finish_upload(receiver).await.expect("stores");
    place.store.publish(std::slice::from_ref(&info), &place.keys).await.expect("publishes");
    let key = kiln_nix::narinfo::blob_key(&info.blob.sha256);
    let object = place.object(&key);
    for offset in [0, 4, 9, blob.len() as u64 / 2, blob.len() as u64 - 1] {
        flip(&object, offset);
        let error = place.store.verify(&info.path).await.expect_err("damage");
        assert!(chain(&error).contains(&key) && chain(&error).contains(info.path.as_str()), "{offset}: {}", chain(&error));
        assert_eq!(place.store.verify_all().await.expect("lists").damages.len(), 1, "{offset}");
        let stored = place.store.open_blob(&info).await.expect("opens");
        let to = place.dir.path().join(format!("unpacked-{offset}"));
        let unpacked = unpack(&info, stored.reader(), &to);
        // A flip in zstd's own header may leave the content as it was; the blob's hashes tell.
        assert!(unpacked.is_err() || offset == 4, "{offset}");
        flip(&object, offset);
    }
    place.store.verify(&info.path).await.expect("whole again");
    fs::write(&object, &blob[..100]).expect("writes");
    let error = place.store.open_blob(&info).await.map(drop).expect_err("it is too short");
    assert!(chain(&error).contains(&key) && chain(&error).contains("the blob has 100 bytes"), "{}", chain(&error));
    assert_eq!(place.store.adopt(&info, &provenance).await.expect("looks"), None, "what is damaged must be sent again");
    let receiver = place.upload(&info, provenance, &blob).expect("takes the bytes");
    place.store.finish_upload(receiver).await.expect("replaces the damaged object");
    place.store.verify(&info.path).await.expect("whole again");
    let narinfo = format!("{}.narinfo", info.path.hash_part());
    let text = fs::read(place.object(&narinfo)).expect("reads");
    for (what, bytes) in [("cut", &text[..40]), ("empty", &[]), ("no text", &[0xff; 60])] {
        fs::write(place.object(&narinfo), bytes).expect("writes");
        let error = place.store.verify(&info.path).await.map(drop).expect_err(what);
        assert!(chain(&error).contains(&narinfo), "{what}: {}", chain(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_store_directory_is_refused() {
    let place = Place::on_disk().await;
    let config = kiln_store::StoreConfig {
        location: kiln_store::Location::Local { dir: place.dir.path().join("store"), durable: false },
        store_dir: kiln_wire::StoreDir::parse("/gnu/store").expect("a directory"),
        spool_dir: place.dir.path().join("spool"),
        cached_paths_max: 10,
    };
    let error = kiln_store::Store::open(config).await.map(drop).expect_err("another store directory");
    assert!(error.to_string().contains("/nix/store"), "{error}");
}
