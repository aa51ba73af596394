//! Messages between the processes that make a sandbox: a word, a text, descriptors.
//!
//! SEQPACKET keeps messages whole, and a peer that dies is an end of file, never a hang. Both
//! ends are this program; the sandbox's command never holds one.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// What a message means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Word {
    /// It went wrong; the text says what.
    Failed = b'E',
    /// The sandbox's init exists; the text is its process number.
    Started = b'S',
    /// A mount for the target in the text.
    File = b'F',
    /// The overlay and, if it has them, the pressure files upon it, as mounts that are attached nowhere;
    /// the text is the paths of its files for the sandbox, with blanks between them.
    Overlay = b'O',
    /// Build the root now, for the init whose number is in the text.
    Build = b'B',
    /// The root is built.
    Built = b'D',
    /// Enter the root and get ready.
    Enter = b'N',
    /// Ready to start the command; with the listener and the terminal, in this order, when the
    /// text says so (`l`, `t`).
    Ready = b'R',
    /// Start the command.
    Go = b'G',
    /// The command was stopped by a signal.
    Stopped = b'Z',
}

const WORDS: [Word; 10] = [
    Word::Failed,
    Word::Started,
    Word::File,
    Word::Overlay,
    Word::Build,
    Word::Built,
    Word::Enter,
    Word::Ready,
    Word::Go,
    Word::Stopped,
];

/// A message as it was received.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) word: Word,
    pub(super) text: String,
    pub(super) fds: Vec<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Two ends of a new connection.
    pub(super) fn pair() -> Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("cannot make a socket pair: socketpair")?;
        Ok((Self(one), Self(other)))
    }

    /// Sends one message.
    pub(super) fn send(&self, word: Word, text: &str, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = [&[word as u8], text.as_bytes()].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            bail!("{} descriptors do not fit one message", fds.len());
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
            .context("the other process of the sandbox is gone: sendmsg")?;
        Ok(())
    }

    /// Waits for a message. A peer that ended and a peer that reports a failure are errors.
    pub(super) fn receive(&self) -> Result<Message> {
        let mut bytes = [0; 8192];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })
        .context("cannot receive from the sandbox: recvmsg")?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let Some((&first, text)) = bytes.get(..received.bytes).and_then(<[u8]>::split_first) else {
            bail!("a process of the sandbox ended while it was being made");
        };
        let word = WORDS
            .into_iter()
            .find(|&word| word as u8 == first)
            .with_context(|| format!("a message of unknown kind {first}"))?;
        let text = String::from_utf8_lossy(text).into_owned();
        if word == Word::Failed {
            bail!(text);
        }
        Ok(Message { word, text, fds })
    }

    /// Waits for a message of this kind.
    pub(super) fn expect(&self, word: Word) -> Result<Message> {
        let message = self.receive()?;
        if message.word != word {
            bail!("{word:?} was expected from the sandbox, {:?} came", message.word);
        }
        Ok(message)
    }

    /// Reports a failure; a peer that is gone needs no report.
    pub(super) fn fail(&self, error: &anyhow::Error) {
        let mut text = format!("{error:#}");
        while text.len() > 8000 {
            text.pop();
        }
        let _ = self.send(Word::Failed, &text, &[]);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn words_texts_and_descriptors_arrive() {
        let (one, other) = Channel::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        one.send(Word::File, "proc/meminfo", &[writer.as_fd()]).unwrap();
        drop(writer);
        let message = other.expect(Word::File).unwrap();
        assert_eq!(message.text, "proc/meminfo");
        drop(message.fds);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_failure_becomes_the_receivers_error() {
        let (one, other) = Channel::pair().unwrap();
        one.fail(&anyhow::anyhow!("no room").context("cannot mount"));
        assert_eq!(other.receive().unwrap_err().to_string(), "cannot mount: no room");
    }

    #[test]
    fn a_dead_peer_is_an_error_and_not_a_hang() {
        let (one, other) = Channel::pair().unwrap();
        drop(one);
        assert!(other.receive().unwrap_err().to_string().contains("ended"));
    }
}
