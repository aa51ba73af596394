//! A call that arrived in a packet of liblxc, and its answer.
//!
//! The packet stays in the socket until the answer was sent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libseccomp_sys::seccomp_notif_resp;
use rustix::io::Errno;

use super::{Connection, GiveBack};
use crate::journal::Entry;
use crate::listener::{self, response};
use crate::lxc_packet::{self, FIXED};
use crate::pending::Pending;
use crate::transport::Transport;
use crate::verdict::Verdict;

/// An answer that takes longer is not sent. Well below the 30 s after which liblxc stops waiting.
pub(super) const DEADLINE: Duration = Duration::from_secs(25);

/// How long a monitor may take to pass an answer to the kernel.
const PASSING_ON: Duration = Duration::from_secs(2);

/// A call that arrived in a packet.
pub(super) struct LxcCall {
    pub(super) connection: Arc<Connection>,
    /// The packet without its cookie.
    pub(super) packet: [u8; FIXED],
    pub(super) id: u64,
    pub(super) proc: OwnedFd,
    pub(super) memory: OwnedFd,
    pub(super) listener: Option<OwnedFd>,
    pub(super) received: Instant,
    pub(super) give_back: GiveBack,
}

impl LxcCall {
    fn reply(&self, answer: &seccomp_notif_resp) -> bool {
        let sent = self.connection.send(&lxc_packet::reply(self.packet, answer));
        self.connection.consume();
        sent
    }
}

impl Transport for LxcCall {
    fn pending(&self) -> Pending<'_> {
        match &self.listener {
            Some(listener) => Pending::Listener(listener.as_fd(), self.id),
            None => Pending::Directory(self.proc.as_fd()),
        }
    }

    fn memory(&self) -> Option<BorrowedFd<'_>> {
        Some(self.memory.as_fd())
    }

    fn answer(&self, verdict: &Verdict, entry: &Entry) -> Result<(), Errno> {
        let gone = Err(Errno::NOENT);
        if self.received.elapsed() >= DEADLINE || self.pending().check().is_err() {
            return gone;
        }
        if let (Verdict::Install(fd), Some(listener)) = (verdict, &self.listener)
            && let Err(errno) = listener::install(listener.as_fd(), self.id, fd.as_fd())
        {
            self.connection.warn(&format_args!("SECCOMP_IOCTL_NOTIF_ADDFD: {errno}"));
        }
        // Installing a descriptor has answered the call. The answer that the monitor passes on
        // after that has no effect.
        let answer = response(self.id, verdict);
        entry.record_answer(&answer);
        if self.reply(&answer) { Ok(()) } else { gone }
    }

    /// Sends the answer unless the predecessor has sent it. If it has, the monitor passes it on
    /// within a moment, and the call is not pending any more. A second answer would be taken for
    /// the answer to the next call.
    fn answer_again(&self, answer: &seccomp_notif_resp) -> bool {
        // Without the listener this cannot be found out.
        let Some(listener) = &self.listener else { return false };
        let until = Instant::now() + PASSING_ON;
        while listener::id_valid(listener.as_fd(), self.id).is_ok() {
            if Instant::now() >= until {
                return self.reply(answer);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.connection.consume();
        true
    }

    /// Closes the connection. The monitor then leaves the call to the kernel, and connects again.
    fn refuse(&self) -> Result<(), Errno> {
        self.connection.ended();
        Ok(())
    }

    fn leave_thread(&mut self) -> bool {
        let duplicate = self.connection.duplicate();
        duplicate.map(|connection| self.connection = Arc::new(connection)).is_ok()
    }

    fn release(self, delivered: bool) {
        if delivered {
            return (self.give_back)(self.connection);
        }
        // The monitor connects again.
        self.connection.ended();
        let _ = rustix::net::shutdown(&self.connection.fd, rustix::net::Shutdown::Both);
    }
}
