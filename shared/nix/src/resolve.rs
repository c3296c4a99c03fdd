//! Resolution: a derivation whose inputs are all built, with store paths in the place of what the builds were to make. What remains needs
//! no other derivation, so that two recipes whose inputs have the same content are one.
//!
//! Source: Nix's `Derivation::tryResolve`. Does not know what was built, and stores nothing.

use std::collections::BTreeMap;

use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

use crate::derivation::{Derivation, DerivationError, InputOutputs, Output, Upstream, path_of_parsed};
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
    /// What should be a derivation of which outputs are needed is none by its name.
    #[error(
        "resolve `{derivation}`: output `{output}` of `{input}`, of which it needs outputs, is `{made}`, which is no derivation by its name"
    )]
    NotDerivation {
        /// Which.
        derivation: DrvPath,
        /// What made it.
        input: DrvPath,
        /// As which output.
        output: OutputName,
        /// Where it is.
        made: StorePath,
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
    for Needed { input, output, stands_for, is_derivation } in needed(path, unresolved, realised)? {
        let made = realised.get(&input).and_then(|outputs| outputs.get(&output));
        let made = made.ok_or_else(|| ResolveError::Unrealised { derivation: path.clone(), input, output })?;
        // A derivation that only leads to what is needed is not needed itself.
        if !is_derivation {
            derivation.sources.insert(made.clone());
            placeholders.insert(stands_for.to_string().into_bytes(), store_dir.join(made).into_bytes());
        }
    }
    rewrite(path, &mut derivation, &placeholders)?;
    fill_in(store_dir, path, &mut derivation)?;
    let bytes = derivation.print(store_dir);
    let path = path_of_parsed(store_dir, &derivation, &bytes).map_err(|err| ResolveError::Path { derivation: path.clone(), err })?;
    Ok(Resolved { path, derivation, bytes })
}

/// An output that a derivation needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// The derivation that makes it: an input, or one that the build of an input made.
    pub input: DrvPath,
    /// Which output of it.
    pub output: OutputName,
    /// What stands for its path in the recipe.
    pub stands_for: Upstream,
    /// It is a derivation of which outputs are needed; as what it is itself, it is a row of its own.
    pub is_derivation: bool,
}

