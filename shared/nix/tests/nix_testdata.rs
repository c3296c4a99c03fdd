//! Nix's own test files for derivations: what Nix takes is taken and printed back, what Nix refuses is refused with its rule.

mod common;

use kiln_nix::Outline;
use kiln_nix::derivation::{self, Derivation, DerivationError, Output};
use kiln_nix::job::JobError;
use kiln_nix::modulo::{Modulo, ModuloHash};
use kiln_wire::{DrvPath, OutputName, StoreDir};
use sha2::{Digest, Sha256};

const LIBSTORE: &str = "nix-drv-testdata/src/libstore-tests/data/derivation";

fn parse(name: &str, bytes: &[u8]) -> Result<Derivation, DerivationError> {
    Derivation::parse(&StoreDir::default(), name, bytes)
}

fn file_stem(path: &str) -> &str {
    path.rsplit('/').next().and_then(|name| name.strip_suffix(".drv")).expect("a .drv file")
}

/// A fixed output's path depends on the derivation's name, which these two files keep elsewhere.
fn name_of(path: &str) -> &str {
    if path.contains("hash-modulo/source") { "source" } else { file_stem(path) }
}

#[test]
fn every_file_is_taken_or_refused_as_nix_does() {
    let refused = [
        ("bad-version.drv", "unknown derivation ATerm version"),
        ("bad-old-version-dyn-deps.drv", "at byte"),
        ("bad-ca-fixed-path.drv", "its hash says"),
        ("unterminated-string.drv", "unterminated string"),
    ];
    let (mut taken, mut stopped) = (0, 0);
    for (path, bytes) in common::archive("nix-drv-testdata.tar.zst") {
        // The files of hash-modulo that end so hold hashes where paths are, as they are hashed and never parsed.
        if !path.ends_with(".drv") || path.ends_with("-modulo.drv") {
            continue;
        }
        let parsed = parse(name_of(&path), &bytes);
        match refused.iter().find(|(name, _)| path.ends_with(&format!("/{name}"))) {
            Some((_, rule)) => {
                let err = parsed.expect_err(&path).to_string();
                assert!(err.contains(rule), "{path}: {err}");
                stopped += 1;
            }
            None => {
                let derivation = parsed.unwrap_or_else(|err| panic!("{path}: {err}"));
                let printed = derivation.print(&StoreDir::default());
                let again = parse(&derivation.name, &printed).unwrap_or_else(|err| panic!("{path}: {err}"));
                assert_eq!(again, derivation, "{path}");
                // Two of the files were edited by hand for a benchmark: their inputs are out of order.
                if !["hello.drv", "firefox.drv"].map(|name| format!("{LIBSTORE}/{name}")).contains(&path) {
                    assert_eq!(String::from_utf8_lossy(&printed), String::from_utf8_lossy(&bytes), "{path}");
                }
                taken += 1;
            }
        }
    }
    assert_eq!((taken, stopped), (21, 5));
}

/// Derivations that Nix's tests keep in both forms: the JSON, as a Nix of 2.33 and later shows it, becomes the file byte for byte.
#[test]
fn the_newer_json_is_read_back_to_the_bytes_of_the_files() {
    let files = common::archive("nix-drv-testdata.tar.zst");
    let store_dir = StoreDir::default();
    let mut read = 0;
    for (path, bytes) in &files {
        // Files that two of Nix's test suites share lie with the other one; the JSON lies with this.
        let beside = path.replacen("nix-drv-testdata/tests/functional/derivation", LIBSTORE, 1);
        let json = beside.strip_suffix(".drv").and_then(|stem| files.get(&format!("{stem}.json")));
        let Some(json) = json.filter(|_| beside.starts_with(LIBSTORE)) else { continue };
        let recipe: serde_json::Value = serde_json::from_slice(json).expect("JSON");
        let name = recipe["name"].as_str().expect("a name");
        let belongs = kiln_nix::drv_path_of(&store_dir, name, bytes).unwrap_or_else(|err| panic!("{path}: {err}"));
        let shown = serde_json::json!({ "version": 4, "derivations": { belongs.as_str(): recipe } });
        let shown = derivation::read_shown(&store_dir, shown.to_string().as_bytes()).unwrap_or_else(|err| panic!("{path}: {err}"));
        assert_eq!(shown.iter().map(|shown| String::from_utf8_lossy(&shown.bytes)).collect::<Vec<_>>(), [String::from_utf8_lossy(bytes)]);
        read += 1;
    }
    assert_eq!(read, 16);
}

#[test]
fn inputs_of_one_modulo_hash_are_joined() {
    let files = common::archive("nix-drv-testdata.tar.zst");
    let file = |name: &str| &files[&format!("{LIBSTORE}/hash-modulo/{name}.drv")];
    let store_dir = StoreDir::default();
    let mut modulo = Modulo::new(store_dir.clone());
    let mut add = |file_name: &str, name: &str| -> (DrvPath, ModuloHash) {
        let derivation = parse(name, file(file_name)).expect(file_name);
        let path = kiln_nix::drv_path_of(&store_dir, name, file(file_name)).expect(file_name);
        let computed = modulo.add(&path, &derivation).unwrap_or_else(|err| panic!("{err}"));
        (path, computed.hash)
    };
    let sources = [add("source-first", "source"), add("source-second", "source")];
    assert_eq!(sources[0].1, sources[1].1);
    let (first, first_hash) = add("intermediate-first", "intermediate");
    let (second, second_hash) = add("intermediate-second", "intermediate");
    assert_eq!(first_hash, second_hash);
    assert_ne!(first, second);
    // The parents' outputs are deferred in the files; the paths that can be filled in follow from the files' own modulo forms.
    assert_eq!(file("parent-joined-modulo"), file("parent-split-modulo"));
    let want = output_path(file("parent-joined-modulo"), "parent");
    for parent in ["parent-split", "parent-joined"] {
        let derivation = parse("parent", file(parent)).expect(parent);
        let path = kiln_nix::drv_path_of(&store_dir, "parent", file(parent)).expect(parent);
        let outputs = modulo.add(&path, &derivation).expect(parent).outputs;
        assert_eq!(outputs.values().flatten().map(|path| path.to_string()).collect::<Vec<_>>(), vec![want.clone()], "{parent}");
    }
    an_older_nix_kept_the_last_of_them(&mut modulo, file("parent-split"), &second);
}

