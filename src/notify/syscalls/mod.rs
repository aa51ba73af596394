//! The system calls that are answered: one file each, one line in [`HANDLERS`].
//!
//! To add one: write the file with a type that implements [`Handler`], add its line here.
//! Dispatch, policy, configuration keys, filters and counters derive from the list.

mod mknod;
mod mount;
mod sched_getaffinity;
mod sched_setscheduler;
mod setxattr;
mod sysinfo;

use super::handler::Handler;

/// All handlers. The order is that of listings; a policy's bits follow it.
pub const HANDLERS: &[&dyn Handler] = &[
    &sysinfo::Sysinfo, //
    &sched_getaffinity::SchedGetaffinity,
    &mknod::Mknod,
    &setxattr::Setxattr,
    &sched_setscheduler::SchedSetscheduler,
    &mount::Mount,
];
