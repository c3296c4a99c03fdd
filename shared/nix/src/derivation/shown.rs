//! Derivations read back from the JSON that `nix show-derivation` and `nix derivation show` print, as bytes of `.drv` files again.
//!
//! Goals: every form that a Nix from 2.8 to 2.35 prints: paths in full or as base names, `inputDrvs` as lists or as objects, inputs
//! below `inputs`, a hash with its method before the algorithm or in fields of their own, `__json` or `structuredAttrs`, all of it
//! below `derivations` or not. Non-goals: recipes without their path (`nix derivation add`). Fields that are unknown here are passed
//! over: whatever was read, it counts only if the path that follows from it is the one that the JSON says.
//! Source: Nix's manual, "Derivation JSON Format", and what real ones print.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Derivation, DerivationError, InputOutputs, Output, path_of_parsed};
use crate::content::{ContentAddress, Method};
use crate::hash::{Algorithm, Hash};

/// One derivation that was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Where it belongs, by its bytes.
    pub path: DrvPath,
    /// What it says.
    pub derivation: Derivation,
    /// The `.drv` file.
    pub bytes: Vec<u8>,
}

/// Why a JSON text is not taken as derivations.
#[derive(Debug, thiserror::Error)]
pub enum ShownError {
    /// It is not an object of derivations.
    #[error("read derivations: {rule}")]
    Json {
        /// What is wrong, and where.
        rule: String,
    },
    /// A derivation in it is not as Nix shows one.
    #[error("read derivation `{path}`: {rule}")]
    Field {
        /// The path that the JSON says.
        path: String,
        /// The field and the rule that it breaks.
        rule: String,
    },
    /// The `.drv` file that follows is none.
    #[error("write derivation `{path}` as a .drv file")]
    Derivation {
        /// Which.
        path: DrvPath,
        /// Why not.
        #[source]
        err: DerivationError,
    },
    /// Its content belongs elsewhere, so the JSON was changed, or does not tell all of the recipe.
    #[error("read derivation `{path}`: its content belongs at `{computed}`; let Nix print it again, and change nothing")]
    WrongPath {
        /// The path that the JSON says.
        path: DrvPath,
        /// The path that follows from the content.
        computed: DrvPath,
    },
}

/// Reads all derivations of a JSON text, in order of their paths.
///
/// # Errors
/// [`ShownError`] names the derivation and the rule that is broken.
pub fn read_shown(store_dir: &StoreDir, json: &[u8]) -> Result<Vec<Shown>, ShownError> {
    let whole = |err: serde_json::Error| ShownError::Json { rule: err.to_string() };
    let mut entries: BTreeMap<String, &RawValue> = serde_json::from_slice(json).map_err(whole)?;
    if let Some(nested) = entries.get("derivations") {
        entries = serde_json::from_str(nested.get()).map_err(whole)?;
    }
    let mut shown = BTreeMap::new();
    for (path, raw) in entries {
        let field = |rule: String| ShownError::Field { path: path.chars().take(250).collect(), rule };
        let stated = drv_path(store_dir, &path).map_err(field)?;
        let recipe: Recipe<'_> = serde_json::from_str(raw.get()).map_err(|err| field(err.to_string()))?;
        let derivation = derivation(store_dir, stated.name(), &recipe).map_err(field)?;
        let one = checked(store_dir, stated, &derivation)?;
        shown.insert(one.path.clone(), one);
    }
    Ok(shown.into_values().collect())
}

/// Prints it and reads that as strictly as a farm does: a text that JSON may hold and a `.drv` file may not is found there.
fn checked(store_dir: &StoreDir, stated: DrvPath, derivation: &Derivation) -> Result<Shown, ShownError> {
    let bytes = derivation.print(store_dir);
    let refuse = |err| ShownError::Derivation { path: stated.clone(), err };
    let derivation = Derivation::parse_canonical(store_dir, stated.name(), &bytes).map_err(refuse)?;
    let computed = path_of_parsed(store_dir, &derivation, &bytes).map_err(refuse)?;
    match computed == stated {
        true => Ok(Shown { path: stated, derivation, bytes }),
        false => Err(ShownError::WrongPath { path: stated, computed }),
    }
}

