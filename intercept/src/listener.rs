//! A seccomp listener: the five ioctls, nothing else.
//!
//! The crate libseccomp is not used here: it folds ENOENT ("the target is gone", benign and
//! frequent) into ECANCELED, drops requests of architectures it does not know after the kernel
//! has handed them over, and lacks ADDFD and SET_FLAGS. This file never decides what to answer.
#![allow(unsafe_code, reason = "the ioctls of seccomp user notification")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ambit_keeper::client::KeeperClient;
use ambit_kernel::sys;
use libseccomp_sys::{
    SECCOMP_ADDFD_FLAG_SEND, SECCOMP_USER_NOTIF_FLAG_CONTINUE, seccomp_data, seccomp_notif,
    seccomp_notif_addfd, seccomp_notif_resp,
};
use nix::errno::Errno;

use super::Error;
use crate::verdict::Verdict;

mod ioctls {
    use libseccomp_sys::{seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp};

    nix::ioctl_readwrite!(recv, b'!', 0, seccomp_notif);
    nix::ioctl_readwrite!(send, b'!', 1, seccomp_notif_resp);
    nix::ioctl_write_ptr!(id_valid, b'!', 2, u64);
    nix::ioctl_write_ptr!(addfd, b'!', 3, seccomp_notif_addfd);
    // The header has it write eight bytes, though the flags are the argument itself.
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

/// What the keeper has of a listener.
#[derive(Debug)]
struct Kept {
    link: KeeperClient,
    number: u64,
}

/// The name of a listener with the keeper, before its number.
pub(super) const LISTENER: &str = "listener-";
/// The name of what is known of its container, before the same number.
pub(super) const ABOUT: &str = "about-";

impl Listener {
    /// Takes a descriptor over after looking whether it is a listener at all.
    pub(super) fn adopt(fd: OwnedFd) -> Result<Self, Error> {
        if let Err(errno) = id_valid(fd.as_fd(), 0)
            && errno != Errno::ENOENT
        {
            return Err(Error::NoListener { errno });
        }
        take_turns(fd.as_fd());
        Ok(Self { fd, kept: None })
    }

    /// The keeper has it under this number.
    pub(super) fn kept(self, link: KeeperClient, number: u64) -> Self {
        Self { kept: Some(Kept { link, number }), ..self }
    }

    /// Nobody will ever call through it again: the keeper lets go of it too.
    pub(super) fn forget(&self) {
        if let Some(Kept { link, number }) = &self.kept {
            link.remove(&format!("{LISTENER}{number}"));
            link.remove(&format!("{ABOUT}{number}"));
        }
    }

    /// Takes one request. Call it once per readiness: it sleeps when there is none.
    ///
    /// ENOENT: the target died or got a signal meanwhile. EINTR: we got one.
    pub(super) fn receive(&self) -> Result<seccomp_notif, Errno> {
        let mut request = EMPTY;
        self.receive_into(&mut request)?;
        Ok(request)
    }

    /// The same into a place that must be zero: the kernel refuses any other.
    pub(super) fn receive_into(&self, request: &mut seccomp_notif) -> Result<(), Errno> {
        // SAFETY: the kernel writes one struct of this type; its size was compared at start.
        unsafe { ioctls::recv(self.fd.as_raw_fd(), request) }.map(drop)
    }

    /// Its number with the keeper; 0 without one.
    pub(super) fn number(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.number)
    }

    /// Sends an answer that was decided before.
    pub(super) fn send(&self, answer: seccomp_notif_resp) -> Result<(), Errno> {
        send(self.fd.as_fd(), answer)
    }

    /// Answers a request. ENOENT: nobody waits for the answer any more.
    pub(super) fn answer(&self, id: u64, verdict: &Verdict) -> Result<(), Errno> {
        if let Verdict::Install(fd) = verdict {
            return install(self.fd.as_fd(), id, fd.as_fd());
        }
        send(self.fd.as_fd(), response(id, verdict))
    }

