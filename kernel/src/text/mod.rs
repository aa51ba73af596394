//! Parsers of what the kernel writes about processes: pure functions on bytes.
//!
//! A container chooses the names in these texts, so nothing here expects UTF-8. Texts with numbers of
//! whole machines and of control groups are parsed in `ambit-sysinfo`, with the scanners of [`scan`].

pub mod control_groups;
pub mod id_map;
pub mod limits;
pub mod maps;
pub mod mountinfo;
pub mod profile;
pub mod scan;
pub mod shown;
pub mod stat;
pub mod status;
pub mod watches;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use rustix::fs::{Mode, OFlags, openat};

/// The most bytes that are read: enough for a status with 65536 groups.
const LONGEST: u64 = 1 << 20;

/// Reads a file below an open `/proc/<tid>`, up to a length that no such file has.
///
/// # Errors
/// The thread is gone, or the kernel has no such file.
pub fn read(proc: BorrowedFd<'_>, file: &str) -> io::Result<Vec<u8>> {
    let opened = openat(proc, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(2048);
    File::from(opened).take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// Returns the numbers of a text. A word that is no number of this type is skipped.
pub fn numbers<N: FromStr>(text: &[u8]) -> impl Iterator<Item = N> {
    scan::words(text).filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
}
