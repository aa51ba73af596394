//! The sockets that runtimes connect to: root's alone, and never in the way of a successor.
//!
//! A socket is bound beside its final name, given its mode, and renamed: nobody can connect
//! before the mode is right, and a stale file of a predecessor is replaced in one step.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use super::Error;

/// Connections that may wait while we are busy; runtimes of many containers start at once
/// after a boot.
const BACKLOG: i32 = 128;

/// A socket that listens; its file goes away with it.
#[derive(Debug)]
pub(super) struct Listening {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, to tell it from a successor's.
    file: (u64, u64),
}

impl Listening {
    /// Listens on a path, which gets mode 0600, in a directory made with mode 0755 if missing.
    pub(super) fn bind(path: &Path, kind: SocketType) -> Result<Self, Error> {
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
        let file = fs::set_permissions(&temporary, Permissions::from_mode(0o600))
            .and_then(|()| fs::symlink_metadata(&temporary))
            .map_err(failed("chmod"))?;
        listen(&fd, BACKLOG).map_err(|errno| failed("listen")(errno.into()))?;
        fs::rename(&temporary, path).map_err(failed("rename"))?;
        Ok(Self { fd, path: path.to_owned(), file: (file.dev(), file.ino()) })
    }

    /// Listens on, where a predecessor listened on the same path and left the socket; binds a new
    /// one otherwise.
    pub(super) fn take_over(
        kept: Option<OwnedFd>,
        path: &Path,
        kind: SocketType,
    ) -> Result<Self, Error> {
        let file = fs::symlink_metadata(path).ok().filter(|file| file.file_type().is_socket());
        match (kept, file) {
            (Some(fd), Some(file)) => {
                Ok(Self { fd, path: path.to_owned(), file: (file.dev(), file.ino()) })
            }
            _ => Self::bind(path, kind),
        }
    }

    /// The next connection, non-blocking, if there is one and root made it.
    pub(super) fn accept(&self) -> Option<Peer> {
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
            Ok(peer) if peer.uid() == 0 => Some(Peer { fd, pid: peer.pid() }),
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
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A connection and the process that made it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) fd: OwnedFd,
    /// Its id in our pid namespace; 0 if it is outside.
    pub(super) pid: i32,
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
        let socket = Listening::bind(&path, SocketType::STREAM).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let _peer = UnixStream::connect(&path).unwrap();
        let peer = socket.accept().unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_file_is_replaced_and_a_living_socket_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let socket = Listening::bind(&path, SocketType::STREAM).unwrap();
        let error = Listening::bind(&path, SocketType::STREAM).unwrap_err();
        assert!(matches!(error, Error::SocketTaken { .. }), "{error}");
        let error = Listening::bind(&path, SocketType::SEQPACKET).unwrap_err();
        assert!(matches!(error, Error::SocketTaken { .. }), "{error}");
        drop(socket);
        fs::write(&path, "precious").unwrap();
        let error = Listening::bind(&path, SocketType::STREAM).unwrap_err();
        assert!(matches!(error, Error::NoSocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn the_socket_of_a_successor_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = Listening::bind(&path, SocketType::STREAM).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
