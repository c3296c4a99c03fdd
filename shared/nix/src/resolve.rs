//! Resolution: a derivation whose inputs are all built, with store paths in the place of what the builds were to make. What remains needs
//! no other derivation, so that two recipes whose inputs have the same content are one.
//!
//! Source: Nix's `Derivation::tryResolve`. Does not know what was built, and stores nothing.

use std::collections::BTreeMap;

use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

use crate::derivation::{Derivation, DerivationError, Output, path_of_parsed, upstream_placeholder};
use crate::modulo::{Modulo, ModuloError};

/// Where the outputs of input derivations are.
pub type Realised = BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>;

/// A derivation without input derivations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its store path.
    pub path: DrvPath,
    /// What it says.
    pub derivation: Derivation,
    /// Its file, byte for byte.
    pub bytes: Vec<u8>,
}

/// Why a derivation cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nobody said where an input is.
    #[error("resolve `{derivation}`: where output `{output}` of `{input}` is, is not known")]
    Unrealised {
        /// Which.
        derivation: DrvPath,
        /// The input.
        input: DrvPath,
        /// The wanted output.
        output: OutputName,
    },
    /// An input is made by a derivation that a build makes.
    #[error("resolve `{derivation}`: it needs a derivation that `{input}` makes (xp-dyn-drv)")]
    Dynamic {
        /// Which.
        derivation: DrvPath,
        /// The input.
        input: DrvPath,
    },
    /// A variable's name is no text once paths are put into it, or two variables get one name.
    #[error("resolve `{derivation}`: two variables of its environment are called `{name}` once the paths are known")]
    Environment {
        /// Which.
        derivation: DrvPath,
        /// The name.
        name: String,
    },
    /// What results has no output paths.
    #[error("resolve `{derivation}`: compute its output paths")]
    Modulo {
        /// Which.
        derivation: DrvPath,
        /// Why.
        #[source]
        err: Box<ModuloError>,
    },
    /// What results has no path.
    #[error("resolve `{derivation}`: compute its path")]
    Path {
        /// Which.
        derivation: DrvPath,
        /// Why.
        #[source]
        err: DerivationError,
    },
}

/// Resolves a derivation. `realised` says where every wanted output of its inputs is; deferred outputs get their paths.
///
/// # Errors
/// [`ResolveError`] names the derivation and what stands in the way.
pub fn resolve(store_dir: &StoreDir, path: &DrvPath, unresolved: &Derivation, realised: &Realised) -> Result<Resolved, ResolveError> {
    let mut derivation = Derivation { inputs: BTreeMap::new(), ..unresolved.clone() };
    let mut placeholders = BTreeMap::new();
    for (input, wanted) in &unresolved.inputs {
        if !wanted.dynamic.is_empty() {
            return Err(ResolveError::Dynamic { derivation: path.clone(), input: input.clone() });
        }
        for output in &wanted.outputs {
            let made = realised.get(input).and_then(|outputs| outputs.get(output)).ok_or_else(|| ResolveError::Unrealised {
                derivation: path.clone(),
                input: input.clone(),
                output: output.clone(),
            })?;
            derivation.sources.insert(made.clone());
            placeholders.insert(upstream_placeholder(input, output).into_bytes(), store_dir.join(made).into_bytes());
        }
    }
    rewrite(path, &mut derivation, &placeholders)?;
    fill_in(store_dir, path, &mut derivation)?;
    let bytes = derivation.print(store_dir);
    let path = path_of_parsed(store_dir, &derivation, &bytes).map_err(|err| ResolveError::Path { derivation: path.clone(), err })?;
    Ok(Resolved { path, derivation, bytes })
}

fn rewrite(path: &DrvPath, derivation: &mut Derivation, placeholders: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), ResolveError> {
    if placeholders.is_empty() {
        return Ok(());
    }
    // A text stays one: placeholders and store paths are ASCII.
    let text = |text: &str| String::from_utf8_lossy(&replace(text.as_bytes(), placeholders)).into_owned();
    derivation.builder = text(&derivation.builder);
    derivation.args.iter_mut().for_each(|arg| *arg = text(arg));
    let mut env = BTreeMap::new();
    for (name, value) in &derivation.env {
        let name = text(name);
        if env.insert(name.clone(), replace(value, placeholders)).is_some() {
            return Err(ResolveError::Environment { derivation: path.clone(), name });
        }
    }
    derivation.env = env;
    Ok(())
}

