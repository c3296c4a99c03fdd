//! Real derivations, as Nix wrote them: everything that is recomputed from their bytes must be what Nix computed.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use kiln_nix::derivation::{self, Derivation, drv_path_of, path_of_parsed};
use kiln_nix::modulo::{Modulo, ModuloHash};
use kiln_nix::{Closure, ClosureError, graph_file};
use kiln_wire::{DrvPath, JobKind, JobSpec, Sha256Hash, StoreDir};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Entry {
    path: String,
    outputs: BTreeMap<String, String>,
    modulo: String,
    inputs_in_corpus: bool,
    categories: BTreeSet<String>,
    root: Option<String>,
}

struct Corpus {
    entries: BTreeMap<DrvPath, Entry>,
    files: BTreeMap<DrvPath, Vec<u8>>,
    outside: BTreeMap<DrvPath, Sha256Hash>,
    shown: BTreeMap<String, Value>,
}

fn drv(path: &str) -> DrvPath {
    StoreDir::default().strip(path).and_then(DrvPath::from_path).expect("a derivation's path")
}

fn corpus() -> Corpus {
    let mut archive = common::archive("drv-corpus.tar.zst");
    let mut text = |name: &str| String::from_utf8(archive.remove(&format!("drv-corpus/{name}")).expect(name)).expect("a text");
    let (manifest, modulo, shown) = (text("manifest.jsonl"), text("input-modulo.tsv"), text("nix-show-derivation.jsonl"));
    let entries = manifest.lines().map(|line| serde_json::from_str::<Entry>(line).expect("a manifest line"));
    let outside = modulo.lines().map(|line| line.split_once('\t').expect("path, tab, hash"));
    let shown = shown.lines().flat_map(|line| serde_json::from_str::<BTreeMap<String, Value>>(line).expect("a JSON object"));
    let files = archive.into_iter().filter_map(|(path, bytes)| Some((path.strip_prefix("drv-corpus/drv/")?.to_owned(), bytes)));
    Corpus {
        entries: entries.map(|entry| (drv(&entry.path), entry)).collect(),
        files: files.map(|(name, bytes)| (DrvPath::parse(&name).expect("a derivation's name"), bytes)).collect(),
        outside: outside.map(|(path, hash)| (drv(path), hash.parse().expect("a hash"))).collect(),
        shown: shown.collect(),
    }
}

#[test]
fn every_file_prints_back_byte_for_byte_and_has_the_path_of_its_bytes() {
    let corpus = corpus();
    let store_dir = StoreDir::default();
    assert_eq!((corpus.files.len(), corpus.entries.len()), (713, 713));
    for (path, bytes) in &corpus.files {
        let derivation = Derivation::parse_canonical(&store_dir, path.name(), bytes).unwrap_or_else(|err| panic!("{path}: {err}"));
        assert_eq!(derivation.print(&store_dir), *bytes, "{path}");
        assert_eq!(path_of_parsed(&store_dir, &derivation, bytes).as_ref(), Ok(path));
    }
}

#[test]
fn output_paths_and_modulo_hashes_are_those_that_nix_computed() {
    let corpus = corpus();
    let store_dir = StoreDir::default();
    let parsed: BTreeMap<&DrvPath, Derivation> =
        corpus.files.iter().map(|(path, bytes)| (path, Derivation::parse(&store_dir, path.name(), bytes).expect("parses"))).collect();
    let mut modulo = Modulo::new(store_dir.clone());
    for (path, hash) in &corpus.outside {
        modulo.tell(path.clone(), ModuloHash::Regular(*hash));
    }
    let mut left: Vec<&DrvPath> = parsed.keys().copied().collect();
    while !left.is_empty() {
        let before = left.len();
        left.retain(|path| {
            let derivation = &parsed[path];
            if !derivation.is_fixed_output() && derivation.inputs.keys().any(|input| modulo.get(input).is_none()) {
                return true;
            }
            assert_eq!(modulo.check_outputs(path, derivation).expect("hashes"), vec![], "{path}");
            let entry = &corpus.entries[path];
            let hash = modulo.get(path).and_then(|hash| hash.hash()).expect("no floating outputs in the corpus");
            assert_eq!(hash.to_string(), entry.modulo, "{path}");
            let computed = modulo.add(path, derivation).expect("hashes").outputs;
            let computed = computed.iter().map(|(name, path)| (name.to_string(), store_dir.join(path.as_ref().expect("a known path"))));
            assert_eq!(computed.collect::<BTreeMap<_, _>>(), entry.outputs, "{path}");
            false
        });
        assert!(left.len() < before, "inputs of {left:?} are neither in the corpus nor in input-modulo.tsv");
    }
}

