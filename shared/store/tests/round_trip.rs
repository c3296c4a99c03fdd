//! What goes in comes out: packed, uploaded, published, found, served and unpacked, over every kind of store.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{HASHES, Place, blob_bytes, built, chain, listing, look_for, noise, path};
use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::hash::Hash;
use kiln_store::{Begun, BlobReceiver, Provenance, RESUME_BYTES, StoreError, Uploads, unpack};
use kiln_wire::DrvPath;

/// Small enough for memory; and large enough for files, threads and objects of several parts.
const FILLERS: [usize; 2] = [10_000, 18 << 20];

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_survives_pack_upload_publish_and_unpack() {
    for place in Place::each().await {
        for (filler_bytes, hash) in FILLERS.into_iter().zip(HASHES) {
            let (own, other) = (path(hash, "app"), path(HASHES[2], "lib"));
            let tree = place.tree(hash, &format!("#!/nix/store/{own}/bin/run"), filler_bytes);
            let packed = place.packer().pack(&tree, &look_for(&[own.clone(), other.clone()])).expect("packs");
            assert_eq!(packed.references, [own.clone()].into());
            let digest = kiln_nix::nar::hash_path(&tree).expect("hashes");
            assert_eq!((packed.nar_hash, packed.nar_size_bytes), (digest.hash, digest.size_bytes));
            let info = packed.path_info(own.clone(), None, None);
            let provenance = built([own.clone(), other]);
            assert_eq!(place.store.adopt(&info, &provenance).await.expect("looks"), None);
            let receiver = place.upload(&info, provenance.clone(), &blob_bytes(&packed)).expect("takes the bytes");
            let kept = place.store.finish_upload(receiver).await.expect("stores");
            assert_eq!(kept, info);
            assert_eq!(place.store.path_info(&own).await.expect("looks"), None, "not valid before it is published");
            assert_eq!(place.store.adopt(&info, &provenance).await.expect("looks"), Some(info.clone()));
            place.store.publish(std::slice::from_ref(&info), &place.keys).await.expect("publishes");
            assert_eq!(place.store.path_info(&own).await.expect("looks").as_deref(), Some(&info));
            assert_eq!(place.store.verify(&own).await.expect("verifies"), info);
            let blob = place.store.open_blob(&info).await.expect("opens");
            let to = place.dir.path().join(format!("unpacked-{hash}"));
            unpack(&info, blob.reader(), &to).expect("unpacks");
            assert_eq!(listing(&to), listing(&tree));
        }
        assert_eq!(place.store.verify_all().await.expect("lists").damages.len(), 0);
        assert_eq!(fs::read_dir(place.dir.path().join("spool")).expect("lists").count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_producers_that_compress_differently_both_get_what_they_brought() {
    for place in Place::each().await {
        for (filler_bytes, hash) in FILLERS.into_iter().zip(HASHES) {
            let own = path(hash, "app");
            let tree = place.tree(hash, "text", filler_bytes);
            let uploads = [1, 3].map(|level| {
                let mut packer = place.packer();
                packer.level = level;
                let packed = packer.pack(&tree, &look_for(&[])).expect("packs");
                let info = packed.path_info(own.clone(), None, None);
                place.upload(&info, built([]), &blob_bytes(&packed)).expect("takes the bytes")
            });
            let [first, second] = uploads;
            assert_ne!(first.stated().blob, second.stated().blob, "levels give different bytes");
            let (one, two) = tokio::join!(place.store.finish_upload(first), place.store.finish_upload(second));
            let (one, two) = (one.expect("stores"), two.expect("stores"));
            for info in [one, two] {
                place.store.publish(std::slice::from_ref(&info), &place.keys).await.expect("publishes");
                assert_eq!(place.store.verify(&own).await.expect("FileHash describes what is stored"), info);
            }
        }
    }
}

fn receiving(begun: Begun) -> (BlobReceiver, u64) {
    match begun {
        Begun::Receive(receiver, offset_bytes) => (*receiver, offset_bytes),
        Begun::Complete(received) => panic!("everything of {} is said to be there", received.info().path),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_where_its_connection_broke() {
    let place = Place::on_disk().await;
    let own = path(HASHES[0], "app");
    let packed = place.packer().pack(&place.tree("tree", "text", 3 << 20), &look_for(&[])).expect("packs");
    let info = packed.path_info(own, None, None);
    let blob = blob_bytes(&packed);
    let (uploads, start) = (Uploads::default(), Instant::now());
    let begin = |at| receiving(uploads.begin(&place.store, &info, built([]), at).expect("begins"));
    let (mut receiver, offset) = begin(start);
    assert_eq!(offset, 0);
    receiver.write(&blob[..100_000]).expect("takes the bytes");
    uploads.park(receiver, start);
    let (mut receiver, offset) = begin(start + Duration::from_secs(1));
    assert_eq!(offset, 100_000 / RESUME_BYTES * RESUME_BYTES);
    assert_eq!(uploads.parked_count(), 0);
    let from = usize::try_from(offset).expect("fits");
    receiver.write(&blob[from..from + 3]).expect("skips what it has");
    receiver.write(&blob[from + 3..]).expect("takes the rest");
    let again = receiver.resume();
    assert_eq!(again, (info.blob.size_bytes - 1) / RESUME_BYTES * RESUME_BYTES, "the last group may come again");
    receiver.write(&blob[usize::try_from(again).expect("fits")..]).expect("skips what it has");
    assert_eq!(place.store.finish_upload(receiver).await.expect("stores"), info);
    let (mut receiver, _) = begin(start);
    receiver.write(&blob[..100_000]).expect("takes the bytes");
    uploads.park(receiver, start);
    let (mut receiver, offset) = begin(start);
    let mut rest = blob[usize::try_from(offset).expect("fits")..].to_vec();
    let last = rest.len() - 1;
    rest[last / 2] ^= 1;
    // The decoder may see it at once; the hash of the whole does in any case.
    if receiver.write(&rest).is_ok() {
        place.store.finish_upload(receiver).await.expect_err("a byte of the rest is another");
    }
    let (receiver, _) = begin(start);
    uploads.park(receiver, start);
    let (receiver, offset) = begin(start + Duration::from_secs(3600));
    assert_eq!((receiver.offset(), offset), (0, 0), "what waited too long is forgotten");
    for i in 0..200u64 {
        let mut other = info.clone();
        other.nar_size_bytes += i;
        other.blob.blake3.0[0] = u8::try_from(i).expect("fits");
        let (receiver, _) = receiving(uploads.begin(&place.store, &other, built([]), start).expect("begins"));
        uploads.park(receiver, start + Duration::from_millis(i));
    }
    assert_eq!(uploads.parked_count(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_published_in_the_order_of_its_references() {
    for place in Place::each().await {
        let [out, lib, absent] = [path(HASHES[0], "out"), path(HASHES[1], "lib"), path(HASHES[2], "absent")];
        let mut infos = Vec::new();
        for (own, reference) in [(&out, &lib), (&lib, &lib)] {
            let packed = place.packer().pack_file(own.as_str(), reference.as_str().as_bytes(), &look_for(&[out.clone(), lib.clone()]));
            let packed = packed.expect("packs");
            let info = packed.path_info(own.clone(), None, None);
            let receiver = place.upload(&info, built([out.clone(), lib.clone()]), &blob_bytes(&packed)).expect("takes the bytes");
            infos.push(place.store.finish_upload(receiver).await.expect("stores"));
        }
        let alone = place.store.publish(&infos[..1], &place.keys).await.expect_err("its reference is not valid");
        assert!(matches!(&alone, StoreError::MissingReference { reference, .. } if *reference == lib), "{alone}");
        assert_eq!(place.store.learn_published().await.expect("lists"), Some(0));
        place.store.publish(&infos, &place.keys).await.expect("publishes");
        let asked = [absent.clone(), out.clone(), lib.clone()];
        // What is published after the list was read is known as well.
        assert_eq!(place.store.unpublished(&asked).await.expect("looks"), std::slice::from_ref(&absent));
        assert_eq!(place.store.learn_published().await.expect("lists"), Some(2));
        assert_eq!(place.store.unpublished(&asked).await.expect("looks"), std::slice::from_ref(&absent));
        assert_eq!(place.store.missing(&asked).await.expect("looks"), std::slice::from_ref(&absent));
        let other_name = path(HASHES[0], "other");
        assert_eq!(place.store.path_info(&other_name).await.expect("looks"), None, "another name with the same hash");
        infos[0].blob.sha256.0[0] ^= 1;
        let gone = place.store.publish(&infos[..1], &place.keys).await.expect_err("there is no such NAR");
        assert!(matches!(gone, StoreError::MissingBlob { .. }), "{gone}");
        infos[0].blob.sha256.0[0] ^= 1;
        infos[1].references.insert(out.clone());
        let cycle = place.store.publish(&infos, &place.keys).await.expect_err("a cycle");
        assert!(matches!(cycle, StoreError::Cycle { .. }), "{cycle}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_must_follow_from_its_content() {
    let place = Place::in_memory().await;
    let store_dir = place.store.store_dir().clone();
    let packed = place.packer().pack_file("text", b"hello", &look_for(&[])).expect("packs");
    let flat = {
        let mut hasher = kiln_nix::hash::Hasher::new(kiln_nix::hash::Algorithm::Sha256);
        hasher.update(b"hello");
        hasher.finish()
    };
    let other = Hash::from(kiln_wire::Sha256Hash([9; 32]));
    let table = [
        (Method::Nar, Hash::from(packed.nar_hash), None),
        (Method::Flat, flat.clone(), None),
        (Method::Text, flat, None),
        (Method::Nar, other.clone(), Some("its content address says")),
        (Method::Text, other, Some("its content address says")),
    ];
    for (method, hash, refusal) in table {
        let address = ContentAddress { method, hash };
        let own = address.path(&store_dir, "text", &Default::default(), false).expect("a path");
        let info = packed.path_info(own, None, Some(address.to_string()));
        let ended = place.upload(&info, Provenance::Imported, &blob_bytes(&packed)).and_then(|receiver| receiver.finish());
        match (ended, refusal) {
            (Ok(received), None) => assert_eq!(place.store.keep(&received).await.expect("stores"), info),
            (Err(error), Some(refusal)) => assert!(chain(&error).contains(refusal), "{address}: {}", chain(&error)),
            (Ok(_), Some(_)) => panic!("{address} was taken"),
            (Err(error), None) => panic!("{address}: {}", chain(&error)),
        }
        let mut wrong_path = info.clone();
        wrong_path.path = path(HASHES[0], "text");
        let error = place.store.receive(wrong_path, Provenance::Imported).map(drop).expect_err("another path");
        assert!(chain(&error).contains("its content address says"), "{}", chain(&error));
        let mut bare = info;
        bare.content_address = None;
        let error = place.store.receive(bare, Provenance::Imported).map(drop).expect_err("nothing vouches for it");
        assert!(error.is_peers_fault() && chain(&error).contains("no content address"), "{}", chain(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_derivation_is_kept_under_its_own_path_only() {
    let text = br#"Derive([("out","/nix/store/z1d8yzzd43hbw7s3zfhwl0d6dl2lpgsn-x","","")],[],[],"x86_64-linux","/bin/sh",[],[("out","/nix/store/z1d8yzzd43hbw7s3zfhwl0d6dl2lpgsn-x")])"#;
    for place in Place::each().await {
        let path = kiln_nix::drv_path_of(place.store.store_dir(), "x", text).expect("a derivation");
        let wrong = DrvPath::parse(&format!("{}-x.drv", HASHES[0])).expect("a path");
        let error = place.store.put_derivation(&wrong, text.to_vec().into()).await.expect_err("another path");
        assert!(error.is_peers_fault() && error.to_string().contains(path.as_str()), "{error}");
        let error = place.store.put_derivation(&path, b"Derive(".to_vec().into()).await.expect_err("no derivation");
        assert!(error.is_peers_fault(), "{error}");
        assert_eq!(place.store.derivation(&path).await.expect("looks"), None);
        for _ in 0..2 {
            place.store.put_derivation(&path, text.to_vec().into()).await.expect("stores");
        }
        let (bytes, parsed) = place.store.derivation(&path).await.expect("reads").expect("is there");
        assert_eq!((&bytes[..], parsed.name.as_str()), (&text[..], "x"));
        assert_eq!(place.store.missing_derivations(&[wrong.clone(), path]).await.expect("looks"), [wrong]);
    }
}

#[tokio::test]
async fn derivations_at_hand_are_read_together_and_one_that_is_damaged_is_left_to_whoever_asks_for_it() {
    let place = Place::on_disk().await;
    let text = |system: &str| format!(r#"Derive([("out","","r:sha256","")],[],[],"{system}","/bin/sh",[],[("out","")])"#);
    let mut paths = Vec::new();
    for system in ["a", "b", "c"] {
        let path = kiln_nix::drv_path_of(place.store.store_dir(), "x", text(system).as_bytes()).expect("a derivation");
        place.store.put_derivation(&path, text(system).into()).await.expect("stores");
        paths.push(path);
    }
    let lost = DrvPath::parse(&format!("{}-x.drv", HASHES[0])).expect("a path");
    paths.push(lost);
    fs::write(place.dir.path().join("store/drv").join(paths[1].as_str()), text("a")).expect("writes");
    let length = text("a").len() as u64;
    assert_eq!(
        place.store.derivations_at_hand(paths.clone(), length - 1).await.expect("reads").len(),
        0,
        "too large to be read with others"
    );
    let read = place.store.derivations_at_hand(paths.clone(), length).await.expect("reads");
    let read: Vec<_> = read.into_iter().map(|(path, bytes, parsed)| (path, bytes.to_vec(), parsed.system)).collect();
    let whole = |at: usize, system: &str| (paths[at].clone(), text(system).into_bytes(), system.to_owned());
    assert_eq!(read, [whole(0, "a"), whole(2, "c")]);
    place.store.derivation(&paths[1]).await.expect_err("is told why");

    let remote = Place::in_memory().await;
    remote.store.put_derivation(&paths[0], text("a").into()).await.expect("stores");
    assert_eq!(
        remote.store.derivations_at_hand(paths, length).await.expect("reads").len(),
        0,
        "what is not on this machine's disk may take its time"
    );
}

#[test]
fn packing_in_memory_gives_what_packing_a_file_gives() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packer = kiln_store::Packer { level: 1, spool_dir: dir.path().to_owned() };
    for size in [0, 1, 7, 8, 9, 100_000] {
        let (file, contents) = (dir.path().join("file"), noise(size));
        fs::write(&file, &contents).expect("writes");
        let (a, b) = (packer.pack(&file, &look_for(&[])).expect("packs"), packer.pack_file("x", &contents, &look_for(&[])).expect("packs"));
        assert_eq!((a.nar_hash, a.nar_size_bytes, a.blob), (b.nar_hash, b.nar_size_bytes, b.blob), "{size} bytes");
    }
    assert!(packer.pack(std::path::Path::new("/dev/null"), &look_for(&[])).is_err());
}
