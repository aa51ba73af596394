//! mount(2): mounts filesystems for containers that may not mount them by themselves.
//!
//! The kernel mounts types that the policy allows with the host's rights. A helper serves types
//! that have one; it runs as the caller. `ambit_worker::mount` does both. Other types, and calls
//! that are not a new mount of a filesystem, are left to the kernel. The arguments are copied once:
//! memory of the caller must never be read a second time after a decision. Start reading at
//! `plan.rs`.
//!
//! fsopen(2) of a granted type fails with ENOSYS: libmount then calls mount(2) instead.

mod filesystem;
mod flags;
mod options;
pub(super) mod own;
mod plan;
mod sources;
mod tables;

use std::os::fd::AsFd;

use ambit_kernel::sys::errno;
use rustix::io::Errno;

use self::filesystem::Filesystem;
use self::flags::Flags;
use self::plan::{Answer, Arguments, Users};
use crate::audit::{message, text};
use crate::call::Call;
pub(super) use crate::mounts::MountSettings as Settings;
use crate::operations::{self, Operations};
use crate::replay_cache::ReplayCache;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter, Repeat, Run};
use crate::user_namespace_owner::UserNamespaceOwner;
use crate::verdict::{CallError, DaemonError, Verdict};
use ambit_worker::mount::{How, Order};
use ambit_worker::operation::{Base, CallerHandle, MagicLink};
use ambit_worker::{Error, IdMaps, WholeCaller};

/// The longest string that the kernel reads, and the longest options if its pages are the smallest.
const PAGE: usize = 4096;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Results, for callers that signals interrupt.
static REPLAYS: ReplayCache<Order> = ReplayCache::new();

/// True for a type that is never mounted with the host's rights.
pub(crate) fn is_never_mounted(name: &str) -> bool {
    Filesystem::new(name).is_forbidden()
}

/// Answers mount(2) and fsopen(2).
pub(super) struct Mount;

impl Handler for Mount {
    fn describe(&self) -> Description {
        Description { name: "mount", syscalls: &["mount", "fsopen"], privileged: true }
    }

    fn reported(&self, syscall: &str) -> &'static [(u32, u64, u64)] {
        match syscall {
            "mount" => &flags::NEW_MOUNTS,
            _ => &[],
        }
    }

    fn repeat(&self, _call: &Call) -> Repeat {
        Repeat::Never
    }

    fn placement(&self) -> Run {
        Run::Queued
    }

    fn on_delivered(&self, who: (&str, u32), delivered: bool) {
        REPLAYS.on_delivered(who, delivered);
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        let new = match call.syscall {
            "fsopen" => call.long(0) != 0,
            _ => {
                Flags::of_new_mount(call.long(3)).is_some()
                    && call.long(1) != 0
                    && call.long(2) != 0
            }
        };
        if new { Prefilter::Inspect } else { Prefilter::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        let operations = cx.operations.ok_or(CallError::NotGranted)?;
        let settings = &cx.settings.mount;
        if call.syscall == "fsopen" {
            return fsopen(call, cx, |name| {
                cx.covers_proc && own::is_own(name) || settings.answer(name) != Answer::Kernel
            });
        }
        let mut arguments = arguments(call, cx)?;
        if own::is_own(&arguments.filesystem) && cx.covers_proc {
            return own::mount(call, cx, arguments);
        }
        if settings.answer(&arguments.filesystem) == Answer::Kernel {
            return Ok(Verdict::Continue);
        }
        cx.note("filesystem", || text(arguments.filesystem.as_bytes()));
        if let Some(source) = &arguments.source {
            cx.note("source", || text(source));
        }
        cx.note("target", || text(&arguments.target));
        let nested = settings.nested || cx.settings.nested;
        let (mut caller, IdMaps { users, groups }) = pin(call, cx, nested, &mut arguments)?;
        if let Answer::Helper(_) = settings.answer(&arguments.filesystem) {
            // The caller may be a unit that ends when it has mounted.
            caller.use_groups_of_init(call.tid);
        }
        let (uid, gid) = caller.facts.ids;
        let us = [users.outside(uid).unwrap_or(0), groups.outside(gid).unwrap_or(0)];
        let users = Users { owners: [&|id| users.outside(id), &|id| groups.outside(id)], us };
        let order = match settings.plan(arguments, users) {
            Ok(Some(order)) => order,
            Ok(None) => return Ok(Verdict::Continue),
            Err(refusal) => {
                let refused = message(&refusal.to_string());
                if let Some(suppressed) = cx.may_log(refused.len()) {
                    let (container, tid) = (cx.container, call.tid);
                    tracing::warn!(container, tid, suppressed, "mount refused: {refused}");
                }
                cx.notes.set_reason(&refused);
                return Ok(Verdict::Fail(refusal.errno()));
            }
        };
        // Everything was read from the caller, and nothing was done yet.
        cx.still_pending()?;
        REPLAYS.perform((cx.container, call.tid), &order, order.deadline, cx, || {
            let result = mount(operations, cx, &order, &caller);
            audit(call, cx, &order, &result);
            match result {
                Ok(()) => Ok(Verdict::Return(0)),
                Err(failure) => {
                    cx.notes.set_reason(&failure);
                    operations::refusal(&failure)
                }
            }
        })
    }
}

