//! Reads one connection of a runtime to its end: the JSON and the descriptors.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::message::{LISTENER, Message};

/// Annotations can be long; peers that read 16 or 32 KiB fail.
const LONGEST: usize = 1 << 20;

/// Descriptors taken from one connection; the specification knows one.
const DESCRIPTORS: usize = 16;

/// A runtime that takes longer has died or is no runtime.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What is wrong with a message.
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
    #[error("it is no ContainerProcessState: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it names no descriptor {LISTENER:?}, or carries fewer descriptors than it names")]
    NoListener,
}

/// The message and its listener. Every other descriptor is closed.
pub(super) fn receive(connection: BorrowedFd<'_>) -> Result<(Message, OwnedFd), Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut text = Vec::new();
    let mut descriptors = Vec::new();
    let message = loop {
        let more = receive_part(connection, deadline, &mut text, &mut descriptors)?;
        // runc 1.1 keeps its end open for as long as it runs: the object ends the message, not
        // the connection.
        match serde_json::from_slice::<Message>(&text) {
            Ok(message) => break message,
            Err(error) if more && error.is_eof() => {}
            Err(error) => return Err(error.into()),
        }
    };
    let at = message.listener().ok_or(Error::NoListener)?;
    if at >= descriptors.len() {
        return Err(Error::NoListener);
    }
    let listener = descriptors.swap_remove(at);
    Ok((message, listener))
}

/// Appends what has arrived. `false`: that was all.
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
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = match recvmsg(connection, &mut [IoSliceMut::new(&mut part)], &mut control, flags)
    {
        Ok(message) => message,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
        Err(errno) => return Err(io::Error::from(errno).into()),
    };
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            descriptors.extend(fds);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > DESCRIPTORS {
        return Err(Error::ManyDescriptors);
    }
    text.extend_from_slice(&part[..message.bytes]);
    if text.len() > LONGEST {
        return Err(Error::Long);
    }
    Ok(message.bytes != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSlice, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    const JSON: &str = r#"{"fds":["x","seccompFd"],"pid":1,"state":{"id":"web"}}"#;

    fn exchange(parts: &[&[u8]], files: &[&str]) -> Result<(Message, OwnedFd), Error> {
        let (mut near, far) = UnixStream::pair().unwrap();
        let files: Vec<File> = files.iter().map(|path| File::open(path).unwrap()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
                let first = [IoSlice::new(parts[0])];
                sendmsg(&near, &first, &mut control, SendFlags::empty()).unwrap();
                // The other side may have given up.
                let _ = parts[1..].iter().try_for_each(|part| near.write_all(part));
            });
            receive(far.as_fd())
        })
    }

    #[test]
    fn a_runtime_may_keep_its_end_open() {
        let (near, far) = UnixStream::pair().unwrap();
        let files = ["/dev/zero", "/dev/null"].map(|path| File::open(path).unwrap());
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let text = [IoSlice::new(JSON.as_bytes())];
        sendmsg(&near, &text, &mut control, SendFlags::empty()).unwrap();
        assert_eq!(receive(far.as_fd()).unwrap().0.state.id, "web");
        drop(near);
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
        let long = format!("{}{JSON}", " ".repeat(900_000));
        exchange(&[long.as_bytes()], &["/dev/zero", "/dev/null"]).unwrap();
        let longer = format!("{}{JSON}", " ".repeat(LONGEST));
        let error = exchange(&[longer.as_bytes()], &["/dev/null"; 2]).unwrap_err();
        assert!(matches!(error, Error::Long), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = exchange(&[JSON.as_bytes()], &["/dev/null"]).unwrap_err();
        assert!(matches!(error, Error::NoListener), "{error}");
        let error = exchange(&[b"{}"], &["/dev/null"]).unwrap_err();
        assert!(matches!(error, Error::Json(_)), "{error}");
        let error = exchange(&[JSON.as_bytes()], &["/dev/null"; 30]).unwrap_err();
        assert!(matches!(error, Error::ManyDescriptors), "{error}");
    }
}
