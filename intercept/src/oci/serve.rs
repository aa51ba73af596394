//! Reads connections of OCI runtimes and adopts their listeners.
//!
//! Each connection is read on a short-lived thread of its own: a runtime that hangs must never
//! delay the listener of another container. The keeper holds a connection until it was read, and
//! then its listener, so that neither is lost with the server. Start reading at `take`.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ambit_keeper::client::{Inherited, KeeperClient};
use rustix::net::SocketType;

use super::message::Message;
use super::receive::{Error, receive};
use crate::listener::{ABOUT, LISTENER, Listener};
use crate::policies::{Container, Member, cgroup_of};
use crate::thread::{Source, Threads};
use ambit_keeper::socket::{Entrance, Peer, Users};

/// The name of the socket with the keeper.
const SOCKET: &str = "oci";
/// The prefix of the name of a connection that was not read yet; its number follows.
const CONNECTION: &str = "oci-";

/// A connection that a runtime made, and its number with the keeper.
struct Connection {
    peer: Peer,
    number: u64,
}

/// Returns the socket that runtimes connect to.
pub(crate) fn entrance(path: PathBuf) -> Entrance {
    Entrance::new(SOCKET, path, SocketType::STREAM, Users::Root)
}

/// Reads a new connection.
pub(crate) fn accepted(peer: Peer, threads: &Arc<Threads>, link: &KeeperClient) {
    let number = link.number();
    link.store(&format!("{CONNECTION}{number}"), &peer.fd);
    read(Connection { peer, number }, threads, link);
}

/// Reads the connections that a predecessor had not read.
pub(crate) fn take_over(threads: &Arc<Threads>, link: &KeeperClient, held: &mut Inherited) {
    for (number, fd) in held.take_numbered(CONNECTION) {
        read(Connection { peer: Peer { fd, pid: 0, user: 0 }, number }, threads, link);
    }
}

/// Reads a connection on a thread of its own.
fn read(connection: Connection, threads: &Arc<Threads>, link: &KeeperClient) {
    let (threads, link) = (Arc::clone(threads), link.clone());
    let reader = std::thread::Builder::new().name("notify-oci-read".into());
    let spawned = reader.spawn(move || {
        take(&connection.peer, &threads, &link);
        link.remove(&format!("{CONNECTION}{}", connection.number));
    });
    if let Err(error) = spawned {
        tracing::error!("a listener of an OCI runtime is lost: no thread: {error}");
    }
}

/// Reads one connection and adopts its listener.
fn take(peer: &Peer, threads: &Threads, link: &KeeperClient) {
    let (message, fd) = match receive(peer.fd.as_fd()) {
        Ok(received) => received,
        // `ambit oci-runtime` asks so whether the socket is served.
        Err(Error::Empty) => return,
        Err(error) => {
            tracing::error!(pid = peer.pid, "a message of an OCI runtime is refused: {error}");
            return;
        }
    };
    let pid = message.pid;
    // Store it with the keeper first: the runtime never sends it again.
    let number = link.number();
    link.store(&format!("{LISTENER}{number}"), &fd);
    let container = container(message);
    if let Ok(about) = serde_json::to_vec(&container) {
        link.store_bytes(&format!("{ABOUT}{number}"), &about);
    }
    let mut member = Member::configured(container);
    let names = member.policy(&threads.pipeline.policies).names().collect::<Vec<_>>().join(",");
    let is_first = member.account(&threads.pipeline.accounts).announce();
    let named = Arc::clone(&member.container);
    let container = &*named.id;
    let adopted = Listener::adopt(fd).and_then(|listener| {
        let listener = Arc::new(listener.kept(link.clone(), number));
        threads.add(Source::Listener { listener, member: Mutex::new(member) })
    });
    match adopted {
        Ok(()) if is_first => tracing::info!(container, pid, names, "calls are answered"),
        // A process that the runtime started in a container that is known.
        Ok(()) => tracing::debug!(container, pid, names, "calls of another process are answered"),
        Err(error) => {
            link.remove(&format!("{LISTENER}{number}"));
            link.remove(&format!("{ABOUT}{number}"));
            tracing::error!(container, "the listener is lost: {error}");
        }
    }
}

/// Returns the container as the runtime describes it, with its cgroup.
fn container(message: Message) -> Container {
    let pid = if message.pid > 0 { message.pid } else { message.state.pid };
    Container {
        cgroup: cgroup_of(&format!("/proc/{pid}/cgroup")),
        id: message.state.id,
        metadata: message.metadata.unwrap_or_default(),
        cookie: String::new(),
        annotations: message.state.annotations.unwrap_or_default(),
    }
}
