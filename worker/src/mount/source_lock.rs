//! Locks of sources: two mounts of the same source are made one after the other.
//!
//! A mount checks that its source is unused, then starts a helper or makes a loop device, and only
//! after that its own use is visible to others. The lock covers this interval. A memory file of the
//! broker has one byte for each source, and a mount holds an OFD lock of that byte. The kernel
//! releases the lock when the process that makes the mount ends, so no path of the code can leave
//! one behind. Start reading at [`SourceLocks::acquire`].

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use ambit_kernel::sys::errno::to_errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use crate::error::{Context, Error, MarkUntried};

/// The interval between two attempts to lock.
const PAUSE: Duration = Duration::from_millis(10);

/// The locks of all sources.
#[derive(Debug)]
pub struct SourceLocks(OwnedFd);

/// The lock of a source. It is released on drop.
#[derive(Debug)]
pub(super) struct SourceLock {
    _locked: File,
}

impl SourceLocks {
    /// Makes the memory file.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(rustix::fs::memfd_create("source-locks", MemfdFlags::CLOEXEC)?))
    }

    /// Locks a source, which two numbers identify. EBUSY after `until`.
    pub(super) fn acquire(&self, source: (u64, u64), until: Instant) -> Result<SourceLock, Error> {
        // An OFD lock belongs to the open file description, so each lock needs its own.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
            .context("open of the source locks")
            .mark_untried()?;
        let lock = range(libc::F_WRLCK, offset(source), 1);
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).map_err(to_errno) {
                Ok(_) => return Ok(SourceLock { _locked: file }),
                Err(Errno::AGAIN | Errno::ACCESS) if Instant::now() < until => {
                    std::thread::sleep(PAUSE);
                }
                Err(Errno::AGAIN | Errno::ACCESS) => {
                    return Err(Error::new(
                        Errno::BUSY,
                        "another mount of the same file or device did not end in time",
                    ));
                }
                Err(errno) => {
                    let error = Error::new(errno, "fcntl(F_OFD_SETLK) of a source lock");
                    return Err(error.mark_untried());
                }
            }
        }
    }
}

/// Returns the byte of a source. Two sources with the same byte wait for each other needlessly.
fn offset((device, inode): (u64, u64)) -> i64 {
    let mixed = device.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ inode;
    (mixed & (u64::MAX >> 1)).cast_signed()
}

/// Returns a `struct flock` for fcntl(2).
pub(super) fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_locked_by_one_mount_at_a_time() {
        let locks = SourceLocks::new().unwrap();
        let now = Instant::now();
        // A child of another test inherits the descriptor and holds the lock until its execve(2).
        let soon = now + Duration::from_secs(20);
        let held = locks.acquire((1, 2), now).unwrap();
        assert_eq!(locks.acquire((1, 2), now).unwrap_err().errno, Errno::BUSY);
        locks.acquire((1, 3), soon).unwrap();
        locks.acquire((u64::MAX, u64::MAX), soon).unwrap();
        drop(held);
        locks.acquire((1, 2), soon).unwrap();
    }
}