    /// Another descriptor of the same listener, for a thread that answers later.
    pub(super) fn duplicate(&self) -> std::io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, kept: None })
    }

    /// Gives the descriptor back.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const EMPTY: seccomp_notif = seccomp_notif {
    id: 0,
    pid: 0,
    flags: 0,
    data: seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] },
};

/// The target and whoever answers take turns: from here on each hands its processor over to the other
/// one directly instead of waking an idle one (12 us a round trip instead of 100 and more). Without that
/// (EINVAL before Linux 6.6) everything works, only slower.
pub(super) fn take_turns(listener: BorrowedFd<'_>) {
    // SAFETY: the argument is a plain number.
    if let Err(errno) = unsafe { ioctls::set_flags(listener.as_raw_fd(), SYNC_WAKE_UP) } {
        tracing::debug!("callers are woken slowly: SECCOMP_IOCTL_NOTIF_SET_FLAGS: {errno}");
    }
}

/// Does somebody still wait for the answer to this request?
pub(super) fn id_valid(listener: BorrowedFd<'_>, id: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads eight bytes.
    unsafe { ioctls::id_valid(listener.as_raw_fd(), &raw const id) }.map(drop)
}

/// Copies a descriptor into the target, where it is the result of the call.
pub(super) fn install(listener: BorrowedFd<'_>, id: u64, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut request = seccomp_notif_addfd {
        id,
        flags: SECCOMP_ADDFD_FLAG_SEND,
        srcfd: fd.as_raw_fd().unsigned_abs(),
        newfd: 0,
        newfd_flags: libc::O_CLOEXEC.unsigned_abs(),
    };
    // SAFETY: the kernel reads one struct of this type.
    match unsafe { ioctls::addfd(listener.as_raw_fd(), &raw const request) } {
        Ok(_) => Ok(()),
        // FLAG_SEND is of Linux 5.14: before, adding and answering are two steps.
        Err(Errno::EINVAL) => {
            request.flags = 0;
            // SAFETY: as above.
            let number = unsafe { ioctls::addfd(listener.as_raw_fd(), &raw const request) }?;
            send(listener, response(id, &Verdict::Return(i64::from(number))))
        }
        Err(errno) => Err(errno),
    }
}

/// A verdict as the kernel's structure. A descriptor cannot be expressed: it becomes CONTINUE.
pub(super) fn response(id: u64, verdict: &Verdict) -> seccomp_notif_resp {
    let mut response = seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
    match verdict {
        Verdict::Return(value) => response.val = *value,
        Verdict::Fail(errno) => response.error = -(*errno as i32),
        Verdict::Continue | Verdict::Install(_) => {
            response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        }
    }
    response
}

fn send(listener: BorrowedFd<'_>, mut response: seccomp_notif_resp) -> Result<(), Errno> {
    // SAFETY: the kernel reads one struct of this type.
    unsafe { ioctls::send(listener.as_raw_fd(), &raw mut response) }.map(drop)
}

/// Compares our structures with the kernel's: a larger one would be written past our buffer.
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
    fn this_kernel_fits() {
        check_sizes().unwrap();
    }

    #[test]
    fn the_number_is_the_headers() {
        assert_eq!(ioctls::SET_FLAGS, 0x4008_2104);
    }

    #[test]
    fn a_plain_file_is_no_listener() {
        let error = Listener::adopt(File::open("/dev/null").unwrap().into()).unwrap_err();
        assert!(matches!(error, Error::NoListener { .. }), "{error}");
    }

    #[test]
    fn verdicts_become_answers() {
        let fail = response(7, &Verdict::Fail(Errno::EFAULT));
        assert_eq!((fail.id, fail.val, fail.error, fail.flags), (7, 0, -libc::EFAULT, 0));
        let value = response(7, &Verdict::Return(8));
        assert_eq!((value.val, value.error, value.flags), (8, 0, 0));
        let onward = response(7, &Verdict::Continue);
        assert_eq!((onward.val, onward.error, onward.flags), (0, 0, 1));
    }
}
