//! `PROCMAP_QUERY` of Linux 6.11: asks an open `/proc/<tid>/maps` for one mapping, without text.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::raw::{self, MappingQuery, PROCMAP_QUERY};

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
    let mut query = MappingQuery::new(address, flags);
    match raw::ioctl(maps, &PROCMAP_QUERY, &mut query) {
        Ok(_) => Ok(Some(query.end())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_mapping_of_a_variable_ends_above_it() {
        let maps = File::open("/proc/self/maps").unwrap();
        let here = 0u64;
        let address = std::ptr::from_ref(&here).addr() as u64;
        match end_of_mapping(maps.as_fd(), address, READABLE | WRITABLE) {
            Ok(end) => assert!(end.unwrap() > address),
            Err(errno) => assert_eq!(errno, Errno::NOTTY, "only kernels before 6.11 lack it"),
        }
    }
}
