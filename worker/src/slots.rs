//! Build users: each running build has one of its own, so that no build can touch another's processes or files.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The build users of one worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slots {
    free: Arc<Mutex<BTreeSet<u32>>>,
    permits: Arc<Semaphore>,
}

/// A build user, given back when this is dropped.
#[derive(Debug)]
pub struct Slot {
    number: u32,
    free: Arc<Mutex<BTreeSet<u32>>>,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// The users `first` to `first + count - 1` of the machine's pool.
    pub fn new(first: u32, count: u32) -> Self {
        let permits = Arc::new(Semaphore::new(usize::try_from(count).unwrap_or(1)));
        Self { free: Arc::new(Mutex::new((first..first + count).collect())), permits }
    }

    /// Takes a user; waits while a build that was told to stop still has it.
    pub async fn take(&self) -> Slot {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let number = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_first().expect("there is a user for each permit");
        Slot { number, free: self.free.clone(), _permit: permit }
    }
}

impl Slot {
    /// Returns the user's number in the machine's pool.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Slot {
    // Runs before the permit is released, so that whoever gets the permit finds the number.
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).insert(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_two_builds_have_the_same_user() {
        let slots = Slots::new(5, 2);
        let (a, b) = (slots.take().await, slots.take().await);
        assert_ne!(a.number(), b.number());
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take().await.number() }
        });
        let freed = b.number();
        drop(b);
        assert_eq!(waiting.await.expect("no panic"), freed);
    }
}
