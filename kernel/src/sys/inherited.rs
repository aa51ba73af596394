//! Descriptors that came with `execve`, by number: the one way to own them.

use std::os::fd::{OwnedFd, RawFd};

use super::raw;

/// Takes a descriptor that this process was started with, and closes it on the next `execve`.
///
/// Returns `None` for the standard descriptors, for a number that is not open, and for a descriptor
/// that is close-on-exec: it was taken before, or opened by this process.
#[must_use]
pub fn take(number: RawFd) -> Option<OwnedFd> {
    raw::take_inherited(number)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use rustix::io::{FdFlags, fcntl_setfd};

    use super::*;

    #[test]
    fn a_descriptor_with_an_owner_is_not_taken() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(take(file.as_raw_fd()).is_none());
        assert!(take(-1).is_none() && take(0).is_none() && take(i32::MAX).is_none());
    }

    #[test]
    fn a_descriptor_is_taken_once() {
        let file = std::fs::File::open("/dev/null").unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let number = file.into_raw_fd();
        let taken = take(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(take(number).is_none());
    }
}
