//! Messages between the processes that make a sandbox.
//!
//! Both ends are this program; the sandbox's command never holds one. If the peer dies, receiving
//! fails and does not block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::channel;
use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A message, without its descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// The sender has failed, for this reason.
    Failed(String),
    /// A process was started: its number.
    Started(i32),
    /// A mount for this target.
    File(String),
    /// The overlay and, if it has them, the pressure files upon it, as mounts that are attached
    /// nowhere; with the paths of its files for the sandbox.
    Overlay(Vec<String>),
    /// Build the root now, for the init with this number.
    Build(i32),
    /// The receiver's request was carried out.
    Built,
    /// Enter the root and get ready.
    Enter,
    /// Ready to start the command; with the listener and the terminal, in this order, if there are.
    Ready { listener: bool, terminal: bool },
    /// Start the command.
    Go,
    /// The command was stopped by a signal.
    Stopped,
}

#[derive(Debug)]
pub(super) struct Channel(channel::Channel<Message>);

impl Channel {
    /// Two ends of a new connection.
    pub(super) fn pair() -> Result<(Self, Self)> {
        let (one, other) =
            channel::Channel::pair().context("cannot make a socket pair: socketpair")?;
        Ok((Self(one), Self(other)))
    }

    /// Sends one message.
    pub(super) fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.0.send(message, fds).context("the other process of the sandbox is gone")
    }

    /// Waits for a message. A peer that ended and a peer that reports a failure are errors.
    pub(super) fn receive(&self) -> Result<(Message, Vec<OwnedFd>)> {
        match self.0.receive().context("cannot receive from the sandbox")? {
            None => bail!("a process of the sandbox ended while it was being made"),
            Some((Message::Failed(reason), _)) => bail!(reason),
            Some(message) => Ok(message),
        }
    }

    /// Waits for this message.
    pub(super) fn expect(&self, wanted: &Message) -> Result<()> {
        let (message, _) = self.receive()?;
        if message != *wanted {
            bail!("{wanted:?} was expected from the sandbox, {message:?} came");
        }
        Ok(())
    }

    /// Waits for the number of a process that was started.
    pub(super) fn started(&self) -> Result<Pid> {
        match self.receive()?.0 {
            Message::Started(pid) => Ok(Pid::from_raw(pid)),
            other => bail!("the number of a process was expected from the sandbox, {other:?} came"),
        }
    }

    /// Reports a failure; a peer that is gone needs no report.
    pub(super) fn fail(&self, error: &anyhow::Error) {
        let _ = self.send(&Message::Failed(format!("{error:#}")), &[]);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_sender_is_the_error_of_the_receiver() {
        let (one, other) = Channel::pair().unwrap();
        one.fail(&anyhow::anyhow!("no room").context("cannot mount"));
        assert_eq!(other.receive().unwrap_err().to_string(), "cannot mount: no room");
    }

    #[test]
    fn a_dead_peer_and_an_unexpected_message_are_errors() {
        let (one, other) = Channel::pair().unwrap();
        one.send(&Message::Built, &[]).unwrap();
        assert!(other.started().unwrap_err().to_string().contains("Built came"));
        drop(one);
        assert!(other.receive().unwrap_err().to_string().contains("ended"));
    }
}
