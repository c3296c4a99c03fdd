//! Outlines: what a submission needs of a derivation, which is everything but what its builder is told.
//!
//! A closure of a hundred thousand derivations is held as outlines: a tenth of the files. Does not look at other derivations.

use std::collections::BTreeSet;

use kiln_wire::limits::DYNAMIC_DEPTH_MAX;
use kiln_wire::{DrvPath, JobKind, OutputName, StorePath};

use crate::derivation::{AttributeError, Derivation, InputOutputs, Output};

/// What a submission needs of one derivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// What it makes, sorted by name, with the paths that are known before the build.
    outputs: Box<[(OutputName, Option<StorePath>)]>,
    /// What it needs of other derivations, sorted.
    needs: Box<[Need]>,
    /// Store objects that it needs and no derivation of its inputs makes, sorted.
    sources: Box<[StorePath]>,
    pub(crate) system: Box<str>,
    pub(crate) asks: Result<Asks, AttributeError>,
    pub(crate) kind: JobKind,
    /// An input of which it needs what is too many derivations further, and how many.
    pub(crate) too_deep: Option<Box<(DrvPath, usize)>>,
    pub(crate) is_pure: bool,
    is_impure: bool,
    is_dynamic: bool,
    /// Its own outputs ask for a resolution, whatever is known of its inputs.
    pub(crate) resolves: bool,
}

/// One output that a derivation needs of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The other derivation.
    pub derivation: DrvPath,
    /// Which output. None: Nix takes such an input, and builds nothing for it.
    pub output: Option<OutputName>,
    /// The output itself is needed, and not only what is made of it.
    pub is_direct: bool,
}

/// What it asks of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asks {
    pub features: Box<[String]>,
    pub parallel: bool,
    pub prefer_local: bool,
}

impl Outline {
    /// Returns the outline of a derivation.
    pub fn of(derivation: &Derivation) -> Self {
        let is_impure = derivation.is_impure();
        let too_deep = derivation.inputs.iter().map(|(input, wanted)| (input, depth(wanted))).find(|(_, depth)| *depth > DYNAMIC_DEPTH_MAX);
        let kind = if derivation.is_builtin() {
            JobKind::Builtin
        } else if derivation.is_fixed_output() || is_impure {
            JobKind::FixedOutput
        } else {
            JobKind::Ordinary
        };
        Self {
            outputs: derivation.outputs.iter().map(|(name, output)| (name.clone(), output.path().cloned())).collect(),
            needs: derivation.inputs.iter().flat_map(|(input, wanted)| needs(input, wanted)).collect(),
            sources: derivation.sources.iter().cloned().collect(),
            system: derivation.system.as_str().into(),
            asks: asks(derivation),
            kind,
            too_deep: too_deep.map(|(input, depth)| Box::new((input.clone(), depth))),
            is_pure: !is_impure && !derivation.is_fixed_output(),
            is_impure,
            is_dynamic: derivation.is_dynamic(),
            // As Nix: what follows from content does not depend on the recipes of the inputs, so that these are replaced wherever there are any.
            resolves: derivation.outputs.values().any(|output| match output {
                Output::Deferred => true,
                Output::Floating { .. } | Output::Impure { .. } => !derivation.inputs.is_empty(),
                Output::InputAddressed(_) | Output::Fixed { .. } => false,
            }),
        }
    }

    /// Returns what it makes, sorted by name, with the paths that are known before the build.
    pub fn outputs(&self) -> &[(OutputName, Option<StorePath>)] {
        &self.outputs
    }

    /// Returns the path of an output: none if it has no such output; `Some(None)` if only a build tells.
    pub fn output(&self, name: &OutputName) -> Option<Option<&StorePath>> {
        self.outputs.iter().find(|(own, _)| own == name).map(|(_, path)| path.as_ref())
    }

    /// Returns each input with what is needed of it, sorted.
    pub fn inputs(&self) -> impl Iterator<Item = (&DrvPath, &[Need])> {
        self.needs.chunk_by(|one, next| one.derivation == next.derivation).map(|needs| (&needs[0].derivation, needs))
    }

    /// Returns what it needs of other derivations, sorted.
    pub fn needs(&self) -> &[Need] {
        &self.needs
    }

    /// Returns the store objects that it needs and no derivation of its inputs makes, sorted.
    pub fn sources(&self) -> &[StorePath] {
        &self.sources
    }

    /// Says whether its outputs may differ each time it is built.
    pub fn is_impure(&self) -> bool {
        self.is_impure
    }

    /// Says whether it needs outputs of derivations that builds make (`xp-dyn-drv`).
    pub fn is_dynamic(&self) -> bool {
        self.is_dynamic
    }

