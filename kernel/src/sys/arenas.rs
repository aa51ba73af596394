//! Keeps the C library's allocator from looking for the number of processors.
//!
//! glibc reads `/sys/devices/system/cpu/online` once there are more heaps (arenas) than a number that can be
//! set (`arena_get2`). Where the overlay lies over that file the threads that serve it would wait for
//! each other. A process has fewer threads than the number that is set here.
#![allow(unsafe_code, reason = "mallopt(3) has no safe form")]

/// Has glibc make a heap for each thread without counting processors. Other C libraries have one heap.
pub fn limit() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes two numbers and no pointer, and takes the allocator's own lock.
        let set = unsafe { libc::mallopt(libc::M_ARENA_TEST, i32::MAX) };
        if set == 0 {
            tracing::debug!("the number of heaps cannot be set: mallopt(M_ARENA_TEST)");
        }
    }
}
