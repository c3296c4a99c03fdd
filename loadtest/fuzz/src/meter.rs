//! How much heap a function holds at a time: an allocator that counts, by thread, so that tests may run beside each other.
//!
//! libFuzzer's own bound on allocations needs a sanitizer, which stable compilers do not have. Memory of C libraries is not counted;
//! for that libFuzzer bounds the process's resident set.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Runs `act` and returns, beside its result, the most bytes that it held at a time on this thread.
pub(crate) fn measure<T>(act: impl FnOnce() -> T) -> (T, usize) {
    LIVE_BYTES.set(0);
    PEAK_BYTES.set(0);
    let made = act();
    (made, usize::try_from(PEAK_BYTES.get()).expect("a peak starts at zero and grows"))
}

thread_local! {
    /// Negative where the thread freed what it or another had made before.
    static LIVE_BYTES: Cell<i64> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<i64> = const { Cell::new(0) };
}

struct Meter;

#[global_allocator]
static METER: Meter = Meter;

impl Meter {
    fn count(made_bytes: usize, freed_bytes: usize) {
        // No allocation is larger than `isize::MAX`.
        let live = LIVE_BYTES.get() + made_bytes as i64 - freed_bytes as i64;
        LIVE_BYTES.set(live);
        PEAK_BYTES.set(PEAK_BYTES.get().max(live));
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing, as the cells are constants without drop.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: the caller keeps the rules of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        Self::count(new_bytes, layout.size());
        // SAFETY: the caller keeps the rules of `realloc`.
        unsafe { System.realloc(old, layout, new_bytes) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        Self::count(0, layout.size());
        // SAFETY: the caller keeps the rules of `dealloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_counts_what_is_held_together_and_not_what_was_freed_before() {
        let apart = || [1000, 2000].map(|bytes| Vec::<u8>::with_capacity(bytes).capacity());
        let together = || [1000, 2000].map(Vec::<u8>::with_capacity);
        assert_eq!(measure(apart).1, 2000);
        assert_eq!(measure(together).1, 3000);
        assert_eq!(measure(|| ()).1, 0);
    }
}
