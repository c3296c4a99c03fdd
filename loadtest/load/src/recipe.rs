//! Derivations of a shape, as a farm takes them: canonical files whose paths follow from their content.
//!
//! A recipe says in its environment what a worker is to make of it ([`CONTENT`]), so that whoever has the file can make the outputs, fixed
//! ones among them. Does not run anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Context;
use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::derivation::{Derivation, InputOutputs, Output, output_path_name, path_of_parsed};
use kiln_nix::hash::{Algorithm, Hasher};
use kiln_nix::modulo::Modulo;
use kiln_wire::{DrvPath, JobKind, StoreDir};

use crate::shape::{Node, Shape};

/// The variable that says what an output's file holds.
pub const CONTENT: &str = "content";

/// One derivation file.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Its path.
    pub path: DrvPath,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its input derivations, by their place.
    pub inputs: Vec<usize>,
}

/// The derivations of a shape, inputs before what needs them.
#[derive(Clone, Debug)]
pub struct Recipes {
    /// The files.
    pub all: Vec<Recipe>,
    /// Those that nothing else needs.
    pub roots: Vec<DrvPath>,
    places: HashMap<DrvPath, usize>,
}

impl Recipes {
    /// Writes a shape. Another `salt` makes other derivations of the same shape. Each file has about `bytes` bytes, if less would do.
    ///
    /// # Errors
    /// Names the derivation whose paths cannot be computed.
    pub fn write(shape: &Shape, salt: &str, bytes: usize) -> anyhow::Result<Self> {
        let mut writer = Writer { store_dir: StoreDir::default(), modulo: Modulo::new(StoreDir::default()), bytes };
        let mut all: Vec<Recipe> = Vec::with_capacity(shape.nodes.len());
        let mut needed = vec![false; shape.nodes.len()];
        for (at, node) in shape.nodes.iter().enumerate() {
            let recipe = writer.write(node, &format!("{salt}-{at}"), &all).with_context(|| format!("write derivation `{}`", node.name))?;
            recipe.inputs.iter().for_each(|input| needed[*input] = true);
            all.push(recipe);
        }
        let roots = all.iter().zip(&needed).filter(|(_, needed)| !**needed).map(|(recipe, _)| recipe.path.clone()).collect();
        let places = all.iter().enumerate().map(|(at, recipe)| (recipe.path.clone(), at)).collect();
        Ok(Self { all, roots, places })
    }

    /// Returns the place of a derivation.
    pub fn place(&self, derivation: &DrvPath) -> Option<usize> {
        self.places.get(derivation).copied()
    }

    /// Returns the mean size of a file.
    pub fn mean_bytes(&self) -> usize {
        self.all.iter().map(|recipe| recipe.bytes.len()).sum::<usize>() / self.all.len().max(1)
    }
}

struct Writer {
    store_dir: StoreDir,
    modulo: Modulo,
    bytes: usize,
}

impl Writer {
    fn write(&mut self, node: &Node, number: &str, before: &[Recipe]) -> anyhow::Result<Recipe> {
        let mut derivation = blank(node, number, before);
        let bare = derivation.print(&self.store_dir).len();
        let padding = self.bytes.saturating_sub(bare + node.outputs.len() * PATH_BYTES);
        derivation.env.insert("padding".to_owned(), vec![b'x'; padding]);
        match node.kind {
            JobKind::Ordinary => self.address_inputs(&mut derivation)?,
            JobKind::FixedOutput | JobKind::Builtin => self.fix(&mut derivation)?,
        }
        let bytes = derivation.print(&self.store_dir);
        let path = path_of_parsed(&self.store_dir, &derivation, &bytes)?;
        self.modulo.add(&path, &derivation)?;
        Ok(Recipe { path, bytes, inputs: node.inputs.keys().copied().collect() })
    }

    /// Output paths follow from the recipe without them.
    fn address_inputs(&mut self, derivation: &mut Derivation) -> anyhow::Result<()> {
        let blank = path_of_parsed(&self.store_dir, derivation, &derivation.print(&self.store_dir))?;
        for (output, path) in self.modulo.add(&blank, derivation)?.outputs {
            let path = path.context("the output's path follows from the recipe")?;
            derivation.env.insert(output.to_string(), self.store_dir.join(&path).into_bytes());
            derivation.outputs.insert(output, Output::InputAddressed(path));
        }
        Ok(())
    }

