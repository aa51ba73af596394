//! `close_range(2)` (Linux 5.9), which neither nix nor rustix offers.

use std::io;

use super::raw;

/// Closes every descriptor from 3 on except one. For a process that was just forked and never returns
/// to the code that owns the others: no value that owns one may be used or dropped afterwards.
///
/// # Errors
/// The kernel is older than 5.9, or a seccomp filter forbids the call.
pub fn close_all_but(kept: u32) -> io::Result<()> {
    raw::close_range(kept.saturating_add(1).max(3), u32::MAX, 0)?;
    if kept > 3 {
        raw::close_range(3, kept - 1, 0)?;
    }
    Ok(())
}

/// Sets `FD_CLOEXEC` on every descriptor from `first` on, so that the next `execve` closes it (Linux
/// 5.11).
///
/// # Errors
/// The kernel is older than 5.11, or a seccomp filter forbids the call.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    Ok(raw::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_without_descriptors_is_no_error() {
        close_on_exec_from(u32::MAX - 1).unwrap();
    }
}
