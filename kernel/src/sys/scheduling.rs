//! Scheduling of another thread by its number: `sched_setscheduler(2)`, `sched_getscheduler(2)`,
//! `sched_setattr(2)` and `ioprio_set(2)`, which neither nix nor rustix offers.

use rustix::io::Errno;

use super::raw;

/// `struct sched_attr` as it was in Linux 3.14 (`SCHED_ATTR_SIZE_VER0`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bytes of this structure. [`set_attributes`] sets it itself.
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
pub fn set_attributes(tid: i32, attributes: Attributes) -> Result<(), Errno> {
    let Attributes { size, policy, flags, nice, priority, times: [runtime, deadline, period] } =
        attributes;
    let attributes = libc::sched_attr {
        size,
        sched_policy: policy,
        sched_flags: flags,
        sched_nice: nice,
        sched_priority: priority,
        sched_runtime: runtime,
        sched_deadline: deadline,
        sched_period: period,
    };
    raw::sched_setattr(tid, attributes)
}

/// Sets policy and priority of a thread; its nice value stays.
pub fn set_policy(tid: i32, policy: i32, priority: i32) -> Result<(), Errno> {
    raw::sched_setscheduler(tid, policy, priority)
}

/// Returns the policy of a thread, possibly with `SCHED_RESET_ON_FORK`.
pub fn policy(tid: i32) -> Result<i32, Errno> {
    raw::sched_getscheduler(tid)
}

/// Sets class and level of the I/O of a thread.
pub fn set_io_priority(tid: i32, priority: u32) -> Result<(), Errno> {
    raw::ioprio_set(tid, priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_scheduled_and_a_missing_one_is_esrch() {
        assert_eq!(size_of::<Attributes>(), 48);
        // Of a thread of its own, so that other tests are not scheduled like it.
        let set = || {
            set_policy(0, libc::SCHED_BATCH, 0).and_then(|()| {
                let policy = libc::SCHED_BATCH.unsigned_abs();
                set_attributes(0, Attributes { policy, nice: 19, ..Attributes::default() })
            })
        };
        std::thread::spawn(set).join().unwrap().unwrap();
        assert_eq!(set_policy(i32::MAX, libc::SCHED_BATCH, 0), Err(Errno::SRCH));
        assert_eq!(policy(0), Ok(libc::SCHED_OTHER));
        assert_eq!(policy(i32::MAX), Err(Errno::SRCH));
    }

    #[test]
    fn the_io_of_a_thread_has_a_class() {
        const BEST_EFFORT: u32 = 2 << 13;
        std::thread::spawn(|| set_io_priority(0, BEST_EFFORT | 5)).join().unwrap().unwrap();
        assert_eq!(set_io_priority(0, 7 << 13), Err(Errno::INVAL));
        assert_eq!(set_io_priority(i32::MAX, BEST_EFFORT), Err(Errno::SRCH));
    }
}
