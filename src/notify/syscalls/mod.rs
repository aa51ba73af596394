//! The system calls that are answered: one file each, one line in [`HANDLERS`].
//!
//! To add one: write the file with a type that implements [`Handler`], add its line here.
//! Dispatch, policy, configuration keys, filters and counters derive from the list.

mod bpf;
mod mknod;
mod mount;
mod sched_getaffinity;
mod sched_setscheduler;
mod setxattr;
mod sysinfo;

use ambit_kernel::text;
use ambit_kernel::text::id_map::IdMap;

pub(super) use self::mount::is_never_mounted;

use std::os::fd::AsFd;

use super::call::Call;
use super::context::Context;
use super::handler::{Handler, Refusal};

/// All handlers. The order is that of listings; a policy's bits follow it.
pub const HANDLERS: &[&dyn Handler] = &[
    &sysinfo::Sysinfo, //
    &sched_getaffinity::SchedGetaffinity,
    &mknod::Mknod,
    &setxattr::Setxattr,
    &sched_setscheduler::SchedSetscheduler,
    &bpf::BpfPrograms,
    &mount::Mount,
];

/// What a map of the caller's user namespace leads to on the host: first, count.
fn ranges(call: &Call, cx: &Context<'_>, map: &'static str) -> Result<Vec<(u32, u32)>, Refusal> {
    Ok(id_map(call, cx, map)?.outsiders())
}

/// A map of the caller's user namespace.
fn id_map(call: &Call, cx: &Context<'_>, map: &'static str) -> Result<IdMap, Refusal> {
    let text = text::read(cx.proc(call)?.as_fd(), map);
    cx.still_pending()?;
    Ok(IdMap::parse(&text.map_err(|_| Refusal::Gone)?))
}
