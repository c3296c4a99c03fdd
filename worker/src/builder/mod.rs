//! From a derivation to what its builder is started with: program, arguments, environment and files, exactly as Nix does it.
//!
//! Pure: all that depends on the host comes in as values. Does not run anything.
//! Source: Nix's `derivation-builder.cc` (`initEnv`, `startBuild`) and `derivation-env-desugar.cc`.
//! Absence: `exportReferencesGraph` of a `.drv` finds the outputs of the derivations in its closure by what the farm says made them: a fixed
//! output that several derivations make counts for one of them.

mod graph;
mod placeholders;

use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::derivation::{AttributeError, Attributes, Derivation, DerivationError, Output};
use kiln_nix::hash::{Algorithm, Hasher, nix32};
use kiln_wire::worker::Assignment;
use kiln_wire::{OutputName, StorePath};

use graph::Graphs;
use placeholders::Placeholders;

/// What a builder is started with; the fields go into [`crate::sandbox::Spec`] as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The program.
    pub builder: Vec<u8>,
    /// Its arguments, without `argv[0]`.
    pub args: Vec<Vec<u8>>,
    /// The whole environment, sorted by name as Nix passes it.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Files for `/build`.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the builder may use the network: its output hash is known, or it is impure.
    pub network: bool,
}

/// A derivation that no builder can be started for. The derivation's fault.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// An attribute is not what it must be.
    #[error("prepare the builder of `{name}`")]
    Attribute {
        /// The derivation's name.
        name: String,
        /// Which attribute.
        #[source]
        err: AttributeError,
    },
    /// It asks for a way out of the sandbox.
    #[error("prepare the builder of `{name}`: it asks for `{attribute}`, and every build of this farm is sandboxed")]
    Unsandboxed {
        /// The derivation's name.
        name: String,
        /// The attribute that asks.
        attribute: &'static str,
    },
    /// The structured attributes cannot be written.
    #[error("prepare the builder of `{name}`: write its structured attributes")]
    Structured {
        /// The derivation's name.
        name: String,
        /// Why.
        #[source]
        err: DerivationError,
    },
    /// `exportReferencesGraph` asks for something it must not.
    #[error("prepare the builder of `{name}`: `exportReferencesGraph` names `{subject}`, which {rule}")]
    Graph {
        /// The derivation's name.
        name: String,
        /// The refused file name or path.
        subject: String,
        /// The rule it breaks.
        rule: &'static str,
    },
}

/// Returns what the builder of `derivation` is started with. `outputs` are the paths where it will put its outputs; `host_env` is
/// asked for the `impureEnvVars` of a fixed-output derivation, and a variable that it lacks is empty.
///
/// # Errors
/// [`BuilderError`] names the attribute that makes no sense.
pub fn launch(
    derivation: &Derivation,
    assignment: &Assignment,
    outputs: &BTreeMap<OutputName, StorePath>,
    host_env: &BTreeMap<String, Vec<u8>>,
) -> Result<Launch, BuilderError> {
    let attribute = |err| BuilderError::Attribute { name: derivation.name.clone(), err };
    let placeholders = Placeholders::new(assignment, outputs);
    let attributes = derivation.attributes().map_err(attribute)?;
    refuse_unsandboxed(derivation, &attributes)?;
    let impure = derivation.outputs.values().any(|output| matches!(output, Output::Impure { .. }));
    let network = impure || derivation.is_fixed_output();

    let mut env = Env::default();
    env.set("PATH", "/path-not-set");
    env.set("HOME", "/homeless-shelter");
    env.set("NIX_STORE", assignment.store_dir.as_str());
    env.set("NIX_BUILD_CORES", assignment.resources.cores.max(1).to_string());
    let files = if attributes.json().is_some() {
        structured(derivation, assignment, outputs, &placeholders, &mut env)?
    } else {
        let as_file = attributes.pass_as_file().map_err(attribute)?;
        let mut files = plain_graphs(derivation, assignment)?;
        files.extend(plain(derivation, &as_file, &placeholders, &mut env));
        files
    };
    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        env.set(name, BUILD_DIR);
    }
    if derivation.is_fixed_output() {
        env.set("NIX_OUTPUT_CHECKED", "1");
    }
    if network {
        for name in attributes.impure_env_vars().map_err(attribute)? {
            let value = host_env.get(&name).cloned().unwrap_or_default();
            env.set(name, value);
        }
    }
    env.set("NIX_LOG_FD", "2");
    env.set("TERM", "xterm-256color");

    Ok(Launch {
        builder: placeholders.replace(derivation.builder.as_bytes()),
        args: derivation.args.iter().map(|arg| placeholders.replace(arg.as_bytes())).collect(),
        env: env.0.into_iter().collect(),
        files,
        network,
    })
}

