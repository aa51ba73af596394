//! seccomp(2): installing a filter with a listener, and the sizes of the kernel's structures.
//!
//! libseccomp can load filters too, but keeps the listener in a variable of the whole process
//! and loads only the first one with a listener; a program that forks needs better.

use std::os::fd::OwnedFd;

use libseccomp_sys::seccomp_notif_sizes;
use nix::errno::Errno;

use super::raw;

/// Returns the kernel's sizes of `struct seccomp_notif` and the two structures that go with it.
///
/// # Errors
/// The kernel has no user notification (before 5.0, or built without).
pub fn notification_sizes() -> Result<seccomp_notif_sizes, Errno> {
    raw::seccomp_sizes()
}

/// Installs a filter in the calling thread and returns its listener, which is close-on-exec.
/// Allocates nothing: it may be called between fork and exec.
///
/// # Errors
/// EACCES without CAP_SYS_ADMIN and without no_new_privs, EBUSY when a filter of this thread has
/// a listener already, EINVAL for a program the kernel refuses.
pub fn install_with_listener(program: &[libc::sock_filter]) -> Result<OwnedFd, Errno> {
    raw::seccomp_filter(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_returns_its_sizes() {
        let sizes = notification_sizes().unwrap();
        assert!(sizes.seccomp_notif >= 80 && sizes.seccomp_notif_resp >= 24);
    }
}
