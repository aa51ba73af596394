//! Finding a file as the caller does, with the capabilities that it has over its own files.
//!
//! For callers that pass over permissions (`CAP_DAC_OVERRIDE`): only the kernel can judge that, and
//! only for a process of the caller's user namespace. Such a process is made for each file, which
//! is slow; permissions alone are enough for nearly all.

use std::os::fd::OwnedFd;

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::failure::{Failure, OrFail};

/// Seconds that it may take.
const LONGEST: u32 = 6;

/// A file that the caller wants to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Find {
    /// Its path; empty for the caller's folder itself.
    pub path: Vec<u8>,
    /// A folder, in which something is to be made?
    pub folder: bool,
    /// Is a symbolic link at the end followed?
    pub follow: bool,
}

/// Opens it, as a process that becomes the caller.
pub(super) fn find(find: &Find, caller: &Caller) -> Result<OwnedFd, Failure> {
    // Whoever asked has given up by then. A filesystem of the container may hang for ever, and its
    // control group could not be removed.
    nix::unistd::alarm::set(LONGEST);
    caller.enter_users()?;
    caller.enter()?;
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::DIRECTORY, find.folder);
    flags.set(OFlags::NOFOLLOW, !find.follow);
    let path: &[u8] = if find.path.is_empty() { b"." } else { &find.path };
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let file = file.or_fail("openat2 as the caller")?;
    let mut access = AccessFlags::W_OK;
    access.set(AccessFlags::X_OK, find.folder);
    // By the effective ids and capabilities.
    let flags = AtFlags::AT_EMPTY_PATH | AtFlags::AT_EACCESS;
    faccessat(&file, c"", access, flags).or_fail("faccessat as the caller")?;
    Ok(file)
}
