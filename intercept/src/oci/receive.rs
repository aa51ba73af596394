//! Reads the message of an OCI runtime: the JSON and the descriptors.
//!
//! The end of the JSON is the end of the message. runc 1.1 and crun 1.8 keep the connection open
//! while the container runs, so this must never wait for the end of the stream: every call of the
//! container would wait with it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ambit_kernel::channel;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::message::{LISTENER, Message};

/// The longest message that is accepted, in bytes: annotations can be longer than 32 KiB.
const LONGEST: usize = 1 << 20;

/// The highest number of descriptors that one connection may send; the specification defines one.
const DESCRIPTORS: usize = 16;

/// How long a runtime may take to send its message. crun connects before it makes the container, runs
/// its hooks in between, and is killed by SIGPIPE if the connection has ended by then.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("recvmsg: {0}")]
    Receive(#[from] io::Error),
    #[error("it was not complete within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("it is longer than {LONGEST} bytes")]
    Long,
    #[error("it carries more than {DESCRIPTORS} descriptors")]
    ManyDescriptors,
    #[error("not all of its descriptors arrived: this process may not open more (RLIMIT_NOFILE)")]
    LostDescriptors,
    #[error("it is empty")]
    Empty,
    #[error("it is no ContainerProcessState: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it names no descriptor {LISTENER:?}, or carries fewer descriptors than it names")]
    NoListener,
}

/// Receives a message and its listener. Every other descriptor is closed.
pub(super) fn receive(connection: BorrowedFd<'_>) -> Result<(Message, OwnedFd), Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut text = Vec::new();
    let mut descriptors = Vec::new();
    let message = loop {
        let more = receive_part(connection, deadline, &mut text, &mut descriptors)?;
        match serde_json::Deserializer::from_slice(&text).into_iter::<Message>().next() {
            Some(Ok(message)) => break message,
            Some(Err(error)) if !(error.is_eof() && more) => return Err(error.into()),
            None if !more => return Err(Error::Empty),
            _ => {}
        }
    };
    let at = message.listener().ok_or(Error::NoListener)?;
    if at >= descriptors.len() {
        return Err(Error::NoListener);
    }
    let listener = descriptors.swap_remove(at);
    Ok((message, listener))
}

/// Appends what has arrived. False if the runtime has closed the connection.
fn receive_part(
    connection: BorrowedFd<'_>,
    deadline: Instant,
    text: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<bool, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Slow);
    }
    let timeout = left.try_into().ok();
    match poll(&mut [PollFd::from_borrowed_fd(connection, PollFlags::IN)], timeout.as_ref()) {
        Ok(0) => return Err(Error::Slow),
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(true),
        Err(errno) => return Err(io::Error::from(errno).into()),
    }
    let mut part = [0; 16 * 1024];
    let message = match channel::receive(connection, &mut part, RecvFlags::DONTWAIT) {
        Ok(message) => message,
        Err(Errno::AGAIN) => return Ok(true),
        Err(errno) => return Err(io::Error::from(errno).into()),
    };
    descriptors.extend(message.fds);
    if descriptors.len() > DESCRIPTORS {
        return Err(Error::ManyDescriptors);
    }
    if message.has_lost_fds {
        return Err(Error::LostDescriptors);
    }
    text.extend_from_slice(&part[..message.length]);
    if text.len() > LONGEST {
        return Err(Error::Long);
    }
    Ok(message.length != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::net::SendFlags;

    use super::*;

    const JSON: &str = r#"{"fds":["x","seccompFd"],"pid":1,"state":{"id":"web"}}"#;

    /// Receives a message whose sender keeps the connection open.
    fn exchange(parts: &[&[u8]], files: &[&str]) -> Result<(Message, OwnedFd), Error> {
        let (near, far) = UnixStream::pair().unwrap();
        let files: Vec<File> = files.iter().map(|path| File::open(path).unwrap()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        std::thread::scope(|scope| {
            let mut stream = &near;
            let fds = &fds;
            scope.spawn(move || {
                channel::send(stream, parts[0], fds, SendFlags::empty()).unwrap();
                // The receiver may have refused the message and closed the connection.
                let _ = parts[1..].iter().try_for_each(|part| stream.write_all(part));
            });
            let result = receive(far.as_fd());
            drop(far);
            result
        })
    }

    fn device(fd: &OwnedFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_rdev
    }

    #[test]
    fn the_listener_is_found_by_its_name() {
        let (head, tail) = JSON.as_bytes().split_at(10);
        let (message, fd) = exchange(&[head, tail], &["/dev/zero", "/dev/null"]).unwrap();
        assert_eq!(message.state.id, "web");
        assert_eq!(device(&fd), rustix::fs::stat("/dev/null").unwrap().st_rdev);
    }

    #[test]
    fn a_long_message_is_read_and_a_longer_one_is_not() {
        let annotation = "y".repeat(900_000);
        let long = JSON.replace("web", &annotation);
        let (message, _) = exchange(&[long.as_bytes()], &["/dev/zero", "/dev/null"]).unwrap();
        assert_eq!(message.state.id, annotation);
        let longer = format!("{}{JSON}", " ".repeat(LONGEST));
        let error = exchange(&[longer.as_bytes()], &["/dev/null"; 2]).unwrap_err();
        assert!(matches!(error, Error::Long), "{error}");
    }

    #[test]
    fn an_incomplete_message_is_refused_with_the_reason() {
        let error = exchange(&[JSON.as_bytes()], &["/dev/null"]).unwrap_err();
        assert!(matches!(error, Error::NoListener), "{error}");
        let (near, far) = UnixStream::pair().unwrap();
        drop(near);
        let error = receive(far.as_fd()).unwrap_err();
        assert!(matches!(error, Error::Empty), "{error}");
        let error = exchange(&[b"{}"], &["/dev/null"]).unwrap_err();
        assert!(matches!(error, Error::Json(_)), "{error}");
        let error = exchange(&[JSON.as_bytes()], &["/dev/null"; 30]).unwrap_err();
        assert!(matches!(error, Error::ManyDescriptors), "{error}");
    }
}
