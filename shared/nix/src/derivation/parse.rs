//! From the bytes of a `.drv` file to a [`Derivation`]. The crate `nix-derivation` reads the grammar; what it lets pass and Nix
//! does not (a fixed output's stated path), is checked here.

use std::collections::BTreeMap;

use kiln_wire::limits::DERIVATION_BYTES_MAX;
use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

use super::{Derivation, InputOutputs, Output};
use crate::content::{ContentAddress, Method};
use crate::hash::Algorithm;
use crate::path::{ours, their_dir};

/// Why bytes are no derivation that may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DerivationError {
    /// More bytes than any derivation has.
    #[error("read derivation `{name}`: it has {bytes} bytes, at most {DERIVATION_BYTES_MAX} are allowed")]
    TooLong {
        /// The derivation's name.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// The grammar is broken.
    #[error("read derivation `{name}` at byte {offset}: {rule}")]
    Syntax {
        /// The derivation's name.
        name: String,
        /// Where reading stopped.
        offset: usize,
        /// The rule that is broken there.
        rule: String,
    },
    /// The grammar holds, and a field's text is wrong.
    #[error("read derivation `{name}`: {rule}")]
    Field {
        /// The derivation's name.
        name: String,
        /// The field and the rule it breaks.
        rule: String,
    },
    /// A fixed output's path is not the one that follows from its hash.
    #[error("read derivation `{name}`: output `{output}` states path `{stated}`, its hash says `{computed}`")]
    FixedPath {
        /// The derivation's name.
        name: String,
        /// The output.
        output: OutputName,
        /// The path in the file.
        stated: String,
        /// The path that follows from the hash.
        computed: StorePath,
    },
    /// The bytes mean something, and Nix writes it differently.
    #[error("read derivation `{name}`: not as Nix writes it from byte {offset} on; let Nix write it again")]
    NotCanonical {
        /// The derivation's name.
        name: String,
        /// The first byte that Nix writes differently.
        offset: usize,
    },
    /// No store path can have this name.
    #[error("name derivation `{name}`: {rule}")]
    Name {
        /// The refused name, cut at 250 characters.
        name: String,
        /// The rule it breaks.
        rule: String,
    },
}

pub(super) fn parse(store_dir: &StoreDir, name: &str, bytes: &[u8]) -> Result<Derivation, DerivationError> {
    let shown = || name.chars().take(250).collect::<String>();
    if bytes.len() > DERIVATION_BYTES_MAX {
        return Err(DerivationError::TooLong { name: shown(), bytes: bytes.len() });
    }
    let theirs = nix_derivation::Derivation::from_aterm_bytes_in(bytes, name, their_dir(store_dir)).map_err(|err| match err {
        nix_derivation::Error::Parse { offset, message } => DerivationError::Syntax { name: shown(), offset, rule: message },
        other => DerivationError::Field { name: shown(), rule: other.to_string() },
    })?;
    let field = |rule: String| DerivationError::Field { name: shown(), rule };
    let mut env = theirs.environment().clone();
    if let Some(attributes) = theirs.structured_attrs() {
        // Their printer would sort and re-space this JSON; hashes are over the bytes that Nix wrote.
        env.insert("__json".to_owned(), attributes.raw_json().to_vec());
    }
    let derivation = Derivation {
        name: name.to_owned(),
        outputs: outputs(&theirs).map_err(field)?,
        inputs: theirs
            .input_derivations()
            .iter()
            .map(|(path, input)| Ok((DrvPath::from_path(ours(path)).map_err(|err| err.to_string())?, input_outputs(input)?)))
            .collect::<Result<_, String>>()
            .map_err(field)?,
        sources: theirs.input_sources().iter().map(ours).collect(),
        system: theirs.system().to_owned(),
        builder: theirs.builder().to_owned(),
        args: theirs.arguments().to_vec(),
        env,
    };
    check_fixed_paths(store_dir, &derivation, bytes)?;
    Ok(derivation)
}