/// Nix to 2.34 let the last input of one modulo hash win. Its recipes must be taken too.
fn an_older_nix_kept_the_last_of_them(modulo: &mut Modulo, parent_split: &[u8], last: &DrvPath) {
    let path = DrvPath::parse("c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-parent.drv").expect("a path");
    let mut split = parse("parent", parent_split).expect("parses");
    let mut with_last_only = split.clone();
    with_last_only.inputs.retain(|input, _| input == split.inputs.keys().last().expect("two inputs"));
    assert_eq!(with_last_only.inputs.len(), 1, "{last}");
    let old = modulo.add(&path, &with_last_only).expect("hashes").outputs.into_values().flatten().next().expect("a path");
    let out = OutputName::parse("out").expect("a name");
    split.outputs.insert(out.clone(), Output::InputAddressed(old.clone()));
    assert_eq!(modulo.check_outputs(&path, &split).expect("hashes"), vec![]);
    split.name = "other".to_owned();
    assert_eq!(modulo.check_outputs(&path, &split).expect("hashes").len(), 1);
}

/// Computes an output path by hand: SHA-256 of the fingerprint, folded to 20 bytes, in Nix's base 32.
fn output_path(modulo_form: &[u8], name: &str) -> String {
    let inner: String = Sha256::digest(modulo_form).iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = Sha256::digest(format!("output:out:sha256:{inner}:/nix/store:{name}"));
    let mut folded = [0; 20];
    digest.iter().enumerate().for_each(|(position, byte)| folded[position % 20] ^= byte);
    format!("{}-{name}", kiln_nix::hash::nix32(&folded))
}

#[test]
fn kinds_of_outputs_and_dynamic_inputs_are_told_apart() {
    let files = common::archive("nix-drv-testdata.tar.zst");
    let dynamic = parse("dyn-dep-derivation", &files[&format!("{LIBSTORE}/dyn-dep-derivation.drv")]).expect("parses");
    let input = dynamic.inputs.values().next().expect("one input");
    assert_eq!(input.dynamic.keys().map(OutputName::as_str).collect::<Vec<_>>(), vec!["cat", "goose"]);
    let floating = parse("advanced-attributes", &files["nix-drv-testdata/tests/functional/derivation/ca/advanced-attributes.drv"]);
    let floating = floating.expect("parses");
    assert!(floating.outputs.values().all(|output| matches!(output, Output::Floating { .. })));
    let path = DrvPath::parse("c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-x.drv").expect("a path");
    let job = kiln_nix::job::spec(&path, &Outline::of(&floating), |_| None).expect("a job");
    assert!(job.required_features.contains("ca-derivations"), "{:?}", job.required_features);
    let mut with_output = dynamic.clone();
    with_output.outputs = floating.outputs.clone();
    let job = kiln_nix::job::spec(&path, &Outline::of(&with_output), |_| None).expect("a job");
    let needed = job.inputs.iter().flat_map(|input| input.outputs.iter().map(OutputName::as_str)).collect::<Vec<_>>();
    assert!(job.resolve && needed == ["cat", "dog", "goose"], "{needed:?}");
    assert!(matches!(kiln_nix::job::spec(&path, &Outline::of(&dynamic), |_| None), Err(JobError::NoOutputs { .. })));
}

#[test]
fn attributes_are_read_as_nix_reads_them() {
    let files = common::archive("nix-drv-testdata.tar.zst");
    for name in ["advanced-attributes", "advanced-attributes-structured-attrs"] {
        let bytes = &files[&format!("nix-drv-testdata/tests/functional/derivation/ia/{name}.drv")];
        let derivation = parse(name, bytes).expect(name);
        let attributes = derivation.attributes().expect(name);
        let features = attributes.required_system_features().expect(name);
        assert_eq!(features.iter().map(String::as_str).collect::<Vec<_>>(), vec!["rainbow", "uid-range"], "{name}");
        assert!(attributes.prefer_local_build().expect(name), "{name}");
        assert!(!attributes.allow_substitutes().expect(name), "{name}");
        assert_eq!(attributes.export_references_graph().expect(name).len(), 2, "{name}");
        assert_eq!(attributes.output_checks().is_some(), attributes.json().is_some(), "{name}");
    }
    let defaults = "nix-drv-testdata/tests/functional/derivation/ia/advanced-attributes-defaults.drv";
    let derivation = parse("advanced-attributes-defaults", &files[defaults]).expect("parses");
    let attributes = derivation.attributes().expect("attributes");
    assert!(attributes.allow_substitutes().expect("a flag") && !attributes.prefer_local_build().expect("a flag"));
}
