//! Which paths are published, in memory: a submission of a hundred thousand derivations asks the store for none of those that it lacks.
//!
//! Learnt once from the store's own list, kept by whoever publishes and deletes, forgotten whole. Invariant: while it answers, it holds
//! every path that was published here since learning began, and all that were listed. What another coordinator publishes afterwards, which
//! only one can that leads no more, it lacks: an answer of "not there" may be late, one of "there" is looked up.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::TryStreamExt;
use kiln_nix::hash::parse_nix32;
use kiln_wire::StorePath;
use kiln_wire::limits::PATHS_KNOWN_MAX;

use crate::error::StoreError;
use crate::key;
use crate::store::Store;

/// The published paths, or what is known of them so far.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts what began, so that a list of before counts for nothing.
    turn: u64,
    stage: Stage,
}

#[derive(Debug, Default)]
enum Stage {
    /// Nobody learns, or there is too much to know.
    #[default]
    Unknown,
    /// The list is being read; this was published meanwhile.
    Learning(HashSet<Part>),
    /// All of it.
    Whole(HashSet<Part>),
}

/// A hash part, decoded.
type Part = [u8; 20];

impl Known {
    /// Forgets everything.
    pub(crate) fn forget_all(&self) {
        let mut state = self.lock();
        state.turn += 1;
        state.stage = Stage::Unknown;
    }

    /// Notes that a path is published.
    pub(crate) fn published(&self, path: &StorePath) {
        let Some(part) = part(path.hash_part()) else { return };
        let mut state = self.lock();
        if let Stage::Learning(parts) | Stage::Whole(parts) = &mut state.stage {
            parts.insert(part);
            if parts.len() > PATHS_KNOWN_MAX {
                tracing::warn!(
                    paths_max = PATHS_KNOWN_MAX,
                    "too many paths are published to know all: each is asked for until another leads"
                );
                state.stage = Stage::Unknown;
            }
        }
    }

    /// Notes that a path was deleted.
    pub(crate) fn deleted(&self, path: &StorePath) {
        if let (Stage::Whole(parts), Some(part)) = (&mut self.lock().stage, part(path.hash_part())) {
            parts.remove(&part);
        }
    }

    fn turn(&self) -> u64 {
        self.lock().turn
    }

    /// Returns whether a path is known not to be published.
    pub(crate) fn lacks(&self, path: &StorePath) -> bool {
        match (&self.lock().stage, part(path.hash_part())) {
            (Stage::Whole(parts), Some(part)) => !parts.contains(&part),
            _ => false,
        }
    }

    fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.turn += 1;
        state.stage = Stage::Learning(HashSet::new());
        state.turn
    }

    /// Ends learning, unless it began anew or was given up since. Returns how many paths are known then; none if they are too many.
    fn end(&self, turn: u64, listed: HashSet<Part>) -> Option<usize> {
        let mut state = self.lock();
        if state.turn != turn {
            return None;
        }
        let Stage::Learning(published) = std::mem::take(&mut state.stage) else { return None };
        let mut all = listed;
        all.extend(published);
        let count = all.len();
        if count > PATHS_KNOWN_MAX {
            tracing::warn!(paths_max = PATHS_KNOWN_MAX, "too many paths are published to know all: each is asked for");
            return None;
        }
        state.stage = Stage::Whole(all);
        Some(count)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Reads the list of everything that the store holds, to know from then on which paths are not published. Only who alone publishes may
    /// do this, and calls [`Store::forget_published`] when it does so no more. Returns how many paths are published; `None` if that was called
    /// meanwhile, or there are more than [`PATHS_KNOWN_MAX`]: then each is asked for as before.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails; nothing is known then.
    pub async fn learn_published(&self) -> Result<Option<usize>, StoreError> {
        let turn = self.inner.known.begin();
        let mut objects = self.inner.objects.walk(None);
        let mut listed = HashSet::new();
        while let Some(object) = objects.try_next().await? {
            listed.extend(key::hash_part_of(&object.location).and_then(part));
            // Too many to know, or nobody wants to know any more.
            if listed.len() > PATHS_KNOWN_MAX || self.inner.known.turn() != turn {
                break;
            }
        }
        Ok(self.inner.known.end(turn, listed))
    }

    /// Forgets which paths are published: others publish from here on.
    pub fn forget_published(&self) {
        self.inner.known.forget_all();
    }

    /// As [`Store::missing`], and asks for none of those that are known not to be published. One that a coordinator published which led
    /// before may count as missing here: good for what is built then, not for what a client is told.
    ///
    /// # Errors
    /// As [`Store::path_info`].
    pub async fn unpublished(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, StoreError> {
        let lacking = |path: &StorePath| self.inner.known.lacks(path);
        let (mut lacking, asked): (Vec<StorePath>, Vec<StorePath>) = paths.iter().cloned().partition(lacking);
        lacking.extend(self.missing(&asked).await?);
        Ok(lacking)
    }
}

fn part(hash_part: &str) -> Option<Part> {
    parse_nix32(hash_part).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(letter: &str) -> StorePath {
        StorePath::parse(&format!("{}-x", letter.repeat(32))).expect("a path")
    }

    fn parts(letters: &[&str]) -> HashSet<Part> {
        letters.iter().filter_map(|letter| part(path(letter).hash_part())).collect()
    }

    #[test]
    fn nothing_is_lacking_before_everything_is_known() {
        let known = Known::default();
        assert!(!known.lacks(&path("a")));
        let turn = known.begin();
        known.published(&path("b"));
        assert!(!known.lacks(&path("a")));
        assert_eq!(known.end(turn, parts(&["c"])), Some(2));
        let lacking = ["a", "b", "c"].map(|letter| known.lacks(&path(letter)));
        assert_eq!(lacking, [true, false, false], "what was published while the list was read counts");
        known.published(&path("a"));
        assert!(!known.lacks(&path("a")));
        known.deleted(&path("a"));
        assert!(known.lacks(&path("a")));
        known.forget_all();
        assert!(!known.lacks(&path("d")));
    }

    #[test]
    fn a_list_of_before_counts_for_nothing() {
        let known = Known::default();
        let turn = known.begin();
        known.forget_all();
        assert_eq!(known.end(turn, parts(&["c"])), None);
        assert!(!known.lacks(&path("a")));
        let (early, late) = (known.begin(), known.begin());
        assert_eq!(known.end(early, parts(&[])), None);
        assert!(!known.lacks(&path("a")));
        assert_eq!(known.end(late, parts(&[])), Some(0));
        assert!(known.lacks(&path("a")));
    }
}
