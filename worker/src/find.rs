//! Opens a file that the caller may write, with the capabilities that it has in its user namespace.
//!
//! For callers with `CAP_DAC_OVERRIDE`: only the kernel can decide whether the capability applies
//! to a file, and only for a process in the caller's user namespace. A process is forked for each
//! file, which is slow; for nearly all calls file permissions suffice and this is not used. Nothing
//! is opened before the process has become the caller.

use std::os::fd::OwnedFd;

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{CWD, OFlags};
use serde::{Deserialize, Serialize};

use super::caller::WholeCaller;
use super::error::{Context, Error};
use super::lookup::open_path;

/// The alarm(2) of the process, in seconds.
const LONGEST: u32 = 6;

/// A file that the caller wants to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Find {
    /// The path; empty for the caller's working directory itself.
    pub path: Vec<u8>,
    /// Set if the path must be a directory, in which a file will be created.
    pub folder: bool,
    /// Set if a symbolic link as last component is followed.
    pub follow: bool,
}

/// Makes this process the caller and opens the file (`O_PATH`).
pub(super) fn find(find: &Find, caller: &WholeCaller) -> Result<OwnedFd, Error> {
    // The daemon has given up by then. A filesystem of the container may hang for ever, and a
    // process in it would keep its control group from being removed.
    nix::unistd::alarm::set(LONGEST);
    // First: all that this takes is charged to the container.
    caller.enter_groups()?;
    caller.enter_users()?;
    caller.enter_within_groups()?;
    let mut flags = OFlags::empty();
    flags.set(OFlags::DIRECTORY, find.folder);
    flags.set(OFlags::NOFOLLOW, !find.follow);
    let path: &[u8] = if find.path.is_empty() { b"." } else { &find.path };
    let file = open_path(CWD, path, flags).context("openat2 as the caller")?;
    let mut access = AccessFlags::W_OK;
    access.set(AccessFlags::X_OK, find.folder);
    // faccessat(2) with AT_EACCESS checks with the effective ids and capabilities.
    let flags = AtFlags::AT_EMPTY_PATH | AtFlags::AT_EACCESS;
    faccessat(&file, c"", access, flags).context("faccessat as the caller")?;
    Ok(file)
}
