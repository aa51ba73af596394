//! Turns: mounts of the same source are made one after another.
//!
//! Between the look at who uses a source and the moment from which this use can be seen lies the
//! start of a helper or the making of a loop device. The memory of the broker has one byte for each
//! source; a mount keeps the lock of that byte while it is made. The kernel releases the lock when the
//! process that makes the mount ends, however it does.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::MemfdFlags;

use crate::failure::{Failure, OnOurSide, OrFail};

/// How often a lock is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// The turns of all sources.
#[derive(Debug)]
pub struct Turns(OwnedFd);

/// A turn: while it exists no other mount of the same source is made.
#[derive(Debug)]
pub(super) struct Turn {
    _locked: File,
}

impl Turns {
    /// Makes the memory for them.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(rustix::fs::memfd_create("turns", MemfdFlags::CLOEXEC)?))
    }

    /// Waits for the turn of a source, given by two numbers that no other source has.
    pub(super) fn wait(&self, source: (u64, u64), until: Instant) -> Result<Turn, Failure> {
        // Locks belong to the open file, so that each turn needs one of its own.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
            .or_fail("open of the turns")
            .on_our_side()?;
        let lock = range(libc::F_WRLCK, place(source), 1);
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
                Ok(_) => return Ok(Turn { _locked: file }),
                Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < until => {
                    std::thread::sleep(PAUSE);
                }
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    return Err(Failure::new(
                        Errno::EBUSY,
                        "another mount of the same file or device did not end in time",
                    ));
                }
                Err(errno) => {
                    let failure = Failure::new(errno, "fcntl(F_OFD_SETLK) of a turn");
                    return Err(failure.on_our_side());
                }
            }
        }
    }
}

/// The byte of a source. Two sources that have the same only wait for each other.
fn place((device, inode): (u64, u64)) -> i64 {
    let mixed = device.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ inode;
    (mixed & (u64::MAX >> 1)).cast_signed()
}

/// A lock for `fcntl(2)`.
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
    fn a_source_has_one_turn_at_a_time() {
        let turns = Turns::new().unwrap();
        let now = Instant::now();
        // A process that another test starts has the lock too, until it executes its program.
        let soon = now + Duration::from_secs(20);
        let turn = turns.wait((1, 2), now).unwrap();
        assert_eq!(turns.wait((1, 2), now).unwrap_err().errno, Errno::EBUSY);
        turns.wait((1, 3), soon).unwrap();
        turns.wait((u64::MAX, u64::MAX), soon).unwrap();
        drop(turn);
        turns.wait((1, 2), soon).unwrap();
    }
}
