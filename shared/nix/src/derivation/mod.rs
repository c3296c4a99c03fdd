//! Derivations: what a `.drv` file says, read from its bytes and printed back byte for byte.
//!
//! Does not read files and does not follow inputs: [`crate::closure`] does. Output paths are computed in [`crate::modulo`].
//! Source: Nix's `derivations.cc`; the grammar is read by the crate `nix-derivation`.

mod attributes;
mod parse;
mod print;
mod show;
mod shown;
mod structured;

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

pub use attributes::{AttributeError, Attributes};
pub use parse::DerivationError;
pub(crate) use print::{ModuloInputs, print_for_input, print_for_outputs};
pub use show::show;
pub use shown::{Shown, ShownError, read_shown};
pub(crate) use structured::check_output_name;
pub use structured::{StructuredFiles, Upstream, output_path_name, placeholder, scratch_path, upstream_placeholder};

use crate::content::{ContentAddress, ContentError, Method, text_path};
use crate::hash::Algorithm;

/// One build recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derivation {
    /// Its name, which the file does not hold: its store path does, before `.drv`.
    pub name: String,
    /// What it makes.
    pub outputs: BTreeMap<OutputName, Output>,
    /// Outputs of other derivations that it needs.
    pub inputs: BTreeMap<DrvPath, InputOutputs>,
    /// Store objects that it needs and no derivation of its inputs makes.
    pub sources: BTreeSet<StorePath>,
    /// The platform it runs on, or `builtin`.
    pub system: String,
    /// The program that makes the outputs, or `builtin:` and the name of one that Nix brings.
    pub builder: String,
    /// The program's arguments.
    pub args: Vec<String>,
    /// Its environment, which holds structured attributes as `__json`.
    pub env: BTreeMap<String, Vec<u8>>,
}

/// One output of a derivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Its path follows from the recipe.
    InputAddressed(StorePath),
    /// Its path follows from the hash that its content must have.
    Fixed {
        /// What the content must hash to.
        address: ContentAddress,
        /// The path that follows.
        path: StorePath,
    },
    /// Its path will follow from its content.
    Floating {
        /// How the content will be read.
        method: Method,
        /// How it will be hashed.
        algorithm: Algorithm,
    },
    /// Its path will follow from the recipe once the inputs' paths are known.
    Deferred,
    /// As floating, and the build may look at the world.
    Impure {
        /// How the content will be read.
        method: Method,
        /// How it will be hashed.
        algorithm: Algorithm,
    },
}

impl Output {
    /// Returns the path, where it is known before the build.
    pub fn path(&self) -> Option<&StorePath> {
        match self {
            Self::InputAddressed(path) | Self::Fixed { path, .. } => Some(path),
            Self::Floating { .. } | Self::Deferred | Self::Impure { .. } => None,
        }
    }

    /// Returns the kind in one word, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InputAddressed(_) => "input-addressed",
            Self::Fixed { .. } => "fixed",
            Self::Floating { .. } => "floating",
            Self::Deferred => "deferred",
            Self::Impure { .. } => "impure",
        }
    }
}

/// Which outputs of an input derivation are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputOutputs {
    /// Outputs of the derivation itself.
    pub outputs: BTreeSet<OutputName>,
    /// Outputs of a derivation that an output of this one is (`xp-dyn-drv`).
    pub dynamic: BTreeMap<OutputName, InputOutputs>,
}

impl InputOutputs {
    /// Returns which outputs of the derivation itself must be there: those that are needed, and those that are derivations of which something is.
    pub fn all(&self) -> BTreeSet<OutputName> {
        self.outputs.iter().chain(self.dynamic.keys()).cloned().collect()
    }
}

impl Derivation {
    /// Reads a `.drv` file. Takes what Nix takes, also where Nix would have written it differently.
    ///
    /// # Errors
    /// [`DerivationError`] names the offset or field and the rule that is broken.
    pub fn parse(store_dir: &StoreDir, name: &str, bytes: &[u8]) -> Result<Self, DerivationError> {
        parse::parse(store_dir, name, bytes)
    }

