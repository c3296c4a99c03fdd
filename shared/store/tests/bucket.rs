//! A store that several coordinators share: what one writes the others read, and a service that fails loses nothing.

mod common;

use std::time::Instant;

use common::{HASHES, Place, blob_bytes, bucket, built, chain, look_for, path, serve};
use futures::TryStreamExt;
use kiln_nix::{Keyring, SecretKey};
use kiln_s3::Faults;
use kiln_store::{Begun, Location, S3Credentials, Store, StoreConfig, StoreError, Uploads};
use kiln_wire::{AttemptId, BuildId, DrvPath, PathInfo, StoreDir};

/// Large enough for an upload in several parts.
const LARGE: usize = 40 << 20;

fn faults(text: &str) -> Faults {
    Faults::parse(text).expect("faults")
}

async fn publish(place: &Place, hash: &str, filler_bytes: usize) -> (PathInfo, Vec<u8>) {
    let own = path(hash, "app");
    let packed = place.packer().pack(&place.tree(hash, "text", filler_bytes), &look_for(&[])).expect("packs");
    let info = packed.path_info(own, None, None);
    let blob = blob_bytes(&packed);
    let receiver = place.upload(&info, built([]), &blob).expect("takes the bytes");
    place.store.finish_upload(receiver).await.expect("stores");
    place.store.publish(std::slice::from_ref(&info), &place.keys).await.expect("publishes");
    (info, blob)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_coordinator_publishes_another_serves() {
    let one = Place::in_bucket().await;
    let two = one.beside().await;
    for (hash, filler_bytes) in HASHES.into_iter().zip([10_000, LARGE]) {
        let (info, blob) = publish(&one, hash, filler_bytes).await;
        assert_eq!(two.store.path_info(&info.path).await.expect("looks").as_deref(), Some(&info));
        assert_eq!(two.store.verify(&info.path).await.expect("verifies"), info);
        let key = kiln_nix::narinfo::blob_key(&info.blob.sha256);
        let file = key.trim_start_matches("nar/");
        assert_eq!(two.store.nar_file_size(file).await.expect("looks"), Some(blob.len() as u64));
        let span = blob.len() / 3..blob.len() - 5;
        let stream = two.store.stream_nar_file(file, span.start as u64..span.end as u64).await.expect("looks").expect("is there");
        let pieces: Vec<_> = stream.try_collect().await.expect("reads");
        assert!(pieces.concat() == blob[span], "the span is read");
    }
    assert_eq!(two.store.verify_all().await.expect("lists").damages.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_delays_lost_answers_and_broken_bodies_are_overcome() {
    let place = Place::in_bucket().await;
    let beside = place.beside().await;
    for seed in 1..=3 {
        let asked = format!("errors_percent=15&lost_percent=10&cut_percent=10&delay_ms=1&seed={seed}");
        place.server().set_faults(faults(&asked));
        let before = place.server().served().faults;
        let writer = place.beside().await;
        for (hash, filler_bytes) in HASHES.into_iter().zip([1_000, 2 << 20, LARGE]) {
            let (info, _) = publish(&writer, hash, filler_bytes).await;
            assert_eq!(beside.store.verify(&info.path).await.expect("verifies"), info, "seed {seed}");
        }
        assert!(place.server().served().faults > before, "seed {seed}: nothing went wrong");
    }
    place.server().set_faults(Faults::default());
    assert_eq!(beside.store.verify_all().await.expect("lists").damages.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_says_so_and_an_upload_that_it_did_not_take_is_not_sent_again() {
    let place = Place::in_bucket().await;
    let packed = place.packer().pack(&place.tree("tree", "text", 3 << 20), &look_for(&[])).expect("packs");
    let info = packed.path_info(path(HASHES[0], "app"), None, None);
    let receiver = place.upload(&info, built([]), &blob_bytes(&packed)).expect("takes the bytes");
    place.server().set_faults(faults("errors_percent=100"));
    let received = place.store.check_upload(receiver).await.expect("is what it was said to be");
    let error = place.store.keep(&received).await.expect_err("the store is away");
    let key = kiln_nix::narinfo::blob_key(&info.blob.sha256);
    assert!(error.is_passing() && !error.is_peers_fault(), "{error:?}");
    assert!(chain(&error).contains(&format!("write object `{key}`")) && chain(&error).contains("SlowDown"), "{}", chain(&error));
    let (uploads, now) = (Uploads::default(), Instant::now());
    uploads.park_complete(Box::new(received), now);
    place.server().set_faults(Faults::default());
    let Begun::Complete(received) = uploads.begin(&place.store, &info, built([]), now).expect("begins") else {
        panic!("the bytes are asked for again")
    };
    assert_eq!(place.store.keep(&received).await.expect("stores"), info);
    place.store.publish(std::slice::from_ref(&info), &place.keys).await.expect("publishes");
    assert_eq!(place.beside().await.store.verify(&info.path).await.expect("verifies"), info);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_again_has_everything_and_a_wrong_secret_opens_nothing() {
    let mut place = Place::in_bucket().await;
    let (info, _) = publish(&place, HASHES[0], 100_000).await;
    let server = place.server.take().expect("a server");
    let (addr, location) = (server.addr(), bucket(&server));
    server.stop().await;
    let dir = place.bucket_dir.take().expect("a directory");
    let server = serve(&dir, &addr.to_string()).await;
    assert_eq!(place.store.verify(&info.path).await.expect("verifies"), info);
    let Location::S3(mut s3) = location else { panic!("a bucket") };
    s3.credentials = S3Credentials::Key { access_key_id: "key".to_owned(), secret_access_key: "guessed".to_owned() };
    let config = StoreConfig {
        location: Location::S3(s3),
        store_dir: StoreDir::default(),
        spool_dir: place.dir.path().join("spool"),
        cached_paths_max: 10,
    };
    let store = Store::open(config).await.expect("nothing is asked yet");
    let error = store.belong_to("one", &place.keys).await.expect_err("a wrong secret");
    assert!(matches!(error, StoreError::Object { .. }) && !error.is_passing(), "{}", chain(&error));
    assert!(!format!("{error:?}").contains("guessed"), "{error:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_belongs_to_one_farm_and_one_key() {
    let place = Place::in_bucket().await;
    let beside = place.beside().await;
    let keys = &place.keys;
    place.store.belong_to("one", keys).await.expect("it is new");
    beside.store.belong_to("one", keys).await.expect("the same farm");
    let key = |name: &str| SecretKey::from_seed(name, [8; 32]).expect("a good name");
    let other = Keyring::of(key("farm-1"));
    for (farm, keys) in [("two", keys), ("one", &other)] {
        let error = beside.store.belong_to(farm, keys).await.expect_err("another farm");
        assert!(matches!(error, StoreError::OtherFarm { .. }) && error.to_string().contains("same signing key"), "{error}");
    }
    let mut next = Keyring::of(key("farm-2"));
    next.retire(keys.own().public()).expect("another name");
    beside.store.belong_to("one", &next).await.expect("it goes over to another key");
    let mut last = Keyring::of(key("farm-3"));
    last.revoke(next.own().public()).expect("another name");
    beside.store.belong_to("one", &last).await.expect("a key that leaked is the farm's all the same");
    let error = place.store.belong_to("one", keys).await.expect_err("its key was retired");
    assert!(matches!(error, StoreError::OtherFarm { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_ended_builds_are_there_for_every_coordinator() {
    let place = Place::in_bucket().await;
    let beside = place.beside().await;
    let derivation = DrvPath::parse(&format!("{}-bar.drv", HASHES[0])).expect("a path");
    assert_eq!(beside.store.latest_log(&derivation).await.expect("looks"), None);
    for (attempt, bytes) in [(7, 0), (30, 5 << 20), (9, 100)] {
        let (file, text) = (place.dir.path().join("log"), common::noise(bytes));
        std::fs::write(&file, &text).expect("writes");
        for store in [&place.store, &beside.store] {
            let file = std::fs::File::open(&file).expect("opens");
            store.put_log(&derivation, AttemptId(attempt), file).await.expect("keeps");
        }
        let log = beside.store.log(&derivation, AttemptId(attempt)).await.expect("reads").expect("is there");
        let mut found = Vec::new();
        std::io::Read::read_to_end(&mut log.reader(), &mut found).expect("reads");
        assert!(found == text, "attempt {attempt}");
    }
    assert_eq!(beside.store.latest_log(&derivation).await.expect("looks"), Some(AttemptId(30)));
    assert!(beside.store.log(&derivation, AttemptId(8)).await.expect("looks").is_none());
    for bytes in [10, 9 << 20] {
        let (build, record) = (BuildId(bytes as u64), bytes::Bytes::from(common::noise(bytes)));
        assert!(!beside.store.has_build(build).await.expect("looks"));
        place.store.put_build(build, record.clone()).await.expect("keeps");
        assert!(beside.store.has_build(build).await.expect("looks"));
        assert_eq!(beside.store.build(build).await.expect("reads"), Some(record));
    }
    assert_eq!(beside.store.build(BuildId(3)).await.expect("looks"), None);
}
