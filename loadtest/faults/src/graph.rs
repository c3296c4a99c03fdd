//! Real derivations of the shape of a recorded graph: same names, outputs and edges, and a builder that takes a moment, so that a farm
//! takes them over its wire, loads them and builds them.
//!
//! Their paths differ from those of the recording, which has no contents; very long names are cut, and fixed outputs become ordinary ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kiln_nix::derivation::{Derivation, InputOutputs, Output, path_of_parsed};
use kiln_nix::graph_file::Graph;
use kiln_nix::modulo::Modulo;
use kiln_wire::{DrvPath, OutputName, StoreDir};

/// A graph as derivation files.
#[derive(Clone, Debug)]
pub struct Written {
    /// The file of one that needs all that nothing else needs.
    pub root: PathBuf,
    /// How many derivations there are, with that one.
    pub count: usize,
}

/// Writes a graph as derivation files into `dir`, each like `like`: its platform, builder and sources.
///
/// # Errors
/// If a path cannot be computed or a file not be written.
pub fn write(graph: &Graph, like: &Derivation, dir: &Path) -> anyhow::Result<Written> {
    let mut writer = Writer { like, dir, store_dir: StoreDir::default(), modulo: Modulo::new(StoreDir::default()) };
    let mut written: BTreeMap<&DrvPath, DrvPath> = BTreeMap::new();
    let mut needed = BTreeSet::new();
    for (at, job) in graph.jobs.iter().enumerate() {
        let mut inputs = BTreeMap::new();
        for input in &job.inputs {
            let path = written.get(&input.derivation).with_context(|| format!("`{}` comes before what needs it", input.derivation))?;
            inputs.insert(path.clone(), InputOutputs { outputs: input.outputs.clone().into(), dynamic: BTreeMap::new() });
            needed.insert(&input.derivation);
        }
        let (path, _) = writer.write(short(job.derivation.name()), at, job.outputs.keys(), inputs)?;
        written.insert(&job.derivation, path);
    }
    let out = OutputName::parse("out").context("`out` is a name")?;
    let sinks = graph.jobs.iter().filter(|job| !needed.contains(&job.derivation)).filter_map(|job| {
        let first = job.outputs.keys().next()?.clone();
        Some((written.get(&job.derivation)?.clone(), InputOutputs { outputs: BTreeSet::from([first]), dynamic: BTreeMap::new() }))
    });
    let sinks = sinks.collect();
    let (_, root) = writer.write(&format!("all-of-{}", graph.name), graph.jobs.len(), [&out], sinks)?;
    Ok(Written { root, count: graph.jobs.len() + 1 })
}

/// The tests' S3 server names files after whole keys, in base64: names over about 118 bytes are over what a file may have.
fn short(name: &str) -> &str {
    name.get(..NAME_BYTES_MAX).unwrap_or(name)
}

struct Writer<'a> {
    like: &'a Derivation,
    dir: &'a Path,
    store_dir: StoreDir,
    modulo: Modulo,
}

impl Writer<'_> {
    fn write<'n>(
        &mut self,
        name: &str,
        number: usize,
        outputs: impl IntoIterator<Item = &'n OutputName>,
        inputs: BTreeMap<DrvPath, InputOutputs>,
    ) -> anyhow::Result<(DrvPath, PathBuf)> {
        let deferred: BTreeMap<OutputName, Output> = outputs.into_iter().map(|output| (output.clone(), Output::Deferred)).collect();
        let made = deferred.keys().map(|output| format!("echo {name} >${output}")).collect::<Vec<_>>().join("; ");
        let mut env: BTreeMap<String, Vec<u8>> = deferred.keys().map(|output| (output.to_string(), Vec::new())).collect();
        // Many fetch something called `source`: the number keeps them apart.
        for (key, value) in
            [("name", name), ("number", &number.to_string()), ("system", &self.like.system), ("builder", &self.like.builder)]
        {
            env.insert(key.to_owned(), value.as_bytes().to_vec());
        }
        let script = format!("{} sleep {PAUSE}; {made}", self.like.builder);
        let mut derivation = Derivation {
            name: name.to_owned(),
            outputs: deferred,
            inputs,
            sources: self.like.sources.clone(),
            system: self.like.system.clone(),
            builder: self.like.builder.clone(),
            args: vec!["sh".to_owned(), "-c".to_owned(), script],
            env,
        };
        // Output paths follow from the recipe without them; the file's own path from all of it.
        let blank = path_of_parsed(&self.store_dir, &derivation, &derivation.print(&self.store_dir))?;
        for (output, path) in self.modulo.add(&blank, &derivation)?.outputs {
            let path = path.with_context(|| format!("the path of output {output} of {name} follows from the recipe"))?;
            derivation.env.insert(output.to_string(), self.store_dir.join(&path).into_bytes());
            derivation.outputs.insert(output, Output::InputAddressed(path));
        }
        let bytes = derivation.print(&self.store_dir);
        let path = path_of_parsed(&self.store_dir, &derivation, &bytes)?;
        self.modulo.add(&path, &derivation)?;
        let file = self.dir.join(path.as_str());
        fs::write(&file, bytes).with_context(|| format!("write `{}`", file.display()))?;
        Ok((path, file))
    }
}

/// Seconds that each job rests, so that a farm of a few slots stays busy and the machine does not.
const PAUSE: &str = "0.2";
/// Names that are longer are cut here.
const NAME_BYTES_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use kiln_nix::closure::Closure;

    use super::*;

    #[test]
    fn what_is_written_is_a_closure_that_a_farm_takes() {
        let text = r#"{"meta":{"graph":"g","derivations":3,"edges":1,"roots":{"a":1}}}
{"id":0,"name":"low","hash":"0hm2f1psjpcwg8fijsmr4wwxrx59s092","system":"x","builder":"b","outputs":["dev","out"],"inputs":[]}
{"id":1,"name":"top","hash":"1hm2f1psjpcwg8fijsmr4wwxrx59s092","system":"x","builder":"b","outputs":["out"],"inputs":[0],"input_outputs":{"0":["dev"]}}
{"id":2,"name":"low","hash":"2hm2f1psjpcwg8fijsmr4wwxrx59s092","system":"x","builder":"b","outputs":["dev","out"],"inputs":[]}
"#;
        let graph = kiln_nix::graph_file::read(text.as_bytes()).expect("a graph");
        let like = Derivation {
            name: "like".into(),
            outputs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            sources: BTreeSet::new(),
            system: "x86_64-linux".into(),
            builder: "/bin/sh".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
        };
        let dir = std::env::temp_dir().join(format!("kiln-faults-graph-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let written = write(&graph, &like, &dir).expect("written");
        assert_eq!(written.count, 4);
        let root = DrvPath::parse(written.root.file_name().and_then(|name| name.to_str()).expect("a name")).expect("a path");
        let read = |path: &DrvPath| fs::read(dir.join(path.as_str())).map(Some);
        let closure = Closure::load(&StoreDir::default(), [root], read).expect("whole");
        let (_, wrong) = closure.check_outputs().expect("paths can be computed");
        assert_eq!((closure.derivations().len(), wrong.len()), (4, 0));
        fs::remove_dir_all(&dir).expect("removed");
    }
}
