//! Settings of the C library's allocator: no look for the number of processors, and memory given back
//! after a burst.
//!
//! glibc reads `/sys/devices/system/cpu/online` when it has more heaps (arenas) than a number that can
//! be set (`arena_get2`). Where the overlay covers that file, the threads that serve it would wait for
//! each other. A process has fewer threads than the number that is set here.

use std::sync::Once;

use super::raw;

/// Gives the kernel back the free memory of all heaps. Takes milliseconds. Other C libraries do so by
/// themselves.
pub fn trim() {
    raw::trim_heaps();
}

/// Has glibc make a heap for each thread without counting processors. Other C libraries have one heap.
/// Call it before the first thread is started; later calls do nothing.
pub fn limit() {
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| {
        if let Err(error) = raw::limit_arena_test() {
            tracing::debug!("the number of heaps cannot be set: mallopt(M_ARENA_TEST): {error}");
        }
    });
}
