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

use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    getsockname, listen, socket_with,
};

mod entrance;

pub use entrance::Entrance;

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
    /// Another process serves the socket.
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

/// How many connections may wait: after a boot the runtimes of many containers start at once.
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
    /// True if this process may connect. Root is root of our user namespace: the kernel shows a user
    /// that our user namespace does not map as the overflow user (65534).
    fn may_connect(self, peer: &UnixCredentials) -> bool {
        self == Self::All || peer.uid() == 0
    }

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
            // The peer has left, or a signal came: poll(2) tells when there is another one.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return None,
            Err(errno) => {
                tracing::error!("accept on {}: {errno}", self.path.display());
                // There is no free descriptor. The connection stays ready, so this pause prevents a
                // busy loop.
                std::thread::sleep(std::time::Duration::from_millis(100));
                return None;
            }
        };
        match getsockopt(&fd, PeerCredentials) {
            Ok(peer) if self.users.may_connect(&peer) => {
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
        // No process listens: a predecessor left the file behind, and it is replaced.
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
    fn only_root_may_connect_unless_all_users_may() {
        let user = |uid, gid| UnixCredentials::from(libc::ucred { pid: 1, uid, gid });
        assert!([0, 1000].iter().all(|&gid| Users::Root.may_connect(&user(0, gid))));
        for (uid, gid) in [(1, 0), (1000, 1000), (65_534, 0), (u32::MAX, 0), (100_000, 0)] {
            assert!(!Users::Root.may_connect(&user(uid, gid)), "{uid}");
            assert!(Users::All.may_connect(&user(uid, gid)), "{uid}");
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
