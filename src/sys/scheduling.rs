//! Scheduling of another thread: `sched_setattr(2)` and `setpriority(2)` by its number.
#![allow(unsafe_code, reason = "neither nix nor rustix offers them")]

use nix::errno::Errno;

/// `struct sched_attr` as it was in Linux 3.14 (`SCHED_ATTR_SIZE_VER0`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bytes of this structure.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// For `SCHED_DEADLINE`.
    pub deadline: [u64; 3],
}

/// Sets how a thread is scheduled.
///
/// # Errors
/// What the kernel says.
pub fn set_attributes(tid: i32, attributes: Attributes) -> Result<(), Errno> {
    let attributes = Attributes { size: size_of::<Attributes>() as u32, ..attributes };
    // SAFETY: the kernel reads one structure of the size that is in it.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0u32) };
    Errno::result(result).map(drop)
}

/// How a thread is scheduled.
///
/// # Errors
/// There is no such thread.
pub fn attributes(tid: i32) -> Result<Attributes, Errno> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>() as u32;
    // SAFETY: the kernel writes as many bytes as it is told there are.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attributes, size, 0u32) };
    Errno::result(result).map(|_| attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_is_read_and_set_as_it_is() {
        let own = attributes(0).unwrap();
        assert_eq!(size_of::<Attributes>(), 48);
        set_attributes(0, own).unwrap();
        assert_eq!(attributes(i32::MAX).unwrap_err(), Errno::ESRCH);
    }
}
