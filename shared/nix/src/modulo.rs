//! Hash modulo: the identity of a derivation in which fixed-output inputs count by their content, and the output paths that
//! follow from it.
//!
//! Works one derivation at a time, inputs first, and remembers each; never recurs. Source: Nix's `hashDerivationModulo`.

use std::collections::{BTreeMap, HashMap};

use kiln_wire::{DrvPath, OutputName, Sha256Hash, StoreDir, StorePath};
use sha2::{Digest, Sha256};

use crate::derivation::{Derivation, ModuloInputs, Output, check_output_name, print_for_input, print_for_outputs};
use crate::path::{ours, their_dir};

/// How a derivation counts where it is an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuloHash {
    /// By its recipe.
    Regular(Sha256Hash),
    /// By its output's content.
    Fixed(Sha256Hash),
    /// Not before some output path is known by building it. The hash names it in the realisations of Nix to 2.34, and counts where a
    /// derivation that is deferred too has it as an input; none where that cannot be told.
    Deferred(Option<Sha256Hash>),
}

impl ModuloHash {
    /// Returns the hash that output paths follow from, if there is one yet.
    pub fn hash(&self) -> Option<Sha256Hash> {
        match self {
            Self::Regular(hash) | Self::Fixed(hash) => Some(*hash),
            Self::Deferred(_) => None,
        }
    }
}

/// Why a derivation has no modulo hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuloError {
    /// It makes nothing.
    #[error("hash derivation `{derivation}`: it has no outputs")]
    NoOutputs {
        /// Which.
        derivation: DrvPath,
    },
    /// Its outputs are of kinds that exclude each other.
    #[error("hash derivation `{derivation}`: its outputs are of different kinds, `{one}` is {one_kind} and `{other}` is {other_kind}")]
    MixedOutputs {
        /// Which.
        derivation: DrvPath,
        /// One output.
        one: OutputName,
        /// Its kind.
        one_kind: &'static str,
        /// Another output.
        other: OutputName,
        /// Its kind.
        other_kind: &'static str,
    },
    /// A fixed-output derivation has other outputs than `out`.
    #[error("hash derivation `{derivation}`: a fixed-output derivation must have one output, `out`")]
    FixedOutputs {
        /// Which.
        derivation: DrvPath,
    },
    /// An input's hash was not given before.
    #[error("hash derivation `{derivation}`: its input `{input}` was not hashed before it")]
    UnknownInput {
        /// Which.
        derivation: DrvPath,
        /// The input.
        input: DrvPath,
    },
    /// A fixed-output input has no such output.
    #[error(
        "hash derivation `{derivation}`: it wants output `{output}` of `{input}`, which is a fixed-output derivation and has `out` only"
    )]
    NoSuchOutput {
        /// Which.
        derivation: DrvPath,
        /// The input.
        input: DrvPath,
        /// The wanted output.
        output: OutputName,
    },
    /// An output's name makes a path that none may have.
    #[error("hash derivation `{derivation}`: output `{output}` has no possible path: {rule}")]
    OutputPath {
        /// Which.
        derivation: DrvPath,
        /// The output.
        output: OutputName,
        /// The rule that is broken.
        rule: String,
    },
}

/// An output path that does not follow from the derivation's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "check derivation `{derivation}`: output `{output}` states path `{}`, {}",
    .stated.as_ref().map_or("", |path| path.as_str()),
    .computed.as_ref().map_or("and none can be known before its inputs are built".to_owned(), |path| format!("its content says `{path}`"))
)]
pub struct OutputMismatch {
    /// The derivation.
    pub derivation: DrvPath,
    /// The output.
    pub output: OutputName,
    /// What the derivation says.
    pub stated: Option<StorePath>,
    /// What follows from its content; none if that is not known before an input is built.
    pub computed: Option<StorePath>,
}

/// Modulo hashes of a growing set of derivations.
#[derive(Clone, Debug)]
pub struct Modulo {
    store_dir: StoreDir,
    known: HashMap<DrvPath, ModuloHash>,
}

/// What follows from one derivation's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computed {
    /// How it counts where it is an input.
    pub hash: ModuloHash,
    /// Its output paths, where they are known before the build.
    pub outputs: BTreeMap<OutputName, Option<StorePath>>,
    /// Names its outputs in the realisations of Nix to 2.34 (`sha256:<hash>!<output>`); none if an input is unknown or dynamic.
    pub identity: Option<Sha256Hash>,
}

impl Modulo {
    /// Starts knowing nothing.
    pub fn new(store_dir: StoreDir) -> Self {
        Self { store_dir, known: HashMap::new() }
    }

    /// Returns the hash of a derivation that was added or told.
    pub fn get(&self, derivation: &DrvPath) -> Option<ModuloHash> {
        self.known.get(derivation).copied()
    }

    /// Tells the hash of a derivation that was computed elsewhere.
    pub fn tell(&mut self, derivation: DrvPath, hash: ModuloHash) {
        self.known.insert(derivation, hash);
    }

