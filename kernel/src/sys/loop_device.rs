//! The ioctls of loop devices, of which nix and rustix have none.
//!
//! `LOOP_CONFIGURE` (Linux 5.8) sets file and flags in one step, so that no half-made device is
//! seen by anybody.
#![allow(unsafe_code, reason = "LOOP_* ioctls have no safe wrapper in nix or rustix")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const BLKROGET: libc::Ioctl = 0x125e;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// The file name that [`configure`] gives a device: the kernel keeps it and looks at nothing of it.
const MARK: &[u8] = b"ambit";

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const NO_INFO: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

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

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

/// The number of a loop device that nobody uses at the moment.
///
/// # Errors
/// There are no more, or `control` is not `/dev/loop-control`.
pub fn free_number(control: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: the request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    Errno::result(number).map(i32::cast_unsigned)
}

/// Puts a file behind a loop device. The device lets go of it when its last user does.
///
/// # Errors
/// `EBUSY`: somebody else took the device. `EINVAL`: not a file that can be behind one.
pub fn configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    read_only: bool,
) -> Result<(), Errno> {
    let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let mut info = Info { flags, ..NO_INFO };
    info.file_name[..MARK.len()].copy_from_slice(MARK);
    let fd = file.as_raw_fd().cast_unsigned();
    let config = Config { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the structure lives through the call and has the size that the kernel reads; it
    // writes nothing.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    Errno::result(result).map(drop)
}

/// Returns what is behind a device.
///
/// # Errors
/// `ENXIO`: nothing. `ENOTTY`: no loop device.
pub fn status(device: BorrowedFd<'_>) -> Result<Status, Errno> {
    let mut info = NO_INFO;
    // SAFETY: the kernel writes one `loop_info64`, for which there is room.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    Errno::result(result)?;
    Ok(Status {
        device: info.device,
        inode: info.inode,
        whole: info.offset == 0 && info.size_limit == 0,
        read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
        ours: info.file_name.split(|&byte| byte == 0).next() == Some(MARK),
    })
}

/// True if a block device cannot be written, by whatever has opened it.
#[must_use]
pub fn is_read_only(device: BorrowedFd<'_>) -> bool {
    let mut read_only: libc::c_int = 0;
    // SAFETY: the kernel writes one int, for which there is room.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &raw mut read_only) };
    result == 0 && read_only != 0
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
