//! Whether two threads have the same descriptors (`kcmp(2)`, `CONFIG_KCMP`).

use nix::errno::Errno;

use super::raw;

/// True if these threads share their table of descriptors.
///
/// # Errors
/// ESRCH: one of them is gone. ENOSYS: the kernel has no kcmp(2).
pub fn shared(one: i32, other: i32) -> Result<bool, Errno> {
    raw::kcmp_files(one, other).map(|order| order == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_and_processes_do_not() {
        let this = std::process::id().cast_signed();
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        match shared(this, thread) {
            Ok(shared) => assert!(shared),
            Err(errno) => assert_eq!(errno, Errno::ENOSYS, "a kernel without it"),
        }
    }
}
