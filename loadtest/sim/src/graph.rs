//! The derivations of a run: what each needs, how long it takes, and how it ends. Drawn from the seed; a builder's end depends on
//! nothing but its derivation, the memory that it got and, where it is not deterministic, the attempt.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::{
    AttemptId, Blake3Hash, Blob, BuiltOutput, DerivedInput, DrvPath, Failure, FailureClass, JobKind, JobLimits, JobSpec, Outcome,
    OutputName, PathInfo, Resources, Sha256Hash, StorePath, Usage,
};

use crate::dice::Dice;
use crate::options::Options;

/// How builders of a derivation end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// With its outputs.
    Builds,
    /// With a failure of its own.
    Fails,
    /// With its outputs if it gets this much memory, in MiB.
    Needs(u64),
    /// With outputs whose content is another for each attempt.
    Varies,
}

/// One derivation.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub spec: JobSpec,
    pub nature: Nature,
    /// From the start of the builder to its end.
    pub duration_ms: u64,
    /// Every derivation that it needs, and itself.
    pub closure: BTreeSet<usize>,
}

/// All derivations, inputs before what needs them.
#[derive(Clone, Debug)]
pub(crate) struct Graph {
    pub recipes: Vec<Recipe>,
    places: BTreeMap<DrvPath, usize>,
}

impl Graph {
    /// Draws a graph.
    pub fn draw(dice: &mut Dice, options: &Options) -> Self {
        let mut graph = Self { recipes: Vec::new(), places: BTreeMap::new() };
        for number in 0..options.jobs {
            let recipe = graph.recipe(dice, options, number);
            graph.places.insert(recipe.spec.derivation.clone(), number);
            graph.recipes.push(recipe);
        }
        graph
    }

    fn recipe(&self, dice: &mut Dice, options: &Options, number: usize) -> Recipe {
        let mut inputs: BTreeSet<usize> = BTreeSet::new();
        for _ in 0..dice.below(4) {
            if number > 0 {
                inputs.insert(dice.place(number));
            }
        }
        let nature = match dice.below(if options.jobs_fail { 10 } else { 1 }) {
            1 => Nature::Fails,
            2 => Nature::Needs(600),
            3 => Nature::Varies,
            _ => Nature::Builds,
        };
        // A changed recipe of a fixed output: another derivation with the same output path.
        let twin = number.checked_sub(1).filter(|_| dice.chance(100));
        let out = match twin {
            Some(twin) => self.recipes[twin].spec.outputs.values().next().cloned().flatten(),
            None => Some(path(number, "out")),
        };
        let mut outputs = BTreeMap::from([(name("out"), out)]);
        if twin.is_none() && dice.chance(300) {
            outputs.insert(name("dev"), Some(path(number, "dev")));
        }
        let needs = |input: &usize| {
            let spec = &self.recipes[*input].spec;
            DerivedInput { derivation: spec.derivation.clone(), outputs: spec.outputs.keys().cloned().collect() }
        };
        let mut closure: BTreeSet<usize> = inputs.iter().flat_map(|input| self.recipes[*input].closure.iter().copied()).collect();
        closure.insert(number);
        let soft = dice.chance(100).then(|| "big-parallel".to_owned());
        let hard = dice.chance(200).then(|| "kvm".to_owned());
        let spec = JobSpec {
            derivation: DrvPath::parse(&format!("{}-job{number}.drv", hash_part(number, 1))).expect("a derivation's path"),
            system: "x86_64-linux".to_owned(),
            required_features: soft.into_iter().chain(hard).collect(),
            outputs,
            inputs: inputs.iter().map(needs).collect(),
            kind: if twin.is_some() { JobKind::FixedOutput } else { JobKind::Ordinary },
            prefer_local: dice.chance(200),
            resources: Resources { cores: 1 + u32::try_from(dice.below(2)).expect("small"), memory_mib: 100 * dice.below(4) },
            limits: JobLimits::default(),
            // Every path is known here; some jobs wait for their inputs to be put in all the same.
            resolve: number % 3 == 2,
        };
        Recipe { spec, nature, duration_ms: [1, 50, 400, 2_000, 6_000][dice.place(5)], closure }
    }

