//! Loop devices for image files that were opened as the caller.
//!
//! A device is made for the open file and never for a path. It is read-only if the mount is, and
//! frees itself when its last user, the mount, is gone (`LO_FLAGS_AUTOCLEAR`). Start reading at
//! [`attach`].

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use ambit_kernel::sys::loop_device::{configure, free_number};
use ambit_kernel::text;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::detached_root;
use crate::error::{Context, Error};

/// The major number of loop devices.
const LOOP: u32 = 7;
/// The most attempts: another process may take the device between `LOOP_CTL_GET_FREE` and
/// `LOOP_CONFIGURE`.
const TRIES: u32 = 64;

/// Makes a loop device for this file. The device is freed when it is closed and not mounted. Needs
/// the root of [`detached_root::enter`]; `control` is the host's `/dev/loop-control`.
pub(super) fn attach(
    control: &File,
    image: BorrowedFd<'_>,
    read_only: bool,
) -> Result<File, Error> {
    for _ in 0..TRIES {
        let number = free_number(control.as_fd())
            .context("no loop device is free: ioctl(LOOP_CTL_GET_FREE)")?;
        let path = node(number)?;
        let device = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_CLOEXEC)
            .open(&path)
            .context(format!("open of {path}"))?;
        match configure(device.as_fd(), image, read_only) {
            Ok(()) => return Ok(device),
            Err(Errno::BUSY) => {}
            Err(errno) => {
                return Err(Error::new(errno, format!("ioctl(LOOP_CONFIGURE) of {path}: {errno}")));
            }
        }
    }
    Err(Error::new(Errno::BUSY, "other processes took every free loop device"))
}

/// Opens every loop device that has a backing file, read-only, and returns each with its name.
/// Needs the root of [`detached_root::enter_with_proc`].
pub(super) fn all() -> Result<Vec<(String, File)>, Error> {
    // The file lists devices whose size is not 0. The minor number is not always the number in the
    // name.
    let text = std::fs::read("/proc/partitions").context("read of /proc/partitions")?;
    let mut all = Vec::new();
    for minor in minors(&text) {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(node(minor)?);
        // A device that has been removed meanwhile is left out.
        all.extend(file.map(|file| (format!("/dev/loop{minor}"), file)));
    }
    Ok(all)
}

/// Parses the minor numbers of loop devices, without those of their partitions.
fn minors(partitions: &[u8]) -> impl Iterator<Item = u32> {
    partitions.split(|&byte| byte == b'\n').filter_map(|line| {
        let name = line.rsplit(|&byte| byte == b' ').next()?.strip_prefix(b"loop")?;
        let mut numbers = text::numbers::<u32>(line);
        let (major, minor) = (numbers.next()?, numbers.next()?);
        (major == LOOP && name.iter().all(u8::is_ascii_digit)).then_some(minor)
    })
}

/// Returns the path of a device node in the new root, and makes the node if needed.
fn node(minor: u32) -> Result<String, Error> {
    let path = format!("/dev/loop{minor}");
    if !std::path::Path::new(&path).exists() {
        detached_root::node(&path, FileType::BlockDevice, rustix::fs::makedev(LOOP, minor))?;
    }
    Ok(path)
}
