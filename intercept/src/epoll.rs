//! The event loop of a listener thread: one epoll instance, and the sources that it watches.
//!
//! Any thread may add a source ([`Watch::add`]); the listener thread finds it in the inbox when its
//! first event arrives. So adding never waits for the listener thread, and the listener thread
//! takes the inbox's lock only for sources that it has not seen.
//!
//! If the thread hangs in a call of one source (`thread.rs`), another thread takes over all
//! sources, and the old one ends when its call returns.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use super::Error;
use super::bucket;

/// An epoll instance and its sources.
#[derive(Debug)]
pub(super) struct Watch<S> {
    epoll: OwnedFd,
    wake: OwnedFd,
    stopping: AtomicBool,
    next: AtomicU64,
    inbox: Mutex<Vec<(u64, S)>>,
    /// True if a source is paused.
    waiting: AtomicBool,
    /// Changed by the thread in charge alone, unless that hangs and another one takes its place.
    sources: Mutex<Sources<S>>,
    /// The number of the thread in charge.
    charge: AtomicU64,
    /// Since when it has been handling an event; 0 while it waits.
    since: AtomicU64,
    /// How many events were handled.
    handled: AtomicU64,
}

#[derive(Debug)]
struct Sources<S> {
    all: BTreeMap<u64, Arc<S>>,
    /// Paused sources: until when, and the token.
    paused: Vec<(u64, u64)>,
}

/// The event of the eventfd that ends the thread.
const WAKE: u64 = 0;

/// The highest number of events that one epoll_wait(2) returns. It is small because the rest of the
/// list becomes outdated while the thread handles the first ones.
const BATCH: usize = 16;

impl<S: AsFd> Watch<S> {
    pub(super) fn new() -> Result<Self, Error> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::system("epoll_create1"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::system("eventfd"))?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)
            .map_err(Error::system("epoll_ctl of an eventfd"))?;
        Ok(Self {
            epoll,
            wake,
            stopping: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            next: AtomicU64::new(WAKE + 1),
            inbox: Mutex::default(),
            sources: Mutex::new(Sources { all: BTreeMap::new(), paused: Vec::new() }),
            charge: AtomicU64::new(0),
            since: AtomicU64::new(0),
            handled: AtomicU64::new(0),
        })
    }

    /// Adds a source, which the thread watches from now on.
    pub(super) fn add(&self, source: S) -> Result<(), Error> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        // Locked until the source is in: its first event may arrive before epoll::add returns.
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, source.as_fd(), data, epoll::EventFlags::IN)
            .map_err(Error::system("epoll_ctl of a listener"))?;
        inbox.push((token, source));
        Ok(())
    }

    /// Calls `look` for every source.
    pub(super) fn for_each(&self, mut look: impl FnMut(&S)) {
        let sources = self.lock();
        sources.all.values().for_each(|source| look(source));
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.iter().for_each(|(_, source)| look(source));
    }

    /// Makes [`Self::run`] return.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // This fails only if the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Returns the number of the thread in charge, for [`Self::run`].
    pub(super) fn charge(&self) -> u64 {
        self.charge.load(Ordering::Acquire)
    }

    /// Returns how many events were handled, and whether one is being handled now.
    pub(super) fn activity(&self) -> (u64, bool) {
        (self.handled.load(Ordering::Relaxed), self.since.load(Ordering::SeqCst) != 0)
    }

    /// If the thread in charge has been handling one event for longer than this, takes the charge
    /// from it. The caller then starts a thread that calls [`Self::run`] with the returned number.
    pub(super) fn replace_if_hung(&self, nanoseconds: u64) -> Option<u64> {
        let since = self.since.load(Ordering::SeqCst);
        if since == 0 || bucket::now().saturating_sub(since) < nanoseconds {
            return None;
        }
        let charge = self.charge();
        self.since.store(0, Ordering::SeqCst);
        self.charge.store(charge + 1, Ordering::Release);
        Some(charge + 1)
    }

    /// Calls `ready` for every source that is ready, until [`Self::stop`], which closes the sources,
    /// or until another thread has taken the place of this one.
    pub(super) fn run(&self, charge: u64, mut ready: impl FnMut(&S, Ready) -> Next) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        while !self.stopping.load(Ordering::Acquire) {
            let wait = self.resume();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    // EBADF and EINVAL can only be caused by a defect of this file.
                    tracing::error!("epoll_wait: {errno}; a listener thread ends");
                    break;
                }
            }
            let crowded = events.len() > 1;
            for event in events.drain(..) {
                let (token, flags) = (event.data.u64(), event.flags);
                if token == WAKE {
                    continue;
                }
                let Some(source) = self.source(token) else { continue };
                let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                let readable = flags.contains(epoll::EventFlags::IN);
                self.handled.fetch_add(1, Ordering::Relaxed);
                let at = bucket::now().max(1);
                self.since.store(at, Ordering::SeqCst);
                let next = ready(&source, Ready { at, crowded, readable, hung_up });
                if self.charge() == charge {
                    self.since.store(0, Ordering::SeqCst);
                }
                match next {
                    Next::Watch => {}
                    Next::Drop => {
                        // Closing is not enough: the keeper's duplicate keeps it in the epoll set.
                        let _ = epoll::delete(&self.epoll, source.as_fd());
                        self.lock().all.remove(&token);
                    }
                    Next::Pause(nanoseconds) => self.pause(token, &source, nanoseconds),
                }
                if self.charge() != charge {
                    return;
                }
            }
        }
        if self.charge() == charge {
            // Closing is not enough: the keeper's duplicates keep them in the epoll set.
            self.for_each(|source| _ = epoll::delete(&self.epoll, source.as_fd()));
            self.lock().all.clear();
            self.inbox.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn set_events(&self, token: u64, source: impl AsFd, events: epoll::EventFlags) -> bool {
        epoll::modify(&self.epoll, source, epoll::EventData::new_u64(token), events).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Sources<S>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn source(&self, token: u64) -> Option<Arc<S>> {
        let mut sources = self.lock();
        if let Some(source) = sources.all.get(&token) {
            return Some(Arc::clone(source));
        }
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        sources.all.extend(inbox.drain(..).map(|(token, source)| (token, Arc::new(source))));
        sources.all.get(&token).map(Arc::clone)
    }

    /// Ignores a source for some time. Its notifications wait in the kernel.
    fn pause(&self, token: u64, source: &Arc<S>, nanoseconds: u64) {
        let mut sources = self.lock();
        if sources.paused.iter().any(|(_, paused)| *paused == token) {
            return;
        }
        if self.set_events(token, source.as_fd(), epoll::EventFlags::empty()) {
            sources.paused.push((bucket::now().saturating_add(nanoseconds), token));
            self.waiting.store(true, Ordering::Relaxed);
        }
    }

    /// Watches sources again whose pause is over. Returns the time until the next pause is over.
    fn resume(&self) -> Option<Timespec> {
        if !self.waiting.load(Ordering::Relaxed) {
            return None;
        }
        let mut sources = self.lock();
        let now = bucket::now();
        let Sources { all, paused } = &mut *sources;
        paused.retain(|&(until, token)| {
            let Some(source) = all.get(&token) else { return false };
            if until > now {
                return true;
            }
            self.set_events(token, source.as_fd(), epoll::EventFlags::IN);
            false
        });
        self.waiting.store(!paused.is_empty(), Ordering::Relaxed);
        let next = paused.iter().map(|(until, _)| until - now).min()?;
        // A kernel without epoll_pwait2(2) counts in milliseconds.
        let wait = Duration::from_nanos(next.max(1_000_000));
        Timespec::try_from(wait).ok()
    }
}

/// The event of a source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    /// When the event was found, by [`bucket::now`].
    pub(super) at: u64,
    /// Set if other sources were ready at the same time.
    pub(super) crowded: bool,
    pub(super) readable: bool,
    pub(super) hung_up: bool,
}

