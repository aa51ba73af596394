//! The server's side of the connection to its keeper.
//!
//! A server without a keeper (inside `ambit run`) has a link that goes nowhere: everything then
//! lives and ends with the process.

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

/// The socket of a new broker, among what a predecessor left.
pub const BROKER: &str = wire::BROKER;

/// The name of a server's own process with the keeper.
const SERVER: &str = "server";
/// A server that lost its keeper answers what it was at, and leaves sooner than this.
const LEAVES: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// What tells the keeper that all is well.
pub const ALIVE: &str = "beat";

/// A connection to the keeper, or none.
#[derive(Debug, Clone, Default)]
pub struct Link(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    /// The next number of a name that is counted.
    next: AtomicU64,
    restarts: AtomicU64,
    /// The server before this one ended itself.
    crashed: AtomicBool,
    /// The keeper killed it because it said nothing any more.
    silent: AtomicBool,
    /// It was there and is not any more.
    lost: AtomicBool,
    broker_restarts: AtomicU64,
    /// What the keeper has not read yet.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    outbox: Outbox<OwnedFd>,
    /// A thread sends it as soon as the keeper reads.
    is_flushed: bool,
}

/// What the keeper has for a server before that does anything.
#[derive(Debug, Default)]
pub struct Orders {
    /// It was started beside another program that serves, and is to check itself.
    pub is_candidate: bool,
    /// The last good configuration.
    pub configuration: Option<Kept>,
    /// The keeper starts brokers; this is the connection to the first one, if there was room for it.
    pub broker: Option<Option<OwnedFd>>,
}

/// A configuration that the keeper holds.
#[derive(Debug)]
pub struct Kept {
    /// Its text.
    pub text: String,
    /// When it was read from disk.
    pub read: SystemTime,
    /// It is used whatever is on disk.
    pub instead: bool,
}

/// What a predecessor left with the keeper.
#[derive(Debug, Default)]
pub struct Held(BTreeMap<String, OwnedFd>);

impl Held {
    /// Was there no predecessor?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes what has this name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Takes what has this name, which ends with the version of its layout. What programs of other
    /// versions left of it is let go of: it would be old when they come back.
    pub fn take_version(&mut self, name: &str, link: &Link) -> Option<OwnedFd> {
        let kind = name.rsplit_once('.').map_or(name, |(kind, _)| kind);
        let other = |held: &str| {
            let version = held.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.'));
            held != name && version.is_some_and(|version| version.parse::<u32>().is_ok())
        };
        let others: Vec<_> = self.0.keys().filter(|held| other(held)).cloned().collect();
        for other in others {
            tracing::info!(kept = other, wanted = name, "another version's is not used");
            self.0.remove(&other);
            link.remove(&other);
        }
        self.take(name)
    }

    /// Takes the bytes that were kept under this name.
    pub fn take_bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        read(&self.take(name)?).ok()
    }

    /// Takes everything whose name is this and a number.
    pub fn take_numbered(&mut self, prefix: &str) -> Vec<(u64, OwnedFd)> {
        let number = |name: &String| name.strip_prefix(prefix)?.parse::<u64>().ok();
        let names: Vec<_> =
            self.0.keys().filter_map(|name| Some((name.clone(), number(name)?))).collect();
        let taken =
            names.into_iter().filter_map(|(name, number)| Some((number, self.take(&name)?)));
        taken.collect()
    }
}

impl Link {
    /// The connection that the keeper started this process with, as its standard input.
    ///
    /// # Errors
    /// It is none.
    pub fn inherit() -> anyhow::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let socket = rustix::io::fcntl_dupfd_cloexec(stdin, 3).context("no keeper: dup")?;
        let nothing = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
        // What is forked from here must not have a copy.
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

    /// Is there a keeper?
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// What the keeper has said before this process began.
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

