//! Claims: a file or block device that one filesystem writes must not be used by another one.
//!
//! There is no table of uses: the kernel has every use, and each ends with its last descriptor. All
//! checks run while the mount has the lock of its source (`source_lock.rs`). A check that may call
//! into the filesystem of the source, and so block on the container, must run in a process that is
//! charged to the container. Start reading at [`Source`], which lists the kinds of use.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use ambit_kernel::sys::fuse_connections::Connections;
use ambit_kernel::sys::loop_device::{Status, is_read_only, status as status_of};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::source_lock::{SourceLock, SourceLocks, range};
use super::{detached_root, loop_device};
use crate::child::{Child, OnDrop};
use crate::error::{Context, Error, MarkUntried};
use crate::report_channel::ReportChannel;

/// The offset of the bytes that helpers lock; the device number of the filesystem is added. No file
/// is that long. qemu locks single bytes too, within the first few hundred.
const FIRST: i64 = 1 << 62;
/// The number of these bytes.
const BYTES: i64 = 1 << 32;

/// How long to wait for a use that may be short: udev, for example, opens each new loop device.
const SETTLED: Duration = Duration::from_secs(1);
/// The part of the deadline that is kept for the report that a use did not end.
const REPORT: Duration = Duration::from_millis(500);
/// The interval of the checks.
const PAUSE: Duration = Duration::from_millis(50);

/// A file or block device to be mounted, as it was opened as the caller.
///
/// Another use of it is found as follows:
///
/// - A loop device reports its backing file. A device that ambit made is marked, and is used again
///   for a mount with the same access: the kernel then returns the existing superblock.
/// - A helper has a descriptor of its source, opened as the caller, with an OFD lock
///   (`F_OFD_SETLK`) on one byte far behind the end of the file, for reading or writing. The offset
///   of the byte tells which filesystem the helper serves. The lock is set after the helper has
///   opened its source: ntfs-3g locks the whole file itself, and then its own lock is the one that
///   is found. flock(2) is not used, because fuse2fs from 1.48 on uses it.
/// - A block device that is mounted, or that a helper opened with `O_EXCL`, cannot be opened with
///   `O_EXCL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Source {
    id: SourceId,
    writes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SourceId {
    /// A file: `st_dev` and `st_ino`.
    File(u64, u64),
    /// A block device: `st_rdev`.
    Device(u64),
}

/// The result of one check of a source.
#[derive(Debug)]
enum Found {
    /// Nothing conflicts with a new mount.
    Free,
    /// A loop device that was made here for the same file and access.
    Ours(File),
    /// Another use conflicts with a new mount.
    Used { by: String, stays: Stays },
}

/// How long to wait for the end of a conflicting use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stays {
    /// Not at all: the use ends with umount(2).
    Mounted,
    /// For [`SETTLED`].
    Settling,
    /// Until the deadline of the mount: the use is about to end.
    Ending,
}

/// True while the FUSE filesystem with this device number is mounted. Needs the host's rights.
pub(super) fn is_mounted(device: u64) -> bool {
    Connections::open().map_or(true, |all| all.of(device).is_some())
}

/// Waits until no lock conflicts with a new mount of this source.
pub(super) fn wait_for_locks(
    source: BorrowedFd<'_>,
    is_mounted: impl Fn(u64) -> bool,
    until: Instant,
) -> Result<(), Error> {
    let writes = writes(source);
    wait(|| Ok(look_at_locks(source, writes, &is_mounted)), until).map(drop)
}

/// Locks the byte of the filesystem by the helper's descriptor of its source. The filesystem is
/// mounted already.
pub(super) fn mark(source: BorrowedFd<'_>, device: u64) {
    let kind = if writes(source) { libc::F_WRLCK } else { libc::F_RDLCK };
    let byte = range(kind, FIRST + i64::try_from(device).unwrap_or(0) % BYTES, 1);
    // Errors are ignored: a helper with a lock of its own is found by that, and some filesystems
    // have no locks.
    let _ = fcntl(source, FcntlArg::F_OFD_SETLK(&byte));
}

