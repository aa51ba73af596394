//! Whether there is a setxattrat(2), Linux 6.13.
#![allow(unsafe_code, reason = "one raw system call")]

use std::sync::OnceLock;

use nix::errno::Errno;

/// Has this kernel the call of this number? The call itself is one that every kernel refuses.
#[must_use]
pub fn exists(number: i32) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let nothing = std::ptr::null::<u8>();
        // SAFETY: flags and size that do not exist; the kernel follows no pointer.
        let result = unsafe {
            libc::syscall(number.into(), -1, nothing, u32::MAX, nothing, nothing, 0usize)
        };
        Errno::result(result) == Err(Errno::EINVAL)
    })
}
