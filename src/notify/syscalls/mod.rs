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

pub(super) use self::mount::is_never_mounted;

use std::io::Read;

use rustix::fs::{Mode, OFlags, openat};

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
    let proc = cx.proc(call)?;
    let file = openat(proc, map, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut text = String::new();
    let read = file
        .ok()
        .and_then(|file| std::fs::File::from(file).take(1 << 16).read_to_string(&mut text).ok());
    cx.still_pending()?;
    if read.is_none() {
        return Err(Refusal::Gone);
    }
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().skip(1).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    Ok(text.lines().filter_map(range).collect())
}
