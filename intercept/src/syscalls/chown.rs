//! chown(2), lchown(2), fchown(2) and fchownat(2) to root of what root of the machine owns: `/proc`,
//! `/sys` and other filesystems of the kernel.
//!
//! Packages own these folders, and rpm fails where it cannot give them to root: the kernel refuses
//! that in a user namespace, where root of the machine has no number. Nothing is changed here,
//! because they have the owner that is asked for. All other owners and files are left to the kernel. Start reading at the
//! method `run`.

use ambit_worker::operation::{Base, IsRoots, Operation};

use super::setxattr::is_path_only;
use crate::audit::text;
use crate::call::Call;
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter, Run};
use crate::syscalls::operation;
use crate::verdict::{CallError, Verdict};

const CAP_CHOWN: u32 = 0;
const NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW.unsigned_abs();
const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH.unsigned_abs();

settings! {
    /// chown(2), lchown(2), fchown(2) and fchownat(2): giving `/proc`, `/sys` and what is in them to
    /// root, who owns them, succeeds and changes nothing. rpm and zypper need that.
    pub struct Settings {
        /// True if the calls are answered.
        pub enabled: bool = false;
    }
}

/// Answers chown(2), lchown(2), fchown(2) and fchownat(2).
pub(super) struct Chown;

/// Returns the index of the argument with the user; that with the group follows it.
fn user_at(syscall: &str) -> usize {
    if syscall == "fchownat" { 2 } else { 1 }
}

impl Handler for Chown {
    fn describe(&self) -> Description {
        let syscalls = &["chown", "lchown", "fchown", "fchownat"];
        Description { name: "chown", syscalls, privileged: true }
    }

    fn reported(&self, syscall: &str) -> &'static [(u32, u64, u64)] {
        match syscall {
            "fchownat" => &[(2, u32::MAX as u64, 0)],
            _ => &[(1, u32::MAX as u64, 0)],
        }
    }

    fn placement(&self) -> Run {
        Run::Queued
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        let at = user_at(call.syscall);
        let flags = if at == 2 { call.uint(4) } else { 0 };
        let to_root = call.uint(at) == 0 && call.uint(at + 1) == 0;
        if to_root && flags & !(NOFOLLOW | EMPTY_PATH) == 0 {
            Prefilter::Inspect
        } else {
            Prefilter::Continue
        }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        let (fd, flags, path_at) = match call.syscall {
            "fchown" => (call.int(0), EMPTY_PATH, None),
            "fchownat" => (call.int(0), call.uint(4), Some(1)),
            "lchown" => (libc::AT_FDCWD, NOFOLLOW, Some(0)),
            _ => (libc::AT_FDCWD, 0, Some(0)),
        };
        let path = match path_at {
            Some(at) => cx.string(call, at)?,
            None => Vec::new(),
        };
        let base = Base::of(fd, &path);
        let path = Some(path).filter(|path| !path.is_empty());
        // The kernel answers ENOENT, or EBADF.
        if path.is_none()
            && (flags & EMPTY_PATH == 0
                || path_at.is_none() && (fd < 0 || is_path_only(call, cx, fd)?))
        {
            return Ok(Verdict::Continue);
        }
        match &path {
            Some(path) => cx.note("path", || text(path)),
            None => cx.note("fd", || fd.to_string()),
        }
        let handle = operation::pin(call, cx, base, CAP_CHOWN)?;
        cx.still_pending()?;
        let follow = flags & NOFOLLOW == 0;
        operation::perform(call, cx, &handle, &Operation::IsRoots(IsRoots { path, follow }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Abi;

    #[test]
    fn other_owners_and_unknown_flags_are_left_to_the_kernel() {
        let inspects = |syscall, args| {
            let call = Call { tid: 1, abi: Abi::Bits64, syscall, args };
            Chown.prefilter(&call) == Prefilter::Inspect
        };
        let keep = u64::from(u32::MAX);
        assert!(inspects("chown", [8, 0, 0, 0, 0, 0]) && inspects("fchown", [3, 0, 0, 9, 9, 9]));
        assert!(inspects("fchownat", [3, 8, 0, 0, u64::from(NOFOLLOW), 0]));
        assert!(!inspects("fchownat", [3, 8, 0, 0, 1, 0]), "an unknown flag");
        for (uid, gid) in [(0, 1), (1, 0), (keep, keep), (65_534, 65_534)] {
            assert!(!inspects("lchown", [8, uid, gid, 0, 0, 0]), "{uid}:{gid}");
        }
    }
}
