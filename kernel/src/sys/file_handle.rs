//! Another descriptor of a file, by way of another mount of its filesystem (`open_by_handle_at(2)`).
//!
//! A descriptor from a container leads nowhere above the root of the mount that it was opened through;
//! one by our own mount does.
#![allow(unsafe_code, reason = "no crate has file handles")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Handles of control groups have eight bytes.
const LONGEST: usize = 32;

/// `struct file_handle`.
#[repr(C)]
struct Handle {
    length: u32,
    kind: i32,
    bytes: [u8; LONGEST],
}

/// Opens a folder anew, below a mount of the same filesystem. Needs `CAP_DAC_READ_SEARCH`.
///
/// # Errors
/// It is of another filesystem (ESTALE) or of one without handles (EOPNOTSUPP), or it is gone.
pub fn reopen(folder: BorrowedFd<'_>, mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut handle = Handle { length: LONGEST as u32, kind: 0, bytes: [0; LONGEST] };
    let mut ignored = 0;
    // SAFETY: an empty path; the kernel writes no more bytes than `length` says there are, and one
    // number.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            folder.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut ignored,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(named)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the kernel reads the handle that it wrote.
    let opened = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut handle, flags)
    };
    let fd = RawFd::try_from(Errno::result(opened)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
