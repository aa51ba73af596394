//! Does this kernel have the x32 ABI?
//!
//! Seccomp reports the numbers of x32 whether or not the kernel has the calls: without
//! `CONFIG_X86_X32_ABI`, or with `syscall.x32=n`, they are ENOSYS.
#![allow(unsafe_code, reason = "fork(2) and a call by its number have no safe form")]

use std::sync::OnceLock;

/// `getpid` with `__X32_SYSCALL_BIT`.
const GETPID: libc::c_long = 0x4000_0000 | 39;

/// Asks the kernel, once, in a process of its own: where a filter forbids x32 it may be killed for
/// it. Then, and when it cannot be asked, the answer is no.
pub fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| cfg!(target_arch = "x86_64") && ask())
}

fn ask() -> bool {
    // SAFETY: the child makes three system calls and ends; it needs nothing of what other threads
    // may hold.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a structure that lives, and calls without pointers. No file is left behind when
        // this process is killed.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            libc::_exit(i32::from(libc::syscall(GETPID) <= 0));
        }
    }
    let child = nix::unistd::Pid::from_raw(child);
    child.as_raw() > 0
        && loop {
            match nix::sys::wait::waitpid(child, None) {
                Err(nix::errno::Errno::EINTR) => {}
                ended => break ended == Ok(nix::sys::wait::WaitStatus::Exited(child, 0)),
            }
        }
}