fn outputs(theirs: &nix_derivation::Derivation) -> Result<BTreeMap<OutputName, Output>, String> {
    let mut outputs = BTreeMap::new();
    for (name, output) in theirs.outputs() {
        let ours = match output {
            nix_derivation::Output::InputAddressed { path } => Output::InputAddressed(ours(path)),
            nix_derivation::Output::Fixed { ca } => {
                let path = output.path_in(theirs.store_dir(), theirs.name(), name).map_err(|err| err.to_string())?;
                let path = path.ok_or("a fixed output has a path")?;
                Output::Fixed { address: ContentAddress::from_theirs(ca), path: ours(&path) }
            }
            nix_derivation::Output::Floating { method, hash_algorithm } => {
                Output::Floating { method: Method::from_theirs(*method), algorithm: Algorithm::from_theirs(*hash_algorithm) }
            }
            nix_derivation::Output::Deferred => Output::Deferred,
            nix_derivation::Output::Impure { method, hash_algorithm } => {
                Output::Impure { method: Method::from_theirs(*method), algorithm: Algorithm::from_theirs(*hash_algorithm) }
            }
        };
        outputs.insert(OutputName::parse(name).map_err(|err| err.to_string())?, ours);
    }
    Ok(outputs)
}

/// Nesting is bounded by their parser (256 levels), so recursion is too.
fn input_outputs(theirs: &nix_derivation::InputDerivation) -> Result<InputOutputs, String> {
    let name = |name: &String| OutputName::parse(name).map_err(|err| err.to_string());
    Ok(InputOutputs {
        outputs: theirs.outputs().iter().map(name).collect::<Result<_, _>>()?,
        dynamic: theirs
            .dynamic_outputs()
            .iter()
            .map(|(output, node)| Ok((name(output)?, input_outputs(node)?)))
            .collect::<Result<_, String>>()?,
    })
}

/// Their parser computes a fixed output's path and forgets the stated one, so that one is read here once more.
fn check_fixed_paths(store_dir: &StoreDir, derivation: &Derivation, bytes: &[u8]) -> Result<(), DerivationError> {
    if !derivation.outputs.values().any(|output| matches!(output, Output::Fixed { .. })) {
        return Ok(());
    }
    let stated = stated_paths(bytes);
    for (name, output) in &derivation.outputs {
        let Output::Fixed { path, .. } = output else { continue };
        let stated = stated.get(name.as_str()).map(String::as_str).unwrap_or_default();
        if stated != store_dir.join(path) {
            let (name, output) = (derivation.name.clone(), name.clone());
            return Err(DerivationError::FixedPath { name, output, stated: stated.to_owned(), computed: path.clone() });
        }
    }
    Ok(())
}

/// Returns output names with their paths from the head of a file whose grammar was checked. The first of two equal names counts.
fn stated_paths(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut stated = BTreeMap::new();
    let Some(start) = bytes.iter().position(|byte| *byte == b'[') else { return stated };
    let mut rest = &bytes[start + 1..];
    while let Some(tuple) = rest.strip_prefix(b"(") {
        let mut fields = Vec::new();
        rest = tuple;
        while let Some((field, tail)) = quoted(rest) {
            fields.push(field);
            rest = tail.strip_prefix(b",").unwrap_or(tail);
        }
        let mut fields = fields.into_iter();
        if let (Some(name), Some(path)) = (fields.next(), fields.next()) {
            stated.entry(name).or_insert(path);
        }
        rest = rest.strip_prefix(b")").unwrap_or_default();
        rest = rest.strip_prefix(b",").unwrap_or_default();
    }
    stated
}

fn quoted(bytes: &[u8]) -> Option<(String, &[u8])> {
    let mut rest = bytes.strip_prefix(b"\"")?;
    let mut text = Vec::new();
    loop {
        let (byte, tail) = rest.split_first()?;
        rest = tail;
        match byte {
            b'"' => return Some((String::from_utf8_lossy(&text).into_owned(), rest)),
            b'\\' => {
                let (escaped, tail) = rest.split_first()?;
                rest = tail;
                text.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => *other,
                });
            }
            other => text.push(*other),
        }
    }
}
