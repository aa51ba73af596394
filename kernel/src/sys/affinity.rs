//! sched_getaffinity(2) with the kernel's own length rules.
//!
//! nix and rustix fix the mask at 1024 processors, which larger machines refuse with EINVAL, and
//! hide how many bytes the kernel wrote, which callers of the raw call depend on.
#![allow(unsafe_code, reason = "a raw system call")]

use nix::errno::Errno;

/// Fills `mask` with the processors that a thread may run on and returns how many bytes the
/// kernel wrote. The rest of `mask` is left alone.
///
/// # Errors
/// ESRCH without such a thread, EINVAL when the mask is too short for this machine.
pub fn sched_getaffinity(tid: i32, mask: &mut [u64]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most the length given, which is that of the slice, and any
    // bytes are valid for u64.
    let written = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            tid,
            std::mem::size_of_val(mask),
            mask.as_mut_ptr(),
        )
    };
    Errno::result(written).map(|written| usize::try_from(written).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_run_somewhere() {
        let mut mask = [0u64; 128];
        let written = sched_getaffinity(0, &mut mask).unwrap();
        assert_eq!(written % 8, 0);
        assert!(mask.iter().any(|&word| word != 0));
        assert!(mask[written / 8..].iter().all(|&word| word == 0));
    }

    #[test]
    fn nobody_has_a_negative_id() {
        assert_eq!(sched_getaffinity(-1, &mut [0u64; 128]), Err(Errno::ESRCH));
    }
}
