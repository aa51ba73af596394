//! The sockets that OCI runtimes and liblxc connect to, and the thread that accepts connections.
//!
//! Container engines know the sockets by their paths. [`Acceptor::rebind`] binds a socket again
//! whose file was removed. A successor that cannot bind a socket serves without it, and tries again
//! there. The thread must never wait for a peer: connections are read elsewhere (`oci/serve.rs`,
//! `lxc.rs`).

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ambit_keeper::client::{Inherited, KeeperClient};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::Error;
use super::thread::Threads;
use super::{lxc, oci};
use ambit_keeper::socket::{Entrance, Listening, Peer};

/// The kind of peer that connects to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    Oci,
    Lxc,
}

impl Runtime {
    fn entrance(self, path: PathBuf) -> Entrance {
        match self {
            Self::Oci => oci::entrance(path),
            Self::Lxc => lxc::entrance(path),
        }
    }

    fn take(self, peer: Peer, threads: &Arc<Threads>, link: &KeeperClient) {
        match self {
            Self::Oci => oci::accepted(peer, threads, link),
            Self::Lxc => {
                let connection = lxc::Connection::accepted(peer, &threads.users, link.clone());
                if let Some(connection) = connection {
                    threads.watch(Arc::new(connection));
                }
            }
        }
    }
}

/// The sockets and their thread.
#[derive(Debug)]
pub(super) struct Acceptor {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    entrances: Mutex<Vec<(Runtime, Entrance)>>,
    wake: OwnedFd,
    stopping: AtomicBool,
    threads: Arc<Threads>,
    link: KeeperClient,
}

impl Acceptor {
    /// Binds the sockets, or takes over those of a predecessor, and starts the thread.
    pub(super) fn start(
        sockets: Vec<(Runtime, PathBuf)>,
        is_successor: bool,
        threads: Arc<Threads>,
        link: &KeeperClient,
        held: &mut Inherited,
    ) -> Result<Self, Error> {
        let mut entrances = Vec::new();
        for (runtime, path) in sockets {
            let mut entrance = runtime.entrance(path);
            entrance.open(held, is_successor, link)?;
            entrances.push((runtime, entrance));
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            entrances: Mutex::new(entrances),
            wake: eventfd(0, flags).map_err(Error::system("eventfd"))?,
            stopping: AtomicBool::new(false),
            threads,
            link: link.clone(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("notify-accept".into());
        let thread = thread.spawn(move || own.run()).map_err(|source| Error::System {
            what: "cannot start the accepting thread",
            source,
        })?;
        Ok(Self { shared, thread })
    }

    /// Binds the sockets again whose files were removed.
    pub(super) fn rebind(&self) {
        let mut replaced = Vec::new();
        for (runtime, entrance) in self.shared.lock().iter_mut() {
            if let Some(before) = entrance.look(&self.shared.link) {
                replaced.push((*runtime, before));
            }
        }
        if replaced.is_empty() {
            return;
        }
        self.shared.wake();
        // Accept the connections that were made before the file was removed.
        for (runtime, before) in replaced {
            self.shared.accept_all(runtime, before.as_deref());
        }
    }

    /// Ends the thread and removes the sockets.
    pub(super) fn stop(self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake();
        let _ = self.thread.join();
    }
}

impl Shared {
    fn run(&self) {
        while !self.stopping.load(Ordering::Acquire) {
            let listening: Vec<_> = self
                .lock()
                .iter()
                .filter_map(|(runtime, entrance)| Some((*runtime, entrance.listening()?)))
                .collect();
            let fds = listening.iter().map(|(_, socket)| socket.as_fd());
            let fds = fds.chain([self.wake.as_fd()]);
            let mut fds: Vec<_> =
                fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            let _ = poll(&mut fds, None);
            let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            for ((runtime, socket), _) in listening.iter().zip(ready).filter(|(_, ready)| *ready) {
                if let Some(peer) = socket.accept() {
                    runtime.take(peer, &self.threads, &self.link);
                }
            }
        }
    }

    fn accept_all(&self, runtime: Runtime, socket: Option<&Listening>) {
        while let Some(peer) = socket.and_then(Listening::accept) {
            runtime.take(peer, &self.threads, &self.link);
        }
    }

    fn wake(&self) {
        // This fails only if the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Runtime, Entrance)>> {
        self.entrances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