/// What is shown of one derivation, in all forms at once.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recipe<'a> {
    outputs: BTreeMap<String, ShownOutput>,
    input_srcs: Option<Vec<String>>,
    input_drvs: Option<BTreeMap<String, ShownInput>>,
    inputs: Option<Inputs>,
    system: String,
    builder: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    #[serde(borrow)]
    structured_attrs: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Inputs {
    srcs: Vec<String>,
    drvs: BTreeMap<String, ShownInput>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ShownInput {
    Outputs(Vec<String>),
    #[serde(rename_all = "camelCase")]
    Nested {
        outputs: Vec<String>,
        #[serde(default)]
        dynamic_outputs: BTreeMap<String, ShownInput>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ShownOutput {
    path: Option<String>,
    method: Option<String>,
    hash_algo: Option<String>,
    hash: Option<String>,
    impure: Option<Value>,
}

fn derivation(store_dir: &StoreDir, name: &str, recipe: &Recipe<'_>) -> Result<Derivation, String> {
    let none = BTreeMap::new();
    let (sources, inputs) = match (&recipe.inputs, &recipe.input_srcs, &recipe.input_drvs) {
        (Some(inputs), None, None) => (inputs.srcs.as_slice(), &inputs.drvs),
        (None, sources, inputs) => (sources.as_deref().unwrap_or_default(), inputs.as_ref().unwrap_or(&none)),
        (Some(_), _, _) => return Err("it has both `inputs` and `inputSrcs` or `inputDrvs`".to_owned()),
    };
    let mut env: BTreeMap<String, Vec<u8>> = recipe.env.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes())).collect();
    if let Some(attributes) = recipe.structured_attrs {
        env.insert("__json".to_owned(), compact(attributes.get()).into_bytes());
    }
    let output = |(output, shown): (&String, &ShownOutput)| {
        let output = output_name(output)?;
        let read = self::output(store_dir, name, &output, shown).map_err(|rule| format!("output `{output}`: {rule}"))?;
        Ok((output, read))
    };
    Ok(Derivation {
        name: name.to_owned(),
        outputs: recipe.outputs.iter().map(output).collect::<Result<_, String>>()?,
        inputs: inputs.iter().map(|(path, input)| Ok((drv_path(store_dir, path)?, wanted(input)?))).collect::<Result<_, String>>()?,
        sources: sources.iter().map(|path| store_path(store_dir, path)).collect::<Result<BTreeSet<_>, _>>()?,
        system: recipe.system.clone(),
        builder: recipe.builder.clone(),
        args: recipe.args.clone(),
        env,
    })
}

/// The JSON parser bounds how deep this nests.
fn wanted(input: &ShownInput) -> Result<InputOutputs, String> {
    let names = |names: &[String]| names.iter().map(|name| output_name(name)).collect::<Result<_, _>>();
    match input {
        ShownInput::Outputs(outputs) => Ok(InputOutputs { outputs: names(outputs)?, dynamic: BTreeMap::new() }),
        ShownInput::Nested { outputs, dynamic_outputs } => Ok(InputOutputs {
            outputs: names(outputs)?,
            dynamic: dynamic_outputs.iter().map(|(name, node)| Ok((output_name(name)?, wanted(node)?))).collect::<Result<_, String>>()?,
        }),
    }
}

fn output(store_dir: &StoreDir, name: &str, output: &OutputName, shown: &ShownOutput) -> Result<Output, String> {
    let path = shown.path.as_deref().map(|path| store_path(store_dir, path)).transpose()?;
    let content = content(shown)?;
    let impure = match &shown.impure {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(other) => return Err(format!("`impure` is {other}, want true or false")),
    };
    match (path, content, impure) {
        (Some(path), None, false) => Ok(Output::InputAddressed(path)),
        (None, None, false) => Ok(Output::Deferred),
        (stated, Some(Content { method, hash: Some(hash), .. }), false) => {
            let address = ContentAddress { method, hash };
            let suffixed = if output.as_str() == "out" { name.to_owned() } else { format!("{name}-{output}") };
            let computed = || address.path(store_dir, &suffixed, &BTreeSet::new(), false).map_err(|err| err.to_string());
            let path = stated.map_or_else(computed, Ok)?;
            Ok(Output::Fixed { address, path })
        }
        (None, Some(Content { method, algorithm, hash: None }), false) => Ok(Output::Floating { method, algorithm }),
        (None, Some(Content { method, algorithm, hash: None }), true) => Ok(Output::Impure { method, algorithm }),
        (Some(_), None | Some(Content { hash: None, .. }), _) | (_, Some(Content { hash: Some(_), .. }), true) | (None, None, true) => {
            Err("no output has these fields together".to_owned())
        }
    }
}

struct Content {
    method: Method,
    algorithm: Algorithm,
    hash: Option<Hash>,
}

fn content(shown: &ShownOutput) -> Result<Option<Content>, String> {
    let (method, algorithm) = match (shown.method.as_deref(), shown.hash_algo.as_deref()) {
        // As in a `.drv` file: `r:sha256`.
        (None, Some(both)) => {
            let prefixed = [Method::Nar, Method::Text, Method::Git].into_iter();
            let found = prefixed.filter_map(|method| Some((method, both.strip_prefix(method.prefix())?))).next();
            let (method, algorithm) = found.unwrap_or((Method::Flat, both));
            (method, Some(algorithm))
        }
        (Some(method), algorithm) => {
            let method = match method {
                "flat" => Method::Flat,
                "nar" => Method::Nar,
                "text" => Method::Text,
                "git" => Method::Git,
                other => return Err(format!("`method` is `{}`, want flat, nar, text or git", other.chars().take(100).collect::<String>())),
            };
            (method, algorithm)
        }
        (None, None) if shown.hash.is_none() => return Ok(None),
        (None, None) => return Err("it has `hash` and no `method`".to_owned()),
    };
    let algorithm = algorithm.map(Algorithm::parse).transpose().map_err(|err| err.to_string())?;
    let hash = shown.hash.as_deref().map(|hash| read_hash(algorithm, hash)).transpose()?;
    let algorithm = algorithm.or(hash.as_ref().map(Hash::algorithm)).ok_or("it has neither `hashAlgo` nor `hash`")?;
    Ok(Some(Content { method, algorithm, hash }))
}

/// Older forms have base 16 and the algorithm beside it, newer ones have both in one text.
fn read_hash(algorithm: Option<Algorithm>, text: &str) -> Result<Hash, String> {
    let hash = match algorithm {
        Some(algorithm) if !text.contains([':', '-']) => Hash::parse(&format!("{algorithm}:{text}")),
        Some(_) | None => Hash::parse(text),
    };
    let hash = hash.map_err(|err| err.to_string())?;
    match algorithm {
        Some(algorithm) if algorithm != hash.algorithm() => Err(format!("`hash` is a {}, `hashAlgo` says {algorithm}", hash.algorithm())),
        Some(_) | None => Ok(hash),
    }
}

fn output_name(name: &str) -> Result<OutputName, String> {
    OutputName::parse(name).map_err(|err| err.to_string())
}

fn store_path(store_dir: &StoreDir, text: &str) -> Result<StorePath, String> {
    let path = if text.starts_with('/') { store_dir.strip(text) } else { StorePath::parse(text) };
    path.map_err(|err| err.to_string())
}

fn drv_path(store_dir: &StoreDir, text: &str) -> Result<DrvPath, String> {
    DrvPath::from_path(store_path(store_dir, text)?).map_err(|err| err.to_string())
}

/// Takes the white space out of JSON, and changes nothing else: Nix prints keys, numbers and escapes here as it wrote them to `__json`.
fn compact(json: &str) -> String {
    let mut compacted = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for character in json.chars() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
        } else if character.is_ascii_whitespace() {
            continue;
        } else {
            in_string = character == '"';
        }
        compacted.push(character);
    }
    compacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_goes_and_texts_stay() {
        let table = [
            ("{ \"a b\" : [ 1.50 ,\n2e+3 ] }", "{\"a b\":[1.50,2e+3]}"),
            (r#"{ "a\" \\" : " \" x" , "b" : "\\" }"#, r#"{"a\" \\":" \" x","b":"\\"}"#),
        ];
        for (json, expected) in table {
            assert_eq!(compact(json), expected);
        }
    }

    #[test]
    fn every_form_of_an_output_is_read_and_every_other_refused() {
        let path = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-x";
        let base16 = "893517c9163c896ec31a2adbd33c0681fd5f45b2c0ef08a64c92a03fb97f390f";
        let sri = "sha256-iTUXyRY8iW7DGirb0zwGgf1fRbLA7wimTJKgP7l/OQ8=";
        let table = [
            (format!(r#"{{"path": "{path}"}}"#), "InputAddressed"),
            (r#"{"path": "0hm2f1psjpcwg8fijsmr4wwxrx59s092-x"}"#.to_owned(), "InputAddressed"),
            (
                format!(r#"{{"path": "{path}", "hashAlgo": "r:sha256", "hash": "{base16}"}}"#),
                "Fixed { address: ContentAddress { method: Nar",
            ),
            (
                format!(r#"{{"path": "{path}", "hashAlgo": "sha256", "hash": "{base16}"}}"#),
                "Fixed { address: ContentAddress { method: Flat",
            ),
            (
                format!(r#"{{"method": "text", "hashAlgo": "sha256", "hash": "{base16}"}}"#),
                "Fixed { address: ContentAddress { method: Text",
            ),
            (format!(r#"{{"method": "nar", "hash": "{sri}"}}"#), "Fixed { address: ContentAddress { method: Nar"),
            (r#"{"hashAlgo": "r:sha256"}"#.to_owned(), "Floating { method: Nar, algorithm: Sha256 }"),
            (r#"{"hashAlgo": "sha256", "method": "flat"}"#.to_owned(), "Floating { method: Flat, algorithm: Sha256 }"),
            (r#"{"hashAlgo": "r:sha256", "impure": true}"#.to_owned(), "Impure { method: Nar, algorithm: Sha256 }"),
            ("{}".to_owned(), "Deferred"),
            (format!(r#"{{"method": "nar", "hashAlgo": "sha1", "hash": "{sri}"}}"#), "`hash` is a sha256"),
            (format!(r#"{{"hash": "{sri}"}}"#), "no `method`"),
            (r#"{"method": "tar", "hashAlgo": "sha256"}"#.to_owned(), "want flat, nar, text or git"),
            (r#"{"method": "nar"}"#.to_owned(), "neither `hashAlgo` nor `hash`"),
            (format!(r#"{{"path": "{path}", "hashAlgo": "sha256"}}"#), "no output has these fields together"),
            (r#"{"impure": true}"#.to_owned(), "no output has these fields together"),
            (r#"{"hashAlgo": "sha256", "impure": 1}"#.to_owned(), "`impure` is 1"),
            (r#"{"path": "/etc/passwd"}"#.to_owned(), "/etc/passwd"),
        ];
        let out = OutputName::parse("out").expect("a name");
        for (json, expected) in table {
            let shown: ShownOutput = serde_json::from_str(&json).expect("JSON");
            let read = output(&StoreDir::default(), "x", &out, &shown).map_or_else(|rule| rule, |output| format!("{output:?}"));
            assert!(read.contains(expected), "{json}: {read}");
        }
    }
}
