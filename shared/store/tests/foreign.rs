//! Paths and archives of others: what they signed stays signed, and what fails here is not their fault.

mod common;

use common::{HASHES, Place, blob_bytes, built, look_for, noise, path};
use kiln_nix::{NarInfo, SecretKey};
use kiln_store::{Compression, Endorsed, ForeignError};
use kiln_wire::StoreDir;

#[tokio::test(flavor = "multi_thread")]
async fn what_others_signed_stays_signed_when_the_same_is_published_again() {
    let place = Place::in_memory().await;
    let other = SecretKey::from_seed("upstream-1", [9; 32]).expect("a good name");
    let mut facts = Vec::new();
    for text in ["first", "second"] {
        let packed = place.packer().pack(&place.tree(text, text, 1_000), &look_for(&[])).expect("packs");
        let info = packed.path_info(path(HASHES[0], "app"), None, None);
        place.store.finish_upload(place.upload(&info, built([]), &blob_bytes(&packed)).expect("takes")).await.expect("stores");
        facts.push(info);
    }
    let signature = kiln_nix::narinfo::sign(&StoreDir::default(), &facts[0], &other);
    let endorsed = Endorsed { info: facts[0].clone(), signatures: vec![signature] };
    let signers = async || {
        let text = place.store.narinfo(HASHES[0], &place.keys).await.expect("reads").expect("is there");
        let info = NarInfo::parse(&StoreDir::default(), &text).expect("a narinfo");
        info.signatures.iter().map(|signature| signature.key_name().to_owned()).collect::<Vec<_>>()
    };
    place.store.publish_endorsed(&endorsed, &place.keys).await.expect("publishes");
    for _ in 0..2 {
        place.store.publish(&facts[..1], &place.keys).await.expect("publishes");
        assert_eq!(signers().await, ["farm-1", "upstream-1"]);
    }
    place.store.publish(&facts[1..], &place.keys).await.expect("publishes");
    assert_eq!(signers().await, ["farm-1"], "that signature was for other facts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_no_more_is_no_fault_of_an_archive() {
    let place = Place::in_memory().await;
    let contents = noise(6 << 20);
    let nar = || kiln_nix::nar::of_file(contents.as_slice(), contents.len() as u64);
    place.store.repack("x", nar(), Compression::None, 1 << 30).expect("is an archive");
    std::fs::remove_dir_all(place.store.spool_dir()).expect("removes");
    let error = place.store.repack("x", nar(), Compression::None, 1 << 30).expect_err("there is nowhere to put it");
    assert!(matches!(error, ForeignError::Pack { .. }), "{error:?}");
}
