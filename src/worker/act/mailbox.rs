#![allow(unsafe_code, reason = "numbers in memory that two processes have")]
//! Memory in which a worker is given tasks, and tells how they ended.
//!
//! Of all ways to hand something over to another process it takes the fewest system calls: one wakes the
//! worker, in another one it sleeps. The daemon needs none to take the result, if it comes back to its
//! processor only after that. Where nobody waits in front of it, tasks go by the line: a worker does
//! so for a moment only, because here it sees neither its caller nor the daemon end.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

use super::task::Reply;
use crate::keeper::memory::{Lasting, Memory};

/// The longest task.
pub(super) const ROOM: usize = 4096 - 16;

/// For how long a worker waits here for the next task.
const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Nobody waits.
const CLOSED: u32 = 0;
/// The worker waits for a task.
const OPEN: u32 = 1;
/// There is one.
const TASK: u32 = 2;
/// The worker is at it.
const TAKEN: u32 = 3;

#[repr(C)]
struct Page {
    state: AtomicU32,
    /// Does the daemon sleep?
    asked: AtomicU32,
    length: AtomicU32,
    reply: AtomicI32,
    task: [AtomicU8; ROOM],
}

// SAFETY: numbers only; zeroes are a mailbox in front of which nobody waits.
unsafe impl Lasting for Page {}

/// One worker's. One task at a time.
pub(super) struct Mailbox(Memory<Page>);

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nobody has begun it.
    Untaken,
    /// The worker is at it.
    Taken,
    /// It has ended.
    Done(Reply),
}

impl Mailbox {
    /// A new one, and the descriptor by which the worker has it too.
    pub(super) fn new() -> std::io::Result<(Self, OwnedFd)> {
        let (memory, fd) = Memory::new("mailbox", 1)?;
        Ok((Self(memory), fd))
    }

    /// The worker's own.
    pub(super) fn of(fd: &OwnedFd) -> std::io::Result<Self> {
        Memory::of(fd, 1).map(Self)
    }

    fn page(&self) -> &Page {
        &self.0[0]
    }

    fn turn(&self, from: u32, to: u32) -> bool {
        let state = &self.page().state;
        state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn wake(&self) {
        let _ = futex::wake(&self.page().state, Flags::empty(), 1);
    }

    /// Puts a task in. False: nobody waits for one, or it is too long.
    pub(super) fn put(&self, task: &[u8]) -> bool {
        let page = self.page();
        if task.len() > ROOM || page.state.load(Ordering::Acquire) != OPEN {
            return false;
        }
        for (place, byte) in page.task.iter().zip(task) {
            place.store(*byte, Ordering::Relaxed);
        }
        page.length.store(u32::try_from(task.len()).unwrap_or(0), Ordering::Relaxed);
        if !self.turn(OPEN, TASK) {
            return false;
        }
        self.wake();
        true
    }

    /// Has a worker that waits here look at its line.
    pub(super) fn close(&self) {
        if self.turn(OPEN, CLOSED) {
            self.wake();
        }
    }

    /// What has become of the task, which is waited for so long.
    pub(super) fn progress(&self, patience: Duration) -> Progress {
        let Page { state, asked, reply, .. } = self.page();
        let is_under_way = |state| matches!(state, TASK | TAKEN);
        let mut now = state.load(Ordering::SeqCst);
        if is_under_way(now) {
            let patience = Timespec::try_from(patience).ok();
            asked.store(1, Ordering::SeqCst);
            now = state.load(Ordering::SeqCst);
            while is_under_way(now) {
                let waited = futex::wait(state, Flags::empty(), now, patience.as_ref());
                now = state.load(Ordering::SeqCst);
                if waited == Err(Errno::TIMEDOUT) {
                    break;
                }
            }
            asked.store(0, Ordering::SeqCst);
        }
        match now {
            TASK => Progress::Untaken,
            TAKEN => Progress::Taken,
            _ => Progress::Done(Reply::from_number(reply.load(Ordering::Relaxed))),
        }
    }

    /// From here on the worker takes tasks here. Said before the answer to the last task of the line.
    pub(super) fn open(&self) {
        self.page().state.store(OPEN, Ordering::SeqCst);
    }

    /// Takes a task, and its length. `None`: from here on nobody puts one in.
    pub(super) fn take(&self, task: &mut [u8]) -> Option<usize> {
        let page = self.page();
        while page.state.load(Ordering::SeqCst) == OPEN {
            let waited = futex::wait(&page.state, Flags::empty(), OPEN, Some(&MOMENT));
            if waited == Err(Errno::TIMEDOUT) && self.turn(OPEN, CLOSED) {
                return None;
            }
        }
        if !self.turn(TASK, TAKEN) {
            return None;
        }
        let length = page.length.load(Ordering::Relaxed) as usize;
        for (byte, place) in task.iter_mut().zip(&page.task[..length.min(ROOM)]) {
            *byte = place.load(Ordering::Relaxed);
        }
        Some(length.min(task.len()))
    }

    /// Tells how the task ended, and whether the worker waits for more of them.
    pub(super) fn done(&self, reply: Reply, goes_on: bool) {
        let page = self.page();
        page.reply.store(reply.number(), Ordering::Relaxed);
        page.state.store(if goes_on { OPEN } else { CLOSED }, Ordering::SeqCst);
        if page.asked.load(Ordering::SeqCst) != 0 {
            self.wake();
        }
    }
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("state", &self.page().state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    fn both() -> (Mailbox, Mailbox) {
        let (daemons, fd) = Mailbox::new().unwrap();
        (daemons, Mailbox::of(&fd).unwrap())
    }

    #[test]
    fn tasks_and_replies_go_through_it_until_nobody_puts_one_in() {
        let (daemons, workers) = both();
        assert!(!daemons.put(b"nobody waits yet"));
        workers.open();
        let worker = std::thread::spawn(move || {
            let mut bytes = [0; ROOM];
            let mut seen = Vec::new();
            while let Some(length) = workers.take(&mut bytes) {
                seen.push(bytes[..length].to_vec());
                workers.done(Reply::Failed(nix::errno::Errno::EEXIST), seen.len() < 3);
            }
            seen
        });
        for task in [&b"one"[..], &[7; ROOM], b""] {
            assert!(daemons.put(task));
            let exists = Progress::Done(Reply::Failed(nix::errno::Errno::EEXIST));
            while daemons.progress(SOON) != exists {}
        }
        assert!(!daemons.put(b"it has gone"));
        assert_eq!(worker.join().unwrap(), [b"one".to_vec(), vec![7; ROOM], vec![]]);
    }

    #[test]
    fn it_is_known_how_far_a_task_has_come() {
        let (daemons, workers) = both();
        workers.open();
        assert!(!daemons.put(&[0; ROOM + 1]));
        assert!(daemons.put(b"x") && !daemons.put(b"another one"));
        assert_eq!(daemons.progress(SOON), Progress::Untaken);
        assert_eq!(workers.take(&mut [0; 8]), Some(1));
        assert_eq!(daemons.progress(SOON), Progress::Taken);
        workers.done(Reply::Done, true);
        assert_eq!(daemons.progress(SOON), Progress::Done(Reply::Done));
    }

    #[test]
    fn a_worker_goes_away_when_it_is_called_or_nothing_comes() {
        let (daemons, workers) = both();
        workers.open();
        daemons.close();
        assert_eq!(workers.take(&mut [0; 8]), None);
        workers.open();
        assert_eq!(workers.take(&mut [0; 8]), None);
        assert!(!daemons.put(b"x"));
    }
}
