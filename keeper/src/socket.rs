//! The sockets that runtimes connect to. They never stand in the way of a successor, and only root may
//! connect, unless a socket is made for all users.
//!
//! A socket is bound beside its final name, given its mode, and renamed: no process can
//! connect before the mode is right, and a stale file of a predecessor is replaced in one step.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    getsockname, listen, socket_with,
};

use super::client::{Inherited, KeeperClient};

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket cannot be bound.
    #[error("cannot listen on {path}: {what}: {source}")]
    Socket {
        /// Where the socket should be.
        path: PathBuf,
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else serves the socket.
    #[error("{path} is served by another process: stop it, or configure another path")]
    SocketTaken {
        /// Where the socket is.
        path: PathBuf,
    },
    /// Something that is no socket has the socket's name.
    #[error("{path} exists and is no socket: remove it, or configure another path")]
    NoSocket {
        /// Its path.
        path: PathBuf,
    },
}

/// Connections that may wait while we are busy; runtimes of many containers start at once
/// after a boot.
const BACKLOG: i32 = 128;

/// A socket that listens; its file goes away with it.
#[derive(Debug)]
pub struct Listening {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, to tell it from a successor's.
    file: (u64, u64),
    /// True if a socket unit holds the socket too: its file stays.
    is_activated: bool,
    /// Who may connect.
    users: Users,
}

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// Root of our user namespace alone.
    Root,
    /// Every user. The [`Peer`] tells who it is.
    All,
}

impl Users {
    fn mode(self) -> u32 {
        match self {
            Self::Root => 0o600,
            Self::All => 0o666,
        }
    }
}

impl Listening {
    /// Listens on a path, in a directory made with mode 0755 if missing.
    ///
    /// # Errors
    /// Another process listens there, or the socket cannot be made.
    pub fn bind(path: &Path, kind: SocketType, users: Users) -> Result<Self, Error> {
        let failed =
            |what| move |source: io::Error| Error::Socket { path: path.to_owned(), what, source };
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o755).create(parent).map_err(failed("mkdir"))?;
        }
        refuse_if_taken(path, kind)?;
        let temporary = beside(path);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing a leftover")(error));
            }
            _ => {}
        }
        let (fd, address) = open(&temporary, kind).map_err(failed("socket"))?;
        bind(&fd, &address).map_err(|errno| failed("bind")(errno.into()))?;
        let file = fs::set_permissions(&temporary, Permissions::from_mode(users.mode()))
            .and_then(|()| fs::symlink_metadata(&temporary))
            .map_err(failed("chmod"))?;
        listen(&fd, BACKLOG).map_err(|errno| failed("listen")(errno.into()))?;
        fs::rename(&temporary, path).map_err(failed("rename"))?;
        let file = (file.dev(), file.ino());
        Ok(Self { fd, path: path.to_owned(), file, is_activated: false, users })
    }

    /// Listens on with a predecessor's socket. The file at the path is taken for its file.
    fn kept(fd: OwnedFd, path: &Path, is_activated: bool, users: Users) -> Self {
        let file = fs::symlink_metadata(path).ok().filter(|file| file.file_type().is_socket());
        // A socket unit has one mode for all of its sockets.
        if file.is_some() {
            let _ = fs::set_permissions(path, Permissions::from_mode(users.mode()));
        }
        let file = file.map_or((0, 0), |file| (file.dev(), file.ino()));
        Self { fd, path: path.to_owned(), file, is_activated, users }
    }

    /// Listens on the socket of a socket unit. An error says why that socket is another one.
    fn activated(
        fd: OwnedFd,
        path: &Path,
        kind: SocketType,
        users: Users,
    ) -> Result<Self, &'static str> {
        let address = getsockname(&fd).ok().and_then(|address| address.try_into().ok());
        let at = address.as_ref().and_then(SocketAddrUnix::path_bytes);
        if at != Some(path.as_os_str().as_bytes()) {
            return Err("its path is not the configured one");
        }
        if socket_type(&fd) != Ok(kind) {
            return Err("it has another type: control.sock and oci.sock are ListenStream, \
                        lxc.sock is ListenSequentialPacket");
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(|_| "it is no socket")?;
        Ok(Self::kept(fd, path, true, users))
    }

    /// True while its file is at its path, so that it can be connected to.
    fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file)
    }

    /// The next connection, non-blocking, if there is one from a user who may connect.
    pub fn accept(&self) -> Option<Peer> {
        let fd = match accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => fd,
            // Taken back, or a signal: the next readiness tells.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return None,
            Err(errno) => {
                tracing::error!("accept on {}: {errno}", self.path.display());
                // Out of descriptors: the connection waits, and so must we, or spin.
                std::thread::sleep(std::time::Duration::from_millis(100));
                return None;
            }
        };
        match getsockopt(&fd, PeerCredentials) {
            Ok(peer) if self.users == Users::All || is_root(&peer) => {
                Some(Peer { fd, pid: peer.pid(), user: peer.uid() })
            }
            Ok(peer) => {
                let path = self.path.display();
                tracing::warn!(uid = peer.uid(), "connection to {path} refused: only root may");
                None
            }
            Err(errno) => {
                tracing::error!("SO_PEERCRED on {}: {errno}", self.path.display());
                None
            }
        }
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if !self.is_activated && self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that is wanted at a path: it is bound anew when its file was removed.
#[derive(Debug)]
pub struct Entrance {
    /// The name under which the keeper holds it.
    pub name: &'static str,
    path: PathBuf,
    kind: SocketType,
    users: Users,
    listening: Option<Arc<Listening>>,
    /// It could not be bound the last time, and the log says why.
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