    /// Computes the hash and output paths of a derivation whose inputs are known, and remembers the hash.
    /// A fixed-output derivation needs no inputs. O(size of the derivation).
    ///
    /// # Errors
    /// [`ModuloError`] names the derivation and the rule.
    pub fn add(&mut self, path: &DrvPath, derivation: &Derivation) -> Result<Computed, ModuloError> {
        let computed = self.compute(path, derivation)?;
        self.known.insert(path.clone(), computed.hash);
        Ok(computed)
    }

    /// Adds a derivation and returns its output paths that do not follow from its content.
    ///
    /// # Errors
    /// As [`Modulo::add`].
    pub fn check_outputs(&mut self, path: &DrvPath, derivation: &Derivation) -> Result<Vec<OutputMismatch>, ModuloError> {
        let (computed, wrong) = self.checked(path, derivation)?;
        self.known.insert(path.clone(), computed.hash);
        Ok(wrong)
    }

    /// Computes what [`Modulo::add`] does and returns with it the output paths that do not follow from the content. Remembers nothing.
    ///
    /// # Errors
    /// As [`Modulo::add`].
    pub fn checked(&self, path: &DrvPath, derivation: &Derivation) -> Result<(Computed, Vec<OutputMismatch>), ModuloError> {
        let computed = self.compute(path, derivation)?;
        let mut wrong = Vec::new();
        for (name, output) in &derivation.outputs {
            let computed = computed.outputs.get(name).cloned().flatten();
            let stated = output.path().cloned();
            // Nix takes deferred outputs whose paths could be filled in: older versions wrote them.
            if stated.is_some() && stated != computed {
                wrong.push(OutputMismatch { derivation: path.clone(), output: name.clone(), stated, computed });
            }
        }
        Ok((computed, wrong))
    }

    fn compute(&self, path: &DrvPath, derivation: &Derivation) -> Result<Computed, ModuloError> {
        match one_kind(path, derivation)? {
            Output::Fixed { .. } => fixed(path, derivation, &self.store_dir),
            Output::Impure { .. } => {
                check_names(path, derivation)?;
                let hash = Some(sha256(b"impure"));
                Ok(Computed { hash: ModuloHash::Deferred(hash), identity: hash, ..deferred(derivation) })
            }
            Output::Floating { .. } => {
                check_names(path, derivation)?;
                self.floating(path, derivation)
            }
            Output::InputAddressed(_) | Output::Deferred => self.input_addressed(path, derivation),
        }
    }

    /// Inputs that nobody hashed leave it without an identity: nothing else of it follows from them.
    fn floating(&self, path: &DrvPath, derivation: &Derivation) -> Result<Computed, ModuloError> {
        match self.inputs(path, derivation, Twins::Joined) {
            Ok(inputs) => Ok(self.deferred_with(derivation, &inputs)),
            Err(ModuloError::UnknownInput { .. }) => Ok(deferred(derivation)),
            Err(error) => Err(error),
        }
    }

    fn deferred_with(&self, derivation: &Derivation, inputs: &Inputs) -> Computed {
        let hashed = |print: fn(&Derivation, &StoreDir, &ModuloInputs) -> Vec<u8>| {
            inputs.is_whole.then(|| sha256(&print(derivation, &self.store_dir, &inputs.hashes)))
        };
        let hash = ModuloHash::Deferred(hashed(print_for_input));
        Computed { hash, identity: hashed(print_for_outputs), ..deferred(derivation) }
    }

    fn input_addressed(&self, path: &DrvPath, derivation: &Derivation) -> Result<Computed, ModuloError> {
        let inputs = self.inputs(path, derivation, Twins::Joined)?;
        if inputs.is_deferred {
            return Ok(self.deferred_with(derivation, &inputs));
        }
        let inputs = inputs.hashes;
        let computed = self.with_inputs(path, derivation, &inputs)?;
        if agrees(derivation, &computed) {
            return Ok(computed);
        }
        let last = Some(self.inputs(path, derivation, Twins::LastWins)?.hashes).filter(|last| *last != inputs);
        match last.map(|last| self.with_inputs(path, derivation, &last)).transpose()? {
            Some(by_old_rule) if agrees(derivation, &by_old_rule) => Ok(by_old_rule),
            Some(_) | None => Ok(computed),
        }
    }

    fn with_inputs(&self, path: &DrvPath, derivation: &Derivation, inputs: &ModuloInputs) -> Result<Computed, ModuloError> {
        let is_deferred = derivation.outputs.values().any(|output| matches!(output, Output::Deferred));
        let identity = sha256(&print_for_outputs(derivation, &self.store_dir, inputs));
        let their_dir = their_dir(&self.store_dir);
        let mut outputs = BTreeMap::new();
        for name in derivation.outputs.keys() {
            let output = their_dir
                .build_output_path(identity.0.into(), name.as_str(), &derivation.name)
                .map_err(|rule| ModuloError::OutputPath { derivation: path.clone(), output: name.clone(), rule: rule.to_string() })?;
            outputs.insert(name.clone(), Some(ours(&output)));
        }
        // What is deferred in the file stays so for its dependents, as in Nix.
        let for_input = sha256(&print_for_input(derivation, &self.store_dir, inputs));
        let hash = if is_deferred { ModuloHash::Deferred(Some(for_input)) } else { ModuloHash::Regular(for_input) };
        Ok(Computed { hash, outputs, identity: Some(identity) })
    }

