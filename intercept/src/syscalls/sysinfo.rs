//! sysinfo(2): memory, swap, load, uptime and tasks of the container.
//!
//! `free` and `uptime` of busybox, and `sysconf(_SC_PHYS_PAGES)` of musl and glibc use it and never
//! open `/proc/meminfo`. The numbers must come from the same view as those of the files. This is
//! the smallest handler.

use ambit_sysinfo::sysinfo::{NEEDS, encode};
use ambit_sysinfo::view::Origin;

use crate::call::Call;
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler};
use crate::verdict::{CallError, Verdict};

settings! {
    /// sysinfo(2): busybox and musl programs see the container's memory, load and uptime.
    pub struct Settings {
        /// True if the call is answered.
        pub enabled: bool = true, lxd "sysinfo";
    }
}

/// Answers sysinfo(2).
pub(super) struct Sysinfo;

impl Handler for Sysinfo {
    fn describe(&self) -> Description {
        Description { name: "sysinfo", syscalls: &["sysinfo"], privileged: false }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        let view = cx.view(call, NEEDS)?;
        if view.origin == Origin::Host {
            return Ok(Verdict::Continue);
        }
        // A null pointer is not refused here: page 0 can be mapped, and then it is a valid address.
        cx.write(call, call.long(0), encode(&view, call.abi).bytes())?;
        Ok(Verdict::Return(0))
    }
}
