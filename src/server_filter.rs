//! The seccomp filter of the server: what it never calls is refused, so that a container which takes
//! the server over gets less of the kernel.
//!
//! A refused call fails with EPERM, and the kernel logs it (`type=1326` in the audit log): the server
//! goes on. The filter binds what the server starts, which is its visitor; the broker is the keeper's
//! child, so workers and helpers are not bound.

use ambit_kernel::sys::seccomp;
use libseccomp::error::SeccompError;

/// The system calls that are refused.
const REFUSED: [&str; 43] = [
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "get_kernel_syms",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "migrate_pages",
    "mknod",
    "mknodat",
    "modify_ldt",
    "move_pages",
    "perf_event_open",
    "pivot_root",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "sethostname",
    "setdomainname",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "userfaultfd",
    "vhangup",
    "vmsplice",
];

/// Installs the filter for this process, which must not have threads yet, and its descendants.
pub(crate) fn install() -> Result<(), SeccompError> {
    let mut context = seccomp::refusing(&REFUSED, rustix::io::Errno::PERM.raw_os_error())?;
    // Without these the refusals are not logged, and before Linux 5.16 the filter slows the server
    // down (`spec_store_bypass_disable`).
    let _ = context.set_ctl_log(true);
    let _ = context.set_ctl_ssb(true);
    context.load()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_fails_and_the_thread_goes_on() {
        let call = || {
            let file = std::env::temp_dir().join("ambit-not-made");
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, file, kind, rustix::fs::Mode::RUSR, 0)
        };
        // A filter binds its thread.
        let filtered =
            std::thread::spawn(move || install().map(|()| (call(), std::fs::metadata("/"))));
        let (refused, allowed) = filtered.join().unwrap().unwrap();
        assert_eq!(refused, Err(rustix::io::Errno::PERM));
        assert!(allowed.is_ok());
    }
}
