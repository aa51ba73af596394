//! An edition: the program and the configuration that servers are started from.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use super::program::Program;

/// The longest configuration that is compared with another one.
const LONGEST_CONFIGURATION: usize = 1 << 20;

/// A program, and the configuration that its servers are given.
#[derive(Debug, Clone)]
pub(super) struct Edition {
    pub(super) program: Rc<Program>,
    /// The text of the last good configuration.
    pub(super) configuration: Option<Rc<OwnedFd>>,
    /// True if the configuration is used instead of the file on disk.
    pub(super) instead: bool,
}

/// True if two files in memory have the same bytes.
pub(super) fn has_same_bytes(one: &OwnedFd, other: &OwnedFd) -> bool {
    let bytes = |fd: &OwnedFd| {
        let length = rustix::fs::fstat(fd).ok()?.st_size;
        let length =
            usize::try_from(length).ok().filter(|length| *length <= LONGEST_CONFIGURATION)?;
        let mut bytes = vec![0; length];
        let file = std::fs::File::from(fd.as_fd().try_clone_to_owned().ok()?);
        file.read_exact_at(&mut bytes, 0).ok()?;
        Some(bytes)
    };
    bytes(one).is_some_and(|one| bytes(other) == Some(one))
}