/// Returns the variables of a recipe with real paths in the place of placeholders, for builders that run in no sandbox. Neither files
/// nor structured attributes are made of them.
pub fn variables(derivation: &Derivation, assignment: &Assignment, outputs: &BTreeMap<OutputName, StorePath>) -> BTreeMap<String, Vec<u8>> {
    let placeholders = Placeholders::new(assignment, outputs);
    derivation.env.iter().map(|(name, value)| (name.clone(), placeholders.replace(value))).collect()
}

/// Nix refuses both too, unless its administrator has allowed them.
fn refuse_unsandboxed(derivation: &Derivation, attributes: &Attributes<'_>) -> Result<(), BuilderError> {
    let attribute = |err| BuilderError::Attribute { name: derivation.name.clone(), err };
    let no_chroot = attributes.flag("__noChroot", false).map_err(attribute)?;
    let host_paths = attributes.texts("__impureHostDeps").map_err(attribute)?.is_some_and(|paths| !paths.is_empty());
    match [("__noChroot", no_chroot), ("__impureHostDeps", host_paths)].into_iter().find(|(_, asks)| *asks) {
        Some((attribute, _)) => Err(BuilderError::Unsandboxed { name: derivation.name.clone(), attribute }),
        None => Ok(()),
    }
}

/// The directory in which a builder starts, as it sees it.
const BUILD_DIR: &str = "/build";

type File = (Vec<u8>, Vec<u8>);

/// An environment in the making: later values replace earlier ones.
#[derive(Default)]
struct Env(BTreeMap<Vec<u8>, Vec<u8>>);

impl Env {
    fn set(&mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.insert(name.into(), value.into());
    }
}

/// Every variable of the recipe, directly or as a file.
fn plain(derivation: &Derivation, as_file: &BTreeSet<String>, placeholders: &Placeholders, env: &mut Env) -> Vec<File> {
    let mut files = Vec::new();
    for (name, value) in &derivation.env {
        let value = placeholders.replace(value);
        if as_file.contains(name) {
            let file = format!(".attr-{}", sha256_nix32(name.as_bytes()));
            env.set(format!("{name}Path"), format!("{BUILD_DIR}/{file}"));
            files.push((file.into_bytes(), value));
        } else {
            env.set(name.as_str(), value);
        }
    }
    files
}

fn plain_graphs(derivation: &Derivation, assignment: &Assignment) -> Result<Vec<File>, BuilderError> {
    let graphs = Graphs::new(&derivation.name, assignment);
    let mut files = Vec::new();
    for (name, roots) in wanted_graphs(derivation)? {
        graphs.check_file_name(&name)?;
        files.push((name.into_bytes(), graphs.registration(&roots)?));
    }
    Ok(files)
}

fn structured(
    derivation: &Derivation,
    assignment: &Assignment,
    outputs: &BTreeMap<OutputName, StorePath>,
    placeholders: &Placeholders,
    env: &mut Env,
) -> Result<Vec<File>, BuilderError> {
    let graphs = Graphs::new(&derivation.name, assignment);
    let mut answers = BTreeMap::new();
    for (name, roots) in wanted_graphs(derivation)? {
        answers.insert(name, graphs.infos(&roots)?);
    }
    let files = derivation.structured_files(&assignment.store_dir, outputs, &answers);
    let files = files.map_err(|err| BuilderError::Structured { name: derivation.name.clone(), err })?;
    let Some(files) = files else { return Ok(Vec::new()) };
    env.set("NIX_ATTRS_SH_FILE", format!("{BUILD_DIR}/.attrs.sh"));
    env.set("NIX_ATTRS_JSON_FILE", format!("{BUILD_DIR}/.attrs.json"));
    Ok(vec![(b".attrs.sh".to_vec(), placeholders.replace(&files.shell)), (b".attrs.json".to_vec(), placeholders.replace(&files.json))])
}

fn wanted_graphs(derivation: &Derivation) -> Result<BTreeMap<String, Vec<String>>, BuilderError> {
    let graphs = derivation.attributes().and_then(|attributes| attributes.export_references_graph());
    graphs.map_err(|err| BuilderError::Attribute { name: derivation.name.clone(), err })
}

fn sha256_nix32(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    nix32(hasher.finish().digest())
}

#[cfg(test)]
mod tests;
