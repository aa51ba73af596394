//! mount(2) of a procfs or sysfs inside a container.
//!
//! A new procfs shows the machine: what an engine masks and what the overlay covers lies on the
//! container's own `/proc`. So it is made with the caller's rights, and gets a copy of all that
//! before it is mounted. `ambit_worker::mount` does both. The handler grants nothing that is
//! hidden on the container's own `/proc`, so a container may ask for it.
//!
//! fsopen(2) of the two types fails with ENOSYS: libmount then calls mount(2) instead. If the
//! policy has the handler of mount as well, that one gets the calls, and passes these on.

use super::Context;
use super::handler::{Description, Handler, Prefilter, Repeat, Run};
use super::mount::{Mount, own};
use crate::call::Call;
use crate::settings::settings;
use crate::verdict::{CallError, Verdict};

settings! {
    /// mount(2) and fsopen(2) of `proc` and `sysfs`: what covers parts of the container's own
    /// `/proc` and `/sys` covers those of the new one too. Without it they show the machine, or are
    /// refused.
    pub struct Settings {
        /// True if the calls are answered.
        pub enabled: bool = false;
    }
}

/// Answers mount(2) and fsopen(2) of a procfs or sysfs.
pub(super) struct Proc;

impl Handler for Proc {
    fn describe(&self) -> Description {
        Description { name: "proc", syscalls: Mount.describe().syscalls, privileged: false }
    }

    fn reported(&self, syscall: &str) -> &'static [(u32, u64, u64)] {
        Mount.reported(syscall)
    }

    fn repeat(&self, call: &Call) -> Repeat {
        Mount.repeat(call)
    }

    fn placement(&self) -> Run {
        Mount.placement()
    }

    fn on_delivered(&self, who: (&str, u32), delivered: bool) {
        Mount.on_delivered(who, delivered);
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        Mount.prefilter(call)
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        own::run(call, cx)
    }
}