    /// Says it once, however often it is tried.
    fn report(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!("{error}; containers are served without it, and it is tried again");
        }
    }
}

/// A connection and the process that made it.
#[derive(Debug)]
pub struct Peer {
    /// The connection.
    pub fd: OwnedFd,
    /// Its id in our pid namespace; 0 if it is outside.
    pub pid: i32,
    /// Its effective user, in our user namespace.
    pub user: u32,
}

fn open(path: &Path, kind: SocketType) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let address = SocketAddrUnix::new(path)?;
    Ok((socket_with(AddressFamily::UNIX, kind, flags, None)?, address))
}

/// True for a process whose effective user is root of our user namespace. The kernel shows a user
/// that our user namespace does not map as the overflow user (65534).
fn is_root(peer: &UnixCredentials) -> bool {
    peer.uid() == 0
}

fn refuse_if_taken(path: &Path, kind: SocketType) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Err(Error::NoSocket { path: path.to_owned() });
        }
        Err(_) => return Ok(()),
        Ok(_) => {}
    }
    let (fd, address) = open(path, kind).map_err(|source| Error::Socket {
        path: path.to_owned(),
        what: "socket",
        source,
    })?;
    match connect(&fd, &address) {
        // Nobody listens: a file that a predecessor left behind. It is replaced.
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        _ => Err(Error::SocketTaken { path: path.to_owned() }),
    }
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_is_roots_alone_and_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/oci.sock");
        let socket = Listening::bind(&path, SocketType::STREAM, Users::Root).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let _peer = UnixStream::connect(&path).unwrap();
        let peer = socket.accept().unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn only_root_may_connect() {
        let user = |uid, gid| UnixCredentials::from(libc::ucred { pid: 1, uid, gid });
        assert!(is_root(&user(0, 0)) && is_root(&user(0, 1000)));
        for (uid, gid) in [(1, 0), (1000, 1000), (65_534, 0), (u32::MAX, 0), (100_000, 0)] {
            assert!(!is_root(&user(uid, gid)), "{uid}");
        }
    }

    #[test]
    fn a_stale_file_is_replaced_and_a_living_socket_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let socket = Listening::bind(&path, SocketType::STREAM, Users::Root).unwrap();
        let error = Listening::bind(&path, SocketType::STREAM, Users::Root).unwrap_err();
        assert!(matches!(error, Error::SocketTaken { .. }), "{error}");
        let error = Listening::bind(&path, SocketType::SEQPACKET, Users::Root).unwrap_err();
        assert!(matches!(error, Error::SocketTaken { .. }), "{error}");
        drop(socket);
        fs::write(&path, "precious").unwrap();
        let error = Listening::bind(&path, SocketType::STREAM, Users::Root).unwrap_err();
        assert!(matches!(error, Error::NoSocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

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
            Inherited::of([("activated-s", OwnedFd::from(socket.try_clone().unwrap()))])
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

    #[test]
    fn the_socket_of_a_successor_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = Listening::bind(&path, SocketType::STREAM, Users::Root).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
