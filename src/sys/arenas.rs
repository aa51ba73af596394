//! How many heaps (arenas) the C library's allocator may have.
//!
//! glibc decides when many threads allocate for the first time, and reads
//! `/sys/devices/system/cpu/online` for it (`arena_get2`). Where the overlay lies over that file the threads
//! that serve it would wait for each other. A limit that is set before is not looked for.
#![allow(unsafe_code, reason = "mallopt(3) has no safe form")]

/// Sets the limit that glibc would choose. Other C libraries have one heap.
pub fn limit() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let most = i32::try_from(processors.saturating_mul(8)).unwrap_or(i32::MAX);
        // SAFETY: it takes two numbers and no pointer, and takes the allocator's own lock.
        let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, most) };
        if set == 0 {
            tracing::debug!("the number of heaps cannot be limited: mallopt");
        }
    }
}
