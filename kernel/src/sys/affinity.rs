//! sched_getaffinity(2) with the kernel's own length rules.
//!
//! nix and rustix fix the mask at 1024 processors, which larger machines refuse with EINVAL, and
//! hide how many bytes the kernel wrote, which callers of the raw call depend on.

use nix::errno::Errno;

use super::raw;

/// Fills `mask` with the processors that a thread may run on and returns how many bytes the
/// kernel wrote. The rest of `mask` stays as it is.
///
/// # Errors
/// ESRCH: there is no such thread. EINVAL: the mask is too short for this machine.
pub fn sched_getaffinity(tid: i32, mask: &mut [u64]) -> Result<usize, Errno> {
    raw::sched_getaffinity(tid, mask)
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
    fn a_negative_id_is_esrch() {
        assert_eq!(sched_getaffinity(-1, &mut [0u64; 128]), Err(Errno::ESRCH));
    }
}