#[test]
fn every_file_is_shown_as_nix_show_derivation_shows_it() {
    let corpus = corpus();
    let store_dir = StoreDir::default();
    assert_eq!(corpus.shown.len(), 713);
    for (path, bytes) in &corpus.files {
        let derivation = Derivation::parse(&store_dir, path.name(), bytes).expect("parses");
        let shown: BTreeMap<String, Value> =
            serde_json::from_str(&derivation::show(&store_dir, &[(path.clone(), derivation)])).expect("what is shown is JSON");
        let full = store_dir.join(path.as_path());
        assert_eq!(shown.get(&full), corpus.shown.get(&full), "{path}");
    }
}

#[test]
fn what_nix_shows_is_read_back_to_the_bytes_of_the_files() {
    let corpus = corpus();
    let store_dir = StoreDir::default();
    let json = serde_json::to_vec(&corpus.shown).expect("JSON");
    let read = derivation::read_shown(&store_dir, &json).expect("as Nix 2.8 shows them");
    assert_eq!(read.len(), 713);
    for shown in &read {
        assert_eq!(Some(&shown.bytes), corpus.files.get(&shown.path), "{}", shown.path);
    }
    let ours: Vec<_> = read.iter().map(|shown| (shown.path.clone(), shown.derivation.clone())).collect();
    assert_eq!(derivation::read_shown(&store_dir, derivation::show(&store_dir, &ours).as_bytes()).expect("as we show them"), read);
}

