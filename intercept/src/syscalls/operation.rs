//! Performs a privileged operation for a caller: pins the caller, then sends the operation to a
//! worker.
//!
//! A caller is pinned by descriptors of its root, folder and namespaces, and by its ids. What was
//! opened by thread id belongs to the caller only if the call is still pending afterwards, so
//! nothing is done before that is checked. Start reading at [`pin`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::sys::user_namespace;
use ambit_worker::operation::{Answer, Base, CallerHandle, Operation, Reply};
use ambit_worker::{Bind, Error, Find, WholeCaller};
use rustix::io::Errno;

use super::context::Context;
use crate::audit::message;
use crate::call::Call;
use crate::operations::{DEADLINE, Operations, refusal};
use crate::user_namespace_owner::UserNamespaceOwner;
use crate::verdict::{CallError, DaemonError, Verdict};

/// Pins a caller. The call is not granted if the caller's user namespace is not its container's, or
/// if it lacks the capability there. The result is the caller only if the call is still pending
/// afterwards: [`ReplayCache::perform`](crate::replay_cache::ReplayCache::perform) checks that. A
/// handler that does not use it must check that itself.
pub(super) fn pin(
    call: &Call,
    cx: &Context<'_>,
    base: Base,
    capability: u32,
) -> Result<CallerHandle, CallError> {
    pin_if(call, cx, base, |handle| handle.can(capability))
}

/// Pins a caller as [`pin`] does, if `is` is true for it.
pub(super) fn pin_if(
    call: &Call,
    cx: &Context<'_>,
    base: Base,
    is: impl FnOnce(&CallerHandle) -> bool,
) -> Result<CallerHandle, CallError> {
    // If something cannot be opened, such as a number that is not a descriptor, the kernel answers.
    let handle = CallerHandle::pin(cx.proc(call)?.as_fd(), base).ok();
    let is_allowed = |handle: &CallerHandle| {
        UserNamespaceOwner::of(handle.users.as_fd()).is_allowed(cx.settings.nested)
    };
    handle.filter(|handle| is(handle) && is_allowed(handle)).ok_or(CallError::NotGranted)
}

/// Has a worker perform this for the caller. If the worker gets EACCES, and the caller has
/// CAP_DAC_OVERRIDE or CAP_DAC_READ_SEARCH, the file is opened with the caller's capabilities. If
/// the path leads through a magic link of the caller, it is tried again from the link's target.
pub(super) fn perform(
    call: &Call,
    cx: &Context<'_>,
    handle: &CallerHandle,
    what: &Operation,
) -> Result<Verdict, CallError> {
    let Some(operations) = cx.operations else { return Ok(Verdict::Continue) };
    let overrides = handle.passes_over_permissions();
    let payer = cx.account.map(|account| &account.payer);
    let send = |more: &[BorrowedFd<'_>]| {
        operations.workers.perform(handle, what, more, payer).map(|answer| answer.reply)
    };
    let mut reply = send(&[]);
    let mut found = None;
    if let (Ok(Reply::Failed(Errno::ACCESS)), true) = (&reply, overrides)
        && let Some(find) = what.find()
    {
        reply = open_as_caller(call, cx, operations, handle, &find)?
            .and_then(|file| send(&[found.insert(file).as_fd()]));
    }
    if let (Ok(Reply::MagicLink), Some((base, what))) = (&reply, what.from_link()) {
        let target = CallerHandle::pin(cx.proc(call)?.as_fd(), base);
        cx.still_pending()?;
        // If there is no such link, the kernel answers. The new path starts with none.
        return target.map_or(Ok(Verdict::Continue), |handle| perform(call, cx, &handle, &what));
    }
    if let (Ok(Reply::NoDevices), Operation::Mknod(node), true) =
        (&reply, what, cx.settings.mknod.bind)
    {
        let owner = (handle.who.uid, handle.who.gid);
        let bind = Bind { node: node.clone(), owner, umask: handle.who.umask };
        let (until, caller) = (Instant::now() + DEADLINE, pin_whole(call, cx, handle)?);
        reply = match caller.and_then(|caller| operations.broker.bind_device(&bind, &caller, until))
        {
            Ok(()) => Ok(Reply::Done),
            Err(failure) if failure.untried => Err(failure),
            Err(failure) => {
                tracing::debug!(container = cx.container, "no node is mounted: {failure}");
                Ok(Reply::Failed(failure.errno))
            }
        };
    }
    match reply {
        Ok(Reply::Done) => Ok(Verdict::Return(0)),
        // A FUSE filesystem of another user or user namespace refuses the worker, whatever its
        // capabilities and ids are. The caller itself may be allowed to use it.
        Ok(Reply::Failed(Errno::OVERFLOW)) => Ok(Verdict::Continue),
        Ok(Reply::Failed(Errno::ACCESS)) if found.is_some() => Ok(Verdict::Continue),
        Ok(Reply::Failed(errno)) => Ok(Verdict::Fail(errno)),
        Ok(Reply::Kernel | Reply::MagicLink) => Ok(Verdict::Continue),
        Ok(Reply::NoDevices) => Ok(Verdict::Fail(Errno::PERM)),
        Err(failure) => {
            warn(call, cx, &failure);
            cx.notes.set_error(&failure);
            refusal(&failure)
        }
    }
}

