//! What a builder is given, as tables: environment, files, placeholders, graphs.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::worker::Assignment;
use kiln_wire::{
    AttemptId, Blake3Hash, Blob, DrvPath, Epoch, JobLimits, Leader, Lease, NodeId, OutputName, PathInfo, Resources, Sha256Hash, StoreDir,
    StorePath, WorkerId,
};

use super::{BuilderError, Derivation, Launch, launch};

const OUT: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-x";
const LIB: &str = "1hm2f1psjpcwg8fijsmr4wwxrx59s092-lib";
const APP: &str = "2hm2f1psjpcwg8fijsmr4wwxrx59s092-app";
const INPUT: &str = "3hm2f1psjpcwg8fijsmr4wwxrx59s092-dep.drv";

fn path(name: &str) -> StorePath {
    StorePath::parse(name).expect("a store path")
}

fn out() -> OutputName {
    OutputName::parse("out").expect("an output name")
}

fn info(name: &str, references: &[&str]) -> PathInfo {
    PathInfo {
        path: path(name),
        nar_hash: Sha256Hash([0; 32]),
        nar_size_bytes: 100,
        references: references.iter().map(|name| path(name)).collect(),
        deriver: None,
        content_address: None,
        blob: Blob { size_bytes: 1, blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) },
    }
}

fn assignment() -> Assignment {
    let drv = DrvPath::parse(INPUT).expect("a derivation path");
    Assignment {
        leader: Leader { term: 1, node: NodeId(1) },
        lease: Lease { derivation: drv.clone(), attempt: AttemptId(1), worker: WorkerId::parse("w").expect("a name"), epoch: Epoch(1) },
        store_dir: StoreDir::default(),
        derivation: Vec::new(),
        inputs: vec![info(LIB, &[]), info(APP, &[APP, LIB])],
        input_outputs: BTreeMap::from([(drv, BTreeMap::from([(out(), path(LIB))]))]),
        resources: Resources { cores: 3, memory_mib: 64 },
        limits: JobLimits::default(),
        resolved: None,
        trace: None,
    }
}

