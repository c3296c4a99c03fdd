//! Answers to `exportReferencesGraph`: the closure of some inputs, as a registration file or as JSON.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::hash::sha256_nix32;
use kiln_wire::worker::Assignment;
use kiln_wire::{PathInfo, StoreDir, StorePath};
use serde_json::{Value, json};

use super::BuilderError;

/// The inputs of one attempt as a graph.
pub(super) struct Graphs<'a> {
    derivation: &'a str,
    store_dir: &'a StoreDir,
    infos: BTreeMap<&'a StorePath, &'a PathInfo>,
    /// What each derivation among the inputs makes, as far as it is among them too.
    outputs: BTreeMap<&'a StorePath, BTreeSet<&'a StorePath>>,
    /// Bytes that answers may still take.
    left_bytes: Cell<usize>,
}

/// Bytes of all answers of one derivation: a hundred times what the closure of a system takes.
const ANSWERS_BYTES_MAX: usize = 64 << 20;

/// Bytes that a path takes in an answer, about.
const PATH_BYTES: usize = 100;

impl<'a> Graphs<'a> {
    pub(super) fn new(derivation: &'a str, assignment: &'a Assignment) -> Self {
        let infos: BTreeMap<_, _> = assignment.inputs.iter().map(|info| (&info.path, info)).collect();
        let mut outputs: BTreeMap<&StorePath, BTreeSet<&StorePath>> = BTreeMap::new();
        let derived = infos.values().filter_map(|info| Some((info.deriver.as_ref()?, &info.path)));
        let listed = assignment.input_outputs.iter().flat_map(|(drv, outputs)| outputs.values().map(move |path| (drv, path)));
        for (drv, path) in derived.chain(listed.filter(|(_, path)| infos.contains_key(path))) {
            outputs.entry(drv.as_path()).or_default().insert(path);
        }
        Self { derivation, store_dir: &assignment.store_dir, infos, outputs, left_bytes: Cell::new(ANSWERS_BYTES_MAX) }
    }

    /// Nix's rule for the file names of plain graphs.
    pub(super) fn check_file_name(&self, name: &str) -> Result<(), BuilderError> {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        let rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if first && rest {
            Ok(())
        } else {
            Err(self.refuse(name, "is no file name: want a letter or `_`, then letters, digits, `_`, `.` and `-`"))
        }
    }

    /// Returns the closure in the form that `nix-store --load-db` reads, without hashes and derivers.
    pub(super) fn registration(&self, roots: &[String]) -> Result<Vec<u8>, BuilderError> {
        let mut text = String::new();
        for path in self.exported(roots)? {
            let references = &self.infos[path].references;
            text.push_str(&format!("{}\n\n{}\n", self.store_dir.join(path), references.len()));
            references.iter().for_each(|reference| text.push_str(&format!("{}\n", self.store_dir.join(reference))));
            self.take(path, 1 + references.len())?;
        }
        Ok(text.into_bytes())
    }

    /// Returns the closure as a list of what is known of each path.
    pub(super) fn infos(&self, roots: &[String]) -> Result<Value, BuilderError> {
        let mut list = Vec::new();
        for path in self.exported(roots)? {
            let info = self.infos[path];
            self.take(path, 2 + info.references.len())?;
            let closure_size: u64 = self.closure(&BTreeSet::from([path]))?.into_iter().map(|path| self.infos[path].nar_size_bytes).sum();
            let references: Vec<String> = info.references.iter().map(|path| self.store_dir.join(path)).collect();
            let mut entry = json!({
                "path": self.store_dir.join(path),
                "narHash": sha256_nix32(&info.nar_hash),
                "narSize": info.nar_size_bytes,
                "closureSize": closure_size,
                "references": references,
            });
            if let (Some(address), Some(entry)) = (&info.content_address, entry.as_object_mut()) {
                entry.insert("ca".to_owned(), json!(address));
            }
            list.push(entry);
        }
        Ok(Value::Array(list))
    }

    /// The closure of the roots, and with each derivation in it the closure of what that makes.
    fn exported(&self, roots: &[String]) -> Result<BTreeSet<&'a StorePath>, BuilderError> {
        let mut paths = self.closure(&self.parse(roots)?)?;
        let made: BTreeSet<&StorePath> = paths.iter().filter_map(|path| self.outputs.get(path)).flatten().copied().collect();
        paths.extend(self.closure(&made)?);
        Ok(paths)
    }

    /// A root may be a path in the store or a file below one.
    fn parse(&self, roots: &[String]) -> Result<BTreeSet<&'a StorePath>, BuilderError> {
        let find = |root: &String| {
            let below = root.strip_prefix(self.store_dir.as_str())?.strip_prefix('/')?;
            let path = StorePath::parse(below.split('/').next()?).ok()?;
            self.infos.get_key_value(&path).map(|(path, _)| *path)
        };
        roots.iter().map(|root| find(root).ok_or_else(|| self.refuse(root, "is not in the closure of the inputs"))).collect()
    }

    fn closure(&self, roots: &BTreeSet<&'a StorePath>) -> Result<BTreeSet<&'a StorePath>, BuilderError> {
        let mut found = BTreeSet::new();
        let mut pending: Vec<&StorePath> = roots.iter().copied().collect();
        while let Some(path) = pending.pop() {
            let (path, info) =
                self.infos.get_key_value(path).ok_or_else(|| self.refuse(path.as_str(), "is not in the closure of the inputs"))?;
            if found.insert(*path) {
                pending.extend(&info.references);
            }
        }
        Ok(found)
    }

    /// Takes the bytes of so many paths from what is left.
    fn take(&self, path: &StorePath, paths: usize) -> Result<(), BuilderError> {
        let bytes = paths.saturating_mul(self.store_dir.as_str().len() + PATH_BYTES);
        let left = self.left_bytes.get().checked_sub(bytes);
        self.left_bytes.set(left.ok_or_else(|| self.refuse(path.as_str(), "makes all graphs of the derivation larger than 64 MiB"))?);
        Ok(())
    }

    fn refuse(&self, subject: &str, rule: &'static str) -> BuilderError {
        BuilderError::Graph { name: self.derivation.to_owned(), subject: subject.chars().take(300).collect(), rule }
    }
}
