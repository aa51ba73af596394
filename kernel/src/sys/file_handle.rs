//! Opens a folder again through another mount of its filesystem (`open_by_handle_at(2)`).
//!
//! A descriptor from a container leads nowhere above the root of the mount that it was opened through.
//! A descriptor that was opened through a mount of the daemon does.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::raw;

/// Opens a folder anew, below a mount of the same filesystem. Needs `CAP_DAC_READ_SEARCH`.
///
/// # Errors
/// ESTALE: it is gone, or of another filesystem. EOPNOTSUPP: the filesystem has no handles.
pub fn reopen(folder: BorrowedFd<'_>, mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    raw::open_folder(mount, &raw::name_to_handle(folder)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_filesystem_without_handles_is_refused() {
        let proc = std::fs::File::open("/proc/self/fd").unwrap();
        assert!(reopen(proc.as_fd(), proc.as_fd()).is_err());
    }
}
