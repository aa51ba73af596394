//! sched_getaffinity(2): a mask with as many CPUs as the container is shown.
//!
//! `nproc` of coreutils, Go's `runtime.NumCPU` and many thread pools count the bits of this mask.
//! The kernel's mask respects cpusets but not CPU quotas. The answer must be a subset of the
//! kernel's mask, so that a program can pin itself to every CPU in it.

use ambit_kernel::sys::affinity;
use ambit_sysinfo::StatSet;
use ambit_sysinfo::view::Origin;
use rustix::io::Errno;

use crate::arch::Abi;
use crate::call::Call;
use crate::cpu_mask::{self, WORDS};
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter};
use crate::thread_id;
use crate::verdict::{CallError, DaemonError, Verdict};

settings! {
    /// sched_getaffinity(2): affinity masks have as many processors as the container is shown.
    pub struct Settings {
        /// True if the call is answered.
        pub enabled: bool = true;
    }
}

/// Answers sched_getaffinity(2).
pub(super) struct SchedGetaffinity;

impl Handler for SchedGetaffinity {
    fn describe(&self) -> Description {
        Description {
            name: "sched_getaffinity",
            syscalls: &["sched_getaffinity"],
            privileged: false,
        }
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        // The kernel's checks, in its order: it returns EINVAL or ESRCH itself.
        let length = call.uint(1) as usize;
        let long = match call.abi {
            Abi::Bits64 => 8,
            Abi::Bits32 => 4,
        };
        let fits = length.saturating_mul(8) >= cpu_mask::possible() && length.is_multiple_of(long);
        if fits && call.int(0) >= 0 { Prefilter::Inspect } else { Prefilter::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        let view = cx.view(call, StatSet::PROCESSORS)?;
        if view.origin == Origin::Host {
            return Ok(Verdict::Continue);
        }
        let tid = thread_id::translate(call, cx, call.int(0))?;
        let mut mask = [0; WORDS];
        let size = match affinity::sched_getaffinity(tid, &mut mask) {
            Ok(size) => size.min(size_of_val(&mask)),
            // The kernel repeats the lookup and returns ESRCH to the caller.
            Err(Errno::SRCH) => return Ok(Verdict::Continue),
            Err(errno) => {
                return Err(CallError::Continue(DaemonError::System("sched_getaffinity", errno)));
            }
        };
        let shown = view.affinity_of(&cpu_mask::cpus(&mask).collect());
        let bytes = cpu_mask::encode(&cpu_mask::mask_of(&shown), call.abi);
        let length = size.min(call.uint(1) as usize);
        cx.write(call, call.long(2), &bytes[..length])?;
        Ok(Verdict::Return(i64::try_from(length).unwrap_or(0)))
    }
}
