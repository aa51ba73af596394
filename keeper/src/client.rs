//! The server's side of the connection to the keeper.
//!
//! A server without a keeper (inside `ambit run`) has an empty [`KeeperClient`]: nothing outlives
//! the process then.

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::RecvFlags;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::wire::{self, Outbox};

/// The name of the connection to a new broker among the inherited descriptors.
pub const BROKER: &str = wire::BROKER;

/// The name of the pidfd of a server's own process.
const SERVER: &str = "server";
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

/// The descriptors that the previous server stored with the keeper, by name.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<String, OwnedFd>);

impl Inherited {
    /// True if there was a previous server. The sockets of a socket unit do not tell.
    #[must_use]
    pub fn has_predecessor(&self) -> bool {
        self.0.keys().any(|name| !name.starts_with(wire::ACTIVATED))
    }

    /// Takes the socket of this name that a socket unit holds.
    pub fn take_activated(&mut self, name: &str) -> Option<OwnedFd> {
        self.take(&format!("{}{name}", wire::ACTIVATED))
    }

    /// Takes the sockets of this name: a previous server's and a socket unit's.
    #[must_use]
    pub fn take_sockets(&mut self, name: &str) -> Self {
        let names = [name.to_owned(), format!("{}{name}", wire::ACTIVATED)];
        Self(names.into_iter().filter_map(|name| self.0.remove_entry(&name)).collect())
    }

    /// True if there is no descriptor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(super) fn of<const N: usize>(held: [(&str, OwnedFd); N]) -> Self {
        Self(held.into_iter().map(|(name, fd)| (name.to_owned(), fd)).collect())
    }

    /// Takes the descriptor of this name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Takes the descriptor of this name, which ends with the version of its layout. Removes those
    /// of other versions: they would be out of date when such a program is started again.
    pub fn take_version(&mut self, name: &str, keeper: &KeeperClient) -> Option<OwnedFd> {
        let kind = name.rsplit_once('.').map_or(name, |(kind, _)| kind);
        let other = |held: &str| {
            let version = held.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.'));
            held != name && version.is_some_and(|version| version.parse::<u32>().is_ok())
        };
        let others: Vec<_> = self.0.keys().filter(|held| other(held)).cloned().collect();
        for other in others {
            tracing::info!(kept = other, wanted = name, "another version's is not used");
            self.0.remove(&other);
            keeper.remove(&other);
        }
        self.take(name)
    }

    /// Takes the bytes that were stored under this name.
    pub fn take_bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        read(&self.take(name)?).ok()
    }

    /// Takes all descriptors whose name is this prefix and a number.
    pub fn take_numbered(&mut self, prefix: &str) -> Vec<(u64, OwnedFd)> {
        let number = |name: &String| name.strip_prefix(prefix)?.parse::<u64>().ok();
        let names: Vec<_> =
            self.0.keys().filter_map(|name| Some((name.clone(), number(name)?))).collect();
        let taken =
            names.into_iter().filter_map(|(name, number)| Some((number, self.take(&name)?)));
        taken.collect()
    }
}

impl KeeperClient {
    /// Takes the connection that the keeper started this process with, as its standard input.
    ///
    /// # Errors
    /// Standard input is closed, or cannot be replaced by `/dev/null`.
    pub fn inherit() -> anyhow::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let socket = rustix::io::fcntl_dupfd_cloexec(stdin, 3).context("no keeper: dup")?;
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
                    drop(inherited.0.insert(name.to_owned(), fd));
                }
                (Some((wire::BROKER, _)), Some(fd)) => {
                    shared.note_broker(&text);
                    drop(inherited.0.insert(BROKER.to_owned(), fd));
                }
                (None, _) if text == wire::CRASHED => shared.crashed.store(true, Ordering::Relaxed),
                (None, _) if text == wire::SILENT => shared.silent.store(true, Ordering::Relaxed),
                (Some(("go", restarts)), _) => {
                    shared.restarts.store(restarts.parse().unwrap_or(0), Ordering::Relaxed);
                    let number = |name: &String| name.rsplit_once('-')?.1.parse::<u64>().ok();
                    let last = inherited.0.keys().filter_map(number).max().unwrap_or(0);
                    shared.next.store(last + 1, Ordering::Relaxed);
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
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_broker(&self, text: &str) {
        let number = text.strip_prefix(BROKER).and_then(|rest| rest.trim_start().parse().ok());
        if let Some(number) = number {
            self.broker_restarts.store(number, Ordering::Relaxed);
        }
    }
}

/// Reads the configuration in a memfd that the keeper holds.
fn kept(file: &OwnedFd, instead: bool) -> std::io::Result<Kept> {
    let text = String::from_utf8(read(file)?).map_err(std::io::Error::other)?;
    let read = std::fs::File::from(file.try_clone()?).metadata()?.modified()?;
    Ok(Kept { text, read, instead })
}

/// Creates a memfd with these bytes.
fn memory(name: &str, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(bytes)?;
    Ok(file.into())
}

fn read(memory: &OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::from(memory.try_clone()?);
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_descriptors_are_found_by_name_and_number() {
        let mut inherited = Inherited::default();
        for name in ["listener-7", "listener-12", "about-7"] {
            inherited.0.insert(name.to_owned(), memory(name, name.as_bytes()).unwrap());
        }
        assert_eq!(inherited.take_bytes("about-7").as_deref(), Some(&b"about-7"[..]));
        let numbers: Vec<_> =
            inherited.take_numbered("listener-").iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [12, 7]);
        assert!(inherited.take("listener-7").is_none());
    }

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
        drop(far);
        assert!(!keeper.send(ALIVE, None) && keeper.is_lost());
    }

    #[test]
    fn memory_of_another_layout_version_is_not_used() {
        let mut inherited = Inherited::default();
        for name in ["journal.1", "journal.2", "journal.x", "journals.1"] {
            inherited.0.insert(name.to_owned(), memory(name, name.as_bytes()).unwrap());
        }
        assert!(inherited.take_version("journal.3", &KeeperClient::default()).is_none());
        let left: Vec<_> = inherited.0.keys().map(String::as_str).collect();
        assert_eq!(left, ["journal.x", "journals.1"]);
        assert!(inherited.take_version("journals.1", &KeeperClient::default()).is_some());
    }
}
