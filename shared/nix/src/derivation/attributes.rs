//! What a recipe asks of the farm, read from its environment or, with structured attributes, from `__json`.
//!
//! Source: Nix's `parsed-derivations.cc` and `derivation-options.cc`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// The attributes of one derivation.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    env: &'a BTreeMap<String, Vec<u8>>,
    json: Option<Map<String, Value>>,
}

/// An attribute of the wrong kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read attribute `{name}`: want {want}")]
pub struct AttributeError {
    /// The attribute.
    pub name: String,
    /// What it must be.
    pub want: &'static str,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(env: &'a BTreeMap<String, Vec<u8>>) -> Result<Self, AttributeError> {
        let json = env.get("__json").map(|raw| serde_json::from_slice(raw)).transpose();
        let json = json.map_err(|_| AttributeError { name: "__json".to_owned(), want: "a JSON object" })?;
        Ok(Self { env, json })
    }

    /// Returns the structured attributes, if the recipe has them.
    pub fn json(&self) -> Option<&Map<String, Value>> {
        self.json.as_ref()
    }

    /// Returns a flag; an absent one is `absent`. In the environment, `1` is true and anything else false.
    ///
    /// # Errors
    /// [`AttributeError`] if the structured attribute is not a boolean.
    pub fn flag(&self, name: &str, absent: bool) -> Result<bool, AttributeError> {
        match &self.json {
            Some(json) => match json.get(name) {
                None => Ok(absent),
                Some(Value::Bool(flag)) => Ok(*flag),
                Some(_) => Err(wrong(name, "a boolean")),
            },
            None => Ok(self.env.get(name).map_or(absent, |value| value == b"1")),
        }
    }

    /// Returns a text.
    ///
    /// # Errors
    /// [`AttributeError`] if it is not a text in UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, AttributeError> {
        match &self.json {
            Some(json) => json.get(name).map(|value| value.as_str().map(str::to_owned).ok_or_else(|| wrong(name, "a string"))).transpose(),
            None => self.env_text(name),
        }
    }

    /// Returns a list of texts: words of the environment variable, or a JSON array of strings.
    ///
    /// # Errors
    /// [`AttributeError`] if it is neither.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, AttributeError> {
        match &self.json {
            Some(json) => json.get(name).map(|value| strings(name, value)).transpose(),
            None => Ok(self.env_text(name)?.map(|text| text.split_ascii_whitespace().map(str::to_owned).collect())),
        }
    }

    /// Returns `requiredSystemFeatures`.
    ///
    /// # Errors
    /// [`AttributeError`] if it is not a list of texts.
    pub fn required_system_features(&self) -> Result<BTreeSet<String>, AttributeError> {
        Ok(self.texts("requiredSystemFeatures")?.unwrap_or_default().into_iter().collect())
    }

    /// Returns `preferLocalBuild`: the build is short and not worth a transfer.
    ///
    /// # Errors
    /// [`AttributeError`] if it is not a boolean.
    pub fn prefer_local_build(&self) -> Result<bool, AttributeError> {
        self.flag("preferLocalBuild", false)
    }

    /// Returns `allowSubstitutes`: whether the outputs may be taken from a cache.
    ///
    /// # Errors
    /// [`AttributeError`] if it is not a boolean.
    pub fn allow_substitutes(&self) -> Result<bool, AttributeError> {
        self.flag("allowSubstitutes", true)
    }

    /// Returns `enableParallelBuilding`: the builder uses several cores.
    ///
    /// # Errors
    /// [`AttributeError`] if it is not a boolean.
    pub fn enable_parallel_building(&self) -> Result<bool, AttributeError> {
        self.flag("enableParallelBuilding", false)
    }

    /// Returns `passAsFile`: attributes that the builder gets as a file. Structured attributes have none.
    ///
    /// # Errors
    /// [`AttributeError`] if it is not a text in UTF-8.
    pub fn pass_as_file(&self) -> Result<BTreeSet<String>, AttributeError> {
        let names = if self.json.is_some() { None } else { self.texts("passAsFile")? };
        Ok(names.unwrap_or_default().into_iter().collect())
    }

    /// Returns `exportReferencesGraph`: file names (attribute names, if structured) with the paths whose closure each lists.
    ///
    /// # Errors
    /// [`AttributeError`] if it is neither pairs of words nor an object of texts or lists.
    pub fn export_references_graph(&self) -> Result<BTreeMap<String, Vec<String>>, AttributeError> {
        const NAME: &str = "exportReferencesGraph";
        match &self.json {
            Some(json) => match json.get(NAME) {
                None => Ok(BTreeMap::new()),
                Some(Value::Object(graphs)) => graphs.iter().map(|(name, paths)| Ok((name.clone(), flat_strings(paths)?))).collect(),
                Some(_) => Err(wrong(NAME, "an object of store paths")),
            },
            None => {
                let words = self.texts(NAME)?.unwrap_or_default();
                if words.len() % 2 != 0 {
                    return Err(wrong(NAME, "pairs of a file name and a store path"));
                }
                Ok(words.chunks_exact(2).map(|pair| (pair[0].clone(), vec![pair[1].clone()])).collect())
            }
        }
    }

    /// Returns `outputChecks` as it is: an object from output names to checks. Only structured attributes have it; others state
    /// `allowedReferences`, `disallowedRequisites` and so on as texts.
    pub fn output_checks(&self) -> Option<&Value> {
        self.json.as_ref().and_then(|json| json.get("outputChecks"))
    }

    /// Says whether the references of `output` are to be forgotten (`unsafeDiscardReferences`; structured attributes only, as in Nix).
    ///
    /// # Errors
    /// [`AttributeError`] if it is not an object of booleans.
    pub fn discards_references(&self, output: &str) -> Result<bool, AttributeError> {
        const NAME: &str = "unsafeDiscardReferences";
        let wrong = || wrong(NAME, "an object of booleans");
        let Some(value) = self.json.as_ref().and_then(|json| json.get(NAME)) else { return Ok(false) };
        match value.as_object().ok_or_else(wrong)?.get(output) {
            None => Ok(false),
            Some(flag) => flag.as_bool().ok_or_else(wrong),
        }
    }

    /// Returns `impureEnvVars`: variables that a fixed-output builder takes from the worker's own environment.
    ///
    /// # Errors
    /// [`AttributeError`] if it is not a list of texts.
    pub fn impure_env_vars(&self) -> Result<BTreeSet<String>, AttributeError> {
        Ok(self.texts("impureEnvVars")?.unwrap_or_default().into_iter().collect())
    }

    fn env_text(&self, name: &str) -> Result<Option<String>, AttributeError> {
        let text = self.env.get(name).map(|value| String::from_utf8(value.clone()));
        text.transpose().map_err(|_| wrong(name, "text in UTF-8"))
    }
}