/// Returns what a derivation needs of its inputs, and of the derivations that these made, as far as `realised` says where those are.
///
/// # Errors
/// [`ResolveError::NotDerivation`] if something else was made where a derivation was needed.
pub fn needed(path: &DrvPath, derivation: &Derivation, realised: &Realised) -> Result<Vec<Needed>, ResolveError> {
    let mut found = Vec::new();
    // Nodes whose derivation is known, each with what stands for that; none for those that the recipe names.
    let mut open: Vec<(DrvPath, Option<Upstream>, &InputOutputs)> =
        derivation.inputs.iter().rev().map(|(input, wanted)| (input.clone(), None, wanted)).collect();
    while let Some((input, known, wanted)) = open.pop() {
        let stands_for = |output: &OutputName| known.map_or_else(|| Upstream::of(&input, output), |known: Upstream| known.then(output));
        let row = |output: &OutputName, is_derivation| {
            let stands_for = stands_for(output);
            Needed { input: input.clone(), output: output.clone(), stands_for, is_derivation }
        };
        found.extend(wanted.outputs.iter().map(|output| row(output, false)));
        for (output, node) in &wanted.dynamic {
            found.push(row(output, true));
            let Some(made) = realised.get(&input).and_then(|outputs| outputs.get(output)) else { continue };
            let made = DrvPath::from_path(made.clone()).map_err(|_| ResolveError::NotDerivation {
                derivation: path.clone(),
                input: input.clone(),
                output: output.clone(),
                made: made.clone(),
            })?;
            open.push((made, Some(stands_for(output)), node));
        }
    }
    Ok(found)
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
    use crate::derivation::{placeholder, upstream_placeholder};
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

    /// A derivation of which `out` is needed, of what its `out` makes as `out`, and of what that makes as `out`.
    fn chained(input: &DrvPath) -> (Derivation, [String; 3]) {
        let stands_for =
            [Upstream::of(input, &out()), Upstream::of(input, &out()).then(&out()), Upstream::of(input, &out()).then(&out()).then(&out())];
        let node = |dynamic: BTreeMap<OutputName, InputOutputs>| InputOutputs { outputs: [out()].into(), dynamic };
        let inner = node(BTreeMap::from([(out(), node(BTreeMap::new()))]));
        let mut derivation = upon(input, Output::Deferred);
        derivation.inputs = BTreeMap::from([(input.clone(), node(BTreeMap::from([(out(), inner)])))]);
        derivation.args = stands_for.iter().map(Upstream::to_string).collect();
        (derivation, stands_for.map(|one| one.to_string()))
    }

    #[test]
    fn outputs_of_derivations_that_were_made_take_the_place_of_what_stands_for_them() {
        let (input, inner) = (base("a"), base("b"));
        let path = base("c");
        let (derivation, texts) = chained(&input);
        let mut realised = Realised::new();
        let at = |realised: &Realised| -> Vec<_> {
            let needed = needed(&path, &derivation, realised).expect("derivations");
            needed.into_iter().map(|one| (one.input, one.stands_for.to_string(), one.is_derivation)).collect()
        };
        let first = [(input.clone(), texts[0].clone(), false), (input.clone(), texts[0].clone(), true)];
        assert_eq!(at(&realised), first, "what it makes is not known");
        realised.insert(input.clone(), BTreeMap::from([(out(), inner.as_path().clone())]));
        let second = [(inner.clone(), texts[1].clone(), false), (inner.clone(), texts[1].clone(), true)];
        assert_eq!(at(&realised), [&first[..], &second].concat());
        let refused = resolve(&StoreDir::default(), &path, &derivation, &realised);
        assert_eq!(refused, Err(ResolveError::Unrealised { derivation: path.clone(), input: inner.clone(), output: out() }));
        realised.insert(inner.clone(), BTreeMap::from([(out(), base("d").as_path().clone())]));
        realised.insert(base("d"), BTreeMap::from([(out(), made())]));
        let resolved = resolve(&StoreDir::default(), &path, &derivation, &realised).expect("resolves").derivation;
        let full = |path: &StorePath| StoreDir::default().join(path);
        assert_eq!(resolved.args, [full(inner.as_path()), full(base("d").as_path()), full(&made())]);
        assert!(resolved.inputs.is_empty() && resolved.sources.len() == 3);
        realised.insert(inner.clone(), BTreeMap::from([(out(), made())]));
        let refused = needed(&path, &derivation, &realised);
        assert_eq!(refused, Err(ResolveError::NotDerivation { derivation: path.clone(), input: inner, output: out(), made: made() }));
    }

    #[test]
    fn a_derivation_that_only_leads_to_what_is_needed_is_no_source() {
        let (input, inner) = (base("a"), base("b"));
        let (mut derivation, texts) = chained(&input);
        let leaf = InputOutputs { outputs: [out()].into(), dynamic: BTreeMap::new() };
        derivation.inputs =
            BTreeMap::from([(input.clone(), InputOutputs { outputs: [].into(), dynamic: BTreeMap::from([(out(), leaf)]) })]);
        let realised =
            Realised::from([(input, BTreeMap::from([(out(), inner.as_path().clone())])), (inner, BTreeMap::from([(out(), made())]))]);
        let resolved = resolve(&StoreDir::default(), &base("c"), &derivation, &realised).expect("resolves").derivation;
        assert_eq!(resolved.sources, [made()].into());
        assert_eq!(resolved.args, [texts[0].clone(), StoreDir::default().join(&made()), texts[2].clone()], "nobody asked for the others");
    }
}
