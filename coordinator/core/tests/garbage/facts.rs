//! Stores as text: `app>lib,gcc  app.drv>lib.drv=app  lib` is a path with what it refers to; a derivation also with what it makes.

use std::collections::BTreeSet;

use kiln_core::garbage::{Graph, Rules};
use kiln_wire::{Blake3Hash, Blob, DrvPath, PathInfo, Sha256Hash, StorePath};

/// One stored object.
#[derive(Clone, Debug)]
pub struct Object {
    pub name: String,
    pub references: BTreeSet<String>,
    pub outputs: BTreeSet<String>,
    pub deriver: Option<String>,
}

/// Reads a store. `lib:lib.drv` says which derivation made it.
pub fn store(text: &str) -> Vec<Object> {
    text.split_whitespace().map(object).collect()
}

fn object(text: &str) -> Object {
    let names = |list: &str| -> BTreeSet<String> { list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect() };
    let (rest, outputs) = text.split_once('=').unwrap_or((text, ""));
    let (head, references) = rest.split_once('>').unwrap_or((rest, ""));
    let (name, deriver) = head.split_once(':').map_or((head, None), |(name, deriver)| (name, Some(deriver.to_owned())));
    Object { name: name.to_owned(), references: names(references), outputs: names(outputs), deriver }
}

/// Makes the graph of a store.
pub fn graph(objects: &[Object], rules: Rules) -> Graph {
    let mut graph = Graph::new(rules);
    for object in objects {
        let paths = |names: &BTreeSet<String>| -> Vec<StorePath> { names.iter().map(|name| path(name)).collect() };
        if object.name.ends_with(".drv") {
            graph.add_derivation(&path(&object.name), 1, &paths(&object.references), &paths(&object.outputs));
        } else {
            graph.add_path(&info(object));
        }
    }
    graph
}

fn info(object: &Object) -> PathInfo {
    let deriver = object.deriver.as_ref().map(|name| DrvPath::from_path(path(name)).expect("a derivation"));
    PathInfo {
        path: path(&object.name),
        nar_hash: Sha256Hash([0; 32]),
        nar_size_bytes: 1,
        references: object.references.iter().map(|name| path(name)).collect(),
        deriver,
        content_address: None,
        blob: Blob { sha256: Sha256Hash([0; 32]), blake3: Blake3Hash([0; 32]), size_bytes: 1 },
    }
}

/// The path of that name: its hash follows from it.
pub fn path(name: &str) -> StorePath {
    const CHARS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let hash: String = (0..32)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(CHARS[(state >> 59) as usize])
        })
        .collect();
    StorePath::parse(&format!("{hash}-{name}")).expect("a store path")
}

/// Names of paths, sorted.
pub fn names<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> String {
    let mut names: Vec<&str> = paths.into_iter().map(StorePath::name).collect();
    names.sort_unstable();
    names.join(" ")
}

/// Draws numbers from a seed.
pub struct Dice(pub u64);

impl Dice {
    /// Draws a number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}
