//! The thread that accepts connections of OCI runtimes.
//!
//! Each connection is read on a short-lived thread of its own: a runtime that hangs must not
//! keep the listener of another container waiting.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::SocketType;

use super::ANNOTATION;
use super::message::Message;
use super::receive::receive;
use crate::notify::Error;
use crate::notify::listener::Listener;
use crate::notify::policy::Policy;
use crate::notify::socket::{Listening, Peer};
use crate::notify::thread::{Source, Threads};

/// The running thread.
#[derive(Debug)]
pub(in crate::notify) struct Server {
    wake: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Binds the socket and starts the thread.
    pub(in crate::notify) fn start(
        path: &Path,
        policy: Policy,
        threads: Arc<Threads>,
    ) -> Result<Self, Error> {
        let listening = Listening::bind(path, SocketType::STREAM)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC).map_err(Error::system("eventfd"))?;
        let wake = Arc::new(wake);
        let stop = Arc::clone(&wake);
        let thread = std::thread::Builder::new()
            .name("notify-oci".into())
            .spawn(move || serve(&listening, &stop, policy, &threads))
            .map_err(|source| Error::System { what: "cannot start the OCI thread", source })?;
        Ok(Self { wake, thread })
    }

    /// Ends the thread and removes the socket.
    pub(in crate::notify) fn stop(self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        let _ = self.thread.join();
    }
}

fn serve(listening: &Listening, stop: &OwnedFd, policy: Policy, threads: &Arc<Threads>) {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listening.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        let [connection, stop] = fds.map(|fd| !fd.revents().is_empty());
        if stop {
            return;
        }
        if connection && let Some(peer) = listening.accept() {
            let threads = Arc::clone(threads);
            let reader = std::thread::Builder::new().name("notify-oci-read".into());
            let spawned = reader.spawn(move || take(&peer, policy, &threads));
            if let Err(error) = spawned {
                tracing::error!("a listener of an OCI runtime is lost: no thread: {error}");
            }
        }
    }
}

/// Reads one connection and adopts its listener.
fn take(peer: &Peer, configured: Policy, threads: &Threads) {
    let (message, fd) = match receive(peer.fd.as_fd()) {
        Ok(received) => received,
        Err(error) => {
            tracing::error!(pid = peer.pid, "a message of an OCI runtime is refused: {error}");
            return;
        }
    };
    let container = message.state.id.as_str();
    let policy = policy(&message, configured);
    let adopted = Listener::adopt(fd).and_then(|listener| {
        threads.add(Source::Listener { listener, container: container.into(), policy })
    });
    match adopted {
        Ok(()) => tracing::info!(container, pid = message.pid, ?policy, "listener adopted"),
        Err(error) => tracing::error!(container, "the listener is lost: {error}"),
    }
}

fn policy(message: &Message, configured: Policy) -> Policy {
    let Some(list) = message.annotation(ANNOTATION) else { return configured };
    let (policy, unknown) = configured.requested(list);
    if !unknown.is_empty() {
        let container = message.state.id.as_str();
        tracing::warn!(container, ?unknown, "{ANNOTATION} names calls that nobody answers");
    }
    policy
}
