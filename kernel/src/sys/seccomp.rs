//! seccomp(2): installing a filter with a listener, and the sizes of the kernel's structures.
//!
//! libseccomp can load filters too, but keeps the listener in a variable of the whole process
//! and loads only the first one with a listener; a program that forks needs better.
#![allow(unsafe_code, reason = "raw system calls that no crate offers")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libseccomp_sys::{
    SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, SECCOMP_GET_NOTIF_SIZES,
    SECCOMP_SET_MODE_FILTER, seccomp_notif_sizes,
};
use nix::errno::Errno;

/// What the kernel takes `struct seccomp_notif` and its fellows to measure.
///
/// # Errors
/// The kernel has no user notification (before 5.0, or built without).
pub fn notification_sizes() -> Result<seccomp_notif_sizes, Errno> {
    let mut sizes =
        seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
    // SAFETY: the kernel writes one struct of exactly this type.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) };
    Errno::result(result).map(|_| sizes)
}

/// Installs a filter in the calling thread and returns its listener, which is close-on-exec.
/// Allocates nothing: it may be called between fork and exec.
///
/// # Errors
/// EACCES without CAP_SYS_ADMIN and without no_new_privs, EBUSY when a filter of this thread has
/// a listener already, EINVAL for a program the kernel refuses.
pub fn install_with_listener(program: &[libc::sock_filter]) -> Result<OwnedFd, Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        // The kernel only reads it; the type is shared with calls that write.
        filter: program.as_ptr().cast_mut(),
    };
    // Without SPEC_ALLOW, kernels before 5.16 would slow the whole program down with SSBD.
    let flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the kernel copies the program, whose length is that of a live slice.
    let fd = unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_its_sizes() {
        let sizes = notification_sizes().unwrap();
        assert!(sizes.seccomp_notif >= 80 && sizes.seccomp_notif_resp >= 24);
    }
}
