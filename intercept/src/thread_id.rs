//! Translates thread ids that a caller passes as arguments: they count in its own pid namespace.
//!
//! An untranslated id must never be used: on the host it is the id of another thread.

use std::os::fd::AsFd;

use ambit_kernel::sys::pid_in_namespace::pid_from_namespace;
use ambit_kernel::text;
use ambit_kernel::text::status::Status;
use nix::errno::Errno;

use super::call::Call;
use crate::syscalls::context::Context;
use crate::verdict::Refusal;

/// Returns the daemon's id of the thread that has this id in the caller's pid namespace. `None` if
/// there is none, or if this kernel cannot tell; the call is then left to the kernel.
///
/// Before Linux 6.11 only the caller itself is recognised, by the last number of `NSpid:`.
pub(super) fn translate(call: &Call, cx: &Context<'_>, id: i32) -> Result<Option<i32>, Refusal> {
    let namespace = cx.open(call, "ns/pid")?;
    match pid_from_namespace(namespace.as_fd(), id) {
        Ok(tid) => Ok(Some(tid)),
        Err(Errno::ENOTTY) => own(call, cx, id),
        Err(_) => Ok(None),
    }
}

/// Returns the caller's thread id if `id` is its own id in its pid namespace.
fn own(call: &Call, cx: &Context<'_>, id: i32) -> Result<Option<i32>, Refusal> {
    // The whole file: `Groups:` stands before `NSpid:` and may be long.
    let status = text::read(cx.proc(call)?.as_fd(), "status").map_err(|_| Refusal::Gone)?;
    let own = innermost(&status);
    Ok((own.is_some() && own == u32::try_from(id).ok()).then(|| call.tid.cast_signed()))
}

/// Returns the last number of the line `NSpid:`, or `Pid:` if the kernel has no pid namespaces.
pub(super) fn innermost(status: &[u8]) -> Option<u32> {
    let last = |label| Status(status).numbers(label).last();
    last("NSpid:").or_else(|| last("Pid:"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ambit_sysinfo::View;

    use super::super::arch::Abi;
    use super::super::memory::Memory;
    use super::super::syscalls::Settings;
    use super::*;
    use crate::pending::Pending;

    #[test]
    fn the_innermost_id_is_the_callers_own() {
        let status = b"Name:\tx\nPid:\t900\nPPid:\t1\nNSpid:\t900\t31\t2\n";
        assert_eq!(innermost(status), Some(2));
        assert_eq!(innermost(b"Name:\tx\nPid:\t900\n"), Some(900));
        assert_eq!(innermost(b"Name:\tx\n"), None);
    }

    #[test]
    fn kernels_without_the_ioctl_know_the_caller_itself() {
        struct NoViews;
        impl ambit_sysinfo::Views for NoViews {
            fn view(&self, tid: u32) -> Result<Arc<View>, ambit_sysinfo::Error> {
                Err(ambit_sysinfo::Error::Gone(tid))
            }
        }
        let proc = std::fs::File::open("/proc/self").unwrap();
        let cx = Context {
            covers_proc: false,
            views: &NoViews,
            pending: Pending::Directory(proc.as_fd()),
            memory: Memory::default(),
            settings: &Settings::default(),
            operations: None,
            container: "",
            account: None,
            notes: super::super::audit::Notes::default(),
        };
        let call = Call { tid: std::process::id(), abi: Abi::Bits64, syscall: "", args: [0; 6] };
        let status = std::fs::read("/proc/self/status").unwrap();
        let id = i32::try_from(innermost(&status).unwrap()).unwrap();
        let me = call.tid.cast_signed();
        assert_eq!(own(&call, &cx, id).unwrap(), Some(me));
        assert_eq!(own(&call, &cx, id + 1).unwrap(), None);
        assert_eq!(translate(&call, &cx, id).unwrap(), Some(me));
    }
}
