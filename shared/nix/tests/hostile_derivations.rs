//! Derivations that were made to confuse: each is refused with its rule, by the reader that a farm uses for what clients send.

use kiln_nix::Derivation;
use kiln_nix::derivation::DerivationError;
use kiln_nix::modulo::{Modulo, ModuloError};
use kiln_wire::{DrvPath, StoreDir};

const PATH: &str = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-x";

/// A derivation with these outputs, inputs, sources, system and environment.
fn text(outputs: &str, inputs: &str, sources: &str, system: &str, env: &str) -> Vec<u8> {
    format!("Derive([{outputs}],[{inputs}],[{sources}],\"{system}\",\"b\",[],[{env}])").into_bytes()
}

fn plain() -> String {
    format!("(\"out\",\"{PATH}\",\"\",\"\")")
}

fn with_env(env: &str) -> Vec<u8> {
    text(&plain(), "", "", "s", env)
}

fn with_inputs(inputs: &str) -> Vec<u8> {
    text(&plain(), inputs, "", "s", "")
}

fn nested_json(depth: usize) -> String {
    format!("(\"__json\",\"{{\\\"a\\\":{}{}}}\")", "[".repeat(depth), "]".repeat(depth))
}

fn nested_input(depth: usize) -> Vec<u8> {
    let (open, close) = ("([],[(\"a\",".repeat(depth), ")])".repeat(depth));
    let input = format!("(\"{PATH}.drv\",{open}[\"out\"]{close})");
    String::from_utf8(with_inputs(&input)).expect("UTF-8").replacen("Derive(", "DrvWithVersion(\"xp-dyn-drv\",", 1).into_bytes()
}

#[test]
fn what_is_plain_is_taken() {
    for bytes in [with_env(""), with_env(&nested_json(20)), nested_input(1), nested_input(100)] {
        Derivation::parse_canonical(&StoreDir::default(), "x", &bytes).expect("a derivation");
    }
}

#[test]
fn a41_hostile_derivations_are_refused_with_their_rule() {
    let output = |fields: &str| text(&format!("(\"out\",{fields})"), "", "", "s", "");
    let (a, b) = ("(\"a\",\"1\")", "(\"b\",\"2\")");
    let table = [
        ("nothing", Vec::new(), "at byte 0"),
        ("half of one", with_env("")[..30].to_vec(), "at byte"),
        ("bytes after the end", [with_env(""), b" ".to_vec()].concat(), "trailing bytes"),
        ("spaces", with_env(" "), "at byte"),
        ("a variable twice", with_env(&format!("{a},(\"a\",\"2\")")), "not as Nix writes it"),
        ("variables out of order", with_env(&format!("{b},{a}")), "not as Nix writes it"),
        ("an output twice", text(&format!("{},{}", plain(), plain()), "", "", "s", ""), "not as Nix writes it"),
        ("a source twice", text(&plain(), "", &format!("\"{PATH}\",\"{PATH}\""), "s", ""), "not as Nix writes it"),
        ("an escape that Nix does not write", with_env("(\"\\a\",\"1\")"), "not as Nix writes it"),
        ("an escape in the system", text(&plain(), "", "", "\\s", ""), "not as Nix writes it"),
        ("a newline that is not escaped", with_env("(\"a\",\"\n\")"), "not as Nix writes it"),
        (
            "the dynamic version without need",
            [b"DrvWithVersion(\"xp-dyn-drv\",".to_vec(), with_env("")[7..].to_vec()].concat(),
            "not as Nix",
        ),
        ("a path outside the store", output("\"/etc/passwd\",\"\",\"\""), "outside"),
        ("a path that climbs", output("\"/nix/store/../store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-x\",\"\",\"\""), "store path"),
        ("a path with more below", output(&format!("\"{PATH}/bin\",\"\",\"\"")), "store path"),
        ("a source that is no path", text(&plain(), "", "\"/nix/store/x\"", "s", ""), "source path"),
        ("an input that is no derivation", with_inputs(&format!("(\"{PATH}\",[\"out\"])")), ".drv"),
        ("an output name with a slash", text(&plain().replace("out", "../out"), "", "", "s", ""), "output name"),
        ("an empty output name", text(&plain().replace("out", ""), "", "", "s", ""), "output name"),
        ("a wanted output with a slash", with_inputs(&format!("(\"{PATH}.drv\",[\"a/b\"])")), "output name"),
        ("an unknown hash", output(&format!("\"{PATH}\",\"sha3\",\"00\"")), "sha3"),
        ("a hash that is too short", output(&format!("\"{PATH}\",\"sha256\",\"00\"")), "length"),
        ("a hash that is not base 16", output(&format!("\"{PATH}\",\"sha256\",\"zz\"")), "base16"),
        ("a floating output with a path", output(&format!("\"{PATH}\",\"sha256\",\"\"")), "must not specify a path"),
        ("a system that is not UTF-8", [b"Derive([],[],[],\"".to_vec(), vec![0xff], b"\",\"b\",[],[])".to_vec()].concat(), "UTF-8"),
        ("structured attributes that are no object", with_env("(\"__json\",\"[]\")"), "structured attributes"),
        ("structured attributes nested 100,000 deep", with_env(&nested_json(100_000)), "structured attributes"),
        ("inputs nested 100,000 deep", nested_input(100_000), "nesting exceeds"),
        ("5 MiB", with_env(&format!("(\"a\",\"{}\")", "x".repeat(5 << 20))), "at most"),
    ];
    for (what, bytes, rule) in table {
        let err = Derivation::parse_canonical(&StoreDir::default(), "x", &bytes).expect_err(what).to_string();
        assert!(err.contains(rule) && err.len() < 500, "{what}: {err}");
    }
}

#[test]
fn outputs_that_nix_would_not_build_have_no_hash() {
    let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let table = [
        (text("", "", "", "s", ""), "no outputs"),
        (text(&format!("(\"dev\",\"\",\"sha256\",\"\"),{}", plain()), "", "", "s", ""), "different kinds"),
        (with_inputs("(\"/nix/store/1bxagw21mzw0pr7y9jcyjfyrlya5fnxz-y.drv\",[\"out\"])"), "was not hashed before it"),
        (text(&format!("(\"dev\",\"/nix/store/PATH\",\"sha256\",\"{hex}\")"), "", "", "s", ""), "must have one output, `out`"),
    ];
    let path = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-x.drv").expect("a derivation's path");
    for (mut bytes, rule) in table {
        if let Err(DerivationError::FixedPath { computed, .. }) = Derivation::parse(&StoreDir::default(), "x", &bytes_with(&bytes, PATH)) {
            bytes = bytes_with(&bytes, &StoreDir::default().join(&computed));
        }
        let derivation = Derivation::parse_canonical(&StoreDir::default(), "x", &bytes).unwrap_or_else(|err| panic!("{rule}: {err}"));
        let err: ModuloError = Modulo::new(StoreDir::default()).add(&path, &derivation).expect_err(rule);
        assert!(err.to_string().contains(rule), "{err}");
    }
}

fn bytes_with(bytes: &[u8], path: &str) -> Vec<u8> {
    String::from_utf8(bytes.to_vec()).expect("UTF-8").replace("/nix/store/PATH", path).into_bytes()
}