    fn inputs(&self, path: &DrvPath, derivation: &Derivation, twins: Twins) -> Result<Inputs, ModuloError> {
        let mut inputs = Inputs { hashes: ModuloInputs::new(), is_deferred: false, is_whole: true };
        for (input, wanted) in &derivation.inputs {
            let unknown = || ModuloError::UnknownInput { derivation: path.clone(), input: input.clone() };
            let (hash, outputs) = match self.known.get(input).ok_or_else(unknown)? {
                known if !wanted.dynamic.is_empty() || matches!(known, ModuloHash::Deferred(None)) => {
                    (inputs.is_deferred, inputs.is_whole) = (true, false);
                    continue;
                }
                ModuloHash::Deferred(Some(hash)) => {
                    inputs.is_deferred = true;
                    (*hash, wanted.outputs.clone())
                }
                ModuloHash::Deferred(None) => continue,
                ModuloHash::Regular(hash) => (*hash, wanted.outputs.clone()),
                ModuloHash::Fixed(hash) => match wanted.outputs.iter().find(|output| output.as_str() != "out") {
                    Some(output) => {
                        let (derivation, input) = (path.clone(), input.clone());
                        return Err(ModuloError::NoSuchOutput { derivation, input, output: output.clone() });
                    }
                    None if wanted.outputs.is_empty() => continue,
                    None => (*hash, wanted.outputs.clone()),
                },
            };
            match twins {
                Twins::Joined => inputs.hashes.entry(hash).or_default().extend(outputs),
                Twins::LastWins => {
                    inputs.hashes.insert(hash, outputs);
                }
            }
        }
        Ok(inputs)
    }
}

/// The inputs of a derivation as its hash has them.
struct Inputs {
    hashes: ModuloInputs,
    /// One of them has outputs whose paths only a build tells.
    is_deferred: bool,
    /// All of them have a hash.
    is_whole: bool,
}

/// What to do with two inputs of one modulo hash. Nix to 2.34 kept the last one's outputs, later versions join them; recipes of
/// both are about, and each recipe's own paths say by which rule it was written.
#[derive(Clone, Copy)]
enum Twins {
    Joined,
    LastWins,
}

/// Returns one output that stands for all, if all are of one kind.
fn one_kind<'a>(path: &DrvPath, derivation: &'a Derivation) -> Result<&'a Output, ModuloError> {
    let mut outputs = derivation.outputs.iter();
    let (one, first) = outputs.next().ok_or_else(|| ModuloError::NoOutputs { derivation: path.clone() })?;
    for (other, output) in outputs {
        if output.kind() != first.kind() {
            let (derivation, one, other) = (path.clone(), one.clone(), other.clone());
            return Err(ModuloError::MixedOutputs { derivation, one, one_kind: first.kind(), other, other_kind: output.kind() });
        }
    }
    Ok(first)
}

/// Where nobody can compute the paths before the build, their names are looked at all the same.
fn check_names(path: &DrvPath, derivation: &Derivation) -> Result<(), ModuloError> {
    for output in derivation.outputs.keys() {
        check_output_name(&derivation.name, output).map_err(|rule| ModuloError::OutputPath {
            derivation: path.clone(),
            output: output.clone(),
            rule: rule.to_string(),
        })?;
    }
    Ok(())
}

fn fixed(path: &DrvPath, derivation: &Derivation, store_dir: &StoreDir) -> Result<Computed, ModuloError> {
    match derivation.outputs.iter().next() {
        Some((name, Output::Fixed { address, path: output })) if name.as_str() == "out" && derivation.outputs.len() == 1 => {
            let (method, algorithm) = (address.method.prefix(), address.hash.algorithm());
            let text = format!("fixed:out:{method}{algorithm}:{}:{}", address.hash.to_base16(), store_dir.join(output));
            let outputs = BTreeMap::from([(name.clone(), Some(output.clone()))]);
            let hash = sha256(text.as_bytes());
            Ok(Computed { hash: ModuloHash::Fixed(hash), outputs, identity: Some(hash) })
        }
        Some(_) | None => Err(ModuloError::FixedOutputs { derivation: path.clone() }),
    }
}

fn deferred(derivation: &Derivation) -> Computed {
    let outputs = derivation.outputs.keys().map(|name| (name.clone(), None)).collect();
    Computed { hash: ModuloHash::Deferred(None), outputs, identity: None }
}

fn agrees(derivation: &Derivation, computed: &Computed) -> bool {
    derivation.outputs.iter().all(|(name, output)| output.path().is_none_or(|path| computed.outputs.get(name) == Some(&Some(path.clone()))))
}

fn sha256(bytes: &[u8]) -> Sha256Hash {
    Sha256Hash(Sha256::digest(bytes).into())
}
