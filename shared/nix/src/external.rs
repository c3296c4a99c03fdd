//! What a Nix with `external-builders` tells a program that builds for it: one JSON file. It names everything but the derivation, which
//! a farm builds from; [`Described::is_made_by`] knows it again.
//!
//! Non-goals: running the builder here; outputs that have no path before they are built. Source: `NIX-INTEROP.md`, section 8.

use std::collections::BTreeMap;

use kiln_wire::{OutputName, StoreDir, StorePath};
use serde::Deserialize;

use crate::Derivation;

/// A build that is described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// As the derivation has it.
    pub builder: String,
    /// As the derivation has it.
    pub system: String,
    /// What the store's paths begin with.
    pub store_dir: StoreDir,
    /// Where the store's objects lie.
    pub real_store_dir: String,
    /// What is to be made, at these paths.
    pub outputs: BTreeMap<OutputName, StorePath>,
    /// The derivation's name, by which its file is found.
    pub name: String,
}

/// A description that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DescribedError {
    /// The file is not what Nix writes.
    #[error("read what Nix describes")]
    Json(#[source] serde_json::Error),
    /// It is of another version.
    #[error("read what Nix describes: it is of version {0}, and this kiln reads version 1; use a newer one")]
    Version(u64),
    /// A part of it breaks a rule.
    #[error("read what Nix describes: `{text}`: {rule}")]
    Rule {
        /// What breaks it.
        text: String,
        /// What is wrong with it.
        rule: String,
    },
}

/// The file, as far as it matters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    /// The first versions that wrote such files had none.
    #[serde(default = "first_version")]
    version: u64,
    builder: String,
    system: String,
    store_dir: String,
    real_store_dir: String,
    outputs: BTreeMap<String, String>,
}

fn first_version() -> u64 {
    1
}

impl Described {
    /// Reads the file.
    ///
    /// # Errors
    /// [`DescribedError`] says what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, DescribedError> {
        let file: File = serde_json::from_slice(json).map_err(DescribedError::Json)?;
        if file.version != 1 {
            return Err(DescribedError::Version(file.version));
        }
        let broken = |text: &str, rule: &dyn std::fmt::Display| DescribedError::Rule { text: text.to_owned(), rule: rule.to_string() };
        let store_dir = StoreDir::parse(&file.store_dir).map_err(|error| broken(&file.store_dir, &error))?;
        let mut outputs = BTreeMap::new();
        let mut names = Vec::new();
        for (output, full) in &file.outputs {
            let path = store_dir.strip(full).map_err(|error| broken(full, &error))?;
            // Only `out` has the derivation's own name.
            let name = if output == "out" { Some(path.name()) } else { path.name().strip_suffix(&format!("-{output}")) };
            names.push(name.ok_or_else(|| broken(full, &format_args!("no path of an output `{output}`")))?.to_owned());
            outputs.insert(OutputName::parse(output).map_err(|error| broken(output, &error))?, path);
        }
        names.dedup();
        let [name] = &names[..] else { return Err(broken(&names.join(" "), &"want the outputs of one derivation")) };
        let name = name.clone();
        Ok(Self { builder: file.builder, system: file.system, store_dir, real_store_dir: file.real_store_dir, outputs, name })
    }

    /// Returns whether this is what a derivation makes: the same outputs at the same paths.
    pub fn is_made_by(&self, derivation: &Derivation) -> bool {
        let paths = derivation.outputs.iter().map(|(name, output)| (name, output.path()));
        derivation.outputs.len() == self.outputs.len()
            && paths.zip(&self.outputs).all(|((name, path), (other, wanted))| name == other && path == Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092";

    fn json(outputs: &str) -> String {
        let outputs: Vec<String> = outputs
            .split_whitespace()
            .map(|word| word.split_once('=').expect("output=name"))
            .map(|(output, name)| format!(r#""{output}":"/nix/store/{HASH}-{name}""#))
            .collect();
        format!(
            r#"{{"version":1,"builder":"/bin/sh","args":["-c","true"],"env":{{"out":"x"}},"system":"x86_64-linux","inputPaths":[],"outputs":{{{}}},
            "topTmpDir":"/tmp/a","tmpDir":"/tmp/a/build","tmpDirInSandbox":"/build","storeDir":"/nix/store","realStoreDir":"/mnt/nix/store"}}"#,
            outputs.join(",")
        )
    }

    #[test]
    fn a_build_is_known_by_its_outputs() {
        for (outputs, wanted) in
            [("out=bar-1.0", "bar-1.0"), ("dev=bar-dev out=bar", "bar"), ("doc=bar-doc man=bar-man", "bar"), ("dev=dev-dev", "dev")]
        {
            let described = Described::parse(json(outputs).as_bytes()).expect(outputs);
            assert_eq!((described.name.as_str(), described.real_store_dir.as_str()), (wanted, "/mnt/nix/store"), "{outputs}");
            let out = |output: &str, name: &str| format!(r#"("{output}","/nix/store/{HASH}-{name}","","")"#);
            let written = |outputs: &str| {
                let outputs: Vec<String> =
                    outputs.split_whitespace().filter_map(|word| word.split_once('=')).map(|(output, name)| out(output, name)).collect();
                format!(r#"Derive([{}],[],[],"x86_64-linux","/bin/sh",[],[])"#, outputs.join(","))
            };
            let derivation = |outputs: &str| {
                Derivation::parse(&described.store_dir, &described.name, written(outputs).as_bytes()).expect("a derivation")
            };
            assert!(described.is_made_by(&derivation(outputs)), "{outputs}");
            assert!(!described.is_made_by(&derivation("out=other")), "{outputs}");
            assert!(!described.is_made_by(&derivation(&format!("{outputs} zz=more"))), "{outputs}");
        }
    }

    #[test]
    fn what_describes_no_build_is_refused() {
        let table = [
            (json("out=bar").replace("\"version\":1", "\"version\":2"), "version 2"),
            (json("out=bar").replace("/nix/store/0", "/gnu/store/0"), "/gnu/store"),
            (json("out=bar dev=other-dev"), "one derivation"),
            (json("dev=bar"), "no path of an output `dev`"),
            (json(""), "one derivation"),
            ("{}".to_owned(), "read what Nix describes"),
            ("[1".to_owned(), "read what Nix describes"),
        ];
        for (text, wanted) in table {
            let error = Described::parse(text.as_bytes()).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
