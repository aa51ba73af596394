//! `close_range(2)` (Linux 5.9), which neither nix nor rustix offers.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{raw, remount};

/// Closes every descriptor from 3 on except one. For a process that was just forked and never returns
/// to the code that owns the others: no value that owns one may be used or dropped afterwards.
///
/// # Errors
/// The kernel is older than 5.9, or a seccomp filter forbids the call, and there is no `/proc`.
pub fn close_all_but(kept: u32) -> Result<(), Errno> {
    match raw::close_range(kept.saturating_add(1).max(3), u32::MAX, 0) {
        Err(Errno::NOSYS) => {
            for number in open_from(remount::own_proc()?, 3)? {
                if u32::try_from(number) != Ok(kept) {
                    raw::close(number);
                }
            }
            return Ok(());
        }
        closed => closed?,
    }
    if kept > 3 { raw::close_range(3, kept - 1, 0) } else { Ok(()) }
}

/// Sets `FD_CLOEXEC` on every descriptor from `first` on, so that the next `execve` closes it. Before
/// Linux 5.11 it looks them up in `proc`, a procfs in which this process is `self`.
///
/// # Errors
/// The kernel is older than 5.11, or a seccomp filter forbids the call, and `proc` is no procfs.
pub fn close_on_exec_from(first: u32, proc: impl AsFd) -> Result<(), Errno> {
    match raw::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) {
        // EINVAL: Linux 5.9 has the call without the flag.
        Err(Errno::NOSYS | Errno::INVAL) => {
            open_from(proc, first)?.into_iter().for_each(raw::set_close_on_exec);
            Ok(())
        }
        set => set,
    }
}

/// True if the kernel can set `FD_CLOEXEC` on a range (Linux 5.11).
pub fn has_close_on_exec() -> bool {
    raw::close_range(u32::MAX - 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC).is_ok()
}

/// Returns the numbers of the open descriptors from `first` on.
fn open_from(proc: impl AsFd, first: u32) -> Result<Vec<RawFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(proc, "self/fd", flags, Mode::empty())?;
    let own = folder.as_raw_fd();
    let mut numbers = Vec::new();
    for entry in Dir::new(folder)? {
        let number = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
        let is_meant = |number: &RawFd| u32::try_from(*number).is_ok_and(|number| number >= first);
        numbers.extend(number.filter(is_meant).filter(|&number| number != own));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_without_descriptors_is_no_error() {
        close_on_exec_from(u32::MAX - 1, remount::own_proc().unwrap()).unwrap();
    }

    #[test]
    fn the_descriptors_of_this_process_are_found() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let number = reader.as_raw_fd();
        let from = |first: i32| {
            open_from(remount::own_proc().unwrap(), u32::try_from(first).unwrap()).unwrap()
        };
        assert!(from(3).contains(&number));
        assert!(!from(number + 1).contains(&number));
    }
}
