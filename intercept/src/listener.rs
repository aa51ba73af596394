//! A seccomp listener: the five ioctls of seccomp_unotify(2), nothing else.
//!
//! This file must never decide what to answer. The crate libseccomp is not used here, because it
//! turns ENOENT (the caller does not wait any more, which is frequent) into ECANCELED, drops
//! notifications of architectures that it does not know, and lacks ADDFD and SET_FLAGS.
#![allow(unsafe_code, reason = "the ioctls of seccomp user notification")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ambit_keeper::client::KeeperClient;
use ambit_kernel::sys::{self, errno::to_errno};
use libseccomp_sys::{
    SECCOMP_ADDFD_FLAG_SEND, SECCOMP_USER_NOTIF_FLAG_CONTINUE, seccomp_data, seccomp_notif,
    seccomp_notif_addfd, seccomp_notif_resp,
};
use rustix::io::Errno;

use super::Error;
use crate::verdict::Verdict;

mod ioctls {
    use libseccomp_sys::{seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp};

    nix::ioctl_readwrite!(recv, b'!', 0, seccomp_notif);
    nix::ioctl_readwrite!(send, b'!', 1, seccomp_notif_resp);
    nix::ioctl_write_ptr!(id_valid, b'!', 2, u64);
    nix::ioctl_write_ptr!(addfd, b'!', 3, seccomp_notif_addfd);
    // The header defines it with a pointer to eight bytes, but the argument is the flags
    // themselves.
    pub(super) const SET_FLAGS: nix::sys::ioctl::ioctl_num_type =
        nix::request_code_write!(b'!', 4, size_of::<u64>());
    nix::ioctl_write_int_bad!(set_flags, SET_FLAGS);
}

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`, Linux 6.6.
const SYNC_WAKE_UP: i32 = 1;

/// An open listener.
#[derive(Debug)]
pub(super) struct Listener {
    fd: OwnedFd,
    kept: Option<Kept>,
}

/// Where the keeper has a duplicate of a listener.
#[derive(Debug)]
struct Kept {
    link: KeeperClient,
    number: u64,
}

/// The prefix of a listener's name with the keeper; its number follows.
pub(super) const LISTENER: &str = "listener-";
/// The prefix of the name of its container's description; the same number follows.
pub(super) const ABOUT: &str = "about-";

impl Listener {
    /// Takes over a descriptor.
    pub(super) fn adopt(fd: OwnedFd) -> Result<Self, Error> {
        if let Err(errno) = id_valid(fd.as_fd(), 0)
            && errno != Errno::NOENT
        {
            return Err(Error::NoListener { errno });
        }
        set_sync_wake_up(fd.as_fd());
        Ok(Self { fd, kept: None })
    }

    /// Sets the number under which the keeper has a duplicate.
    pub(super) fn kept(self, link: KeeperClient, number: u64) -> Self {
        Self { kept: Some(Kept { link, number }), ..self }
    }

    /// Makes the keeper close its duplicate too. Called when no call can come any more.
    pub(super) fn forget(&self) {
        if let Some(Kept { link, number }) = &self.kept {
            link.remove(&format!("{LISTENER}{number}"));
            link.remove(&format!("{ABOUT}{number}"));
        }
    }

    /// Receives one notification. It blocks if there is none, so it is called once for each event.
    ///
    /// # Errors
    /// ENOENT if the caller died or got a signal meanwhile, EINTR if this thread got a signal.
    pub(super) fn receive(&self) -> Result<seccomp_notif, Errno> {
        let mut request = EMPTY_NOTIFICATION;
        self.receive_into(&mut request)?;
        Ok(request)
    }

    /// Receives one notification into `request`, which must be zero: the kernel checks that.
    pub(super) fn receive_into(&self, request: &mut seccomp_notif) -> Result<(), Errno> {
        // SAFETY: the kernel writes one struct of this type; `check_sizes` compared its size at
        // start.
        unsafe { ioctls::recv(self.fd.as_raw_fd(), request) }.map(drop).map_err(to_errno)
    }

    /// Returns its number with the keeper; 0 without one.
    pub(super) fn number(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.number)
    }

    /// Sends an answer in the kernel's form.
    pub(super) fn send(&self, answer: seccomp_notif_resp) -> Result<(), Errno> {
        send(self.fd.as_fd(), answer)
    }

    /// Answers a notification. ENOENT if the caller does not wait for the answer any more.
    pub(super) fn answer(&self, id: u64, verdict: &Verdict) -> Result<(), Errno> {
        if let Verdict::Install(fd) = verdict {
            return install(self.fd.as_fd(), id, fd.as_fd());
        }
        send(self.fd.as_fd(), response(id, verdict))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel expects where it writes a notification.
pub(super) const EMPTY_NOTIFICATION: seccomp_notif = seccomp_notif {
    id: 0,
    pid: 0,
    flags: 0,
    data: seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] },
};

/// Sets `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`: the caller and the thread that answers then wake each
/// other on the same CPU instead of an idle one (12 us a round trip instead of 100 and more).
/// Before Linux 6.6 (EINVAL) everything works, but slower.
pub(super) fn set_sync_wake_up(listener: BorrowedFd<'_>) {
    // SAFETY: the argument is an integer; the kernel accesses no memory.
    if let Err(errno) = unsafe { ioctls::set_flags(listener.as_raw_fd(), SYNC_WAKE_UP) } {
        tracing::debug!("callers are woken slowly: SECCOMP_IOCTL_NOTIF_SET_FLAGS: {errno}");
    }
}

/// Checks that the notification is pending. ENOENT if its caller does not wait any more.
pub(super) fn id_valid(listener: BorrowedFd<'_>, id: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads the eight bytes of `id`, which lives until the call returns.
    unsafe { ioctls::id_valid(listener.as_raw_fd(), &raw const id) }.map(drop).map_err(to_errno)
}

/// Installs a descriptor in the caller and answers the call with its number.
pub(super) fn install(listener: BorrowedFd<'_>, id: u64, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut request = seccomp_notif_addfd {
        id,
        flags: SECCOMP_ADDFD_FLAG_SEND,
        srcfd: fd.as_raw_fd().unsigned_abs(),
        newfd: 0,
        newfd_flags: libc::O_CLOEXEC.unsigned_abs(),
    };
    // SAFETY: the kernel reads one struct of this type, and `request` lives until the call returns.
    match unsafe { ioctls::addfd(listener.as_raw_fd(), &raw const request) }.map_err(to_errno) {
        Ok(_) => Ok(()),
        // SECCOMP_ADDFD_FLAG_SEND is of Linux 5.14. Before, adding and answering are two steps.
        Err(Errno::INVAL) => {
            request.flags = 0;
            // SAFETY: the kernel reads one struct of this type, which lives until the call returns.
            let number = unsafe { ioctls::addfd(listener.as_raw_fd(), &raw const request) };
            let number = number.map_err(to_errno)?;
            send(listener, response(id, &Verdict::Return(i64::from(number))))
        }
        Err(errno) => Err(errno),
    }
}

/// Returns the kernel's structure for a verdict. It cannot hold a descriptor: that becomes
/// CONTINUE.
pub(super) fn response(id: u64, verdict: &Verdict) -> seccomp_notif_resp {
    let mut response = seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
    match verdict {
        Verdict::Return(value) => response.val = *value,
        Verdict::Fail(errno) => response.error = -errno.raw_os_error(),
        Verdict::Continue | Verdict::Install(_) => {
            response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        }
    }
    response
}

fn send(listener: BorrowedFd<'_>, mut response: seccomp_notif_resp) -> Result<(), Errno> {
    // SAFETY: the kernel reads one struct of this type; `response` is a local variable.
    unsafe { ioctls::send(listener.as_raw_fd(), &raw mut response) }.map(drop).map_err(to_errno)
}

/// Compares the sizes of this program's structures with the kernel's. The kernel would write a
/// larger one past the end of the buffer.
pub(super) fn check_sizes() -> Result<(), Error> {
    let kernel =
        sys::seccomp::notification_sizes().map_err(|errno| Error::Unsupported { errno })?;
    let kernel = [kernel.seccomp_notif, kernel.seccomp_notif_resp, kernel.seccomp_data];
    let ours =
        [size_of::<seccomp_notif>(), size_of::<seccomp_notif_resp>(), size_of::<seccomp_data>()];
    if kernel.map(usize::from) == ours { Ok(()) } else { Err(Error::Sizes { kernel, ours }) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn this_kernel_has_structures_of_the_known_sizes() {
        check_sizes().unwrap();
    }

    #[test]
    fn set_flags_has_the_number_of_the_kernels_header() {
        assert_eq!(ioctls::SET_FLAGS, 0x4008_2104);
    }

    #[test]
    fn a_plain_file_is_not_a_listener() {
        let error = Listener::adopt(File::open("/dev/null").unwrap().into()).unwrap_err();
        assert!(matches!(error, Error::NoListener { .. }), "{error}");
    }

    #[test]
    fn a_verdict_is_encoded_as_the_kernel_expects() {
        let fail = response(7, &Verdict::Fail(Errno::FAULT));
        assert_eq!((fail.id, fail.val, fail.error, fail.flags), (7, 0, -libc::EFAULT, 0));
        let value = response(7, &Verdict::Return(8));
        assert_eq!((value.val, value.error, value.flags), (8, 0, 0));
        let onward = response(7, &Verdict::Continue);
        assert_eq!((onward.val, onward.error, onward.flags), (0, 0, 1));
    }
}
