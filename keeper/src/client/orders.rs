//! What the keeper tells a server before anything else. Start reading at [`KeeperClient::orders`].

use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use rustix::net::RecvFlags;

use super::KeeperClient;
use crate::wire;

/// The keeper's first messages, which a server reads before it does anything else.
#[derive(Debug, Default)]
pub struct Orders {
    /// True if this program was started beside the server, and must check itself.
    pub is_candidate: bool,
    /// The last good configuration.
    pub configuration: Option<Kept>,
    /// Set if the keeper starts brokers: the connection to the first one, if it was sent.
    pub broker: Option<Option<OwnedFd>>,
}

/// A configuration that the keeper holds.
#[derive(Debug)]
pub struct Kept {
    /// Its text.
    pub text: String,
    /// When it was read from disk.
    pub read: SystemTime,
    /// True if it is used instead of the file on disk.
    pub instead: bool,
}

impl KeeperClient {
    /// Reads the messages that the keeper sent before it started this process.
    #[must_use]
    pub fn orders(&self) -> Orders {
        let mut orders = Orders::default();
        let Some(shared) = &self.0 else { return orders };
        while let Ok(Some((text, fd))) = wire::receive(&shared.socket, RecvFlags::DONTWAIT) {
            let (verb, _) = text.split_once(' ').unwrap_or((&text, ""));
            match verb {
                wire::CHECK => orders.is_candidate = true,
                wire::CONFIGURATION | wire::INSTEAD => {
                    let instead = verb == wire::INSTEAD;
                    orders.configuration = fd.and_then(|fd| kept(&fd, instead).ok());
                }
                wire::BROKER => {
                    shared.note_broker(&text);
                    orders.broker = Some(fd);
                }
                _ => {}
            }
        }
        orders
    }
}

/// Reads the configuration in a memfd that the keeper holds.
fn kept(file: &OwnedFd, instead: bool) -> std::io::Result<Kept> {
    let text = String::from_utf8(read(file)?).map_err(std::io::Error::other)?;
    let read = std::fs::File::from(file.try_clone()?).metadata()?.modified()?;
    Ok(Kept { text, read, instead })
}

pub(super) fn read(memory: &OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::from(memory.try_clone()?);
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