fn strings(name: &str, value: &Value) -> Result<Vec<String>, AttributeError> {
    const WANT: &str = "a list of strings";
    let items = value.as_array().ok_or_else(|| wrong(name, WANT))?;
    items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(|| wrong(name, WANT))).collect()
}

/// Nix flattens nested lists of store paths here. The JSON parser bounds their depth; this keeps a list of its own all the same.
fn flat_strings(value: &Value) -> Result<Vec<String>, AttributeError> {
    let mut found = Vec::new();
    let mut left = vec![value];
    while let Some(value) = left.pop() {
        match value {
            Value::String(text) => found.push(text.clone()),
            Value::Array(items) => left.extend(items.iter().rev()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                return Err(wrong("exportReferencesGraph", "an object of store paths"));
            }
        }
    }
    Ok(found)
}

fn wrong(name: &str, want: &'static str) -> AttributeError {
    AttributeError { name: name.to_owned(), want }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_discarded_only_where_the_recipe_says_so() {
        let table = [
            ("{}", "Ok(false)"),
            (r#"{"unsafeDiscardReferences": {"out": true}}"#, "Ok(true)"),
            (r#"{"unsafeDiscardReferences": {"dev": true}}"#, "Ok(false)"),
            (r#"{"unsafeDiscardReferences": {"out": 1}}"#, "Err"),
            (r#"{"unsafeDiscardReferences": true}"#, "Err"),
        ];
        for (json, expect) in table {
            let env = BTreeMap::from([("__json".to_owned(), json.as_bytes().to_vec())]);
            let found = Attributes::new(&env).and_then(|attributes| attributes.discards_references("out"));
            assert!(format!("{found:?}").starts_with(expect), "{json}: {found:?}");
        }
        let plain = BTreeMap::from([("unsafeDiscardReferences".to_owned(), b"1".to_vec())]);
        assert_eq!(Attributes::new(&plain).and_then(|attributes| attributes.discards_references("out")), Ok(false));
    }
}
