//! What a builder is given instead of what the recipe could not know: placeholders for output paths, and the files in which
//! structured attributes reach it.
//!
//! Source: Nix's `parsed-derivations.cc` (`prepareStructuredAttrs`, `writeStructuredAttrsShell`).

use std::collections::BTreeMap;
use std::fmt;

use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Derivation, DerivationError};
use crate::hash::nix32;
use crate::path::{their_dir, theirs};

/// The files that a builder with structured attributes finds in its working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StructuredFiles {
    /// `.attrs.json`, which `NIX_ATTRS_JSON_FILE` names.
    pub json: Vec<u8>,
    /// `.attrs.sh`, which `NIX_ATTRS_SH_FILE` names.
    pub shell: Vec<u8>,
}

/// Returns the text that stands for the path of an output in arguments and environment (`builtins.placeholder`). Whoever runs the
/// builder puts the path in its place.
pub fn placeholder(output: &OutputName) -> String {
    nix_derivation::store_path::hash_placeholder(output.as_str())
}

/// Returns the text that stands for the path of an input derivation's output that was not known when the recipe was written.
/// See [`Upstream`].
pub fn upstream_placeholder(input: &DrvPath, output: &OutputName) -> String {
    Upstream::of(input, output).to_string()
}

/// A text that stands for the path of an output which was not known when the recipe was written, perhaps of a derivation that was not either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream([u8; 32]);

impl Upstream {
    /// Stands for an output of a derivation.
    ///
    /// Source: Nix's `DownstreamPlaceholder::unknownCaOutput`.
    pub fn of(input: &DrvPath, output: &OutputName) -> Self {
        let text = format!("nix-upstream-output:{}:{}", input.as_path().hash_part(), output_path_name(input.name(), output));
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// Stands for an output of the derivation that this one stands for.
    ///
    /// Source: Nix's `DownstreamPlaceholder::unknownDerivation`.
    pub fn then(self, output: &OutputName) -> Self {
        let text = format!("nix-computed-output:{}:{output}", nix32(&folded(&self.0)));
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", nix32(&self.0))
    }
}

/// As the hash part of a store path is made of a whole hash.
fn folded(hash: &[u8]) -> [u8; 20] {
    let mut folded = [0; 20];
    hash.iter().enumerate().for_each(|(at, byte)| folded[at % 20] ^= byte);
    folded
}

/// Returns the name part of an output's path: the derivation's, and the output's unless it is `out`.
pub fn output_path_name(derivation: &str, output: &OutputName) -> String {
    if output.as_str() == "out" { derivation.to_owned() } else { format!("{derivation}-{output}") }
}

/// Returns where a builder puts an output whose path will follow from its content, until it is known. What an output keeps of this path in a form that no search finds is the same as in Nix.
///
/// Source: Nix's `makeFallbackPath`.
///
/// # Errors
/// [`DerivationError::Name`] if no store path can have the output's name, as where it is too long together with the derivation's.
pub fn scratch_path(store_dir: &StoreDir, derivation: &DrvPath, output: &OutputName) -> Result<StorePath, DerivationError> {
    let name = output_path_name(derivation.name(), output);
    let no_hash = "0".repeat(64);
    let text = format!("rewrite:{derivation}:name:{output}:sha256:{no_hash}:{}:{name}", store_dir.as_str());
    output_path(&nix32(&folded(&Sha256::digest(text.as_bytes()))), &name)
}

/// Checks that a store path can have the name of an output of the derivation called `derivation`.
///
/// # Errors
/// [`DerivationError::Name`] if none can.
pub(crate) fn check_output_name(derivation: &str, output: &OutputName) -> Result<(), DerivationError> {
    output_path(&"0".repeat(32), &output_path_name(derivation, output)).map(drop)
}

fn output_path(hash: &str, name: &str) -> Result<StorePath, DerivationError> {
    let refuse = |err: kiln_wire::StorePathError| DerivationError::Name { name: name.chars().take(250).collect(), rule: err.to_string() };
    StorePath::parse(&format!("{hash}-{name}")).map_err(refuse)
}

impl Derivation {
    /// Returns the files of structured attributes, or none if it has no such attributes. Placeholders are replaced, `outputs`
    /// gets the paths of `outputs`, and each of `graphs` (the answers to `exportReferencesGraph`, by name) becomes an attribute.
    ///
    /// # Errors
    /// [`DerivationError::Field`] if `outputs` are not the derivation's, or `__json` is not an object.
    pub fn structured_files(
        &self,
        store_dir: &StoreDir,
        outputs: &BTreeMap<OutputName, StorePath>,
        graphs: &BTreeMap<String, Value>,
    ) -> Result<Option<StructuredFiles>, DerivationError> {
        let refuse = |rule: String| DerivationError::Field { name: self.name.clone(), rule };
        let attributes = self.attributes().map_err(|err| refuse(err.to_string()))?;
        let (Some(attributes), Some(raw)) = (attributes.json(), self.env.get("__json")) else { return Ok(None) };
        // Their writer does not take the attribute that needs the store's answers, so it passes under a name that is not used.
        let mut alias = format!("{GRAPHS}_");
        while raw.windows(alias.len()).any(|window| window == alias.as_bytes()) {
            alias.push('_');
        }
        let mut attributes = attributes.clone();
        if let Some(wanted) = attributes.remove(GRAPHS) {
            attributes.insert(alias.clone(), wanted);
        }
        attributes.extend(graphs.clone());
        let mut with_answers = self.clone();
        with_answers.env.insert("__json".to_owned(), Value::Object(attributes).to_string().into_bytes());
        let bytes = with_answers.print(store_dir);
        let their_derivation = nix_derivation::Derivation::from_aterm_bytes_in(&bytes, &self.name, their_dir(store_dir));
        let their_outputs = outputs.iter().map(|(name, path)| (name.to_string(), theirs(path))).collect();
        let files = their_derivation.and_then(|derivation| derivation.structured_attrs_files_with_output_paths(&their_outputs));
        Ok(files.map_err(|err| refuse(err.to_string()))?.map(|files| StructuredFiles {
            json: replaced(&files.json, &format!("\"{alias}\":"), &format!("\"{GRAPHS}\":")),
            shell: replaced(&files.shell, &format!(" {alias}="), &format!(" {GRAPHS}=")),
        }))
    }
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.replace(from, to).into_bytes(),
        Err(_) => bytes.to_vec(),
    }
}