    /// Tells that everything is ready but for what the predecessor has, and waits until that has
    /// come and the predecessor is gone.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn take_over(&self) -> anyhow::Result<Held> {
        let mut held = self.wait_for_held()?;
        if let Some(predecessor) = held.take(SERVER) {
            // The keeper may have died and not its server. A call that both act on has two effects.
            let mut ended = [PollFd::new(&predecessor, PollFlags::IN)];
            if retry_on_intr(|| poll(&mut ended, Some(&LEAVES))) == Ok(0) {
                tracing::warn!("the server of a keeper that was killed does not leave");
            }
        }
        if self.is_kept() {
            let this = pidfd_open(getpid(), PidfdFlags::empty()).context("pidfd_open")?;
            self.store(SERVER, this);
        }
        Ok(held)
    }

    fn wait_for_held(&self) -> anyhow::Result<Held> {
        let mut held = Held::default();
        let Some(shared) = &self.0 else { return Ok(held) };
        wire::send(shared.socket.as_fd(), "prepared", None).context("the keeper is gone")?;
        loop {
            let message = wire::receive(&shared.socket, RecvFlags::empty());
            let message = message.context("the keeper does not answer")?;
            let (text, fd) = message.context("the keeper is gone")?;
            match (text.split_once(' '), fd) {
                (Some(("held", name)), Some(fd)) => {
                    drop(held.0.insert(name.to_owned(), fd));
                }
                (Some((wire::BROKER, _)), Some(fd)) => {
                    shared.note_broker(&text);
                    drop(held.0.insert(BROKER.to_owned(), fd));
                }
                (None, _) if text == wire::CRASHED => shared.crashed.store(true, Ordering::Relaxed),
                (None, _) if text == wire::SILENT => shared.silent.store(true, Ordering::Relaxed),
                (Some(("go", restarts)), _) => {
                    shared.restarts.store(restarts.parse().unwrap_or(0), Ordering::Relaxed);
                    let number = |name: &String| name.rsplit_once('-')?.1.parse::<u64>().ok();
                    let last = held.0.keys().filter_map(number).max().unwrap_or(0);
                    shared.next.store(last + 1, Ordering::Relaxed);
                    return Ok(held);
                }
                _ => {}
            }
        }
    }

    /// Leaves a descriptor with the keeper.
    pub fn store(&self, name: &str, fd: impl AsFd) {
        self.say(&format!("store {name}"), Some(fd.as_fd()));
    }

    /// Leaves bytes with the keeper.
    pub fn store_bytes(&self, name: &str, bytes: &[u8]) {
        if self.0.is_none() {
            return;
        }
        match memory(name, bytes) {
            Ok(memory) => self.store(name, memory),
            Err(error) => tracing::error!(name, %error, "not kept for a successor: memfd_create"),
        }
    }

    /// Says something with this text as a file.
    pub fn say_with_text(&self, verb: &str, text: &str) {
        if self.0.is_none() {
            return;
        }
        match memory("configuration", text.as_bytes()) {
            Ok(memory) => drop(self.say(verb, Some(memory.as_fd()))),
            Err(error) => {
                tracing::error!(%error, "the keeper has no copy of the configuration: memfd_create");
                let _ = self.say(verb, None);
            }
        }
    }

    /// A number for a name that was not used yet.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The keeper lets go of it.
    pub fn remove(&self, name: &str) {
        self.say(&format!("remove {name}"), None);
    }

    /// Says something to the keeper, as soon as it reads. False: there is none to hear it.
    pub fn say(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> bool {
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
                    // What waits already tells as well that this process is alive.
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

    /// Has a thread send what waits. If there is none, the next message tries again.
    fn flush_later(&self, shared: &Arc<Shared>, waiting: &mut Waiting) {
        if waiting.is_flushed {
            return;
        }
        let (link, own) = (self.clone(), Arc::clone(shared));
        let flush = move || {
            loop {
                let mut room = [PollFd::new(&own.socket, PollFlags::OUT)];
                let _ = retry_on_intr(|| poll(&mut room, None));
                let mut waiting = own.waiting();
                let flushed = waiting.outbox.flush(own.socket.as_fd());
                waiting.is_flushed = flushed == Ok(false);
                drop(waiting);
                match flushed {
                    // There is room in the socket, but too much is on its way.
                    Ok(false) => std::thread::sleep(Duration::from_millis(1)),
                    Ok(true) => return,
                    Err(errno) => return link.lose("what it missed", errno),
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
            tracing::error!("the keeper does not hear {text:?}: {errno}");
        }
    }

    /// Was there a keeper that is gone?
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.lost.load(Ordering::Relaxed))
    }

    /// How often a server was started again after one had died.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.restarts.load(Ordering::Relaxed))
    }

    /// Did the server before this one end itself? One that was killed did not.
    #[must_use]
    pub fn predecessor_crashed(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.crashed.load(Ordering::Relaxed))
    }

    /// Was the server before this one killed because it said nothing any more?
    #[must_use]
    pub fn predecessor_was_silent(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.silent.load(Ordering::Relaxed))
    }

    /// The process that started all, which is the service as others see it.
    #[must_use]
    pub fn service_pid(&self) -> u32 {
        match (&self.0, rustix::process::getppid()) {
            (Some(_), Some(keeper)) if !self.is_lost() => {
                keeper.as_raw_nonzero().get().unsigned_abs()
            }
            _ => std::process::id(),
        }
    }

    /// How often a broker was started again after one had died.
    #[must_use]
    pub fn broker_restarts(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.broker_restarts.load(Ordering::Relaxed))
    }

    /// Waits for what the keeper says next. `None`: it is gone.
    #[must_use]
    pub fn hear(&self) -> Option<(String, Option<OwnedFd>)> {
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

/// The configuration in a file that the keeper holds.
fn kept(file: &OwnedFd, instead: bool) -> std::io::Result<Kept> {
    let text = String::from_utf8(read(file)?).map_err(std::io::Error::other)?;
    let read = std::fs::File::from(file.try_clone()?).metadata()?.modified()?;
    Ok(Kept { text, read, instead })
}

/// A file in memory with these bytes.
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
    fn what_was_kept_is_found_by_name_and_number() {
        let mut held = Held::default();
        for name in ["listener-7", "listener-12", "about-7"] {
            held.0.insert(name.to_owned(), memory(name, name.as_bytes()).unwrap());
        }
        assert_eq!(held.take_bytes("about-7").as_deref(), Some(&b"about-7"[..]));
        let numbers: Vec<_> = held.take_numbered("listener-").iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [12, 7]);
        assert!(held.take("listener-7").is_none());
    }

    #[test]
    fn a_keeper_that_is_stopped_is_told_everything_when_it_goes_on() {
        let (near, far) = wire::pair().unwrap();
        let link = Link::over(near);
        for number in 0..500 {
            link.store(&format!("listener-{number}"), tempfile::tempfile().unwrap());
            assert!(link.say(ALIVE, None));
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
        assert!(!link.say(ALIVE, None) && link.is_lost());
    }

    #[test]
    fn another_versions_memory_is_not_used() {
        let mut held = Held::default();
        for name in ["journal.1", "journal.2", "journal.x", "journals.1"] {
            held.0.insert(name.to_owned(), memory(name, name.as_bytes()).unwrap());
        }
        assert!(held.take_version("journal.3", &Link::default()).is_none());
        let left: Vec<_> = held.0.keys().map(String::as_str).collect();
        assert_eq!(left, ["journal.x", "journals.1"]);
        assert!(held.take_version("journals.1", &Link::default()).is_some());
    }
}