#[test]
fn what_was_changed_after_nix_showed_it_is_refused() {
    let corpus = corpus();
    let store_dir = StoreDir::default();
    let (path, shown) = corpus.shown.iter().next().expect("there are some");
    let text = serde_json::to_string(&serde_json::json!({ path: shown })).expect("JSON");
    derivation::read_shown(&store_dir, text.as_bytes()).expect("as Nix showed it");
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let mut quoted = shown.clone();
    quoted["system"] = Value::from("x\"");
    let table = [
        (changed("\"builder\":\"", "\"builder\":\"/x"), "its content belongs at"),
        (serde_json::json!({ path: quoted }).to_string(), "as a .drv file"),
        (changed("\"args\":", "\"arguments\":"), "missing field `args`"),
        (changed("\"inputSrcs\":", "\"inputs\":{\"srcs\":[],\"drvs\":{}},\"inputSrcs\":"), "both `inputs`"),
        (changed(".drv\":", "\":"), ".drv"),
        (text.replacen("/nix/store/", "/gnu/store/", 1), "/gnu/store/"),
        (text[..text.len() - 1].to_owned(), "read derivations"),
        ("[]".to_owned(), "read derivations"),
        (format!("{{\"derivations\":{}", "[".repeat(100_000)), "read derivations"),
        (format!("{{\"{path}\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000)), "read derivation"),
    ];
    for (json, rule) in table {
        let err = derivation::read_shown(&store_dir, json.as_bytes()).expect_err(rule).to_string();
        assert!(err.contains(rule) && err.len() < 700, "{rule}: {err}");
    }
}

#[test]
fn attributes_are_found_in_the_environment_and_in_structured_json() {
    let corpus = corpus();
    let store_dir = StoreDir::default();
    let mut seen = BTreeSet::new();
    for (path, bytes) in &corpus.files {
        let derivation = Derivation::parse(&store_dir, path.name(), bytes).expect("parses");
        let attributes = derivation.attributes().expect("attributes");
        let categories = &corpus.entries[path].categories;
        // The manifest looked at the environment only; what is structured may have more.
        let structured = attributes.json().is_some();
        let table = [
            ("prefer-local", attributes.prefer_local_build().expect("a flag")),
            ("structured-attrs", structured),
            ("parallel", attributes.enable_parallel_building().expect("a flag")),
            ("no-substitutes", !attributes.allow_substitutes().expect("a flag")),
            ("pass-as-file", !attributes.pass_as_file().expect("a list").is_empty()),
            ("export-references-graph", !attributes.export_references_graph().expect("pairs").is_empty()),
            ("requiredSystemFeatures", !attributes.required_system_features().expect("a list").is_empty()),
            ("builtin", derivation.is_builtin()),
            ("fod", derivation.is_fixed_output()),
            ("impureEnvVars", !attributes.impure_env_vars().expect("a list").is_empty()),
        ];
        for (category, has) in table {
            if !structured || category == "structured-attrs" {
                assert_eq!(categories.contains(category), has, "{path}: {category}, its categories are {categories:?}");
            }
            if has {
                seen.insert(category);
            }
        }
    }
    assert_eq!(seen.len(), 10, "{seen:?}");
}

fn load(corpus: &Corpus, root: &DrvPath) -> Result<Closure, ClosureError<Infallible>> {
    Closure::load(&StoreDir::default(), [root.clone()], |path| Ok(corpus.files.get(path)))
}

#[test]
fn closures_load_inputs_first_and_become_jobs() {
    let corpus = corpus();
    let roots = corpus.entries.iter().filter(|(_, entry)| entry.root.is_some() && entry.inputs_in_corpus);
    let mut sizes = Vec::new();
    for (root, _) in roots {
        let closure = load(&corpus, root).expect("a whole closure");
        let mut before = BTreeSet::new();
        for (path, derivation) in closure.derivations() {
            assert!(derivation.inputs.keys().all(|input| before.contains(input)), "{path} comes before an input");
            before.insert(path);
        }
        assert_eq!(closure.derivations().last().map(|(path, _)| path), Some(root));
        assert_eq!(closure.check_outputs().expect("hashes").1, vec![]);
        let jobs = closure.jobs().expect("jobs");
        assert!(jobs.iter().any(|job| job.kind == JobKind::Builtin && job.system == "builtin"));
        assert!(jobs.iter().all(|job| job.outputs.values().all(Option::is_some)));
        sizes.push(jobs.len());
    }
    sizes.sort_unstable();
    assert_eq!(sizes, vec![192, 301]);
}

#[test]
fn jobs_of_a_closure_are_those_of_the_graph_that_was_taken_from_it() {
    let corpus = corpus();
    let file = std::fs::File::open(common::data_dir().join("graphs/hello.jsonl.zst")).expect("the graph");
    let graph = graph_file::read(std::io::BufReader::new(zstd::Decoder::new(file).expect("a zstd stream"))).expect("a graph");
    let jobs = load(&corpus, &graph.roots["hello"]).expect("a whole closure").jobs().expect("jobs");
    let keyed = |jobs: Vec<JobSpec>| {
        let without_paths = jobs.into_iter().map(|mut job| {
            // The graph has no output paths and no order among inputs.
            job.outputs.values_mut().for_each(|path| *path = None);
            job.inputs.sort();
            (job.derivation.clone(), job)
        });
        without_paths.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(keyed(jobs), keyed(graph.jobs));
}

#[test]
fn everything_that_is_missing_is_listed() {
    let mut corpus = corpus();
    let root = corpus.entries.iter().find(|(_, entry)| entry.root.is_some() && entry.inputs_in_corpus).expect("a root").0.clone();
    let gone: Vec<DrvPath> = load(&corpus, &root).expect("whole").derivations().iter().take(2).map(|(path, _)| path.clone()).collect();
    for path in &gone {
        corpus.files.remove(path);
    }
    match load(&corpus, &root) {
        Err(ClosureError::Missing { paths }) => assert_eq!(BTreeSet::from_iter(&paths), BTreeSet::from_iter(&gone)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a28_a_changed_output_path_is_found_and_a_changed_file_has_another_path() {
    let corpus = corpus();
    let store_dir = StoreDir::default();
    let root = corpus.entries.iter().find(|(_, entry)| entry.root.is_some() && entry.inputs_in_corpus).expect("a root").0;
    let closure = load(&corpus, root).expect("a whole closure");
    let (mut modulo, _) = closure.check_outputs().expect("hashes");
    let (path, bytes) = (root, &corpus.files[root]);
    let mut derivation = Derivation::parse(&store_dir, path.name(), bytes).expect("parses");
    derivation.args.push("changed".to_owned());
    let wrong = modulo.check_outputs(path, &derivation).expect("hashes");
    assert_eq!(wrong.len(), derivation.outputs.len());
    assert!(wrong.iter().all(|wrong| wrong.derivation == *path && wrong.stated != wrong.computed && wrong.computed.is_some()));
    let changed = derivation.print(&store_dir);
    assert_ne!(drv_path_of(&store_dir, path.name(), &changed).as_ref(), Ok(path));
    let loaded = Closure::load(&store_dir, [path.clone()], |_| Ok::<_, Infallible>(Some(&changed)));
    assert!(matches!(loaded, Err(ClosureError::WrongPath { .. })), "{loaded:?}");
}