impl Source {
    /// Identifies a source. `None` if it is neither a file nor a block device.
    pub(super) fn new(source: BorrowedFd<'_>) -> Result<Option<Self>, Error> {
        let status = fstat(source).context("fstat of the source")?;
        let id = match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => SourceId::File(status.st_dev, status.st_ino),
            FileType::BlockDevice => SourceId::Device(status.st_rdev),
            _ => return Ok(None),
        };
        Ok(Some(Self { id, writes: writes(source) }))
    }

    /// Locks the source.
    pub(super) fn lock(&self, locks: &SourceLocks, until: Instant) -> Result<SourceLock, Error> {
        let number = match self.id {
            SourceId::File(device, inode) => (device, inode),
            SourceId::Device(device) => (u64::MAX, device),
        };
        locks.acquire(number, until)
    }

    /// Waits until no device conflicts with a helper. The checks run in a process of their own.
    pub(super) fn wait_for_helper(&self, until: Instant) -> Result<(), Error> {
        let (channel, theirs) = ReportChannel::pair()?;
        let looking = Child::start(OnDrop::Kill, || {
            let free = detached_root::enter_with_proc()
                .mark_untried()
                .and_then(|()| wait(|| self.look_at_devices(false), until));
            theirs.report(free.map(|_| Vec::new()));
        })?;
        drop(theirs);
        channel.receive(until)?;
        looking.finish();
        Ok(())
    }

    /// Waits until no device conflicts with a mount by the kernel. Returns the loop device that
    /// ambit has made for the source already, if there is one. Needs the root of
    /// [`detached_root::enter_with_proc`].
    pub(super) fn wait_for_kernel(&self, until: Instant) -> Result<Option<File>, Error> {
        wait(|| self.look_at_devices(true), until)
    }

    fn look_at_devices(&self, kernel: bool) -> Result<Found, Error> {
        match self.id {
            SourceId::File(device, inode) => self.look_at_loops((device, inode), kernel),
            // The kernel itself returns EBUSY for a device in use.
            SourceId::Device(_) if kernel => Ok(Found::Free),
            SourceId::Device(device) => self.look_at_device(device),
        }
    }

    /// Checks all loop devices, the host's and those that ambit made.
    fn look_at_loops(&self, file: (u64, u64), kernel: bool) -> Result<Found, Error> {
        let mut found = Found::Free;
        for (name, device) in loop_device::all()? {
            // Fails for a device without a backing file, which may have been freed meanwhile.
            let Ok(status) = status_of(device.as_fd()) else { continue };
            if (status.device, status.inode) != file {
                continue;
            }
            let Status { read_only, whole, ours, .. } = status;
            if ours && whole && kernel && read_only != self.writes {
                found = Found::Ours(device);
            } else if self.writes || !read_only {
                let by = if ours {
                    format!("ambit mounted it with {name}: unmount that")
                } else {
                    format!("the host has it behind {name}: see losetup(8)")
                };
                return Ok(Found::Used { by, stays: Stays::Settling });
            }
        }
        Ok(found)
    }

    /// Checks a block device for a helper.
    fn look_at_device(&self, device: u64) -> Result<Found, Error> {
        const NODE: &str = "/dev/source";
        if !std::path::Path::new(NODE).exists() {
            detached_root::node(NODE, FileType::BlockDevice, device)?;
        }
        let open = |flags| {
            let flags = flags | libc::O_NONBLOCK | libc::O_CLOEXEC;
            OpenOptions::new().read(true).custom_flags(flags).open(NODE)
        };
        let alone = open(libc::O_EXCL);
        let used = alone.is_err_and(|error| error.kind() == ErrorKind::ResourceBusy);
        // Readers do not exclude each other, and a read-only device has readers only.
        if !used || !self.writes && open(0).is_ok_and(|device| is_read_only(device.as_fd())) {
            return Ok(Found::Free);
        }
        let by = "the device is mounted, or opened by a program with O_EXCL".to_owned();
        Ok(Found::Used { by, stays: Stays::Settling })
    }
}

fn writes(source: BorrowedFd<'_>) -> bool {
    fcntl_getfl(source).is_ok_and(|flags| flags & OFlags::ACCMODE != OFlags::RDONLY)
}

