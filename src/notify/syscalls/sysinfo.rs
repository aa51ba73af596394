//! sysinfo(2): memory, swap, load, uptime and tasks of the container.
//!
//! `free` and `uptime` of busybox, and musl's and glibc's `sysconf(_SC_PHYS_PAGES)` ask this
//! and never open `/proc/meminfo`.

use ambit_sysinfo::sysinfo::encode;
use ambit_sysinfo::view::Origin;

use crate::notify::call::Call;
use crate::notify::context::Context;
use crate::notify::handler::{Description, Handler, Refusal, Verdict};

/// Answers sysinfo(2).
pub(super) struct Sysinfo;

impl Handler for Sysinfo {
    fn describe(&self) -> Description {
        Description {
            name: "sysinfo",
            syscalls: &["sysinfo"],
            default_on: true,
            privileged: false,
            summary: "Memory, swap, load, uptime and number of tasks are the container's.",
        }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, Refusal> {
        let view = cx.view(call)?;
        if view.origin == Origin::Host {
            return Ok(Verdict::Continue);
        }
        // No look at the pointer before: page 0 can be mapped, and then NULL is an address.
        cx.write(call, call.long(0), encode(&view, call.abi).bytes())?;
        Ok(Verdict::Return(0))
    }
}
