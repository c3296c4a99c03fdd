//! Work that takes a processor long enough to matter.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does work while other tasks of this thread move elsewhere. A runtime of one thread has nowhere to move them to.
pub(crate) fn heavy<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}
