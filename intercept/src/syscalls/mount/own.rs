//! A procfs or sysfs of the caller's own namespaces, with what covers the container's own.
//!
//! The kernel decides by the caller's rights whether it may be made. Nothing here is granted by a
//! list of types. Start reading at [`run`].

use super::plan::plan_own;
use super::{Arguments, REPLAYS, arguments, audit, pin};
use crate::call::Call;
use crate::operations;
use crate::syscalls::context::Context;
use crate::verdict::{CallError, Verdict};
use nix::errno::Errno;

/// The types.
const TYPES: [&str; 2] = ["proc", "sysfs"];

/// True for the type of a kernel interface that is made for the caller.
pub(super) fn is_own(name: &str) -> bool {
    TYPES.contains(&name)
}

/// Answers mount(2) and fsopen(2); calls with other types are left to the kernel.
pub(in crate::syscalls) fn run(call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
    if cx.operations.is_none() {
        return Ok(Verdict::Continue);
    }
    if call.syscall == "fsopen" {
        let name = cx.string(call, 0)?.and_then(|name| String::from_utf8(name).ok());
        cx.notes.no_operation();
        let answered = name.is_some_and(|name| is_own(&name));
        return Ok(if answered { Verdict::Fail(Errno::ENOSYS) } else { Verdict::Continue });
    }
    match arguments(call, cx)? {
        Some(arguments) if is_own(&arguments.filesystem) => mount(call, cx, arguments),
        _ => Ok(Verdict::Continue),
    }
}

/// Mounts it. What the kernel would refuse is left to the kernel.
pub(super) fn mount(
    call: &Call,
    cx: &Context<'_>,
    mut arguments: Arguments,
) -> Result<Verdict, CallError> {
    let Some(operations) = cx.operations else { return Ok(Verdict::Continue) };
    // User namespaces that the container made may do this by themselves too.
    let Some((caller, _)) = pin(call, cx, true, &mut arguments)? else {
        return Ok(Verdict::Continue);
    };
    let order = plan_own(arguments, operations::DEADLINE);
    cx.still_pending()?;
    REPLAYS.perform((cx.container, call.tid), &order, order.deadline, cx, || {
        let result = operations.broker.mount_own(&order, &caller);
        match result {
            Ok(()) => {
                tracing::debug!(
                    container = cx.container,
                    tid = call.tid,
                    "a {} is covered",
                    order.filesystem
                );
                Ok(Verdict::Return(0))
            }
            Err(failure) => {
                audit(call, cx, &order, &Err(failure.clone()));
                operations::refusal(&failure)
            }
        }
    })
}
