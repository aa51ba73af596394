//! A procfs or sysfs of the caller's own namespaces, with what covers the container's own.
//!
//! The kernel decides by the caller's rights whether it may be made. Nothing here is granted by a
//! list of types. Start reading at [`run`].

use super::plan::plan_own;
use super::{Arguments, REPLAYS, arguments, audit, fsopen, pin};
use crate::call::Call;
use crate::operations;
use crate::syscalls::context::Context;
use crate::verdict::{CallError, Verdict};

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
        return fsopen(call, cx, is_own);
    }
    let arguments = arguments(call, cx)?;
    if is_own(&arguments.filesystem) { mount(call, cx, arguments) } else { Ok(Verdict::Continue) }
}

/// Mounts it. What the kernel would refuse is left to the kernel.
pub(super) fn mount(
    call: &Call,
    cx: &Context<'_>,
    mut arguments: Arguments,
) -> Result<Verdict, CallError> {
    let operations = cx.operations.ok_or(CallError::NotGranted)?;
    // User namespaces that the container made may do this by themselves too.
    let (caller, _) = pin(call, cx, true, &mut arguments)?;
    let order = plan_own(arguments, operations::DEADLINE);
    cx.still_pending()?;
    REPLAYS.perform((cx.container, call.tid), &order, order.deadline, cx, || {
        match operations.broker.mount_own(&order, &caller) {
            Ok(()) => {
                let (container, tid) = (cx.container, call.tid);
                tracing::debug!(container, tid, "a {} is covered", order.filesystem);
                Ok(Verdict::Return(0))
            }
            Err(failure) => {
                audit(call, cx, &order, &Err(failure.clone()));
                operations::refusal(&failure)
            }
        }
    })
}
