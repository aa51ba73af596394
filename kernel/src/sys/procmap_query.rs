//! `PROCMAP_QUERY` of Linux 6.11: asks an open `/proc/<tid>/maps` for one mapping, without text.
#![allow(unsafe_code, reason = "an ioctl that no crate defines")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `struct procmap_query` of include/uapi/linux/fs.h. What is not asked for is zero.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name_address: u64,
    build_id_address: u64,
}

mod ioctls {
    nix::ioctl_readwrite!(procmap_query, b'f', 17, super::Query);
}

/// `PROCMAP_QUERY_VMA_READABLE`
pub const READABLE: u64 = 1;
/// `PROCMAP_QUERY_VMA_WRITABLE`
pub const WRITABLE: u64 = 2;

/// Returns the end of the mapping that covers an address and has these flags, or `None` if there is
/// none.
///
/// # Errors
/// ENOTTY before Linux 6.11; ESRCH when the memory is gone.
pub fn end_of_mapping(
    maps: BorrowedFd<'_>,
    address: u64,
    flags: u64,
) -> Result<Option<u64>, Errno> {
    let size = size_of::<Query>() as u64;
    let mut query = Query { size, flags, address, ..Query::default() };
    // SAFETY: the kernel reads and writes one structure of the size that it is told, which lives
    // until the call returns; both addresses in it are null and have the size 0.
    match unsafe { ioctls::procmap_query(maps.as_raw_fd(), &raw mut query) } {
        Ok(_) => Ok(Some(query.end)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
