//! A socket at a path, over servers and over the loss of its file.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::SocketType;

use super::{Error, Listening, Users};
use crate::client::{Inherited, KeeperClient};

/// A socket that is kept at a path: it is bound again when its file was removed.
#[derive(Debug)]
pub struct Entrance {
    /// The name under which the keeper holds it.
    pub name: &'static str,
    path: PathBuf,
    kind: SocketType,
    users: Users,
    listening: Option<Arc<Listening>>,
    /// True if it could not be bound the last time, and that is logged.
    failed: bool,
}

impl Entrance {
    /// A socket at this path, not bound yet, that the keeper holds under this name.
    #[must_use]
    pub fn new(name: &'static str, path: PathBuf, kind: SocketType, users: Users) -> Self {
        Self { name, path, kind, users, listening: None, failed: false }
    }

    /// Goes on with the socket that a predecessor left or that a socket unit holds, or binds the
    /// socket. A successor starts without a socket that cannot be bound, because containers have
    /// everything else already.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn open(
        &mut self,
        held: &mut Inherited,
        is_successor: bool,
        link: &KeeperClient,
    ) -> Result<(), Error> {
        if let Some(fd) = held.take(self.name) {
            // The keeper has it already. If its file is gone, the first look finds that.
            self.listening = Some(Arc::new(Listening::kept(fd, &self.path, false, self.users)));
            return Ok(());
        }
        if let Some(fd) = held.take_activated(self.name) {
            match Listening::activated(fd, &self.path, self.kind, self.users) {
                Ok(socket) => {
                    self.listening = Some(Arc::new(socket));
                    return Ok(());
                }
                Err(reason) => tracing::warn!(
                    "the socket {} of the socket unit is not used: {reason}",
                    self.name
                ),
            }
        }
        match Listening::bind(&self.path, self.kind, self.users) {
            Ok(socket) => drop(self.replace(socket, link)),
            Err(error) if is_successor => self.report(&error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The socket; `None` while it cannot be bound.
    #[must_use]
    pub fn listening(&self) -> Option<Arc<Listening>> {
        self.listening.clone()
    }

    /// Binds the socket anew if its file is gone. Returns what it replaces then, which may have
    /// connections that nothing has accepted.
    pub fn look(&mut self, link: &KeeperClient) -> Option<Option<Arc<Listening>>> {
        if self.listening.as_ref().is_some_and(|socket| socket.is_in_place()) {
            return None;
        }
        match Listening::bind(&self.path, self.kind, self.users) {
            Ok(socket) => {
                tracing::warn!("{} was gone and is bound anew", self.path.display());
                Some(self.replace(socket, link))
            }
            Err(error) => {
                self.report(&error);
                None
            }
        }
    }

    fn replace(&mut self, socket: Listening, link: &KeeperClient) -> Option<Arc<Listening>> {
        self.failed = false;
        link.store(self.name, &socket);
        self.listening.replace(Arc::new(socket))
    }

    /// Logs the first error of a row of them.
    fn report(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!("{error}; containers are served without it, and it is tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_whose_file_is_gone_is_bound_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/s");
        let link = KeeperClient::default();
        let mut entrance = Entrance::new("s", path.clone(), SocketType::STREAM, Users::Root);
        entrance.open(&mut Inherited::default(), false, &link).unwrap();
        assert!(entrance.look(&link).is_none(), "it is in place");
        let early = UnixStream::connect(&path).unwrap();
        fs::remove_dir_all(folder.path().join("run")).unwrap();
        let before = entrance.look(&link).unwrap().unwrap();
        assert!(before.accept().is_some(), "a connection that was made before is not lost");
        drop((early, before));
        UnixStream::connect(&path).unwrap();
        assert!(entrance.listening().unwrap().accept().is_some());
        assert!(entrance.look(&link).is_none());
    }

    #[test]
    fn only_a_successor_goes_on_without_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        // A file where the folder should be, so that root cannot make it either.
        let blocker = folder.path().join("run");
        fs::write(&blocker, "").unwrap();
        let link = KeeperClient::default();
        let mut entrance = Entrance::new("s", blocker.join("s"), SocketType::STREAM, Users::Root);
        assert!(entrance.open(&mut Inherited::default(), false, &link).is_err());
        entrance.open(&mut Inherited::default(), true, &link).unwrap();
        assert!(entrance.listening().is_none() && entrance.look(&link).is_none());
        fs::remove_file(&blocker).unwrap();
        assert!(entrance.look(&link).is_some_and(|before| before.is_none()));
        UnixStream::connect(blocker.join("s")).unwrap();
    }

    #[test]
    fn the_socket_of_a_socket_unit_is_used_and_its_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let link = KeeperClient::default();
        let unit = UnixListener::bind(&path).unwrap();
        let held = |socket: &UnixListener| {
            let mut held = Inherited::default();
            held.insert("activated-s", OwnedFd::from(socket.try_clone().unwrap()));
            held
        };
        assert!(!held(&unit).has_predecessor());
        let _early = UnixStream::connect(&path).unwrap();
        let mut entrance = Entrance::new("s", path.clone(), SocketType::STREAM, Users::Root);
        entrance.open(&mut held(&unit), false, &link).unwrap();
        let socket = entrance.listening().unwrap();
        assert!(socket.accept().is_some(), "a connection that was made before is not lost");
        assert!(socket.accept().is_none(), "it does not block");
        drop((socket, entrance));
        UnixStream::connect(&path).unwrap();
        // A socket at another path is not used.
        let elsewhere = folder.path().join("t");
        let mut entrance = Entrance::new("s", elsewhere.clone(), SocketType::STREAM, Users::Root);
        entrance.open(&mut held(&unit), false, &link).unwrap();
        UnixStream::connect(elsewhere).unwrap();
        assert!(entrance.listening().unwrap().accept().is_some());
    }
}