/// Has a worker perform this, and returns its whole answer. `more` are descriptors that the
/// operation needs.
pub(super) fn request(
    call: &Call,
    cx: &Context<'_>,
    handle: &CallerHandle,
    what: &Operation,
    more: &[BorrowedFd<'_>],
) -> Result<Answer, CallError> {
    let Some(operations) = cx.operations else { return Ok(Reply::Kernel.into()) };
    let payer = cx.account.map(|account| &account.payer);
    operations.workers.perform(handle, what, more, payer).or_else(|failure| {
        warn(call, cx, &failure);
        match refusal(&failure)? {
            Verdict::Fail(errno) => Ok(Reply::Failed(errno).into()),
            _ => Ok(Reply::Kernel.into()),
        }
    })
}

fn warn(call: &Call, cx: &Context<'_>, failure: &Error) {
    let failure = message(&failure.to_string());
    if let Some(suppressed) = cx.may_log(failure.len()) {
        let (container, tid) = (cx.container, call.tid);
        tracing::warn!(container, tid, suppressed, "nothing done: {failure}");
    }
}

/// Opens a file as the caller, with the capabilities that it has over files of its container.
fn open_as_caller(
    call: &Call,
    cx: &Context<'_>,
    operations: &Operations,
    handle: &CallerHandle,
    find: &Find,
) -> Result<Result<OwnedFd, Error>, CallError> {
    let caller = pin_whole(call, cx, handle)?;
    Ok(caller.and_then(|caller| operations.broker.find(find, &caller, Instant::now() + DEADLINE)))
}

/// Pins everything of a caller, for a process that takes on its identity. Relative paths start at
/// the folder of `handle`.
fn pin_whole(
    call: &Call,
    cx: &Context<'_>,
    handle: &CallerHandle,
) -> Result<Result<WholeCaller, Error>, CallError> {
    let proc = cx.proc(call)?;
    let caller = WholeCaller::pin(proc.as_fd());
    let base = handle.base.as_ref().map(OwnedFd::try_clone).transpose();
    cx.still_pending()?;
    let base = base.map_err(|_| CallError::Continue(DaemonError::System("dup", Errno::MFILE)))?;
    Ok(caller.map(|(mut caller, _)| {
        caller.folder = base.unwrap_or(caller.folder);
        caller
    }))
}

/// True if the user namespace that owns this namespace was made by a container or for one.
pub(super) fn belongs_to_a_container(namespace: &OwnedFd) -> bool {
    user_namespace::owner(namespace.as_fd())
        .is_ok_and(|users| UserNamespaceOwner::of(users.as_fd()).is_allowed(true))
}