/// Answers fsopen(2): a type that is answered does not exist, so that libmount calls mount(2).
fn fsopen(
    call: &Call,
    cx: &Context<'_>,
    is_answered: impl FnOnce(&str) -> bool,
) -> Result<Verdict, CallError> {
    let name = cx.string(call, 0)?;
    // The operation, if there is one, follows with mount(2).
    cx.notes.no_operation();
    let is_answered = str::from_utf8(&name).is_ok_and(is_answered);
    Ok(if is_answered { Verdict::Fail(Errno::NOSYS) } else { Verdict::Continue })
}

/// Has the broker mount it, if the container may have another filesystem.
fn mount(
    operations: &Operations,
    cx: &Context<'_>,
    order: &Order,
    caller: &WholeCaller,
) -> Result<(), Error> {
    let uncounted = |error: std::io::Error| Error {
        errno: Errno::AGAIN,
        message: format!("the container's mounts cannot be counted: {error}"),
        untried: true,
    };
    let most = cx.settings.limit.mounts;
    let reservation = operations.mounts.reserve(cx.container, most).map_err(uncounted)?.ok_or_else(|| Error {
        errno: Errno::NOSPC,
        message: format!(
            "the container has {most} filesystems mounted, as many as limit.mounts allows: unmount \
             some, or set limit.mounts higher"
        ),
        untried: false,
    })?;
    match (
        operations.broker.mount(order, caller, reservation.watches().map_err(uncounted)?)?,
        &order.how,
    ) {
        (Some(watch), How::Kernel(_)) => reservation.count_watch(watch),
        (Some(device), How::Helper(_)) => {
            if let Err(error) = reservation.count_helper(device) {
                let container = cx.container;
                tracing::warn!(container, "the mounts of helpers cannot be counted: {error}");
            }
        }
        (None, _) | (_, How::Own(_)) => {}
    }
    Ok(())
}

/// Logs a mount that the policy granted, whether it succeeded or failed.
fn audit(call: &Call, cx: &Context<'_>, order: &Order, result: &Result<(), Error>) {
    let source = order.source.as_deref().map(text);
    let target = text(&order.target);
    let failure = result.as_ref().err().map(|failure| message(&failure.message));
    let texts = [source.as_deref(), Some(&*target), failure.as_deref()];
    let texts = texts.into_iter().flatten().map(str::len).sum();
    let Some(suppressed) = cx.may_log(texts) else { return };
    let (container, tid, filesystem) = (cx.container, call.tid, &order.filesystem);
    match result {
        Ok(()) => tracing::info!(container, tid, filesystem, source, target, suppressed, "mounted"),
        Err(failure) => {
            let errno = errno::name(failure.errno);
            tracing::warn!(
                container, tid, filesystem, source, target, %errno, suppressed,
                "not mounted: {}", message(&failure.message)
            );
        }
    }
}