    /// The output's path follows from what it will hold, which the recipe says itself.
    fn fix(&self, derivation: &mut Derivation) -> anyhow::Result<()> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&derivation.env[CONTENT]);
        let address = ContentAddress { method: Method::Flat, hash: hasher.finish() };
        let output = derivation.outputs.keys().next().context("it has an output")?.clone();
        let path = address.path(&self.store_dir, &output_path_name(&derivation.name, &output), &BTreeSet::new(), false)?;
        for (key, value) in [("outputHashAlgo", "sha256"), ("outputHashMode", "flat"), ("outputHash", &address.hash.to_base16())] {
            derivation.env.insert(key.to_owned(), value.as_bytes().to_vec());
        }
        derivation.env.insert(output.to_string(), self.store_dir.join(&path).into_bytes());
        derivation.outputs = BTreeMap::from([(output, Output::Fixed { address, path })]);
        Ok(())
    }
}

/// Returns a derivation whose output paths are not known yet.
fn blank(node: &Node, number: &str, before: &[Recipe]) -> Derivation {
    let builder = if node.kind == JobKind::Builtin { "builtin:fetchurl" } else { "/bin/sh" };
    let mut env: BTreeMap<String, Vec<u8>> = node.outputs.iter().map(|output| (output.to_string(), Vec::new())).collect();
    let mut say = |key: &str, value: &str| drop(env.insert(key.to_owned(), value.as_bytes().to_vec()));
    for (key, value) in [("name", node.name.as_str()), ("system", &node.system), ("builder", builder), (CONTENT, number)] {
        say(key, value);
    }
    if node.prefer_local {
        say("preferLocalBuild", "1");
    }
    if node.parallel {
        say("enableParallelBuilding", "1");
    }
    if !node.features.is_empty() {
        let features: Vec<&str> = node.features.iter().map(String::as_str).collect();
        say("requiredSystemFeatures", &features.join(" "));
    }
    let input = |(at, outputs): (&usize, &BTreeSet<_>)| {
        (before[*at].path.clone(), InputOutputs { outputs: outputs.clone(), dynamic: BTreeMap::new() })
    };
    Derivation {
        name: node.name.clone(),
        outputs: node.outputs.iter().map(|output| (output.clone(), Output::Deferred)).collect(),
        inputs: node.inputs.iter().map(input).collect(),
        sources: BTreeSet::new(),
        system: node.system.clone(),
        builder: builder.to_owned(),
        args: Vec::new(),
        env,
    }
}

/// Bytes that a file grows by for each output whose path is filled in.
const PATH_BYTES: usize = 120;

#[cfg(test)]
mod tests {
    use kiln_nix::closure::Closure;
    use kiln_wire::OutputName;

    use super::*;

    fn node(name: &str, kind: JobKind, outputs: &[&str], inputs: &[(usize, &str)]) -> Node {
        let output = |name: &str| OutputName::parse(name).expect("a name");
        Node {
            name: name.to_owned(),
            system: "x86_64-linux".to_owned(),
            features: BTreeSet::from(["big-parallel".to_owned()]),
            outputs: outputs.iter().map(|name| output(name)).collect(),
            inputs: inputs.iter().map(|(at, name)| (*at, BTreeSet::from([output(name)]))).collect(),
            kind,
            prefer_local: true,
            parallel: true,
        }
    }

    #[test]
    fn recipes_are_a_closure_that_a_farm_takes() {
        let nodes = vec![
            node("source", JobKind::Builtin, &["out"], &[]),
            node("low", JobKind::Ordinary, &["dev", "out"], &[(0, "out")]),
            node("top", JobKind::Ordinary, &["out"], &[(0, "out"), (1, "dev")]),
        ];
        let shape = Shape { name: "three".to_owned(), nodes };
        let recipes = Recipes::write(&shape, "a", 3000).expect("written");
        assert_eq!(recipes.roots, [recipes.all[2].path.clone()]);
        let read = |path: &DrvPath| Ok::<_, std::io::Error>(recipes.place(path).map(|at| recipes.all[at].bytes.clone()));
        let closure = Closure::load(&StoreDir::default(), recipes.roots.clone(), read).expect("whole");
        let (_, wrong) = closure.check_outputs().expect("paths can be computed");
        assert_eq!((closure.derivations().len(), wrong.len()), (3, 0));
        let jobs = closure.jobs().expect("each is a job");
        assert!(jobs.iter().all(|job| job.prefer_local && job.resources.cores > 1 && job.required_features.contains("big-parallel")));
        assert!((2900..3100).contains(&recipes.mean_bytes()), "{}", recipes.mean_bytes());
        let others = Recipes::write(&shape, "b", 3000).expect("written");
        assert!(recipes.all.iter().zip(&others.all).all(|(one, other)| one.path != other.path));
    }
}
