//! The ioctls of loop devices, of which nix and rustix have none.
//!
//! `LOOP_CONFIGURE` (Linux 5.8) sets file and flags in one step, so that a device without its flags is
//! never visible.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::raw::{self, BLKROGET, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LOOP_GET_STATUS64};
use super::uapi::{LoopConfig, LoopInfo};

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// The file name that [`configure`] gives a device. The kernel keeps it and does not use it.
const MARK: &[u8] = b"ambit";

/// What is behind a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The device of its file, as `st_dev`.
    pub device: u64,
    /// The inode of its file.
    pub inode: u64,
    /// True if it is all of the file.
    pub whole: bool,
    /// True if it cannot be written.
    pub read_only: bool,
    /// True if [`configure`] made it.
    pub ours: bool,
}

/// Returns the number of a loop device that is not in use at the moment.
///
/// # Errors
/// There are no more, or `control` is not `/dev/loop-control`.
pub fn free_number(control: BorrowedFd<'_>) -> Result<u32, Errno> {
    raw::ioctl(control, &LOOP_CTL_GET_FREE, &mut ()).map(i32::cast_unsigned)
}

/// Puts a file behind a loop device. The device lets go of it when its last user does.
///
/// # Errors
/// `EBUSY`: another process took the device. `EINVAL`: the file cannot be behind one. `ENOTTY`: no
/// loop device.
pub fn configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    read_only: bool,
) -> Result<(), Errno> {
    let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let mut info = LoopInfo { flags, ..LoopInfo::EMPTY };
    info.file_name[..MARK.len()].copy_from_slice(MARK);
    let fd = file.as_raw_fd().cast_unsigned();
    let mut config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    raw::ioctl(device, &LOOP_CONFIGURE, &mut config).map(drop)
}

/// Returns what is behind a device.
///
/// # Errors
/// `ENXIO`: nothing. `ENOTTY`: no loop device.
pub fn status(device: BorrowedFd<'_>) -> Result<Status, Errno> {
    let mut info = LoopInfo::EMPTY;
    raw::ioctl(device, &LOOP_GET_STATUS64, &mut info)?;
    Ok(Status {
        device: info.device,
        inode: info.inode,
        whole: info.offset == 0 && info.size_limit == 0,
        read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
        ours: info.file_name.split(|&byte| byte == 0).next() == Some(MARK),
    })
}

/// True if a block device cannot be written, whichever process has opened it.
pub fn is_read_only(device: BorrowedFd<'_>) -> bool {
    let mut read_only = 0;
    raw::ioctl(device, &BLKROGET, &mut read_only).is_ok() && read_only != 0
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_loop_device_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(configure(file.as_fd(), file.as_fd(), true).is_err());
        assert!(free_number(file.as_fd()).is_err());
        assert!(status(file.as_fd()).is_err() && !is_read_only(file.as_fd()));
    }
}
