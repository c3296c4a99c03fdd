//! What comes as JSON: derivations as Nix shows them, lines of nix-eval-jobs, and realisations.

use kiln_nix::realisation::{DerivedOutput, Realisation};
use kiln_nix::{Keyring, SecretKey};
use kiln_wire::{DrvPath, OutputName, Sha256Hash, StorePath};

type Seeds = Vec<(String, Vec<u8>)>;

/// Derivations: what belongs at its path, in two forms, and what does not. What real ones print lies beside these.
pub(crate) fn shown() -> Seeds {
    let inner = r#""/nix/store/9b2wvyyk4xgs4ib0rc0zknvzi7cs85gl-x.drv": {"outputs": {"out": {"hashAlgo": "r:sha256"}},
        "inputSrcs": ["/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-dep1"],
        "inputDrvs": {"/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-dep2.drv": {"outputs": ["cat"], "dynamicOutputs": {}}},
        "system": "wasm", "builder": "foo", "args": ["bar\n", "ba\"z"], "env": {"out": "x"}, "structuredAttrs": {"a": [1, 2.5e+10]}}"#;
    let plain = format!("{{{inner}}}");
    let dynamic = plain.replace("\"dynamicOutputs\": {}", "\"dynamicOutputs\": {\"goose\": {\"outputs\": [\"gosling\"]}}");
    let table = [
        ("nested", format!("{{\"derivations\": {plain}, \"version\": 4}}")),
        ("dynamic", dynamic),
        ("base-names", plain.replace("/nix/store/", "")),
        ("inputs", plain.replace("\"inputSrcs\": [", "\"inputs\": {\"srcs\": [], \"drvs\": {}}, \"inputSrcs\": [")),
        ("method", plain.replace("\"r:sha256\"", "\"sha256\", \"method\": \"nar\"")),
        ("impure", plain.replace("\"r:sha256\"", "\"r:sha256\", \"impure\": true")),
        ("hash", plain.replace("\"r:sha256\"", "\"sha256\", \"hash\": \"0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\"")),
        ("elsewhere", plain.replace("/nix/store/", "/gnu/store/")),
        ("cut", plain[..plain.len() - 1].to_owned()),
        ("empty", "{}".to_owned()),
        ("deep", format!("{{\"derivations\":{}", "[".repeat(200))),
        ("plain", plain),
    ];
    table.into_iter().map(|(name, text)| (name.to_owned(), [&[0], text.as_bytes()].concat())).collect()
}

/// Lines of nix-eval-jobs.
pub(crate) fn evaluated() -> Seeds {
    let drv = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv";
    let good = format!("{{\"attr\":\"a\",\"drvPath\":\"{drv}\"}}\n");
    let full = format!(
        "{{\"attr\":\"a.b\",\"attrPath\":[\"a\",\"b\"],\"cacheStatus\":\"notBuilt\",\"drvPath\":\"{drv}\",\"inputDrvs\":{{\"{drv}\":[\"out\"]}},\
         \"name\":\"bar\",\"neededBuilds\":[],\"outputs\":{{\"out\":null}},\"system\":\"x86_64-linux\",\"meta\":{{\"x\":[1,-2.5e3,\"\\u0000\\ud83d\\ude00\"]}}}}\n"
    );
    let error = "{\"attr\":\"c\",\"attrPath\":[\"c\"],\"error\":\"error: no\\n at x\",\"fatal\":false}\n";
    let table = [
        ("full", full.clone()),
        ("error", error.to_owned()),
        ("three", format!("{full}\n{error}{good}")),
        ("constituents", format!("{{\"attr\":\"all\",\"drvPath\":\"{drv}\",\"constituents\":[\"{drv}\"],\"error\":\"lacks c\"}}")),
        ("null", format!("{{\"attr\":\"d\",\"drvPath\":\"{drv}\",\"error\":null}}")),
        ("empty-lines", "\n \r\n\t\n".to_owned()),
        ("neither", "{\"attr\":\"b\"}".to_owned()),
        ("no-attribute", format!("{{\"drvPath\":\"{drv}\"}}")),
        ("elsewhere", "{\"attr\":\"b\",\"drvPath\":\"/etc/passwd\"}".to_owned()),
        ("no-derivation", good.replace(".drv", "")),
        ("twice", good.replace("\"attr\":\"a\"", "\"attr\":\"a\",\"attr\":\"b\"")),
        ("cut", good[..good.len() - 3].to_owned()),
        ("good", good),
    ];
    table.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}

/// Realisations in both layouts.
pub(crate) fn realisation() -> Seeds {
    let output = OutputName::parse("dev").expect("a name");
    let derivation = DrvPath::parse(&format!("{}-a.drv", "d".repeat(32))).expect("a path");
    let by_hash = DerivedOutput::ByHash { identity: Sha256Hash([0xab; 32]), output: output.clone() };
    let path = StorePath::parse(&format!("{}-a-dev", "m".repeat(32))).expect("a path");
    let keys = Keyring::of(SecretKey::from_seed("farm-1", [1; 32]).expect("a name"));
    let mut seeds = Seeds::new();
    for (layout, of) in [("old", by_hash), ("new", DerivedOutput::ByPath { derivation, output })] {
        let text = Realisation::signed(of.clone(), path.clone(), &keys).to_json();
        let mut add = |name: &str, text: &str| seeds.push((format!("{layout}-{name}"), format!("{of}\n{text}").into_bytes()));
        add("signed", &text);
        add("unsigned", &Realisation { of: of.clone(), path: path.clone(), signatures: Vec::new() }.to_json());
        add("dependent", &text.replace("\"dependentRealisations\":{}", "\"dependentRealisations\":{\"sha256:00!out\":\"x\"}"));
        add("elsewhere", &text.replace("a-dev", "../x"));
        add("bad-signature", &text.replace('=', ""));
        add("of-another", &text.replace("abab", "acac"));
        add("nothing", "");
    }
    let dots = format!("{}-a..drv^dev\n{{\"outPath\":\"{path}\"}}", "d".repeat(32));
    seeds.push(("dots-before-the-ending".to_owned(), dots.into_bytes()));
    seeds.push(("no-name".to_owned(), b"sha256:00!out\n{}".to_vec()));
    seeds
}