const GRAPHS: &str = "exportReferencesGraph";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_that_of_builtins_placeholder() {
        let out = OutputName::parse("out").expect("a name");
        assert_eq!(placeholder(&out), "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9");
    }

    /// As Nix 2.26.3 writes them for `builtins.outputOf`.
    #[test]
    fn a_derivation_that_a_build_makes_has_outputs_with_placeholders() {
        let output = |text: &str| OutputName::parse(text).expect("a name");
        let (once, twice) = ("p0nil488m3zfwi2az29lispfwy0krzjd-hello.drv.drv", "ab9jgxsfqpv8c4i7lmqgpq99j85jh505-hello.drv.drv.drv");
        for (input, chain, want) in [
            (once, &["out"][..], "/1rqfasxxrhyhslscqb0zh3ydinyny6y16dcbdcyyql8cz7dzlmak"),
            (once, &["out", "out"], "/1s793z2zn1cmpq49d5dnc3nh187w3gr7q6b81jqbr69s1ywln5f7"),
            (once, &["out", "dev"], "/0gc4zi5s37pv141a952mk660jwb6pq4djq4vddyamj7kzk1vqvz7"),
            (twice, &["out", "out", "out"], "/1lazjj4cx7snik6ssavssxmvmbwrvhrmqybcf6pwazbbg91cmxs8"),
            (twice, &["out", "out", "dev"], "/14gk77bx40njgxsgxd0dgbfcisd62d0qgdd9rgfpnk1zsfpy2b1v"),
        ] {
            let (first, rest) = chain.split_first().expect("an output");
            let whole = Upstream::of(&DrvPath::parse(input).expect("a path"), &output(first));
            assert_eq!(rest.iter().fold(whole, |known, next| known.then(&output(next))).to_string(), want, "{input}^{}", chain.join("^"));
        }
    }

    #[test]
    fn an_output_whose_name_no_path_can_have_is_refused() {
        let output = |text: &str| OutputName::parse(text).expect("a name");
        for (name, made, is_possible) in [
            ("x".to_owned(), "out", true),
            ("n".repeat(200), "out", true),
            ("n".repeat(200), "documentation", false),
            (".".to_owned(), "out", false),
            (".".to_owned(), "dev", false),
        ] {
            let text = format!(r#"Derive([("{made}","","r:sha256","")],[],[],"s","b",[],[])"#);
            let derivation = Derivation::parse(&StoreDir::default(), &name, text.as_bytes()).expect("a derivation");
            let path = DrvPath::parse(&format!("{}-{name}.drv", "a".repeat(32))).expect("a path");
            let added = crate::modulo::Modulo::new(StoreDir::default()).add(&path, &derivation);
            assert_eq!(added.is_ok(), is_possible, "{name}^{made}: {added:?}");
            assert_eq!(scratch_path(&StoreDir::default(), &path, &output(made)).is_ok(), is_possible, "{name}^{made}");
        }
    }

    #[test]
    fn attributes_reach_the_builder_as_json_and_shell() {
        let store_dir = StoreDir::default();
        let json = r#"{\"a\":\"/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9/bin\",\"b\":true,\"c\":[1,\"x y\"],\"exportReferencesGraph\":{\"g\":\"/p\"},\"n\":1.5e+10,\"o\":{\"k\":\"v\"}}"#;
        let path = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-x";
        let text = format!(r#"Derive([("out","{path}","","")],[],[],"s","b",[],[("__json","{json}"),("out","{path}")])"#);
        let derivation = Derivation::parse_canonical(&store_dir, "x", text.as_bytes()).expect("a derivation");
        let out = OutputName::parse("out").expect("a name");
        let outputs = BTreeMap::from([(out, store_dir.strip(path).expect("a store path"))]);
        let graphs = BTreeMap::from([("g".to_owned(), serde_json::json!([{ "path": "/p" }]))]);
        let files = derivation.structured_files(&store_dir, &outputs, &graphs).expect("files").expect("structured");
        assert_eq!(
            String::from_utf8(files.json).expect("UTF-8"),
            format!(
                r#"{{"a":"{path}/bin","b":true,"c":[1,"x y"],"exportReferencesGraph":{{"g":"/p"}},"g":[{{"path":"/p"}}],"n":15000000000.0,"o":{{"k":"v"}},"outputs":{{"out":"{path}"}}}}"#
            )
        );
        let shell = String::from_utf8(files.shell).expect("UTF-8");
        for line in [
            format!("declare a='{path}/bin'"),
            "declare b=1".to_owned(),
            "declare -a c=(1 'x y' )".to_owned(),
            "declare -A exportReferencesGraph=(['g']='/p' )".to_owned(),
            "declare -A o=(['k']='v' )".to_owned(),
            format!("declare -A outputs=(['out']='{path}' )"),
        ] {
            assert!(shell.lines().any(|found| found == line), "{line} is not in\n{shell}");
        }
        let wrong = derivation.structured_files(&store_dir, &BTreeMap::new(), &graphs);
        assert!(matches!(wrong, Err(DerivationError::Field { .. })), "{wrong:?}");
    }
}
