//! Whether this kernel has the x32 ABI.
//!
//! Seccomp reports the numbers of x32 whether or not the kernel has the calls: without
//! `CONFIG_X86_X32_ABI`, or with `syscall.x32=n`, they are ENOSYS.

use std::sync::OnceLock;

use rustix::io::retry_on_intr;
use rustix::process::{WaitOptions, waitpid};

use super::raw;

/// True if a call of x32 succeeds. It is made once, in a child process: a filter that forbids x32 may
/// kill that. False if the child was killed or cannot be made.
pub fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| cfg!(target_arch = "x86_64") && call_in_child())
}

fn call_in_child() -> bool {
    let Ok(child) = raw::fork_x32_getpid() else { return false };
    let ended = retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    matches!(ended, Ok(Some((_, status))) if status.exit_status() == Some(0))
}
