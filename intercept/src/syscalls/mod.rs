//! The system calls that are answered: one file each, and one line in `calls!`.
//!
//! To add a call, write a file with a type that implements [`Handler`] and a struct `Settings` with
//! the key `enabled`, and add its line to `calls!`. Dispatch, policy, configuration keys, their
//! reference, filters and counters derive from that list: there must be no second one. Start
//! reading at `handler.rs`.

mod bpf;
mod chown;
pub(super) mod context;
pub(super) mod handler;
mod ioprio_set;
mod mknod;
mod mount;
mod operation;
mod own_thread;
mod proc;
mod sched_getaffinity;
mod sched_setscheduler;
mod setxattr;
mod sysinfo;

use ambit_kernel::text;
use ambit_kernel::text::id_map::IdMap;

pub(super) use self::mount::is_never_mounted;

use std::os::fd::AsFd;

use super::call::Call;
use super::settings::{Limit, settings};
use crate::verdict::CallError;
use context::Context;
use handler::Handler;

macro_rules! calls {
    ($($key:ident: $handler:ident,)*) => {
        /// All handlers, in the order of listings and of a policy's bits.
        pub const HANDLERS: &[&dyn Handler] = &[$(&$key::$handler),*];

        settings! {
            /// System calls that are answered where a container's seccomp filter reports them. For
            /// each of them `NAME = true` is short for a table with `enabled = true`; the settings
            /// in a table without that have no effect, and are an error.
            pub struct Settings {
                /// Short for `sysinfo` and `sched_getaffinity`: programs that open no file see the
                /// container's numbers too.
                pub view: bool = true;
                $(
                    /// The settings of this call.
                    pub $key: $key::Settings;
                )*
                /// True if calls that change something are also answered from user namespaces that
                /// the container made itself.
                pub nested: bool = false;
                /// How much of ambit one container may use.
                pub limit: Limit;
            }
        }

        impl Settings {
            /// Returns which handlers are enabled, in the order of [`HANDLERS`].
            pub(super) fn enabled(&self) -> [bool; HANDLERS.len()] {
                [$(self.$key.enabled),*]
            }
        }
    };
}

calls! {
    sysinfo: Sysinfo,
    sched_getaffinity: SchedGetaffinity,
    mknod: Mknod,
    setxattr: Setxattr,
    chown: Chown,
    sched_setscheduler: SchedSetscheduler,
    ioprio_set: IoprioSet,
    bpf: BpfPrograms,
    mount: Mount,
    proc: Proc,
}

/// The calls that `view` is short for.
pub const VIEW: [&str; 2] = ["sysinfo", "sched_getaffinity"];

/// Returns the host's ids in a map of the caller's user namespace, as (first, count).
fn ranges(call: &Call, cx: &Context<'_>, map: &'static str) -> Result<Vec<(u32, u32)>, CallError> {
    Ok(id_map(call, cx, map)?.outsiders())
}

/// Reads a map of the caller's user namespace: `uid_map` or `gid_map`.
fn id_map(call: &Call, cx: &Context<'_>, map: &'static str) -> Result<IdMap, CallError> {
    let text = text::read(cx.proc(call)?.as_fd(), map);
    cx.still_pending()?;
    Ok(IdMap::parse(&text.map_err(|_| CallError::Gone)?))
}
