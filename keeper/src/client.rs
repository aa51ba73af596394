//! The server's side of the connection to the keeper.
//!
//! A server without a keeper (inside `ambit run`) has an empty [`KeeperClient`]: nothing outlives
//! the process then.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambit_kernel::lock;
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::RecvFlags;
use rustix::process::{PidfdFlags, Resource, getpid, getrlimit, pidfd_open};

mod inherited;
mod orders;

pub use inherited::Inherited;
pub use orders::{Kept, Orders};

use super::wire::{self, Outbox};

/// The name of the connection to a new broker among the inherited descriptors.
pub const BROKER: &str = wire::BROKER;

/// The name of the pidfd of a server's own process.
pub(super) const SERVER: &str = "server";
/// The highest number that the connection gets, which no other descriptor of a server reaches.
const LAST_NUMBER: u64 = (32 << 10) - 1;
/// How long a server waits for the end of the previous one. A server whose keeper was killed
/// answers the calls that it is handling and ends sooner than this.
const PREDECESSOR_TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The heartbeat: a message that only tells the keeper that the server works.
pub const ALIVE: &str = "beat";

/// The connection to the keeper, or none.
#[derive(Debug, Clone, Default)]
pub struct KeeperClient(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    /// The number for the next numbered name.
    next: AtomicU64,
    restarts: AtomicU64,
    /// True if the previous server ended itself.
    crashed: AtomicBool,
    /// True if the keeper killed the previous server because it sent nothing any more.
    silent: AtomicBool,
    /// True if the keeper has ended.
    lost: AtomicBool,
    broker_restarts: AtomicU64,
    /// Messages that the keeper has not read yet.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    outbox: Outbox<OwnedFd>,
    /// True while a thread waits to send them.
    is_flushed: bool,
}

