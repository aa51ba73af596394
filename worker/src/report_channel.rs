//! The channel between the processes of this package: it carries a result, a text and descriptors.
//!
//! SEQPACKET keeps messages whole, and a peer that dies is an end of file. A receiver must never
//! wait without a deadline, because the peer may be blocked in a filesystem of the container. Start
//! reading at [`ReportChannel::report`] and [`ReportChannel::receive`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::channel;
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{Context, Error, MarkUntried};

/// The longest text, in bytes. Longer ones are cut off.
const TEXT: usize = 4096;
/// The longest value, in bytes: a report of attach has a reason of its own for each file.
const VALUE: usize = 64 << 10;

/// One end of a channel.
#[derive(Debug)]
pub(super) struct ReportChannel(OwnedFd);

impl ReportChannel {
    pub(super) fn pair() -> Result<(Self, Self), Error> {
        let (one, other) = channel::pair().context("socketpair").mark_untried()?;
        Ok((Self(one), Self(other)))
    }

    /// Reports success, with descriptors.
    pub(super) fn done(&self, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.send(0, "", fds)
    }

    /// Reports success with descriptors, or an error.
    pub(super) fn report(&self, result: Result<Vec<OwnedFd>, Error>) {
        // Errors are ignored: a peer that has closed its end does not wait for the result.
        let _ = match result {
            Ok(fds) => self.done(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()),
            Err(error) => self.send(number(&error), &error.message, &[]),
        };
    }

    fn send(&self, errno: i32, text: &str, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.send_bytes(errno, &text.as_bytes()[..text.len().min(TEXT)], fds)
    }

    fn send_bytes(&self, errno: i32, text: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = [&errno.to_ne_bytes(), text].concat();
        channel::send(&self.0, &bytes, fds, SendFlags::empty())
            .context("sendmsg to another process")
            .mark_untried()
    }

    /// Reports success with a number, or an error.
    pub(super) fn report_number(&self, result: Result<Option<u64>, Error>) {
        match result {
            Ok(Some(number)) => drop(self.send(0, &number.to_string(), &[])),
            other => self.report(other.map(|_| Vec::new())),
        }
    }

    /// Reports success, with a value as JSON.
    pub(super) fn done_with(&self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string(value)
            .map_err(|error| Error::new(Errno::EINVAL, error.to_string()))?;
        if text.len() > VALUE {
            return Err(Error::new(Errno::EMSGSIZE, "the report is too long"));
        }
        self.send_bytes(0, text.as_bytes(), &[])
    }

    /// Waits for a report, and returns its value.
    pub(super) fn receive_value<T: DeserializeOwned>(&self, until: Instant) -> Result<T, Error> {
        let (_, text) = self.take(until, VALUE)?;
        serde_json::from_str(&text).map_err(|error| Error::new(Errno::EPROTO, error.to_string()))
    }

    /// Waits for a report, and returns its descriptors. An error that the peer reports is returned;
    /// EIO if the peer has ended, ETIMEDOUT after `until`.
    pub(super) fn receive(&self, until: Instant) -> Result<Vec<OwnedFd>, Error> {
        self.take(until, TEXT).map(|(fds, _)| fds)
    }

    /// Waits for a report, and returns its number if it has one.
    pub(super) fn receive_number(&self, until: Instant) -> Result<Option<u64>, Error> {
        self.take(until, TEXT).map(|(_, text)| text.parse().ok())
    }

    fn take(&self, until: Instant, longest: usize) -> Result<(Vec<OwnedFd>, String), Error> {
        wait(&mut [PollFd::new(&self.0, PollFlags::IN)], until)?;
        let mut bytes = vec![0; longest + 4];
        let received = channel::receive(&self.0, &mut bytes, RecvFlags::empty());
        let channel::Received { length, fds, .. } =
            received.context("recvmsg from another process").mark_untried()?;
        match bytes[..length].split_first_chunk::<4>() {
            None => {
                let message = "the process that carries out the request ended unexpectedly";
                Err(Error::new(Errno::EIO, message).mark_untried())
            }
            Some(([0, 0, 0, 0], text)) => Ok((fds, String::from_utf8_lossy(text).into_owned())),
            Some((number, text)) => {
                Err(error(i32::from_ne_bytes(*number), String::from_utf8_lossy(text)))
            }
        }
    }
}

impl ReportChannel {
    /// Returns the socket.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl From<OwnedFd> for ReportChannel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for ReportChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Encodes an error as its errno, negative if the operation was not tried.
fn number(error: &Error) -> i32 {
    let errno = error.errno as i32;
    if error.untried { -errno } else { errno }
}

fn error(number: i32, message: impl Into<String>) -> Error {
    let error = Error::new(Errno::from_raw(number.wrapping_abs()), message);
    if number < 0 { error.mark_untried() } else { error }
}

/// Waits until one of these descriptors is ready. ETIMEDOUT after `until`.
pub(super) fn wait(fds: &mut [PollFd<'_>], until: Instant) -> Result<(), Error> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(fds, Some(&left)) {
            Ok(0) => return Err(Error::new(Errno::ETIMEDOUT, "the request took too long")),
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|_| ()).context("poll").mark_untried(),
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
        let (one, other) = ReportChannel::pair().unwrap();
        one.done(&[one.as_fd()]).unwrap();
        assert_eq!(other.receive(soon()).unwrap().len(), 1);
        one.report(Err(Error::new(Errno::ENOENT, "no such thing")));
        let error = other.receive(soon()).unwrap_err();
        assert_eq!(error, Error::new(Errno::ENOENT, "no such thing"));
        let ours = Error::new(Errno::EOVERFLOW, "fchdir").mark_untried();
        one.report(Err(ours.clone()));
        assert_eq!(other.receive(soon()).unwrap_err(), ours);
    }

    #[test]
    fn a_long_value_arrives_whole() {
        let (one, other) = ReportChannel::pair().unwrap();
        let reasons = vec!["\\".repeat(64); 200];
        one.done_with(&reasons).unwrap();
        assert_eq!(other.receive_value::<Vec<String>>(soon()).unwrap(), reasons);
        assert_eq!(one.done_with(&"x".repeat(VALUE)).unwrap_err().errno, Errno::EMSGSIZE);
    }

    #[test]
    fn a_dead_or_silent_peer_is_an_error() {
        let (one, other) = ReportChannel::pair().unwrap();
        let silent = other.receive(Instant::now()).unwrap_err();
        assert_eq!(silent.errno, Errno::ETIMEDOUT);
        drop(one);
        assert_eq!(other.receive(soon()).unwrap_err().errno, Errno::EIO);
    }
}
