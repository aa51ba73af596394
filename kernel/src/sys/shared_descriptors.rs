//! Whether two threads have the same descriptors (`kcmp(2)`, `CONFIG_KCMP`).
#![allow(unsafe_code, reason = "kcmp(2) has no wrapper in nix or rustix")]

use nix::errno::Errno;

// include/uapi/linux/kcmp.h
const KCMP_FILES: i32 = 2;

/// Do these threads share their table of descriptors?
///
/// # Errors
/// One of them is gone, or the kernel cannot tell (ENOSYS).
pub fn shared(one: i32, other: i32) -> Result<bool, Errno> {
    // SAFETY: plain numbers.
    let compared = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    Errno::result(compared).map(|order| order == 0)
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
