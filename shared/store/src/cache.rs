//! Recently read facts about paths, in memory, bounded.
//!
//! Holds only what is in the store: an absent path is looked up each time, so that one that was just published is seen at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kiln_wire::{PathInfo, StorePath};

/// Two generations: when the young one is full it becomes the old one, and what was only in the old one is forgotten.
#[derive(Debug)]
pub(crate) struct PathInfoCache {
    generations: Mutex<Generations>,
    generation_paths_max: usize,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<StorePath, Arc<PathInfo>>,
    old: HashMap<StorePath, Arc<PathInfo>>,
}

impl PathInfoCache {
    /// Makes a cache of at most `paths_max` paths.
    pub(crate) fn new(paths_max: usize) -> Self {
        Self { generations: Mutex::default(), generation_paths_max: (paths_max / 2).max(1) }
    }

    pub(crate) fn get(&self, path: &StorePath) -> Option<Arc<PathInfo>> {
        let mut generations = self.generations.lock().expect("no holder panics");
        if let Some(info) = generations.young.get(path) {
            return Some(Arc::clone(info));
        }
        let info = generations.old.remove(path)?;
        self.insert(&mut generations, Arc::clone(&info));
        Some(info)
    }

    pub(crate) fn put(&self, info: Arc<PathInfo>) {
        self.insert(&mut self.generations.lock().expect("no holder panics"), info);
    }

    pub(crate) fn forget(&self, path: &StorePath) {
        let mut generations = self.generations.lock().expect("no holder panics");
        generations.young.remove(path);
        generations.old.remove(path);
    }

    pub(crate) fn forget_all(&self) {
        *self.generations.lock().expect("no holder panics") = Generations::default();
    }

    fn insert(&self, generations: &mut Generations, info: Arc<PathInfo>) {
        if generations.young.len() >= self.generation_paths_max {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(info.path.clone(), info);
    }
}