impl KeeperClient {
    /// Takes the connection that the keeper started this process with, as its standard input. Must be
    /// called before any thread is started.
    ///
    /// It gets the highest number. The kernel closes the files of a process that ends in descending
    /// order (task works are last in, first out since Linux 4.4), so that the keeper need not wait
    /// for thousands of others. The table of descriptors then never grows, which in a process with
    /// threads would block those that open files for about 10 ms (an RCU grace period).
    ///
    /// # Errors
    /// Standard input is closed, or cannot be replaced by `/dev/null`.
    pub fn inherit() -> anyhow::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let last = i32::try_from(LAST_NUMBER.min(limit.saturating_sub(1)))?;
        let socket = rustix::io::fcntl_dupfd_cloexec(stdin, last).context("no keeper: dup")?;
        let nothing = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
        // Child processes must not have a copy.
        rustix::stdio::dup2_stdin(&nothing).context("dup2")?;
        Ok(Self::over(socket))
    }

    fn over(socket: OwnedFd) -> Self {
        let (next, restarts) = (AtomicU64::new(1), AtomicU64::new(0));
        let [crashed, silent, lost] = [const { AtomicBool::new(false) }; 3];
        let (broker_restarts, waiting) = (AtomicU64::new(0), Mutex::default());
        let shared =
            Shared { socket, next, restarts, crashed, silent, lost, broker_restarts, waiting };
        Self(Some(Arc::new(shared)))
    }

    /// True if this process was started by a keeper.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Tells the keeper that this process is prepared, and waits for the descriptors of the
    /// previous server and for its end.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn take_over(&self) -> anyhow::Result<Inherited> {
        let mut inherited = self.wait_for_inherited()?;
        if let Some(predecessor) = inherited.take(SERVER) {
            // If only the keeper has died, its server still runs. A call that both handled would be
            // executed twice.
            let mut ended = [PollFd::new(&predecessor, PollFlags::IN)];
            if retry_on_intr(|| poll(&mut ended, Some(&PREDECESSOR_TIMEOUT))) == Ok(0) {
                tracing::warn!("the server of a keeper that was killed does not leave");
            }
        }
        if self.is_kept() {
            let this = pidfd_open(getpid(), PidfdFlags::empty()).context("pidfd_open")?;
            self.store(SERVER, this);
        }
        Ok(inherited)
    }

    fn wait_for_inherited(&self) -> anyhow::Result<Inherited> {
        let mut inherited = Inherited::default();
        let Some(shared) = &self.0 else { return Ok(inherited) };
        wire::send(shared.socket.as_fd(), "prepared", None).context("the keeper is gone")?;
        loop {
            let message = wire::receive(&shared.socket, RecvFlags::empty());
            let message = message.context("the keeper does not answer")?;
            let (text, fd) = message.context("the keeper is gone")?;
            match (text.split_once(' '), fd) {
                (Some(("held", name)), Some(fd)) => {
                    inherited.insert(name, fd);
                }
                (Some((wire::BROKER, _)), Some(fd)) => {
                    shared.note_broker(&text);
                    inherited.insert(BROKER, fd);
                }
                (None, _) if text == wire::CRASHED => shared.crashed.store(true, Ordering::Relaxed),
                (None, _) if text == wire::SILENT => shared.silent.store(true, Ordering::Relaxed),
                (Some(("go", restarts)), _) => {
                    shared.restarts.store(restarts.parse().unwrap_or(0), Ordering::Relaxed);
                    shared.next.store(inherited.last_number() + 1, Ordering::Relaxed);
                    return Ok(inherited);
                }
                _ => {}
            }
        }
    }

    /// Stores a descriptor with the keeper.
    pub fn store(&self, name: &str, fd: impl AsFd) {
        self.send(&format!("store {name}"), Some(fd.as_fd()));
    }

    /// Stores bytes with the keeper, in a memfd.
    pub fn store_bytes(&self, name: &str, bytes: &[u8]) {
        if self.0.is_none() {
            return;
        }
        match memory(name, bytes) {
            Ok(memory) => self.store(name, memory),
            Err(error) => tracing::error!(name, %error, "not kept for a successor: memfd_create"),
        }
    }

    /// Sends a message with this text in a memfd.
    pub fn send_with_text(&self, verb: &str, text: &str) {
        if self.0.is_none() {
            return;
        }
        match memory("configuration", text.as_bytes()) {
            Ok(memory) => drop(self.send(verb, Some(memory.as_fd()))),
            Err(error) => {
                tracing::error!(%error, "the keeper has no copy of the configuration: memfd_create");
                let _ = self.send(verb, None);
            }
        }
    }

    /// Returns a number that no stored name has yet.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Removes the descriptor of this name from the keeper.
    pub fn remove(&self, name: &str) {
        self.send(&format!("remove {name}"), None);
    }

    /// Sends a message to the keeper, now or as soon as it reads. False if there is no keeper.
    pub fn send(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> bool {
        let Some(shared) = self.0.as_ref().filter(|_| !self.is_lost()) else { return false };
        let mut waiting = shared.waiting();
        let said = if waiting.outbox.is_empty() {
            wire::send(shared.socket.as_fd(), text, fd)
        } else {
            Err(Errno::AGAIN)
        };
        match said {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOMEM | Errno::NOBUFS) => {
                match fd.map(|fd| fd.try_clone_to_owned()).transpose() {
                    // The pending messages are a heartbeat too.
                    Ok(_) if text == ALIVE => {}
                    Ok(fd) => waiting.outbox.push(text.to_owned(), fd),
                    Err(error) => tracing::error!("not kept for a successor: {text}: dup: {error}"),
                }
                self.flush_later(shared, &mut waiting);
            }
            Err(errno) => self.lose(text, errno),
        }
        !self.is_lost()
    }

    /// Starts a thread that sends the pending messages. If that fails, the next message tries
    /// again.
    fn flush_later(&self, shared: &Arc<Shared>, waiting: &mut Waiting) {
        if waiting.is_flushed {
            return;
        }
        let (keeper, own) = (self.clone(), Arc::clone(shared));
        let flush = move || {
            loop {
                let mut room = [PollFd::new(&own.socket, PollFlags::OUT)];
                let _ = retry_on_intr(|| poll(&mut room, None));
                let mut waiting = own.waiting();
                let flushed = waiting.outbox.flush(own.socket.as_fd());
                waiting.is_flushed = flushed == Ok(false);
                drop(waiting);
                match flushed {
                    // The socket is writable, but too many descriptors are in flight.
                    Ok(false) => std::thread::sleep(Duration::from_millis(1)),
                    Ok(true) => return,
                    Err(errno) => return keeper.lose("pending messages", errno),
                }
            }
        };
        let thread = std::thread::Builder::new().name("keeper-late".into());
        waiting.is_flushed = thread.spawn(flush).is_ok();
    }

    fn lose(&self, text: &str, errno: Errno) {
        if let Some(shared) = &self.0
            && !shared.lost.swap(true, Ordering::Relaxed)
        {
            tracing::error!("the keeper has ended: {text:?} was not sent: {errno}");
        }
    }

    /// True if the keeper has ended.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.lost.load(Ordering::Relaxed))
    }

    /// Returns how many servers have died and were replaced.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.restarts.load(Ordering::Relaxed))
    }

    /// True if the previous server ended itself, and was not killed.
    #[must_use]
    pub fn predecessor_crashed(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.crashed.load(Ordering::Relaxed))
    }

    /// True if the keeper killed the previous server because it sent nothing any more.
    #[must_use]
    pub fn predecessor_was_silent(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.silent.load(Ordering::Relaxed))
    }

    /// Returns the process id of the service: the keeper's, or this process's without a keeper.
    #[must_use]
    pub fn service_pid(&self) -> u32 {
        match (&self.0, rustix::process::getppid()) {
            (Some(_), Some(keeper)) if !self.is_lost() => {
                keeper.as_raw_nonzero().get().unsigned_abs()
            }
            _ => std::process::id(),
        }
    }

    /// Returns how many brokers have died and were replaced.
    #[must_use]
    pub fn broker_restarts(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.broker_restarts.load(Ordering::Relaxed))
    }

    /// Waits for the next message from the keeper. `None` if the keeper has ended.
    #[must_use]
    pub fn receive(&self) -> Option<(String, Option<OwnedFd>)> {
        let shared = self.0.as_ref()?;
        let heard = wire::receive(&shared.socket, RecvFlags::empty()).ok().flatten();
        match &heard {
            Some((text, _)) => shared.note_broker(text),
            None => shared.lost.store(true, Ordering::Relaxed),
        }
        heard
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }

    fn note_broker(&self, text: &str) {
        let number = text.strip_prefix(BROKER).and_then(|rest| rest.trim_start().parse().ok());
        if let Some(number) = number {
            self.broker_restarts.store(number, Ordering::Relaxed);
        }
    }
}

/// Creates a memfd with these bytes.
fn memory(name: &str, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(bytes)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_keeper_receives_all_messages_after_it_is_continued() {
        let (near, far) = wire::pair().unwrap();
        let keeper = KeeperClient::over(near);
        for number in 0..500 {
            keeper.store(&format!("listener-{number}"), tempfile::tempfile().unwrap());
            assert!(keeper.send(ALIVE, None));
        }
        let mut stored = 0;
        while stored < 500 {
            let (text, fd) = wire::receive(&far, RecvFlags::empty()).unwrap().unwrap();
            if text != ALIVE {
                assert_eq!((text, fd.is_some()), (format!("store listener-{stored}"), true));
                stored += 1;
            }
        }
        // Not dropped: a process that another test starts may hold it for a moment.
        rustix::net::shutdown(&far, rustix::net::Shutdown::Both).unwrap();
        assert!(!keeper.send(ALIVE, None) && keeper.is_lost());
    }
}