    /// Reads a `.drv` file that must be exactly as Nix writes it, so that no two readers can see two recipes in it.
    ///
    /// # Errors
    /// As [`Derivation::parse`], and [`DerivationError::NotCanonical`] names the first offset where Nix writes other bytes.
    pub fn parse_canonical(store_dir: &StoreDir, name: &str, bytes: &[u8]) -> Result<Self, DerivationError> {
        let derivation = Self::parse(store_dir, name, bytes)?;
        derivation.check_canonical(store_dir, bytes)?;
        Ok(derivation)
    }

    /// Checks that the bytes which it was parsed from are exactly as Nix writes them.
    ///
    /// # Errors
    /// [`DerivationError::NotCanonical`] names the first offset where Nix writes other bytes.
    pub fn check_canonical(&self, store_dir: &StoreDir, bytes: &[u8]) -> Result<(), DerivationError> {
        let printed = self.print(store_dir);
        if printed == bytes {
            return Ok(());
        }
        let offset = printed.iter().zip(bytes).take_while(|(ours, theirs)| ours == theirs).count();
        Err(DerivationError::NotCanonical { name: self.name.clone(), offset })
    }

    /// Returns the bytes of the `.drv` file, as Nix writes them.
    pub fn print(&self, store_dir: &StoreDir) -> Vec<u8> {
        print::print(self, store_dir)
    }

    /// Returns the attributes, from the environment or from `__json`.
    ///
    /// # Errors
    /// [`AttributeError`] if `__json` is not a JSON object.
    pub fn attributes(&self) -> Result<Attributes<'_>, AttributeError> {
        Attributes::new(&self.env)
    }

    /// Says whether the content of its output is known before the build.
    pub fn is_fixed_output(&self) -> bool {
        !self.outputs.is_empty() && self.outputs.values().all(|output| matches!(output, Output::Fixed { .. }))
    }

    /// Says whether its outputs may differ each time it is built.
    pub fn is_impure(&self) -> bool {
        self.outputs.values().any(|output| matches!(output, Output::Impure { .. }))
    }

    /// Says whether Nix itself brings the builder.
    pub fn is_builtin(&self) -> bool {
        self.builder.starts_with("builtin:")
    }

    /// Says whether it needs outputs of derivations that builds make (`xp-dyn-drv`).
    pub fn is_dynamic(&self) -> bool {
        self.inputs.values().any(|input| !input.dynamic.is_empty())
    }

    /// Returns what the `.drv` file refers to: input sources and input derivations.
    pub fn references(&self) -> BTreeSet<StorePath> {
        self.sources.iter().cloned().chain(self.inputs.keys().map(|input| input.as_path().clone())).collect()
    }
}

/// Returns the store path of a `.drv` file, recomputed from its bytes: `name` without `.drv`, references read from the bytes.
///
/// # Errors
/// [`DerivationError`] if the bytes are no derivation or the name is none.
pub fn drv_path_of(store_dir: &StoreDir, name: &str, bytes: &[u8]) -> Result<DrvPath, DerivationError> {
    Derivation::parse(store_dir, name, bytes).and_then(|derivation| path_of_parsed(store_dir, &derivation, bytes))
}

/// Returns the store path of a `.drv` file that was parsed already.
///
/// # Errors
/// [`DerivationError::Name`] if the derivation's name is none.
pub fn path_of_parsed(store_dir: &StoreDir, derivation: &Derivation, bytes: &[u8]) -> Result<DrvPath, DerivationError> {
    let refuse = |rule: String| DerivationError::Name { name: derivation.name.chars().take(250).collect(), rule };
    let file_name = format!("{}.drv", derivation.name);
    let path = text_path(store_dir, &file_name, bytes, &derivation.references()).map_err(|err: ContentError| refuse(err.to_string()))?;
    DrvPath::from_path(path).map_err(|err| refuse(err.rule.to_owned()))
}