/// Launches a derivation with this environment, written as in a `.drv`, and one output of this kind.
fn launched(output: &str, args: &str, env: &str) -> Result<Launch, BuilderError> {
    let text = format!(r#"Derive([("out",{output})],[],[],"x86_64-linux","/bin/sh",[{args}],[{env}])"#);
    let derivation = Derivation::parse(&StoreDir::default(), "x", text.as_bytes()).unwrap_or_else(|err| panic!("{text}: {err}"));
    let host_env = BTreeMap::from([("http_proxy".to_owned(), b"http://proxy".to_vec())]);
    launch(&derivation, &assignment(), &BTreeMap::from([(out(), path(OUT))]), &host_env)
}

fn plain(env: &str) -> Launch {
    launched(&format!(r#""/nix/store/{OUT}","","""#), "", env).unwrap_or_else(|err| panic!("{env}: {err}"))
}

fn text(launch: &Launch) -> String {
    launch.env.iter().map(|(name, value)| format!("{}={}\n", String::from_utf8_lossy(name), String::from_utf8_lossy(value))).collect()
}

#[test]
fn the_environment_is_nix_s_with_the_recipe_s_between() {
    let launch = plain(r#"("HOME","/mine"),("NIX_BUILD_CORES","9"),("TERM","dumb"),("TMPDIR","/elsewhere"),("a","b")"#);
    let want = "HOME=/mine\nNIX_BUILD_CORES=9\nNIX_BUILD_TOP=/build\nNIX_LOG_FD=2\nNIX_STORE=/nix/store\nPATH=/path-not-set\nPWD=/build\n\
                TEMP=/build\nTEMPDIR=/build\nTERM=xterm-256color\nTMP=/build\nTMPDIR=/build\na=b\n";
    assert_eq!(text(&launch), want);
    assert!(!launch.network && launch.files.is_empty());
    assert!(text(&plain("")).contains("NIX_BUILD_CORES=3\n"));
}

#[test]
fn a_fixed_output_builder_has_the_network_and_the_variables_it_asks_for() {
    // The path that a flat SHA-256 of the empty file gives to the name `x`.
    let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let fixed = kiln_nix::hash::Hash::parse(&format!("sha256:{hash}")).expect("a hash");
    let address = kiln_nix::content::ContentAddress { method: kiln_nix::content::Method::Flat, hash: fixed };
    let path = address.path(&StoreDir::default(), "x", &BTreeSet::new(), false).expect("a path");
    let output = format!(r#""/nix/store/{path}","sha256","{hash}""#);
    let launch = launched(&output, "", r#"("impureEnvVars","http_proxy no_proxy")"#).expect("a launch");
    assert!(launch.network);
    let text = text(&launch);
    for line in ["NIX_OUTPUT_CHECKED=1\n", "http_proxy=http://proxy\n", "no_proxy=\n"] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!self::text(&plain(r#"("impureEnvVars","http_proxy")"#)).contains("http_proxy=http"));
}

#[test]
fn an_attribute_passed_as_file_is_no_variable() {
    let launch = plain(r#"("passAsFile","big other"),("big","content")"#);
    let text = text(&launch);
    // nix32 of SHA-256 of `big`, as Nix names the file.
    let name = format!(".attr-{}", super::sha256_nix32(b"big"));
    assert!(text.contains(&format!("bigPath=/build/{name}\n")) && !text.contains("big=") && !text.contains("otherPath"), "{text}");
    assert_eq!(launch.files, vec![(name.into_bytes(), b"content".to_vec())]);
}

#[test]
fn placeholders_give_way_to_paths_in_arguments_variables_and_files() {
    let own = kiln_nix::derivation::placeholder(&out());
    let theirs = format!("/{}", super::sha256_nix32(b"nix-upstream-output:3hm2f1psjpcwg8fijsmr4wwxrx59s092:dep"));
    let args = format!(r#""--prefix={own}","//{theirs}/bin","/{}""#, &own[2..]);
    let env = format!(r#"("f","{own}"),("passAsFile","f"),("v","{own}:{own}")"#);
    let launch = launched(&format!(r#""/nix/store/{OUT}","","""#), &args, &env).expect("a launch");
    let args: Vec<String> = launch.args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    assert_eq!(args, [format!("--prefix=/nix/store/{OUT}"), format!("///nix/store/{LIB}/bin"), format!("/{}", &own[2..])]);
    assert!(text(&launch).contains(&format!("v=/nix/store/{OUT}:/nix/store/{OUT}\n")));
    assert_eq!(launch.files[0].1, format!("/nix/store/{OUT}").into_bytes());
}

#[test]
fn structured_attributes_come_as_files_and_not_as_variables() {
    let json = format!(r#"{{\"a\":1,\"exportReferencesGraph\":{{\"g\":\"/nix/store/{LIB}\"}}}}"#);
    let launch = plain(&format!(r#"("__json","{json}"),("out","/nix/store/{OUT}")"#));
    let names: Vec<String> = launch.files.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, [".attrs.sh", ".attrs.json"]);
    let text = text(&launch);
    assert!(
        text.contains("NIX_ATTRS_JSON_FILE=/build/.attrs.json\nNIX_ATTRS_SH_FILE=/build/.attrs.sh\n")
            && !text.contains("__json")
            && !text.contains("out="),
        "{text}"
    );
    let written: serde_json::Value = serde_json::from_slice(&launch.files[1].1).expect("JSON");
    assert_eq!(written["outputs"]["out"], format!("/nix/store/{OUT}"));
    assert_eq!(written["g"][0]["path"], format!("/nix/store/{LIB}"));
    assert_eq!(written["g"][0]["closureSize"], 100);
}

#[test]
fn a_references_graph_lists_the_closure() {
    let launch = plain(&format!(r#"("exportReferencesGraph","graph /nix/store/{APP}/bin")"#));
    let want = format!("/nix/store/{LIB}\n\n0\n/nix/store/{APP}\n\n2\n/nix/store/{LIB}\n/nix/store/{APP}\n");
    assert_eq!(launch.files, vec![(b"graph".to_vec(), want.into_bytes())]);
}

#[test]
fn a_references_graph_of_anything_else_is_refused() {
    let output = format!(r#""/nix/store/{OUT}","","""#);
    for value in [format!("../g /nix/store/{LIB}"), format!("g /nix/store/{OUT}"), "g /etc/passwd".to_owned(), "g".to_owned()] {
        assert!(launched(&output, "", &format!(r#"("exportReferencesGraph","{value}")"#)).is_err(), "{value}");
    }
}

#[test]
fn a33_a_way_out_of_the_sandbox_is_refused_by_its_name() {
    let output = format!(r#""/nix/store/{OUT}","","""#);
    let table = [
        (r#"("__noChroot","1")"#, "`__noChroot`"),
        (r#"("__impureHostDeps","/usr/lib")"#, "`__impureHostDeps`"),
        (r#"("__json","{\"__noChroot\":true}")"#, "`__noChroot`"),
    ];
    for (env, attribute) in table {
        let error = launched(&output, "", env).expect_err(env).to_string();
        assert!(error.contains(attribute), "{env}: {error}");
    }
    for env in [r#"("__noChroot","")"#, r#"("__impureHostDeps","")"#, r#"("__json","{\"__noChroot\":false}")"#] {
        launched(&output, "", env).expect(env);
    }
}

#[test]
fn the_graph_of_a_derivation_has_what_it_makes_but_not_what_its_inputs_make_elsewhere() {
    let drv = |name: &str| DrvPath::parse(name).expect("a derivation path");
    let elsewhere = "4hm2f1psjpcwg8fijsmr4wwxrx59s092-elsewhere";
    let mut assignment = assignment();
    assignment.inputs.push(info(INPUT, &[]));
    assignment.inputs[1].deriver = Some(drv(INPUT));
    let mut other = info(elsewhere, &[]);
    other.deriver = Some(drv("5hm2f1psjpcwg8fijsmr4wwxrx59s092-other.drv"));
    assignment.inputs.push(other);
    let graph = |root: &str| {
        let graphs = super::Graphs::new("x", &assignment);
        String::from_utf8(graphs.registration(&[format!("/nix/store/{root}")]).expect("a graph")).expect("UTF-8")
    };
    let listed = |text: &str| [INPUT, LIB, APP, elsewhere].map(|name| text.contains(&format!("/nix/store/{name}\n\n")));
    assert_eq!(listed(&graph(INPUT)), [true, true, true, false], "its outputs, by the assignment and by their deriver, and their closures");
    assert_eq!(listed(&graph(APP)), [false, true, true, false], "an output alone");
}

#[test]
fn graphs_that_would_fill_the_workers_memory_are_refused() {
    let assignment = assignment();
    let root = [format!("/nix/store/{APP}")];
    let most = |answer: &dyn Fn(&super::Graphs<'_>) -> Option<BuilderError>| {
        let graphs = super::Graphs::new("x", &assignment);
        (0..1_000_000).find_map(|number| answer(&graphs).map(|error| (number, error.to_string())))
    };
    let answers = [most(&|graphs| graphs.registration(&root).err()), most(&|graphs| graphs.infos(&root).err())];
    for answer in answers {
        let (number, error) = answer.expect("there is an end to it");
        assert!(number > 50_000 && error.contains("larger than 64 MiB"), "{number}: {error}");
    }
}
