//! What is asked of a mount that this process serves, or that may never answer: by another process.
//!
//! A process that waits for an answer it would have to give itself, and is killed meanwhile, stays in
//! state D: its device is closed only when it has ended, and it ends only when it is answered. So
//! the names of the overlay are looked up by a process that holds no device. The server waits for
//! that one by its process descriptor, which a signal ends. In which process a visit runs is
//! up to the program ([`Visitor`]); what it does is here ([`Visit::run`]).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use crate::mount::number;
use crate::pressure;

/// Mounts that may lie upon each other at the place of the pressure files.
const LAYERS: usize = 16;

/// What to do at a mount. Mounts are given by descriptors, and none of them is a device.
#[derive(Debug, Clone, Copy)]
pub enum Visit<'a> {
    /// Look up every name that is bound into containers, and attach the pressure files upon the
    /// overlay.
    ///
    /// Since Linux 6.16 a name that two look up for the first time at the same moment can be thrown
    /// away under the one who found it: it is in the cache of names before it is marked as valid
    /// (`fuse_lookup`, `d_time`). Who then binds it gets ENOENT (`move_mount`, `mount`), and
    /// engines start containers at the same moment. A name that is known is safe.
    Names {
        /// The overlay, attached in the visitor's mount namespace if there are pressure files.
        overlay: BorrowedFd<'a>,
        /// The mount of the pressure files.
        pressure: Option<BorrowedFd<'a>>,
    },
    /// Ask for what is never answered from a cache.
    Probe {
        /// Any mount.
        mount: BorrowedFd<'a>,
    },
}

/// Runs a visit in another process, no longer than this. The error is that of the visit, or why it
/// could not be made, or ETIMEDOUT.
pub type Visitor = fn(Visit<'_>, Duration) -> rustix::io::Result<()>;

/// A [`Visitor`] that makes the visit in the calling process: for programs that are not killed while they
/// start, such as tests.
///
/// # Errors
/// That of the visit.
pub fn in_place(visit: Visit<'_>, _: Duration) -> rustix::io::Result<()> {
    visit.run()
}

impl Visit<'_> {
    /// Does it, in the calling process.
    ///
    /// # Errors
    /// The mount does not answer, or the pressure files cannot be attached.
    pub fn run(self) -> rustix::io::Result<()> {
        match self {
            Self::Probe { mount } => rustix::fs::fstatfs(mount).map(drop),
            Self::Names { overlay, pressure } => {
                let attached = pressure.map_or(Ok(()), |mount| attach(overlay, mount));
                for point in crate::bind_points() {
                    // If it is not known, the process that binds it looks it up.
                    let _ = find(overlay, point);
                }
                attached
            }
        }
    }
}

/// Attaches the pressure files, in the place of what is mounted there.
fn attach(overlay: BorrowedFd<'_>, pressure: BorrowedFd<'_>) -> rustix::io::Result<()> {
    use std::os::fd::AsFd;

    let mut place = find(overlay, pressure::DIRECTORY)?;
    for _ in 0..LAYERS {
        if number(place.as_fd()) == number(overlay) {
            break;
        }
        let mounted = format!("/proc/self/fd/{}", place.as_raw_fd());
        rustix::mount::unmount(mounted, UnmountFlags::DETACH)?;
        place = find(overlay, pressure::DIRECTORY)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(pressure, "", place, "", flags)
}

fn find(overlay: BorrowedFd<'_>, name: &str) -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::fs::openat(overlay, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
