//! The channel between the processes of this package: it carries a result, a text and descriptors.
//!
//! SEQPACKET keeps messages whole, and a peer that dies is an end of file. A receiver must never
//! wait without a deadline, because the peer may be blocked in a filesystem of the container. Start
//! reading at [`Line::report`] and [`Line::receive`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::channel;
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::failure::{Failure, OnOurSide, OrFail};

/// The longest text, in bytes. Longer ones are cut off.
const TEXT: usize = 4096;

/// One end of a channel.
#[derive(Debug)]
pub(super) struct Line(OwnedFd);

impl Line {
    pub(super) fn pair() -> Result<(Self, Self), Failure> {
        let (one, other) = channel::pair().or_fail("socketpair").on_our_side()?;
        Ok((Self(one), Self(other)))
    }

    /// Reports success, with descriptors.
    pub(super) fn done(&self, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.send(0, "", fds)
    }

    /// Reports success with descriptors, or an error.
    pub(super) fn report(&self, result: Result<Vec<OwnedFd>, Failure>) {
        // Errors are ignored: a peer that has closed its end does not wait for the result.
        let _ = match result {
            Ok(fds) => self.done(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()),
            Err(failure) => self.send(number(&failure), &failure.message, &[]),
        };
    }

    fn send(&self, errno: i32, text: &str, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let text = &text.as_bytes()[..text.len().min(TEXT)];
        let bytes = [&errno.to_ne_bytes(), text].concat();
        channel::send(&self.0, &bytes, fds, SendFlags::empty())
            .or_fail("sendmsg to another process")
            .on_our_side()
    }

    /// Reports success with a number, or an error.
    pub(super) fn report_number(&self, result: Result<Option<u64>, Failure>) {
        match result {
            Ok(Some(number)) => drop(self.send(0, &number.to_string(), &[])),
            other => self.report(other.map(|_| Vec::new())),
        }
    }

    /// Reports success, with a value as JSON.
    pub(super) fn done_with(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::new(Errno::EINVAL, error.to_string()))?;
        self.send(0, &text, &[])
    }

    /// Waits for a report, and returns its value.
    pub(super) fn receive_value<T: DeserializeOwned>(&self, until: Instant) -> Result<T, Failure> {
        let (_, text) = self.take(until)?;
        serde_json::from_str(&text).map_err(|error| Failure::new(Errno::EPROTO, error.to_string()))
    }

    /// Waits for a report, and returns its descriptors. An error that the peer reports is returned;
    /// EIO if the peer has ended, ETIMEDOUT after `until`.
    pub(super) fn receive(&self, until: Instant) -> Result<Vec<OwnedFd>, Failure> {
        self.take(until).map(|(fds, _)| fds)
    }

    /// Waits for a report, and returns its number if it has one.
    pub(super) fn receive_number(&self, until: Instant) -> Result<Option<u64>, Failure> {
        self.take(until).map(|(_, text)| text.parse().ok())
    }

    fn take(&self, until: Instant) -> Result<(Vec<OwnedFd>, String), Failure> {
        wait(&mut [PollFd::new(&self.0, PollFlags::IN)], until)?;
        let mut bytes = [0; TEXT + 4];
        let received = channel::receive(&self.0, &mut bytes, RecvFlags::empty());
        let channel::Received { length, fds, .. } =
            received.or_fail("recvmsg from another process").on_our_side()?;
        match bytes[..length].split_first_chunk::<4>() {
            None => {
                let message = "the process that carries out the request ended unexpectedly";
                Err(Failure::new(Errno::EIO, message).on_our_side())
            }
            Some(([0, 0, 0, 0], text)) => Ok((fds, String::from_utf8_lossy(text).into_owned())),
            Some((number, text)) => {
                Err(failure(i32::from_ne_bytes(*number), String::from_utf8_lossy(text)))
            }
        }
    }
}

impl Line {
    /// Returns the socket.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl From<OwnedFd> for Line {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Encodes an error as its errno, negative if the operation was not tried.
fn number(failure: &Failure) -> i32 {
    let errno = failure.errno as i32;
    if failure.untried { -errno } else { errno }
}

fn failure(number: i32, message: impl Into<String>) -> Failure {
    let failure = Failure::new(Errno::from_raw(number.wrapping_abs()), message);
    if number < 0 { failure.on_our_side() } else { failure }
}

/// Waits until one of these descriptors is ready. ETIMEDOUT after `until`.
pub(super) fn wait(fds: &mut [PollFd<'_>], until: Instant) -> Result<(), Failure> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(fds, Some(&left)) {
            Ok(0) => return Err(Failure::new(Errno::ETIMEDOUT, "the request took too long")),
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|_| ()).or_fail("poll").on_our_side(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn results_and_descriptors_arrive() {
        let (one, other) = Line::pair().unwrap();
        one.done(&[one.as_fd()]).unwrap();
        assert_eq!(other.receive(soon()).unwrap().len(), 1);
        one.report(Err(Failure::new(Errno::ENOENT, "no such thing")));
        let failure = other.receive(soon()).unwrap_err();
        assert_eq!(failure, Failure::new(Errno::ENOENT, "no such thing"));
        let ours = Failure::new(Errno::EOVERFLOW, "fchdir").on_our_side();
        one.report(Err(ours.clone()));
        assert_eq!(other.receive(soon()).unwrap_err(), ours);
    }

    #[test]
    fn a_dead_or_silent_peer_is_an_error() {
        let (one, other) = Line::pair().unwrap();
        let silent = other.receive(Instant::now()).unwrap_err();
        assert_eq!(silent.errno, Errno::ETIMEDOUT);
        drop(one);
        assert_eq!(other.receive(soon()).unwrap_err().errno, Errno::EIO);
    }
}
