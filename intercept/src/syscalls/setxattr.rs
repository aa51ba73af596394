//! setxattr(2), lsetxattr(2), fsetxattr(2), setxattrat(2): the attribute by which overlayfs marks a
//! folder that hides the layers below.
//!
//! Only `trusted.overlay.opaque=y` may be set here; all other attributes are left to the kernel.
//! Container engines that run in a container set it when they unpack layers. Start reading at the
//! method `run`.

use std::os::fd::AsFd;

use ambit_kernel::sys::setxattrat::exists;
use ambit_kernel::text::status::Status;

use super::ranges;
use crate::arch;
use crate::audit::text;
use crate::call::Call;
use crate::operations;
use crate::replay_cache::ReplayCache;
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter, Run};
use crate::syscalls::operation;
use crate::verdict::{CallError, Verdict};
use ambit_worker::operation::{Base, Operation, SetOpaque};

const CAP_SYS_ADMIN: u32 = 21;
const NAME: &[u8] = b"trusted.overlay.opaque";
/// `XATTR_CREATE` and `XATTR_REPLACE`.
const FLAGS: u32 = 3;

/// Results, for callers that signals interrupt: with `XATTR_CREATE` a second attempt fails.
static REPLAYS: ReplayCache<(Base, Operation)> = ReplayCache::new();

/// The size of `struct xattr_args` of Linux 6.13, which is the same for 32-bit programs: a 64-bit
/// address, a size and flags.
const ARGS: usize = 16;
const NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW.unsigned_abs();
const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH.unsigned_abs();

settings! {
    /// setxattr(2), lsetxattr(2), fsetxattr(2) and setxattrat(2): folders can be marked opaque for
    /// overlayfs (`trusted.overlay.opaque`).
    pub struct Settings {
        /// True if the calls are answered.
        pub enabled: bool = false, lxd "setxattr";
    }
}

/// Answers setxattr(2), lsetxattr(2), fsetxattr(2) and setxattrat(2).
pub(super) struct Setxattr;

/// The value that a caller sets: its address in the caller, its size, and the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NewValue {
    value: u64,
    size: u64,
    flags: u32,
}

impl NewValue {
    /// True if it may be the value that is granted.
    fn may_be_granted(self) -> bool {
        self.size == 1 && self.flags & !FLAGS == 0
    }

    fn parse(args: [u8; ARGS]) -> Self {
        let word = |at: usize| [args[at], args[at + 1], args[at + 2], args[at + 3]];
        let [low, high, size, flags] = [0, 4, 8, 12].map(|at| u32::from_ne_bytes(word(at)));
        let little = cfg!(target_endian = "little");
        let (low, high) = if little { (low, high) } else { (high, low) };
        Self { value: u64::from(high) << 32 | u64::from(low), size: size.into(), flags }
    }

    /// Reads it from the arguments.
    fn of(call: &Call, cx: &Context<'_>) -> Result<Self, CallError> {
        if call.syscall != "setxattrat" {
            let (value, size) = (call.long(2), call.long(3));
            return Ok(Self { value, size, flags: call.uint(4) });
        }
        let mut args = [0; ARGS];
        cx.read_all(call, call.long(4), &mut args)?;
        Ok(Self::parse(args))
    }
}

/// A file: where its path starts, the path (`None` for the start itself), and whether a symbolic
/// link at its end is followed.
type File = (Base, Option<Vec<u8>>, bool);

/// Reads the file from the arguments.
fn file(call: &Call, cx: &Context<'_>) -> Result<File, CallError> {
    let (fd, at_flags) = match call.syscall {
        "fsetxattr" => (call.int(0), EMPTY_PATH),
        "setxattrat" => (call.int(0), call.uint(2)),
        "lsetxattr" => (libc::AT_FDCWD, NOFOLLOW),
        _ => (libc::AT_FDCWD, 0),
    };
    let path = match call.syscall {
        "fsetxattr" => None,
        "setxattrat" if call.long(1) == 0 && at_flags & EMPTY_PATH != 0 => None,
        _ => Some(cx.string(call, usize::from(call.syscall == "setxattrat"))?),
    };
    let follow = at_flags & NOFOLLOW == 0;
    match path.filter(|path| !path.is_empty()) {
        Some(path) => Ok((Base::of(fd, &path), Some(path), follow)),
        _ if at_flags & EMPTY_PATH == 0 => Err(CallError::NotGranted),
        _ if fd >= 0 => Ok((Base::Descriptor(fd), None, follow)),
        // fsetxattr(2) does not accept AT_FDCWD.
        _ if fd == libc::AT_FDCWD && call.syscall == "setxattrat" => {
            Ok((Base::Folder, None, follow))
        }
        _ => Err(CallError::NotGranted),
    }
}

