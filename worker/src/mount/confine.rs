//! Confines a helper, whose program the container may choose and which does not run under the
//! container's own seccomp filter: a filter cannot be copied to another process.
//!
//! A filter of ambit takes its place. It denies, in every ABI, what the default filters of
//! container engines deny and no filesystem needs. It must allow mount(2) and the new mount API,
//! which helpers use. The AppArmor profile is the caller's. Start reading at [`filter`].

use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};

use ambit_kernel::sys::seccomp;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpSyscall};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error};

/// The system calls that return EPERM.
const FORBIDDEN: [&str; 39] = [
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "get_kernel_syms",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "open_by_handle_at",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "unshare",
    "userfaultfd",
    "vhangup",
];
/// All flags of clone(2) that create namespaces.
const NAMESPACES: u64 = 0x7e02_0000;

/// Installs the filter for this process and its descendants.
pub(super) fn filter() -> Result<(), Error> {
    let build = || -> Result<(), libseccomp::error::SeccompError> {
        let mut context = seccomp::refusing(&FORBIDDEN, libc::ENOSYS)?;
        let no = ScmpAction::Errno(libc::EPERM);
        for bit in (0..32).map(|bit| 1u64 << bit).filter(|bit| NAMESPACES & bit != 0) {
            let made = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(bit), bit);
            context.add_rule_conditional(no, ScmpSyscall::from_name("clone")?, &[made])?;
        }
        // Its flags are in memory, where a filter cannot read them. The C library falls back to
        // clone(2) on ENOSYS.
        context.add_rule(ScmpAction::Errno(libc::ENOSYS), ScmpSyscall::from_name("clone3")?)?;
        // no_new_privs is as the caller has it: a helper may be a set-user-ID program.
        context.set_ctl_nnp(false)?;
        context.load()
    };
    build().map_err(|error| Error::new(Errno::PERM, format!("cannot confine the helper: {error}")))
}

/// Opens the host's `/proc`, for [`set_label`].
pub(super) fn host_proc() -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/proc", flags, Mode::empty()).context("open of /proc")
}

/// Sets the AppArmor profile for the next execve(2).
pub(crate) fn set_label(proc: BorrowedFd<'_>, label: &str) -> Result<(), Error> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, "self/attr/apparmor/exec", flags, Mode::empty())
        .context("open of attr/apparmor/exec")?;
    write!(std::fs::File::from(file), "exec {label}").context(format!("the profile {label}"))
}
