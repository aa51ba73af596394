//! Visits: what another process does at a mount that this process serves, or that may never answer.
//!
//! A process that waits for a reply that it must send itself, and is killed meanwhile, stays in
//! state D: its device is closed only when it has ended, and it ends only when the request is
//! answered. So names of the overlay are looked up by a process that has no device open. The server
//! waits for that process by its pidfd, which a signal interrupts. The program supplies the
//! function that runs a visit in another process ([`Visitor`]); the visit itself is [`Visit::run`].
//! The server must never access its own mount in another way.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use crate::submount::{PRIMER, Submount};

/// Most mounts stacked on a folder of the overlay that are removed.
const LAYERS: usize = 16;

/// A visit. Mounts are given by descriptors, none of which is a FUSE device.
#[derive(Debug, Clone, Copy)]
pub enum Visit<'a> {
    /// Looks up every name that is bound into containers.
    ///
    /// Since Linux 6.16, if two processes look up a name for the first time at the same moment, its
    /// dentry can be dropped while one of them uses it: it is in the dcache before it is marked as
    /// valid (`fuse_lookup`, `d_time`). A bind mount of it then fails with ENOENT (`move_mount`,
    /// `mount`), which happens when engines start containers at the same moment. A name that was
    /// looked up before is safe.
    Names {
        /// The overlay.
        overlay: BorrowedFd<'a>,
    },
    /// Attaches another mount on its folder of the overlay.
    Attach {
        /// The overlay, attached in the visitor's mount namespace.
        overlay: BorrowedFd<'a>,
        /// Which mount.
        submount: Submount,
        /// The mount.
        mount: BorrowedFd<'a>,
    },
    /// Sends a request (STATFS) that is never answered from a cache.
    Probe {
        /// Any mount.
        mount: BorrowedFd<'a>,
    },
}

/// Runs a visit in another process, for at most this duration. The error is that of the visit, the
/// reason why it could not be run, or ETIMEDOUT.
pub type Visitor = fn(Visit<'_>, Duration) -> rustix::io::Result<()>;

/// A [`Visitor`] that runs the visit in the calling process, for programs that are not killed while
/// they start, such as tests.
pub fn in_place(visit: Visit<'_>, _: Duration) -> rustix::io::Result<()> {
    visit.run()
}

impl Visit<'_> {
    /// Runs the visit in the calling process.
    pub fn run(self) -> rustix::io::Result<()> {
        match self {
            Self::Probe { mount } => rustix::fs::fstatfs(mount).map(drop),
            Self::Names { overlay } => {
                for point in crate::bind_points() {
                    // Errors are ignored: the process that binds the name looks it up again.
                    let _ = find(overlay, point);
                }
                Ok(())
            }
            Self::Attach { overlay, submount, mount } => {
                attach(overlay, mount, submount.place())?;
                if submount == Submount::Leases {
                    // Errors are ignored: the kernel then asks for the first reader.
                    let _ = prime(mount);
                }
                Ok(())
            }
        }
    }
}

/// Attaches a mount on a folder of the overlay, and removes what is mounted there.
fn attach(overlay: BorrowedFd<'_>, mount: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    use std::os::fd::AsFd;

    let mut place = find(overlay, name)?;
    for _ in 0..LAYERS {
        if number(place.as_fd()) == number(overlay) {
            break;
        }
        let mounted = format!("/proc/self/fd/{}", place.as_raw_fd());
        rustix::mount::unmount(mounted, UnmountFlags::DETACH)?;
        place = find(overlay, name)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}

/// Opens, reads and closes a file on lease: the kernel remembers that OPEN and FLUSH are not
/// answered.
fn prime(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let file = rustix::fs::openat(mount, PRIMER, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::read(&file, &mut [0; 1]).map(drop)
}

fn find(overlay: BorrowedFd<'_>, name: &str) -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::fs::openat(overlay, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Returns the number of the connection of a mount, or of another open folder. Its server gets no
/// request.
pub(crate) fn number(mount: BorrowedFd<'_>) -> Option<u32> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(mount, "", flags, StatxFlags::empty()).ok()?;
    (stat.stx_dev_major == 0).then_some(stat.stx_dev_minor)
}
