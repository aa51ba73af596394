//! Scheduling of another thread by its number: `sched_setscheduler(2)` and `sched_setattr(2)`.
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
    /// For `SCHED_DEADLINE`; the first one is a slice for `SCHED_OTHER` since Linux 6.12.
    pub times: [u64; 3],
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

/// Sets policy and priority of a thread; its nice value stays.
///
/// # Errors
/// What the kernel says.
pub fn set_policy(tid: i32, policy: i32, priority: i32) -> Result<(), Errno> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one structure of this type.
    let result = unsafe { libc::sched_setscheduler(tid, policy, &raw const parameters) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_may_be_is_set_and_a_stranger_is_not_found() {
        assert_eq!(size_of::<Attributes>(), 48);
        // Of a thread that ends with it.
        let set = || {
            set_policy(0, libc::SCHED_BATCH, 0).and_then(|()| {
                let policy = libc::SCHED_BATCH.unsigned_abs();
                set_attributes(0, Attributes { policy, nice: 19, ..Attributes::default() })
            })
        };
        std::thread::spawn(set).join().unwrap().unwrap();
        assert_eq!(set_policy(i32::MAX, libc::SCHED_BATCH, 0), Err(Errno::ESRCH));
    }
}