/// What happens to a source after its event was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is watched.
    Watch,
    /// It is watched again after so many nanoseconds.
    Pause(u64),
    /// It is removed.
    Drop,
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_source_is_served_until_it_ends_and_the_others_are_closed() {
        let watch = Watch::new().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let (idle, mut other) = UnixStream::pair().unwrap();
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                watch.run(0, |mut source: &UnixStream, ready| {
                    let mut byte = [0];
                    let read = if ready.readable { source.read(&mut byte).unwrap() } else { 0 };
                    send.send(byte[..read].to_vec()).unwrap();
                    if read == 0 { Next::Drop } else { Next::Watch }
                });
            });
            watch.add(far).unwrap();
            watch.add(idle).unwrap();
            near.write_all(b"a").unwrap();
            assert_eq!(receive.recv().unwrap(), b"a");
            drop(near);
            assert_eq!(receive.recv().unwrap(), b"");
            watch.stop();
            serving.join().unwrap();
            assert_eq!(other.read(&mut [0]).unwrap(), 0, "the idle one is closed");
        });
    }

    #[test]
    fn another_thread_serves_all_sources_when_one_hangs() {
        let watch = Watch::new().unwrap();
        let (mut hangs, one) = UnixStream::pair().unwrap();
        let (mut works, two) = UnixStream::pair().unwrap();
        let (release, released) = mpsc::channel::<()>();
        let (send, receive) = mpsc::channel();
        let released = Mutex::new(released);
        let (watch, send, released) = (&watch, &send, &released);
        let serve = move |mut source: &UnixStream, _: Ready| {
            let mut byte = [0];
            source.read_exact(&mut byte).unwrap();
            if byte == *b"h" {
                let _ = released.lock().unwrap().recv();
            }
            send.send(byte[0]).unwrap();
            Next::Watch
        };
        watch.add(one).unwrap();
        watch.add(two).unwrap();
        std::thread::scope(|scope| {
            let first = scope.spawn(move || watch.run(0, serve));
            hangs.write_all(b"h").unwrap();
            let charge = loop {
                if let Some(charge) = watch.replace_if_hung(1_000_000) {
                    break charge;
                }
                std::thread::yield_now();
            };
            let second = scope.spawn(move || watch.run(charge, serve));
            works.write_all(b"w").unwrap();
            assert_eq!(receive.recv().unwrap(), b'w');
            release.send(()).unwrap();
            assert_eq!(receive.recv().unwrap(), b'h');
            // It is not in charge any more.
            first.join().unwrap();
            watch.stop();
            second.join().unwrap();
        });
    }

    #[test]
    fn a_paused_source_is_not_served_before_its_time() {
        let watch = Watch::new().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let (send, receive) = mpsc::channel();
        watch.add(far).unwrap();
        near.write_all(b"ab").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                watch.run(0, |mut source: &UnixStream, _| {
                    let mut byte = [0];
                    source.read_exact(&mut byte).unwrap();
                    send.send(std::time::Instant::now()).unwrap();
                    Next::Pause(30_000_000)
                });
            });
            let (first, second) = (receive.recv().unwrap(), receive.recv().unwrap());
            assert!(second - first >= Duration::from_millis(29), "{:?}", second - first);
            watch.stop();
        });
    }
}