    /// Returns the place of a derivation.
    pub fn place(&self, derivation: &DrvPath) -> usize {
        self.places[derivation]
    }

    /// Returns a derivation's recipe.
    pub fn of(&self, derivation: &DrvPath) -> &Recipe {
        &self.recipes[self.place(derivation)]
    }

    /// Returns whether every builder that the derivation needs can end well on the largest worker.
    pub fn can_build(&self, place: usize) -> bool {
        self.recipes[place].closure.iter().all(|needed| self.recipes[*needed].nature != Nature::Fails)
    }

    /// Returns whether two derivations make the same output path.
    pub fn has_twins(&self) -> bool {
        self.recipes.iter().any(|recipe| recipe.spec.kind == JobKind::FixedOutput)
    }

    /// Returns how a builder ends.
    pub fn outcome(&self, place: usize, attempt: AttemptId, memory_mib: u64) -> Outcome {
        let recipe = &self.recipes[place];
        let usage = Usage { wall_ms: recipe.duration_ms, ..Usage::default() };
        let failed = |class, message: &str| Outcome::Failed { failure: Failure { class, message: message.to_owned() }, usage };
        match recipe.nature {
            Nature::Fails => failed(FailureClass::BuildFailure, "exit status 1"),
            // Without a request the worker's whole memory is the limit.
            Nature::Needs(needed) if memory_mib != 0 && memory_mib < needed => failed(FailureClass::OutOfMemory, "killed"),
            Nature::Varies => Outcome::Built { outputs: self.outputs(place, attempt.0, attempt), usage },
            Nature::Builds | Nature::Needs(_) => Outcome::Built { outputs: self.outputs(place, 0, attempt), usage },
        }
    }

    /// Returns what an attempt made. No two compress the same bytes to the same blob.
    fn outputs(&self, place: usize, variant: u64, attempt: AttemptId) -> Vec<BuiltOutput> {
        let spec = &self.recipes[place].spec;
        let inputs = spec.inputs.iter().flat_map(|input| self.of(&input.derivation).spec.outputs.values().flatten());
        let references: BTreeSet<StorePath> = inputs.cloned().collect();
        let made = |(name, path): (&OutputName, &Option<StorePath>)| {
            let path = path.clone().expect("every output of these graphs has a path");
            let (bytes, compressed) = (content(&path, variant), content(&path, attempt.0 + 1));
            let info = PathInfo {
                nar_hash: Sha256Hash(bytes),
                nar_size_bytes: 100,
                references: if spec.kind == JobKind::FixedOutput { BTreeSet::new() } else { references.clone() },
                deriver: Some(spec.derivation.clone()),
                content_address: None,
                blob: Blob { size_bytes: 50, blake3: Blake3Hash(compressed), sha256: Sha256Hash(compressed) },
                path,
            };
            BuiltOutput { name: name.clone(), info }
        };
        spec.outputs.iter().map(made).collect()
    }
}

fn name(name: &str) -> OutputName {
    OutputName::parse(name).expect("an output's name")
}

fn path(number: usize, output: &str) -> StorePath {
    let kind = if output == "out" { 2 } else { 3 };
    StorePath::parse(&format!("{}-job{number}-{output}", hash_part(number, kind))).expect("a store path")
}

/// Returns a hash part that no other number and kind has.
fn hash_part(number: usize, kind: usize) -> String {
    const LETTERS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut left = number;
    let digits = (0..31).map(|_| {
        let digit = left % 32;
        left /= 32;
        char::from(LETTERS[digit])
    });
    std::iter::once(char::from(LETTERS[kind])).chain(digits).collect()
}

/// Returns the hash of what a path holds: the path's own bytes and the variant, folded.
fn content(path: &StorePath, variant: u64) -> [u8; 32] {
    let mut content = [0; 32];
    for (at, byte) in path.as_str().bytes().enumerate() {
        content[at % 24] ^= byte.rotate_left(u32::try_from(at / 24).expect("small"));
    }
    content[24..].copy_from_slice(&variant.to_le_bytes());
    content
}