    /// Names its inputs by paths that somebody holds already: `held` returns the one that is equal, if there is one. Returns how many it
    /// names by paths of its own.
    pub fn share(&mut self, held: impl Fn(&DrvPath) -> Option<DrvPath>) -> usize {
        let mut unshared = 0;
        for at in 0..self.needs.len() {
            let before = at.checked_sub(1).map(|before| self.needs[before].derivation.clone());
            let own = &self.needs[at].derivation;
            match before.filter(|before| before == own).or_else(|| held(own)) {
                Some(shared) => self.needs[at].derivation = shared,
                None => unshared += 1,
            }
        }
        unshared
    }

    /// Returns the bytes that it takes of memory, about, with so many paths of inputs that nobody shares.
    pub fn bytes_taken(&self, unshared: usize) -> usize {
        let paths = self.outputs.len() + self.sources.len() + unshared;
        let names = self.outputs.iter().map(|(name, _)| name).chain(self.needs.iter().filter_map(|need| need.output.as_ref()));
        let names: usize = names.map(|name| name.as_str().len()).sum();
        let features = self.asks.as_ref().map_or(0, |asks| asks.features.iter().map(|feature| feature.len() + TEXT_BYTES).sum());
        let lists = size_of_val::<[_]>(&self.outputs) + size_of_val::<[_]>(&self.needs) + size_of_val::<[_]>(&self.sources);
        size_of::<Self>() + PATH_BYTES * paths + names + self.system.len() + features + lists
    }
}

/// Bytes of a text beside what is in it.
const TEXT_BYTES: usize = 48;

/// Bytes of a path's text with what counts who shares it.
const PATH_BYTES: usize = 96;

fn needs(input: &DrvPath, wanted: &InputOutputs) -> Vec<Need> {
    let need = |output: Option<&OutputName>| Need {
        derivation: input.clone(),
        is_direct: output.is_some_and(|output| wanted.outputs.contains(output)),
        output: output.cloned(),
    };
    let names: BTreeSet<&OutputName> = wanted.outputs.iter().chain(wanted.dynamic.keys()).collect();
    if names.is_empty() { vec![need(None)] } else { names.into_iter().map(|name| need(Some(name))).collect() }
}

fn asks(derivation: &Derivation) -> Result<Asks, AttributeError> {
    let attributes = derivation.attributes()?;
    Ok(Asks {
        features: attributes.required_system_features()?.into_iter().collect(),
        parallel: attributes.enable_parallel_building()?,
        prefer_local: attributes.prefer_local_build()?,
    })
}

/// Returns how many derivations, each made by the one before, lead to what is wanted.
fn depth(wanted: &InputOutputs) -> usize {
    let (mut depth, mut level): (usize, Vec<&InputOutputs>) = (0, wanted.dynamic.values().collect());
    while !level.is_empty() {
        depth += 1;
        level = level.into_iter().flat_map(|node| node.dynamic.values()).collect();
    }
    depth
}

#[cfg(test)]
mod tests {
    use kiln_wire::StoreDir;

    use super::*;

    #[test]
    fn whatever_a_derivation_asks_for_counts() {
        let of = |features: &str, system: &str| {
            let text = format!(
                r#"Derive([("out","","r:sha256","")],[],[],"{system}","b",[],[("out",""),("requiredSystemFeatures","{features}")])"#
            );
            Outline::of(&Derivation::parse(&StoreDir::default(), "x", text.as_bytes()).expect("a derivation")).bytes_taken(0)
        };
        let many: String = (0..10_000).map(|number| format!("{number} ")).collect();
        assert!(of(&many, "s") > of("", "s") + 10_000 * TEXT_BYTES);
        assert!(of("", &"s".repeat(1 << 20)) > 1 << 20);
    }

    #[test]
    fn equal_paths_are_held_once() {
        let drv = |letter: &str| DrvPath::parse(&format!("{}-x.drv", letter.repeat(32))).expect("a path");
        let inputs = format!(r#"("/nix/store/{}",["dev","out"]),("/nix/store/{}",[])"#, drv("a"), drv("b"));
        let text = format!(r#"Derive([("out","","r:sha256","")],[{inputs}],[],"s","b",[],[("out","")])"#);
        let derivation = Derivation::parse(&StoreDir::default(), "x", text.as_bytes()).expect("a derivation");
        let mut outline = Outline::of(&derivation);
        let held = drv("a");
        assert_eq!(outline.share(|path| (*path == held).then(|| held.clone())), 1, "the other one");
        let same = |path: &DrvPath| std::ptr::eq(path.as_str(), held.as_str());
        assert_eq!(outline.needs().iter().map(|need| same(&need.derivation)).collect::<Vec<_>>(), [true, true, false]);
        let inputs: Vec<_> = outline.inputs().map(|(input, needs)| (input.clone(), needs.len())).collect();
        assert_eq!(inputs, [(drv("a"), 2), (drv("b"), 1)]);
        assert_eq!(outline.needs()[2].output, None);
    }
}
