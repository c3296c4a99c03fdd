//! Whatever is put in, trees come back the same, and broken bytes are refused without a panic.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use kiln_nix::nar::{self, Listing};
use kiln_nix::{ContentAddress, Derivation, NarInfo, PublicKey, SecretKey, Signature};
use kiln_nix::{derivation, eval_jobs};
use kiln_wire::StoreDir;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Tree {
    File(Vec<u8>, bool),
    Link(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 1..12)
        .prop_filter("a name", |name| !name.contains(&0) && !name.contains(&b'/') && name != b"." && name != b"..")
}

fn tree() -> impl Strategy<Value = Tree> {
    let target = proptest::collection::vec(1_u8.., 1..40);
    let leaf = prop_oneof![
        (proptest::collection::vec(any::<u8>(), 0..200), any::<bool>()).prop_map(|(contents, executable)| Tree::File(contents, executable)),
        target.prop_map(Tree::Link),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| proptest::collection::btree_map(name(), inner, 0..6).prop_map(Tree::Directory))
}

fn make(path: &Path, tree: &Tree) {
    match tree {
        Tree::File(contents, executable) => {
            fs::write(path, contents).expect("a file");
            fs::set_permissions(path, fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 })).expect("a mode");
        }
        Tree::Link(target) => symlink(std::ffi::OsStr::from_bytes(target), path).expect("a symlink"),
        Tree::Directory(entries) => {
            fs::create_dir(path).expect("a directory");
            entries.iter().for_each(|(name, tree)| make(&path.join(std::ffi::OsStr::from_bytes(name)), tree));
        }
    }
}

fn packed(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    nar::dump(path, &mut bytes).expect("packs");
    bytes
}

const DRV: &str = concat!(
    r#"DrvWithVersion("xp-dyn-drv",[("dev","","r:sha256",""),("out","","r:sha256","")],"#,
    r#"[("/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-dep2.drv",(["cat"],[("goose",["gosling"])]))],"#,
    r#"["/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-dep1"],"wasm","foo",["bar\n","ba\"z"],"#,
    r#"[("__json","{\"a\":[1,2.5e+10,{\"b\":null}]}"),("out","x")])"#
);

const NARINFO: &str = "StorePath: /nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar\nURL: nar/x.nar.zst\nCompression: zstd\n\
    FileHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nFileSize: 5\n\
    NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nNarSize: 9\n\
    References: 0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar\nSig: a:AAAA\nCA: text:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n\
    FileBlake3: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";

const SHOWN: &str = r#"{"/nix/store/9b2wvyyk4xgs4ib0rc0zknvzi7cs85gl-x.drv": {"outputs": {"out": {"hashAlgo": "r:sha256"}},
    "inputSrcs": ["/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-dep1"],
    "inputDrvs": {"/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-dep2.drv": {"outputs": ["cat"], "dynamicOutputs": {}}},
    "system": "wasm", "builder": "foo", "args": ["bar\n", "ba\"z"], "env": {"out": "x"}, "structuredAttrs": {"a": [1, 2.5e+10]}}}"#;

const JOBS: &str =
    "{\"attr\":\"a\",\"drvPath\":\"/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv\"}\n{\"attr\":\"b\",\"error\":\"no\"}\n";

