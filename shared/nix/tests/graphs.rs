//! Every graph of the shared data loads, with the sizes that its README states.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;

use kiln_nix::graph_file;
use kiln_wire::JobKind;

#[test]
fn every_graph_file_loads_with_inputs_first() {
    let table = [
        ("hello", 192, 556, 85),
        ("git", 663, 3_151, 338),
        ("firefox", 1_138, 6_312, 583),
        ("nixos-closure", 1_660, 9_622, 712),
        ("nixos-tests", 2_373, 19_314, 891),
        ("nixos-desktop", 2_621, 16_911, 1_201),
        ("multiarch", 3_797, 21_613, 1_606),
        ("corepkgs-large", 26_646, 128_060, 18_946),
        ("nixpkgs-large", 62_315, 441_591, 36_624),
    ];
    let directory = common::data_dir().join("graphs");
    let files = std::fs::read_dir(&directory).expect("the directory of graphs").count();
    assert_eq!(files, table.len(), "a graph is not in the table");
    for (name, derivations, edges, fixed) in table {
        let file = File::open(directory.join(format!("{name}.jsonl.zst"))).expect(name);
        let graph = graph_file::read(BufReader::new(zstd::Decoder::new(file).expect("a zstd stream"))).expect(name);
        assert_eq!((graph.name.as_str(), graph.jobs.len()), (name, derivations));
        assert_eq!(graph.jobs.iter().map(|job| job.inputs.len()).sum::<usize>(), edges, "{name}");
        // Builtin builders fetch, so they have fixed outputs too.
        assert_eq!(graph.jobs.iter().filter(|job| job.kind != JobKind::Ordinary).count(), fixed, "{name}");
        let mut before = BTreeSet::new();
        for job in &graph.jobs {
            assert!(job.inputs.iter().all(|input| before.contains(&input.derivation)), "{name}: {}", job.derivation);
            assert!(before.insert(job.derivation.clone()), "{name}: {} comes twice", job.derivation);
        }
        assert!(graph.roots.values().all(|root| before.contains(root)), "{name}");
    }
}

#[test]
fn a_broken_graph_is_refused_with_its_line() {
    let head = r#"{"meta":{"graph":"g","derivations":1,"edges":0,"roots":{"a":0}}}"#;
    let node = r#"{"id":0,"name":"a","hash":"0hm2f1psjpcwg8fijsmr4wwxrx59s092","system":"x","builder":"b","outputs":["out"],"inputs":[]}"#;
    let table = [
        (String::new(), "line 2: the `meta` line is missing"),
        ("{}".to_owned(), "line 1: missing field `meta`"),
        (head.to_owned(), "line 2: has 0 derivations and 0 edges"),
        (format!("{head}\n{}", node.replace("\"id\":0", "\"id\":1")), "line 2: has id 1, want 0"),
        (format!("{head}\n{}", node.replace("\"inputs\":[]", "\"inputs\":[0]")), "line 2: input 0 does not come before it"),
        (format!("{head}\n{}", node.replace("0hm2", "eeee")), "line 2: read store path"),
        (format!("{}\n{node}", head.replace("\"a\":0", "\"a\":7")), "root `a` is derivation 7"),
    ];
    assert!(graph_file::read(format!("{head}\n{node}\n").as_bytes()).is_ok());
    for (text, rule) in table {
        let err = graph_file::read(text.as_bytes()).expect_err(rule);
        assert!(err.to_string().contains(rule), "{err}");
    }
}
