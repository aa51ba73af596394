//! The errno of an error, its name and its text.
//!
//! The type is rustix's, which keeps every number; that of nix knows only those with a name.

use std::io;

use rustix::io::Errno;

/// Returns the errno of an error of nix or std; EIO if it has none.
pub fn to_errno(error: impl Into<io::Error>) -> Errno {
    Errno::from_io_error(&error.into()).unwrap_or(Errno::IO)
}

/// Returns the name that the kernel's headers define, such as `EPERM`.
pub fn name(errno: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno.raw_os_error()))
}

/// Returns the text of strerror(3), without the number.
pub fn description(errno: Errno) -> &'static str {
    nix::errno::Errno::from_raw(errno.raw_os_error()).desc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_number_and_its_name() {
        assert_eq!(to_errno(nix::errno::Errno::EACCES), Errno::ACCESS);
        assert_eq!(to_errno(io::Error::from_raw_os_error(524)).raw_os_error(), 524);
        assert_eq!(name(Errno::ACCESS), "EACCES");
        assert_eq!(description(Errno::ACCESS), "Permission denied");
    }

    #[test]
    fn an_error_without_an_errno_is_eio() {
        for error in [io::Error::other("text"), io::Error::from_raw_os_error(0)] {
            assert_eq!(to_errno(error), Errno::IO);
        }
        assert_eq!(to_errno(nix::errno::Errno::UnknownErrno), Errno::IO);
    }
}
