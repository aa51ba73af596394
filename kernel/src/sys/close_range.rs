//! `close_range(2)` (Linux 5.9), which neither nix nor rustix offers.
//!
//! Used before a program is executed, so that it inherits its standard descriptors and nothing
//! else. Never call it where a descriptor above the given number is still owned by a value that
//! will be dropped: after it, only `execve` or `_exit` may follow.
#![allow(unsafe_code, reason = "close_range(2) has no safe wrapper in nix or rustix")]

use std::io;

/// Closes every descriptor from `first` on.
///
/// # Errors
/// The kernel is older than 5.9, or a seccomp filter forbids the call.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes three integers and touches no memory of ours. Descriptors that
    // values still own become invalid; callers execute a program or end right after it.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from 3 on but one.
///
/// # Errors
/// As [`close_from`].
pub fn close_all_but(kept: u32) -> io::Result<()> {
    close_from(kept.saturating_add(1))?;
    if kept > 3 {
        // SAFETY: as above.
        let result = unsafe { libc::syscall(libc::SYS_close_range, 3, kept - 1, 0u32) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Lets every descriptor from `first` on be closed by `execve` (Linux 5.11).
///
/// # Errors
/// The kernel is older than 5.11, or a seccomp filter forbids the call.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: as above; no descriptor becomes invalid here.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_a_range_without_descriptors_succeeds() {
        close_from(u32::MAX - 1).unwrap();
    }
}
