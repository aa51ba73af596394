//! Settings of the C library's allocator: no look for the number of processors, and memory given back
//! after a burst and after large allocations.
//!
//! glibc reads `/sys/devices/system/cpu/online` when it has more heaps (arenas) than a number that can
//! be set (`arena_get2`). Where the overlay covers that file, the threads that serve it would wait for
//! each other. A process has fewer threads than the number that is set here.
//!
//! glibc raises the size from which an allocation is mapped by itself whenever such a one is freed.
//! fuser's buffer of 16 MiB for INIT would then stay in the heap, and be cleared and so present for the
//! next connection. A fixed size ends that.

use std::sync::Once;

use super::raw;

/// Gives the kernel back the free memory of all heaps. Takes milliseconds. Other C libraries do so by
/// themselves.
pub fn trim() {
    raw::trim_heaps();
}

/// The size from which an allocation is mapped by itself, in bytes.
const MAPPED: i32 = 1 << 20;

/// Has glibc make a heap for each thread without counting processors, and map large allocations by
/// themselves. Other C libraries have one heap, and always do the latter. Call it before the first
/// thread is started; later calls do nothing.
pub fn limit() {
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| {
        if let Err(error) = raw::set_heaps(MAPPED) {
            tracing::debug!("the options of heaps cannot be set: mallopt: {error}");
        }
    });
}