/// Repeats a check until nothing conflicts. EBUSY if a conflict lasts too long.
fn wait(look: impl Fn() -> Result<Found, Error>, until: Instant) -> Result<Option<File>, Error> {
    let began = Instant::now();
    let until = until.checked_sub(REPORT).unwrap_or(began);
    loop {
        let (by, stays) = match look()? {
            Found::Free => return Ok(None),
            Found::Ours(device) => return Ok(Some(device)),
            Found::Used { by, stays } => (by, stays),
        };
        let patience = match stays {
            Stays::Mounted => began,
            Stays::Settling => until.min(began + SETTLED),
            Stays::Ending => until,
        };
        if Instant::now() >= patience {
            return Err(Error::new(Errno::BUSY, format!("the source is in use: {by}")));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Checks for locks of helpers. ntfs-3g locks the whole file also if ambit did not start it.
fn look_at_locks(source: BorrowedFd<'_>, writes: bool, is_mounted: impl Fn(u64) -> bool) -> Found {
    let kind = if writes { libc::F_WRLCK } else { libc::F_RDLCK };
    let mut lock = range(kind, FIRST, BYTES);
    // A filesystem without locks returns an error.
    let asked = fcntl(source, FcntlArg::F_OFD_GETLK(&mut lock));
    if asked.is_err() || i32::from(lock.l_type) == libc::F_UNLCK {
        return Found::Free;
    }
    let Ok(device) = u64::try_from(lock.l_start - FIRST) else {
        let by = match lock.l_pid {
            1.. => format!("the process {} has locked it: fcntl(F_OFD_GETLK)", lock.l_pid),
            _ => "a program has locked it: fcntl(F_OFD_GETLK)".to_owned(),
        };
        return Found::Used { by, stays: Stays::Mounted };
    };
    let (by, stays) = if is_mounted(device) {
        (format!("a helper serves it as the filesystem 0:{device}: unmount that"), Stays::Mounted)
    } else {
        ("the helper of a filesystem that was unmounted has not ended yet".into(), Stays::Ending)
    };
    Found::Used { by, stays }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path, writes: bool) -> File {
        OpenOptions::new().read(true).write(writes).open(path).unwrap()
    }

    fn is_free(file: &File) -> bool {
        matches!(look_at_locks(file.as_fd(), writes(file.as_fd()), |_| true), Found::Free)
    }

    /// A child of another test inherits the descriptor and holds the lock until its execve(2).
    fn is_freed(file: &File) -> bool {
        let soon = Instant::now() + Duration::from_secs(20);
        wait_for_locks(file.as_fd(), |_| false, soon).is_ok()
    }

    #[test]
    fn a_helper_that_writes_excludes_all_and_one_that_reads_excludes_writers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let [reader, writer] = [false, true].map(|writes| open(file.path(), writes));
        assert!(is_free(&reader) && is_free(&writer));
        let helper = open(file.path(), true);
        mark(helper.as_fd(), 57);
        for (mounted, expected) in [(true, Stays::Mounted), (false, Stays::Ending)] {
            let found = look_at_locks(reader.as_fd(), false, |device| device == 57 && mounted);
            let Found::Used { by, stays } = found else { panic!("{found:?}") };
            assert!(stays == expected && by.contains("0:57") == mounted, "{by}");
        }
        assert!(!is_free(&reader) && !is_free(&writer));
        drop(helper);
        assert!(is_freed(&reader));
        let helper = open(file.path(), false);
        mark(helper.as_fd(), 57);
        assert!(is_free(&reader) && !is_free(&writer));
        drop(helper);
        assert!(is_freed(&writer));
    }

    #[test]
    fn a_lock_of_the_whole_file_is_seen_and_other_locks_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let [reader, other] = [false, true].map(|writes| open(file.path(), writes));
        let lock = |kind, length| {
            let lock = range(kind, 0, length);
            fcntl(&other, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        };
        lock(libc::F_WRLCK, 1 << 40);
        rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
        assert!(is_free(&reader));
        lock(libc::F_WRLCK, 0);
        assert!(!is_free(&reader));
    }

    #[test]
    fn a_use_that_ends_is_waited_for_and_a_mounted_one_is_not() {
        let looks = std::cell::Cell::new(0);
        let ends = |stays| {
            looks.set(0);
            let look = || {
                looks.set(looks.get() + 1);
                let used = Found::Used { by: "x".into(), stays };
                Ok(if looks.get() < 3 { used } else { Found::Free })
            };
            wait(look, Instant::now() + Duration::from_secs(60)).map_err(|error| error.errno)
        };
        assert!(ends(Stays::Ending).is_ok() && ends(Stays::Settling).is_ok());
        assert_eq!((ends(Stays::Mounted).unwrap_err(), looks.get()), (Errno::BUSY, 1));
        let for_ever = || Ok(Found::Used { by: "x".into(), stays: Stays::Ending });
        assert_eq!(wait(for_ever, Instant::now()).unwrap_err().errno, Errno::BUSY);
    }
}
