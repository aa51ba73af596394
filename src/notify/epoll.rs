//! One epoll instance per listener thread, and the way sources get into it.
//!
//! A source is registered by whoever has it; the thread finds it in the inbox when its first
//! event arrives. So registering never waits for the thread, and the thread takes the inbox's
//! lock only for sources it has not seen.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use super::Error;

/// What an epoll instance watches.
#[derive(Debug)]
pub(super) struct Watch<S> {
    epoll: OwnedFd,
    wake: OwnedFd,
    stopping: AtomicBool,
    next: AtomicU64,
    inbox: Mutex<Vec<(u64, S)>>,
}

/// The event of the eventfd that ends the thread.
const WAKE: u64 = 0;

/// Ready sources that one wait returns at most. Few: while the thread works on them, the rest
/// of the list goes stale.
const BATCH: usize = 16;

impl<S: AsFd> Watch<S> {
    pub(super) fn new() -> Result<Self, Error> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::system("epoll_create1"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::system("eventfd"))?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)
            .map_err(Error::system("epoll_ctl of an eventfd"))?;
        let (stopping, next) = (AtomicBool::new(false), AtomicU64::new(WAKE + 1));
        Ok(Self { epoll, wake, stopping, next, inbox: Mutex::default() })
    }

    /// Hands a source over to the thread.
    pub(super) fn add(&self, source: S) -> Result<(), Error> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        // Held until the source is in: its first event may come before epoll::add returns.
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, source.as_fd(), data, epoll::EventFlags::IN)
            .map_err(Error::system("epoll_ctl of a listener"))?;
        inbox.push((token, source));
        Ok(())
    }

    /// Makes [`Self::run`] return.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // It can only fail when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Calls `ready` for every source that has something, until [`Self::stop`]. A source for
    /// which it says [`Keep::No`] is dropped. Returns the sources that are left.
    pub(super) fn run(&self, mut ready: impl FnMut(&mut S, Ready) -> Keep) -> Vec<S> {
        let mut sources: HashMap<u64, S> = HashMap::new();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        while !self.stopping.load(Ordering::Acquire) {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    // EBADF and EINVAL: only a defect of this file can cause them.
                    tracing::error!("epoll_wait: {errno}; a listener thread ends");
                    break;
                }
            }
            for event in events.drain(..) {
                let (token, flags) = (event.data.u64(), event.flags);
                if token == WAKE {
                    continue;
                }
                if !sources.contains_key(&token) {
                    let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
                    sources.extend(inbox.drain(..));
                }
                let Some(source) = sources.get_mut(&token) else { continue };
                let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                let readable = flags.contains(epoll::EventFlags::IN);
                if ready(source, Ready { readable, hung_up }) == Keep::No {
                    // Closing is not enough: a duplicate (the keeper's) keeps it watched.
                    let _ = epoll::delete(&self.epoll, source.as_fd());
                    sources.remove(&token);
                }
            }
        }
        let mut left: Vec<S> = sources.into_values().collect();
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        left.extend(inbox.drain(..).map(|(_, source)| source));
        for source in &left {
            let _ = epoll::delete(&self.epoll, source.as_fd());
        }
        left
    }
}

/// What is known of a source that has something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub(super) readable: bool,
    pub(super) hung_up: bool,
}

/// Is the source watched any longer?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn sources_are_served_until_they_end_and_the_rest_is_returned() {
        let watch = Watch::new().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let (idle, _other) = UnixStream::pair().unwrap();
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                watch.run(|source: &mut UnixStream, ready| {
                    let mut byte = [0];
                    let read = if ready.readable { source.read(&mut byte).unwrap() } else { 0 };
                    send.send(byte[..read].to_vec()).unwrap();
                    if read == 0 { Keep::No } else { Keep::Yes }
                })
            });
            watch.add(far).unwrap();
            watch.add(idle).unwrap();
            near.write_all(b"a").unwrap();
            assert_eq!(receive.recv().unwrap(), b"a");
            drop(near);
            assert_eq!(receive.recv().unwrap(), b"");
            watch.stop();
            assert_eq!(serving.join().unwrap().len(), 1, "the idle one");
        });
    }
}