/// Gives deferred outputs the paths that follow from the rest.
fn fill_in(store_dir: &StoreDir, path: &DrvPath, derivation: &mut Derivation) -> Result<(), ResolveError> {
    if !derivation.outputs.values().any(|output| matches!(output, Output::Deferred)) {
        return Ok(());
    }
    let computed = Modulo::new(store_dir.clone()).add(path, derivation);
    let computed = computed.map_err(|err| ResolveError::Modulo { derivation: path.clone(), err: Box::new(err) })?;
    for (name, made) in computed.outputs {
        if let Some(made) = made {
            derivation.env.insert(name.as_str().to_owned(), store_dir.join(&made).into_bytes());
            derivation.outputs.insert(name, Output::InputAddressed(made));
        }
    }
    Ok(())
}

/// Returns `bytes` with every placeholder replaced, in one pass. All have the length of [`crate::derivation::placeholder`]s.
pub fn replace(bytes: &[u8], placeholders: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(slash) = rest.iter().position(|byte| *byte == b'/') {
        let (before, from_slash) = rest.split_at(slash);
        replaced.extend_from_slice(before);
        let path = from_slash.get(..PLACEHOLDER_CHARS).and_then(|candidate| placeholders.get(candidate));
        let used = if let Some(path) = path {
            replaced.extend_from_slice(path);
            PLACEHOLDER_CHARS
        } else {
            replaced.push(b'/');
            1
        };
        rest = &from_slash[used..];
    }
    replaced.extend_from_slice(rest);
    replaced
}

/// A slash and a SHA-256 in Nix's base 32.
const PLACEHOLDER_CHARS: usize = 1 + 52;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Method;
    use crate::derivation::{InputOutputs, placeholder};
    use crate::hash::Algorithm;

    fn out() -> OutputName {
        OutputName::parse("out").expect("a name")
    }

    fn base(letter: &str) -> DrvPath {
        DrvPath::parse(&format!("{}-base.drv", letter.repeat(32))).expect("a path")
    }

    fn made() -> StorePath {
        StorePath::parse(&format!("{}-base", "m".repeat(32))).expect("a path")
    }

    /// A derivation that puts the output of `input` into its builder, an argument, and a variable's name and value.
    fn upon(input: &DrvPath, output: Output) -> Derivation {
        let text = upstream_placeholder(input, &out());
        Derivation {
            name: "top".into(),
            outputs: BTreeMap::from([(out(), output)]),
            inputs: BTreeMap::from([(input.clone(), InputOutputs { outputs: [out()].into(), dynamic: BTreeMap::new() })]),
            sources: Default::default(),
            system: "x86_64-linux".into(),
            builder: format!("{text}/bin/sh"),
            args: vec![format!("-c={text}:{text}"), "/plain".into()],
            env: BTreeMap::from([(format!("at{text}"), text.into_bytes()), ("out".into(), placeholder(&out()).into_bytes())]),
        }
    }

    fn run(letter: &str, output: Output) -> Resolved {
        let input = base(letter);
        let path = DrvPath::parse(&format!("{}-top.drv", "t".repeat(32).replace('t', "z"))).expect("a path");
        let realised = Realised::from([(input.clone(), BTreeMap::from([(out(), made())]))]);
        resolve(&StoreDir::default(), &path, &upon(&input, output), &realised).expect("resolves")
    }

    #[test]
    fn recipes_upon_the_same_content_resolve_to_one() {
        let floating = || Output::Floating { method: Method::Nar, algorithm: Algorithm::Sha256 };
        let (one, other) = (run("a", floating()), run("b", floating()));
        assert_eq!(one, other, "only the recipes of their inputs differ");
        let full = format!("/nix/store/{}", made());
        assert_eq!(one.derivation.builder, format!("{full}/bin/sh"));
        assert_eq!(one.derivation.args, [format!("-c={full}:{full}"), "/plain".to_owned()]);
        assert_eq!(one.derivation.env[&format!("at{full}")], full.as_bytes());
        assert_eq!(one.derivation.env["out"], placeholder(&out()).into_bytes(), "its own output is as unknown as before");
        assert!(one.derivation.inputs.is_empty() && one.derivation.sources.contains(&made()));
        assert_eq!(Derivation::parse_canonical(&StoreDir::default(), "top", &one.bytes).as_ref(), Ok(&one.derivation));
    }

    #[test]
    fn a_deferred_output_gets_the_path_that_its_content_says() {
        let resolved = run("a", Output::Deferred);
        let stated = resolved.derivation.outputs[&out()].path().expect("known now");
        let computed = Modulo::new(StoreDir::default()).check_outputs(&resolved.path, &resolved.derivation).expect("hashes");
        assert_eq!(computed, [], "{stated}");
        assert_eq!(resolved.derivation.env["out"], format!("/nix/store/{stated}").into_bytes());
    }

    #[test]
    fn an_output_that_nobody_made_is_named() {
        let input = base("a");
        let refused = resolve(&StoreDir::default(), &base("b"), &upon(&input, Output::Deferred), &Realised::new());
        assert_eq!(refused, Err(ResolveError::Unrealised { derivation: base("b"), input, output: out() }));
    }
}
