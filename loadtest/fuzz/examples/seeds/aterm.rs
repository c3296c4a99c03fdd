//! Derivations: one with each kind of output, each form of input, structured attributes; then some that are broken. Beside them the
//! corpus has a few that Nix wrote (`real-NAME`, from nixpkgs).

const PATH: &str = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-x";

/// Returns the seeds by name.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let out = format!("(\"out\",\"{PATH}\",\"\",\"\")");
    let dev = format!("(\"dev\",\"{PATH}-dev\",\"\",\"\")");
    let zeros = "0".repeat(64);
    let env = "(\"__structuredAttrs\",\"1\"),(\"a\",\"\\\"q\\\\\\n\\t\\r\"),(\"out\",\"x\"),(\"requiredSystemFeatures\",\"kvm big\")";
    let json = r#"(\"__json\",\"{\\\"a\\\":[1,-2.5e+3,true,null],\\\"b\\\":{\\\"c\\\":\\\"d\\\"},\\\"exportReferencesGraph\\\":{\\\"g\\\":[\\\"/nix/store\\\"]},\\\"unsafeDiscardReferences\\\":{\\\"out\\\":true}}\")"#
        .replace("\\\\", "\u{0}")
        .replace("\\\"", "\"")
        .replace('\u{0}', "\\");
    let inputs = |outputs: &str| format!("(\"{PATH}.drv\",{outputs})");
    let table = [
        ("plain", derive(&out, "", "", "x86_64-linux", "")),
        ("two-outputs", derive(&format!("{dev},{out}"), "", "", "s", "")),
        ("deferred", derive("(\"out\",\"\",\"\",\"\")", &inputs("[\"out\"]"), "", "s", "")),
        ("floating", derive("(\"out\",\"\",\"r:sha256\",\"\")", "", "", "s", "")),
        ("floating-text", derive("(\"out\",\"\",\"text:sha256\",\"\")", "", "", "s", "")),
        ("impure", derive("(\"out\",\"\",\"r:sha256\",\"impure\")", "", "", "s", "")),
        ("fixed-of-another-path", derive(&format!("(\"out\",\"{PATH}\",\"r:sha256\",\"{zeros}\")"), "", "", "s", "")),
        ("inputs", derive(&out, &inputs("[\"dev\",\"out\"]"), &format!("\"{PATH}\""), "s", "")),
        ("environment", derive(&out, "", "", "s", env)),
        ("environment-of-empty-values", derive(&out, "", "", "s", &attributes(""))),
        ("environment-of-words", derive(&out, "", "", "s", &attributes("a  b "))),
        ("structured", derive(&out, "", "", "s", &json)),
        ("no-outputs", derive("", "", "", "s", "")),
        ("quote-in-the-system", derive(&out, "", "", "s\\\"t", "")),
        ("path-outside", derive(&out.replace("/nix/store", "/tmp"), "", "", "s", "")),
        ("escape-unknown", derive(&out, "", "", "s", "(\"\\a\",\"1\")")),
        ("variable-twice", derive(&out, "", "", "s", "(\"a\",\"1\"),(\"a\",\"2\")")),
        ("unterminated", "x\nDerive([(\"out".to_owned()),
        ("no-name", "Derive([],[],[],\"s\",\"b\",[],[])".to_owned()),
        ("name-with-slash", derive(&out, "", "", "s", "").replacen('x', "a/b", 1)),
        ("dynamic", dynamic(&out, &inputs("([],[(\"a\",[\"out\"])])"))),
        ("dynamic-deep", dynamic(&out, &inputs(&format!("{}[\"out\"]{}", "([],[(\"a\",".repeat(40), ")])".repeat(40))))),
        ("dynamic-without-need", dynamic(&out, "")),
        ("version-unknown", dynamic(&out, "").replace("xp-dyn-drv", "xp-other")),
    ];
    table.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}

/// Every attribute that the farm looks at, with this value.
fn attributes(value: &str) -> String {
    let names = [
        "allowSubstitutes",
        "enableParallelBuilding",
        "exportReferencesGraph",
        "impureEnvVars",
        "passAsFile",
        "preferLocalBuild",
        "requiredSystemFeatures",
        "unsafeDiscardReferences",
    ];
    names.map(|name| format!("(\"{name}\",\"{value}\")")).join(",")
}

fn derive(outputs: &str, inputs: &str, sources: &str, system: &str, env: &str) -> String {
    format!("x\nDerive([{outputs}],[{inputs}],[{sources}],\"{system}\",\"/bin/sh\",[\"-c\",\"echo\"],[{env}])")
}

fn dynamic(outputs: &str, inputs: &str) -> String {
    derive(outputs, inputs, "", "s", "").replacen("Derive(", "DrvWithVersion(\"xp-dyn-drv\",", 1)
}
