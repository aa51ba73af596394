//! The channel between the processes of this package: it carries a value and descriptors, or an
//! error.
//!
//! SEQPACKET keeps messages whole, and a peer that dies is an end of file. A receiver must never
//! wait without a deadline, because the peer may be blocked in a filesystem of the container. Start
//! reading at [`ReportChannel::report`] and [`ReportChannel::receive`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::channel;
use ambit_kernel::sys::errno::to_errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{Context, Error, MarkUntried};

/// The longest text of an error, in bytes. Longer ones are cut off.
const TEXT: usize = 4096;

/// A value, or an error: errno, whether the operation was not tried, and its text.
type Report = Result<Vec<u8>, (i32, bool, String)>;

/// One end of a channel.
#[derive(Debug)]
pub(super) struct ReportChannel(channel::Channel<Report>);

impl ReportChannel {
    pub(super) fn pair() -> Result<(Self, Self), Error> {
        let (one, other) = channel::Channel::pair().context("socketpair").mark_untried()?;
        Ok((Self(one), Self(other)))
    }

    /// Reports success, with descriptors.
    pub(super) fn done(&self, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.send(&Ok(Vec::new()), fds)
    }

    /// Reports success, with a value.
    pub(super) fn done_with(&self, value: &impl Serialize) -> Result<(), Error> {
        let value = postcard::to_allocvec(value);
        self.send(&Ok(value.map_err(|error| Error::new(Errno::INVAL, error.to_string()))?), &[])
    }

    /// Reports success with descriptors, or an error.
    pub(super) fn report(&self, result: Result<Vec<OwnedFd>, Error>) {
        // Errors are ignored: a peer that has closed its end does not wait for the result.
        let _ = match result {
            Ok(fds) => self.done(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()),
            Err(Error { errno, mut message, untried }) => {
                message.truncate(message.floor_char_boundary(TEXT));
                self.send(&Err((errno.raw_os_error(), untried, message)), &[])
            }
        };
    }

    /// Reports success with a number, or an error.
    pub(super) fn report_number(&self, result: Result<Option<u64>, Error>) {
        match result {
            Ok(number) => drop(self.done_with(&number)),
            Err(error) => self.report(Err(error)),
        }
    }

    fn send(&self, report: &Report, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.0.send(report, fds).map_err(|error| match error {
            channel::Error::Long(_) => Error::new(Errno::MSGSIZE, "the report is too long"),
            error => Error::new(Errno::PIPE, error.to_string()).mark_untried(),
        })
    }

    /// Waits for a report, and returns its value.
    pub(super) fn receive_value<T: DeserializeOwned>(&self, until: Instant) -> Result<T, Error> {
        let (value, _) = self.take(until)?;
        postcard::from_bytes(&value).map_err(|error| Error::new(Errno::PROTO, error.to_string()))
    }

    /// Waits for a report, and returns its descriptors. An error that the peer reports is returned;
    /// EIO if the peer has ended, ETIMEDOUT after `until`.
    pub(super) fn receive(&self, until: Instant) -> Result<Vec<OwnedFd>, Error> {
        self.take(until).map(|(_, fds)| fds)
    }

    /// Waits for a report, and returns its number if it has one.
    pub(super) fn receive_number(&self, until: Instant) -> Result<Option<u64>, Error> {
        self.receive_value(until)
    }

    fn take(&self, until: Instant) -> Result<(Vec<u8>, Vec<OwnedFd>), Error> {
        wait(&mut [PollFd::new(&self.0, PollFlags::IN)], until)?;
        let unusable = |message: &str| Error::new(Errno::IO, message).mark_untried();
        match self.0.receive().map_err(|error| unusable(&error.to_string()))? {
            None => Err(unusable("the process that carries out the request ended unexpectedly")),
            Some((Ok(value), fds)) => Ok((value, fds)),
            Some((Err((errno, untried, message)), _)) => {
                let errno = to_errno(io::Error::from_raw_os_error(errno));
                Err(Error { errno, message, untried })
            }
        }
    }

    /// Returns the socket.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.0.into()
    }
}

impl AsFd for ReportChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for ReportChannel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
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
            Ok(0) => return Err(Error::new(Errno::TIMEDOUT, "the request took too long")),
            Err(Errno::INTR) => {}
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
        one.report(Err(Error::new(Errno::NOENT, "no such thing")));
        let error = other.receive(soon()).unwrap_err();
        assert_eq!(error, Error::new(Errno::NOENT, "no such thing"));
        let ours = Error::new(Errno::OVERFLOW, "fchdir").mark_untried();
        one.report(Err(ours.clone()));
        assert_eq!(other.receive(soon()).unwrap_err(), ours);
    }

    #[test]
    fn a_long_value_arrives_whole() {
        let (one, other) = ReportChannel::pair().unwrap();
        let reasons = vec!["\\".repeat(64); 200];
        one.done_with(&reasons).unwrap();
        assert_eq!(other.receive_value::<Vec<String>>(soon()).unwrap(), reasons);
        assert_eq!(one.done_with(&"x".repeat(64 << 10)).unwrap_err().errno, Errno::MSGSIZE);
    }

    #[test]
    fn a_dead_or_silent_peer_is_an_error() {
        let (one, other) = ReportChannel::pair().unwrap();
        let silent = other.receive(Instant::now()).unwrap_err();
        assert_eq!(silent.errno, Errno::TIMEDOUT);
        drop(one);
        assert_eq!(other.receive(soon()).unwrap_err().errno, Errno::IO);
    }
}