/// Changes single bytes, cuts, doubles a part.
fn damaged(bytes: &[u8], changes: &[(usize, u8)], cut: usize, doubled: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let from = doubled % (bytes.len() + 1);
    bytes.extend(bytes[from..].to_vec());
    for (place, byte) in changes {
        let place = place % bytes.len();
        bytes[place] = *byte;
    }
    bytes.truncate(bytes.len() - cut % 50);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_tree_survives_packing_and_unpacking(tree in tree()) {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let (first, second) = (temporary.path().join("first"), temporary.path().join("second"));
        make(&first, &tree);
        let bytes = packed(&first);
        nar::restore(bytes.as_slice(), &second).expect("unpacks");
        prop_assert_eq!(&packed(&second), &bytes);
        let counts = nar::check(bytes.as_slice()).expect("a right archive");
        let listed = Listing::read(bytes.as_slice()).expect("lists").paths().len() as u64;
        prop_assert_eq!(counts.files + counts.directories + counts.symlinks, listed);
    }

    #[test]
    fn a_damaged_archive_is_refused_or_is_another_archive(
        tree in tree(), changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4), cut: usize, doubled: usize,
    ) {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let (first, second) = (temporary.path().join("first"), temporary.path().join("second"));
        make(&first, &tree);
        let bytes = damaged(&packed(&first), &changes, cut, doubled);
        let checked = nar::check(bytes.as_slice());
        let restored = nar::restore(bytes.as_slice(), &second);
        prop_assert!(restored.is_err() || checked.is_ok());
        if restored.is_ok() {
            // One tree has one archive: what is taken must be canonical.
            prop_assert_eq!(packed(&second), bytes);
        }
        prop_assert_eq!(fs::read_dir(temporary.path()).expect("a directory").count(), 1 + usize::from(second.symlink_metadata().is_ok()));
    }

    #[test]
    fn a_damaged_derivation_is_refused_or_is_another_derivation(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4), cut: usize, doubled: usize,
    ) {
        let bytes = damaged(DRV.as_bytes(), &changes, cut, doubled);
        let store_dir = StoreDir::default();
        if let Ok(derivation) = Derivation::parse_canonical(&store_dir, "x", &bytes) {
            prop_assert_eq!(derivation.print(&store_dir), bytes.clone());
        }
        if let Ok(derivation) = Derivation::parse(&store_dir, "x", &bytes) {
            let attributes = derivation.attributes();
            prop_assert!(attributes.is_err() || attributes.expect("attributes").required_system_features().is_ok());
        }
    }

    #[test]
    fn damaged_json_of_a_derivation_is_refused_or_says_the_same(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4), cut: usize, doubled: usize,
    ) {
        let store_dir = StoreDir::default();
        let bytes = damaged(SHOWN.as_bytes(), &changes, cut, doubled % 3 * SHOWN.len());
        for shown in derivation::read_shown(&store_dir, &bytes).unwrap_or_default() {
            let computed = kiln_nix::drv_path_of(&store_dir, shown.path.name(), &shown.bytes);
            prop_assert_eq!(computed, Ok(shown.path));
        }
    }

    #[test]
    fn damaged_lines_of_jobs_are_refused_or_read(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4), cut: usize, doubled: usize,
    ) {
        let read = eval_jobs::read(&StoreDir::default(), damaged(JOBS.as_bytes(), &changes, cut, doubled).as_slice());
        prop_assert!(read.is_err() || read.is_ok_and(|found| found.jobs.len() + found.errors.len() <= 4));
    }

    #[test]
    fn a_damaged_narinfo_is_refused_or_read(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4), cut: usize, doubled: usize,
    ) {
        let bytes = damaged(NARINFO.as_bytes(), &changes, cut, doubled % 7 * NARINFO.len());
        if let Ok(info) = NarInfo::parse(&StoreDir::default(), &bytes) {
            prop_assert!(info.nar_size_bytes > 0 && !info.url.is_empty());
        }
    }

    #[test]
    fn any_text_is_a_key_or_refused(text in ".{0,100}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = (SecretKey::parse(&text).is_ok(), PublicKey::parse(&text).is_ok(), Signature::parse(&text).is_ok());
        prop_assert!(ContentAddress::parse(&text).is_err());
        prop_assert!(Derivation::parse(&StoreDir::default(), &text, &bytes).is_err());
        prop_assert!(nar::check(bytes.as_slice()).is_err());
    }
}

#[test]
fn the_examples_that_are_damaged_are_right_themselves() {
    let store_dir = StoreDir::default();
    let derivation = Derivation::parse_canonical(&store_dir, "x", DRV.as_bytes()).expect("a derivation");
    assert_eq!(derivation.print(&store_dir), DRV.as_bytes());
    let shown = derivation::read_shown(&store_dir, SHOWN.as_bytes()).expect("the path of its content");
    assert_eq!(shown.len(), 1);
    let found = eval_jobs::read(&store_dir, JOBS.as_bytes()).expect("two lines");
    assert_eq!((found.jobs.len(), found.errors.len()), (1, 1));
    assert!(NarInfo::parse(&store_dir, NARINFO.as_bytes()).expect("a narinfo").path_info().is_ok());
}
