//! ioprio_set(2): the realtime class of I/O for a container's own threads.
//!
//! The kernel demands `CAP_SYS_NICE` over the host for that class alone, and systemd does not start a
//! unit with `IOSchedulingClass=realtime` that it cannot give it to. It is set for the container's
//! root, up to the level of the policy. All other classes are never reported. Start reading at the
//! method `run`.

use ambit_kernel::sys::scheduling;
use rustix::io::Errno;

use crate::call::Call;
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter};
use crate::syscalls::own_thread::OwnThread;
use crate::verdict::{CallError, Verdict};

/// `IOPRIO_WHO_PROCESS`: one thread. Groups of processes and users are left to the kernel.
const ONE_THREAD: i32 = 1;
/// `IOPRIO_CLASS_SHIFT`: the class is in the three bits from here on.
const CLASS: u32 = 13;
/// `IOPRIO_CLASS_RT`.
const REALTIME: u32 = 1;

settings! {
    /// ioprio_set(2): the container's root gives the container's own threads the realtime class of
    /// I/O, which goes before that of all others on a disk.
    pub struct Settings {
        /// True if the calls are answered.
        pub enabled: bool = false;
        /// The best level of the class: 0 is the first, 7 the last.
        pub level: u32 = 0, within 0..=7, such as "4";
    }
}

/// Answers ioprio_set(2).
pub(super) struct IoprioSet;

/// True if this priority is granted: the class, a level that is not better than `best`, and no hint.
fn is_granted(priority: u32, best: u32) -> bool {
    priority >> CLASS == REALTIME && (best..=7).contains(&(priority & ((1 << CLASS) - 1)))
}

impl Handler for IoprioSet {
    fn describe(&self) -> Description {
        Description { name: "ioprio_set", syscalls: &["ioprio_set"], privileged: true }
    }

    fn reported(&self, _syscall: &str) -> &'static [(u32, u64, u64)] {
        &[(2, 7 << CLASS, (REALTIME as u64) << CLASS)]
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        let one = call.int(0) == ONE_THREAD && call.int(1) >= 0;
        if one && is_granted(call.uint(2), 0) { Prefilter::Inspect } else { Prefilter::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        let priority = call.uint(2);
        if !is_granted(priority, cx.settings.ioprio_set.level) {
            return Ok(Verdict::Continue);
        }
        let thread = OwnThread::find(call, cx, call.int(1))?;
        cx.note("thread", || call.int(1).to_string());
        cx.note("priority", || format!("realtime, level {}", priority & 7));
        thread.check(cx)?;
        match scheduling::set_io_priority(thread.tid, priority) {
            Ok(()) => Ok(Verdict::Return(0)),
            // The daemon itself lacks the capability.
            Err(Errno::PERM | Errno::ACCESS) => Ok(Verdict::Continue),
            Err(errno) => Ok(Verdict::Fail(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Abi;

    #[test]
    fn levels_up_to_the_best_one_are_granted() {
        let realtime = |level| REALTIME << CLASS | level;
        assert!(is_granted(realtime(0), 0) && is_granted(realtime(7), 0));
        assert!(is_granted(realtime(4), 4) && !is_granted(realtime(3), 4), "a better one");
        assert!(!is_granted(realtime(8), 0), "a hint of Linux 6.4");
        for class in [0, 2, 3, 4] {
            assert!(!is_granted(class << CLASS | 4, 0), "{class}");
        }
    }

    #[test]
    fn groups_of_processes_and_users_are_left_to_the_kernel() {
        let inspects = |which, who| {
            let args = [which, who, 1 << CLASS, 0, 0, 0];
            let call = Call { tid: 1, abi: Abi::Bits64, syscall: "ioprio_set", args };
            IoprioSet.prefilter(&call) == Prefilter::Inspect
        };
        assert!(inspects(1, 0) && inspects(1, 7));
        assert!(!inspects(2, 0) && !inspects(3, 0) && !inspects(1, u64::MAX));
    }
}
