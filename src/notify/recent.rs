//! Threads that were taken hold of lately, while a container makes one call after the other.
//!
//! Kept by whoever serves a container for a while, and gone with that: a user namespace, a root and
//! a process are not kept open for longer than the container is busy.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::handler::Refusal;
use super::origin::Origin;
use crate::worker::act::{Actor, Base, Pace, Thread};

/// How many. Each has seven descriptors.
const MOST: usize = 4;

/// Some threads, the one that called last at the end.
#[derive(Debug, Default)]
pub(super) struct Recent {
    threads: RefCell<Vec<Known>>,
    /// The processor on which everybody stays who has a part in it.
    pub(super) processor: Cell<Option<usize>>,
}

#[derive(Debug)]
struct Known {
    tid: u32,
    thread: Thread,
    /// Its user namespace, and who made that.
    origin: Option<(Arc<OwnedFd>, Origin)>,
}

impl Recent {
    /// Reads what a thread is now, and who made its user namespace. `proc` opens its `/proc/<tid>`.
    /// Whoever calls this makes sure afterwards that it still waits.
    pub(super) fn read(
        &self,
        tid: u32,
        base: Base,
        proc: impl FnOnce() -> Result<OwnedFd, Refusal>,
    ) -> Result<(Actor, Origin), Errno> {
        let mut all = self.threads.borrow_mut();
        if let Some(at) = all.iter().position(|known| known.tid == tid) {
            let mut known = all.remove(at);
            match known.read(base) {
                // Another thread had the number, and has ended.
                Err(errno) if errno != Errno::BADF => {}
                result => {
                    all.push(known);
                    return result;
                }
            }
        }
        let thread = Thread::open(proc().map_err(|_| Errno::SRCH)?)?;
        let mut known = Known { tid, thread, origin: None };
        let result = known.read(base);
        if all.len() >= MOST {
            all.remove(0);
        }
        all.push(known);
        result
    }

    /// How quickly calls follow each other.
    pub(super) fn pace(&self) -> Pace {
        Pace { follows: true, processor: self.processor.get() }
    }

    /// The process of the thread that called last.
    pub(super) fn process(&self) -> Option<Arc<OwnedFd>> {
        let all = self.threads.borrow();
        all.last().and_then(|known| known.thread.seen()).map(|(process, _)| Arc::clone(process))
    }

    /// Lets go of the thread that called last. Returns its control groups.
    pub(super) fn forget_last(&self) -> Option<Arc<[u8]>> {
        let known = self.threads.borrow_mut().pop()?;
        known.thread.seen().map(|(_, groups)| Arc::clone(groups))
    }
}

impl Known {
    fn read(&mut self, base: Base) -> Result<(Actor, Origin), Errno> {
        let actor = self.thread.read(base)?;
        let origin = match &self.origin {
            Some((users, origin)) if Arc::ptr_eq(users, &actor.users) => *origin,
            _ => Origin::of(actor.users.as_fd()),
        };
        self.origin = Some((Arc::clone(&actor.users), origin));
        Ok((actor, origin))
    }
}
