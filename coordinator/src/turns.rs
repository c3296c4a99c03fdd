//! Reports of attempts that made the same path take turns: the second is held against what the first has committed.
//!
//! Memory of the leader only. A new leader takes no turn before it has applied what its predecessor committed.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use kiln_wire::StorePath;
use tokio::sync::{Mutex, MutexGuard};

/// Whose turn it is. Paths share places, so that there is no list to keep.
#[derive(Debug)]
pub(crate) struct Turns {
    places: Box<[Mutex<()>]>,
    hasher: RandomState,
}

impl Default for Turns {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| Mutex::new(())).collect(), hasher: RandomState::new() }
    }
}

impl Turns {
    /// Waits until nobody has a turn at any of the paths. The turn lasts as long as what is returned.
    pub(crate) async fn take(&self, paths: impl Iterator<Item = &StorePath>) -> Vec<MutexGuard<'_, ()>> {
        // In their order, as everybody takes them: none waits for one that waits for it.
        let places: BTreeSet<usize> = paths.map(|path| self.place(path)).collect();
        let mut turns = Vec::with_capacity(places.len());
        for place in places {
            turns.push(self.places[place].lock().await);
        }
        turns
    }

    fn place(&self, path: &StorePath) -> usize {
        usize::try_from(self.hasher.hash_one(path) % PLACES as u64).expect("less than the places")
    }
}

/// Far more than reports are under way at a time: two that have nothing to do with each other seldom wait.
const PLACES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn path(letter: char) -> StorePath {
        StorePath::parse(&format!("{}-x", letter.to_string().repeat(32))).expect("a path")
    }

    #[test]
    fn who_made_the_same_path_waits_and_who_made_another_does_not() {
        let turns = Turns::default();
        let mut context = Context::from_waker(Waker::noop());
        let both = [path('a'), path('b')];
        let Poll::Ready(first) = pin!(turns.take(both.iter())).poll(&mut context) else { panic!("nobody has a turn") };
        let twin = [path('b')];
        let mut second = pin!(turns.take(twin.iter()));
        assert!(second.as_mut().poll(&mut context).is_pending());
        let letters = "cdfghijklmnpqrsvwxyz".chars().map(path);
        let apart: Vec<StorePath> =
            letters.filter(|other| both.iter().all(|path| turns.place(path) != turns.place(other))).take(1).collect();
        assert!(pin!(turns.take(apart.iter())).poll(&mut context).is_ready());
        drop(first);
        assert!(second.poll(&mut context).is_ready());
    }
}