/// Copies the arguments. Those that the kernel would refuse (strings that do not end, pages that do
/// not exist) are left to the kernel, which knows the errno.
fn arguments(call: &Call, cx: &Context<'_>) -> Result<Arguments, CallError> {
    let flags = Flags::of_new_mount(call.long(3)).ok_or(CallError::NotGranted)?;
    let source = match call.long(0) {
        0 => None,
        _ => Some(cx.string(call, 0)?),
    };
    let target = cx.string(call, 1)?;
    let filesystem = String::from_utf8(cx.string(call, 2)?).map_err(|_| CallError::NotGranted)?;
    let data = match call.long(4) {
        0 => Vec::new(),
        address => {
            let mut page = [0; PAGE];
            let length = cx.read(call, address, &mut page).map_err(|error| match error {
                CallError::Fail(_) => CallError::NotGranted,
                other => other,
            })?;
            let options = options(&page[..length], rustix::param::page_size());
            options.ok_or(CallError::NotGranted)?.to_vec()
        }
    };
    Ok(Arguments { source, target, filesystem, flags, data })
}

/// Returns the options in what was read of the caller's memory. The kernel reads a page of the
/// machine's size and cuts the last byte. `None` if pages are larger, and the options are longer
/// than what was read.
fn options(read: &[u8], page_size: usize) -> Option<&[u8]> {
    match read.iter().position(|&byte| byte == 0) {
        Some(end) => Some(&read[..end]),
        None if read.len() == PAGE && page_size > PAGE => None,
        None => Some(&read[..read.len().min(PAGE - 1)]),
    }
}

/// Pins the caller. The call is not granted if the caller lacks CAP_SYS_ADMIN in its user namespace,
/// or if that is not its container's. If the target starts at a magic link of the caller, such as `/proc/self/fd/7`, the
/// file there becomes the caller's folder: the link of the process that mounts is another one.
fn pin(
    call: &Call,
    cx: &Context<'_>,
    nested: bool,
    arguments: &mut Arguments,
) -> Result<(WholeCaller, IdMaps), CallError> {
    let proc = cx.proc(call)?;
    let pinned = WholeCaller::pin(proc.as_fd());
    let below = below_link(arguments).and_then(|(link, path)| {
        Some((CallerHandle::pin(proc.as_fd(), Base::Link(link)).ok()?.base?, path))
    });
    // The descriptors are the caller's if the call is still pending.
    cx.still_pending()?;
    let (mut caller, maps) = pinned.map_err(|failure| {
        tracing::debug!(container = cx.container, tid = call.tid, "cannot pin: {failure}");
        CallError::Continue(DaemonError::System("looking at the caller in /proc", failure.errno))
    })?;
    if let Some((file, path)) = below {
        (caller.folder, arguments.target) = (file, path);
    }
    let owner = UserNamespaceOwner::of(caller.users.as_fd());
    if may_mount(caller.facts.effective, owner, nested) {
        Ok((caller, maps))
    } else {
        Err(CallError::NotGranted)
    }
}

/// Splits the target if it starts at a magic link of the caller. `None` for other targets, and if the
/// source depends on the caller's folder.
fn below_link(arguments: &Arguments) -> Option<(MagicLink, Vec<u8>)> {
    let source = arguments.source.as_deref().filter(|_| !own::is_own(&arguments.filesystem));
    let is_independent = source.is_none_or(|source| source.starts_with(b"/"));
    let (link, path) = MagicLink::split(&arguments.target).filter(|_| is_independent)?;
    Some((link, path.unwrap_or_else(|| b".".to_vec())))
}

/// True if a caller with these effective capabilities may mount in its user namespace.
fn may_mount(effective: u64, owner: UserNamespaceOwner, nested: bool) -> bool {
    effective & CAP_SYS_ADMIN != 0 && owner.is_allowed(nested)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_of_the_containers_user_namespace_mounts() {
        use UserNamespaceOwner::{Container, Host, Other};
        let all = (1 << 41) - 1;
        assert!(may_mount(1 << 21, Host, false) && may_mount(all, Container, true));
        assert!(!may_mount(all & !(1 << 21), Host, true), "without CAP_SYS_ADMIN");
        assert!(!may_mount(all, Container, false), "a nested user namespace");
        assert!(!may_mount(all, Other, true), "the host's root");
    }

    #[test]
    fn options_are_cut_where_the_kernel_cuts_them() {
        let long = [b'x'; PAGE];
        for page_size in [4096, 16_384, 65_536] {
            assert_eq!(options(b"size=1M\0rest", page_size), Some(&b"size=1M"[..]));
            assert_eq!(options(b"mapping ends", page_size), Some(&b"mapping ends"[..]));
        }
        assert_eq!(options(&long, 4096), Some(&long[..4095]));
        assert_eq!(options(&long, 16_384), None);
    }
}
