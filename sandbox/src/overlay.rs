//! Copies the files of a detached overlay, in the builder.
//!
//! `ambit run` without a daemon serves the overlay itself, and must not look names up in it
//! (`ambit_fuse::visit` explains why). The builder was forked before the device was opened. It
//! attaches the overlay for a moment in its own mount namespace, because the kernel copies attached
//! mounts only (before Linux 6.15).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use ambit_kernel::output::complain;
use anyhow::{Context, Result};
use rustix::mount::{MoveMountFlags, UnmountFlags};

use super::mounts::{Detached, copy_at};
use super::options::AttachPressure;

/// Copies the files with these targets, with their targets in the sandbox. The mount namespace must
/// be private.
pub(super) fn copy_files(
    targets: &[String],
    fds: Vec<OwnedFd>,
    attach_pressure: AttachPressure,
) -> Result<Vec<(String, Detached)>> {
    let mut fds = fds.into_iter();
    let overlay = fds.next().context("the overlay came without its mount")?;
    let pressure = fds.next();
    // Upon the root, where no path leads.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&overlay, "", rustix::fs::CWD, "/", flags)
        .context("cannot attach the overlay: move_mount")?;
    let pressure = pressure.as_ref().map(AsFd::as_fd);
    if let Err(errno) = attach_pressure(overlay.as_fd(), pressure) {
        complain(format_args!(
            "ambit: note: no triggers can be set on /proc/pressure: move_mount: {errno}"
        ));
    }
    let copy = |file: &String| {
        let mount = copy_at(&overlay, Path::new(file))
            .with_context(|| format!("cannot copy {file} of the overlay: open_tree"))?;
        Ok((file.clone(), mount))
    };
    let copies = targets.iter().map(copy).collect();
    let place = format!("/proc/self/fd/{}", overlay.as_raw_fd());
    rustix::mount::unmount(place, UnmountFlags::DETACH)
        .context("cannot detach the overlay: umount2")?;
    copies
}
