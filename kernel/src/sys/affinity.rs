//! sched_getaffinity(2) with the kernel's own length rules, and staying on one processor.
//!
//! nix and rustix fix the mask at 1024 processors, which larger machines refuse with EINVAL, and
//! hide how many bytes the kernel wrote, which callers of the raw call depend on.
#![allow(unsafe_code, reason = "two raw system calls")]

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

/// Room for 8192 processors.
const WORDS: usize = 128;

/// Where the calling thread runs: wherever it may, or on one processor for a while. Those who take
/// turns are quicker on one: to wake another processor takes longer than what there is to do.
#[derive(Debug)]
pub struct Stay {
    /// Empty: not known, and not changed.
    anywhere: Vec<u64>,
    on: Option<usize>,
}

impl Stay {
    /// Where it runs now.
    #[must_use]
    pub fn anywhere() -> Self {
        let mut mask = [0; WORDS];
        let written = sched_getaffinity(0, &mut mask).unwrap_or(0);
        Self { anywhere: mask[..written / size_of::<u64>()].to_vec(), on: None }
    }

    /// Only there, or anywhere again. A processor that it may not use is none.
    pub fn on(&mut self, processor: Option<usize>) {
        if self.on == processor {
            return;
        }
        self.on = processor;
        let one = processor.filter(|&number| number < self.anywhere.len() * 64).map(|number| {
            let mut mask = vec![0; self.anywhere.len()];
            mask[number / 64] = 1 << (number % 64);
            mask
        });
        if one.is_none_or(|one| sched_setaffinity(&one).is_err()) {
            let _ = sched_setaffinity(&self.anywhere);
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.on(None);
    }
}

/// Has the calling thread run on these processors alone.
fn sched_setaffinity(mask: &[u64]) -> Result<(), Errno> {
    // SAFETY: the kernel reads so many bytes of the slice.
    let set =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) };
    Errno::result(set).map(drop)
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
    fn it_stays_on_one_processor_until_it_may_go() {
        let allowed = || {
            let mut mask = [0u64; WORDS];
            sched_getaffinity(0, &mut mask).unwrap();
            mask.to_vec()
        };
        let before = allowed();
        let mut stay = Stay::anywhere();
        let here = rustix::thread::sched_getcpu();
        stay.on(Some(here));
        assert_eq!(allowed().iter().map(|word| word.count_ones()).sum::<u32>(), 1);
        assert_eq!(allowed()[here / 64], 1 << (here % 64));
        stay.on(Some(5000));
        assert_eq!(allowed(), before, "there is no such processor");
        stay.on(Some(here));
        drop(stay);
        assert_eq!(allowed(), before);
    }

    #[test]
    fn nobody_has_a_negative_id() {
        assert_eq!(sched_getaffinity(-1, &mut [0u64; 128]), Err(Errno::ESRCH));
    }
}