/// True if a descriptor of the caller was opened with `O_PATH`.
pub(super) fn is_path_only(call: &Call, cx: &Context<'_>, fd: i32) -> Result<bool, CallError> {
    let about = ambit_kernel::text::read(cx.proc(call)?.as_fd(), &format!("fdinfo/{fd}"));
    cx.still_pending()?;
    let flags = about.ok().and_then(|about| Status(&about).radix("flags:", 8));
    Ok(flags.is_some_and(|flags| flags & libc::O_PATH.unsigned_abs() as u64 != 0))
}

impl Handler for Setxattr {
    fn describe(&self) -> Description {
        Description {
            name: "setxattr",
            syscalls: &["setxattr", "lsetxattr", "fsetxattr", "setxattrat"],
            privileged: true,
        }
    }

    fn reported(&self, syscall: &str) -> &'static [(u32, u64, u64)] {
        match syscall {
            // The size of `struct xattr_args`.
            "setxattrat" => &[(5, u32::MAX as u64, ARGS as u64)],
            // The size of the value, "y".
            _ => &[(3, u32::MAX as u64, 1)],
        }
    }

    fn placement(&self) -> Run {
        Run::Queued
    }

    fn on_delivered(&self, who: (&str, u32), delivered: bool) {
        REPLAYS.on_delivered(who, delivered);
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        let fits = match call.syscall {
            "setxattrat" => {
                call.long(5) == ARGS as u64 && call.uint(2) & !(NOFOLLOW | EMPTY_PATH) == 0
            }
            _ => NewValue { value: 0, size: call.long(3), flags: call.uint(4) }.may_be_granted(),
        };
        if fits { Prefilter::Inspect } else { Prefilter::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        // On a kernel without the call it must fail with ENOSYS.
        if call.syscall == "setxattrat" && !arch::native("setxattrat").is_some_and(exists) {
            return Ok(Verdict::Continue);
        }
        let new = NewValue::of(call, cx)?;
        if !new.may_be_granted() {
            return Ok(Verdict::Continue);
        }
        let mut value = [0; 1];
        cx.read_all(call, new.value, &mut value)?;
        let name = if call.syscall == "setxattrat" { 3 } else { 1 };
        if value != *b"y" || cx.string(call, name)? != NAME {
            return Ok(Verdict::Continue);
        }
        let (base, path, follow) = file(call, cx)?;
        cx.note("name", || text(NAME));
        if let (Base::Descriptor(fd), None) = (base, &path)
            && is_path_only(call, cx, fd)?
        {
            // The kernel answers EBADF.
            return Ok(Verdict::Continue);
        }
        if let Some(path) = &path {
            cx.note("path", || text(path));
        }
        if let Base::Descriptor(fd) = base {
            let name = if path.is_some() { "dirfd" } else { "fd" };
            cx.note(name, || fd.to_string());
        }
        let handle = operation::pin(call, cx, base, CAP_SYS_ADMIN)?;
        let (users, groups) = (ranges(call, cx, "uid_map")?, ranges(call, cx, "gid_map")?);
        let set = Operation::SetOpaque(SetOpaque { path, follow, flags: new.flags, users, groups });
        let set = (base, set);
        REPLAYS.perform((cx.container, call.tid), &set, operations::patience(), cx, || {
            operation::perform(call, cx, &handle, &set.1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Abi;

    #[test]
    fn other_sizes_and_unknown_flags_are_left_to_the_kernel_before_a_look_at_memory() {
        let inspects = |syscall, args| {
            let call = Call { tid: 1, abi: Abi::Bits64, syscall, args };
            Setxattr.prefilter(&call) == Prefilter::Inspect
        };
        assert!(inspects("setxattr", [8, 8, 8, 1, 0, 0]));
        assert!(!inspects("setxattr", [8, 8, 8, 2, 0, 0]) && !inspects("fsetxattr", [8; 6]));
        let known = u64::from(NOFOLLOW | EMPTY_PATH);
        assert!(inspects("setxattrat", [3, 8, known, 8, 8, 16]));
        assert!(!inspects("setxattrat", [3, 8, 1 << 20, 8, 8, 16]), "an unknown flag");
        assert!(!inspects("setxattrat", [3, 8, 0, 8, 8, 24]), "longer arguments");
    }

    #[test]
    fn xattr_args_are_parsed_as_the_kernel_lays_them_out() {
        let mut args = [0; ARGS];
        args[..8].copy_from_slice(&(7u64 << 32 | 9).to_ne_bytes());
        args[8..12].copy_from_slice(&1u32.to_ne_bytes());
        args[12..].copy_from_slice(&2u32.to_ne_bytes());
        let new = NewValue::parse(args);
        assert_eq!(new, NewValue { value: 7 << 32 | 9, size: 1, flags: 2 });
        assert!(
            new.may_be_granted()
                && !NewValue { size: 2, ..new }.may_be_granted()
                && !NewValue { flags: 4, ..new }.may_be_granted()
        );
    }
}
