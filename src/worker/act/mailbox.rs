#![allow(unsafe_code, reason = "numbers in memory that two processes have")]
//! Memory in which a worker is given tasks, and tells how they ended.
//!
//! Of all ways to hand something over to another process it takes the fewest system calls: one wakes the
//! worker, in another one it sleeps. The daemon needs none to take the result, if it comes back to its
//! processor only after that. A worker waits in front of it while one call follows the other, and no
//! longer, because here it sees neither its caller nor the daemon end. At other times, tasks and answers
//! go by the line. What comes with descriptors lies there too, and the mailbox rings.

use std::cell::UnsafeCell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use ambit_keeper::memory::{Lasting, Memory};
use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::task::Reply;

/// The longest task.
const ROOM: usize = 4096 - 16;

/// Instead of a length.
const ON_LINE: u32 = u32::MAX;

/// For how long at most a worker waits here for the next task. Longer than a tick: to set the processor's
/// timer for an earlier moment takes longer than all the rest of a hand-over.
const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Nobody waits.
const CLOSED: u32 = 0;
/// The worker waits for a task.
const OPEN: u32 = 1;
/// It waits, and one is about to be put in.
const CLAIMED: u32 = 2;
/// There is one.
const TASK: u32 = 3;
/// The worker is at it.
const TAKEN: u32 = 4;

#[repr(C)]
struct Page {
    state: AtomicU32,
    /// Does the daemon sleep?
    asked: AtomicU32,
    length: AtomicU32,
    reply: AtomicI32,
    task: UnsafeCell<[u8; ROOM]>,
}

// SAFETY: the daemon writes the task while nobody has one, and the worker reads it while it has it; all
// else is atomic.
unsafe impl Sync for Page {}
// SAFETY: numbers only; zeroes are a mailbox in front of which nobody waits.
unsafe impl Lasting for Page {}

/// One worker's. One task at a time.
pub(super) struct Mailbox(Memory<Page>);

/// What the worker finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<T> {
    /// A task.
    Task(postcard::Result<T>),
    /// A task lies on the line. How it ended is told here.
    OnLine,
    /// Nothing, and from here on nobody puts anything in.
    Nothing,
}

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

    /// Does the worker wait for a task? Then it does so for another moment.
    pub(super) fn claim(&mut self) -> bool {
        self.turn(OPEN, CLAIMED)
    }

    /// Puts a task into a mailbox that was claimed. False: it is too long, or the worker waits no more.
    pub(super) fn put(&mut self, task: &impl Serialize) -> bool {
        // SAFETY: the worker does not read while there is no task, and this is the only one who writes:
        // the daemon has one `Mailbox` of this memory, which is borrowed mutably.
        let room = unsafe { &mut *self.page().task.get() };
        let Ok(used) = postcard::to_slice(task, room) else { return false };
        let length = u32::try_from(used.len()).unwrap_or(0);
        self.hand_over(length)
    }

    /// Has the worker of a mailbox that was claimed take a task from the line. False: it waits no more, and
    /// will find the task by itself.
    pub(super) fn ring(&mut self) -> bool {
        self.hand_over(ON_LINE)
    }

    fn hand_over(&self, length: u32) -> bool {
        self.page().length.store(length, Ordering::Relaxed);
        let waits = self.turn(CLAIMED, TASK);
        if waits {
            self.wake();
        }
        waits
    }

    /// Has a worker that waits here watch its line instead.
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

    /// Waits for a task, if the mailbox is open.
    pub(super) fn take<T: DeserializeOwned>(&mut self) -> Found<T> {
        let page = self.page();
        loop {
            let now = page.state.load(Ordering::SeqCst);
            if !matches!(now, OPEN | CLAIMED) {
                break;
            }
            let waited = futex::wait(&page.state, Flags::empty(), now, Some(&MOMENT));
            // The same for a moment. Whoever claimed it may be dead.
            if waited == Err(Errno::TIMEDOUT) && self.turn(now, CLOSED) {
                return Found::Nothing;
            }
        }
        if !self.turn(TASK, TAKEN) {
            return Found::Nothing;
        }
        let length = page.length.load(Ordering::Relaxed);
        if length == ON_LINE {
            return Found::OnLine;
        }
        // SAFETY: the daemon writes no other task before this one is done.
        let room = unsafe { &*page.task.get() };
        Found::Task(postcard::from_bytes(room.get(..length as usize).unwrap_or_default()))
    }

    /// Tells how the task ended, and whether the worker waits for more of them.
    pub(super) fn done(&mut self, reply: Reply, goes_on: bool) {
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

    const EXISTS: Reply = Reply::Failed(nix::errno::Errno::EEXIST);
    const SOON: Duration = Duration::from_millis(1);

    fn both() -> (Mailbox, Mailbox) {
        let (daemons, fd) = Mailbox::new().unwrap();
        (daemons, Mailbox::of(&fd).unwrap())
    }

    fn put(daemons: &mut Mailbox, task: &impl Serialize) -> bool {
        daemons.claim() && daemons.put(task)
    }

    #[test]
    fn tasks_and_replies_go_through_it_until_nobody_takes_one() {
        let (mut daemons, mut workers) = both();
        assert!(!daemons.claim(), "nobody waits yet");
        workers.open();
        let worker = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while let Found::Task(task) = workers.take::<String>() {
                seen.push(task.unwrap());
                workers.done(EXISTS, seen.len() < 3);
            }
            seen
        });
        let tasks = ["one".to_owned(), "7".repeat(ROOM - 2), String::new()];
        for task in &tasks {
            assert!(put(&mut daemons, task));
            while daemons.progress(SOON) != Progress::Done(EXISTS) {}
        }
        assert!(!daemons.claim(), "it has gone");
        assert_eq!(worker.join().unwrap(), tasks);
    }

    #[test]
    fn it_is_known_how_far_a_task_has_come() {
        let (mut daemons, mut workers) = both();
        workers.open();
        assert!(put(&mut daemons, &7u8) && !daemons.claim());
        assert_eq!(daemons.progress(SOON), Progress::Untaken);
        assert_eq!(workers.take(), Found::Task(Ok(7u8)));
        assert_eq!(daemons.progress(SOON), Progress::Taken);
        workers.done(Reply::Done, true);
        assert_eq!(daemons.progress(SOON), Progress::Done(Reply::Done));
    }

    #[test]
    fn a_task_that_is_too_long_goes_by_the_line() {
        let (mut daemons, mut workers) = both();
        workers.open();
        assert!(daemons.claim() && !daemons.put(&"7".repeat(ROOM)));
        assert!(daemons.ring());
        assert_eq!(workers.take::<String>(), Found::OnLine);
    }

    #[test]
    fn a_worker_does_not_wait_for_whoever_died_before_putting_a_task_in() {
        let (mut daemons, mut workers) = both();
        workers.open();
        assert!(daemons.claim());
        assert_eq!(workers.take::<u8>(), Found::Nothing);
        assert!(!daemons.put(&7u8) && !daemons.ring());
    }

    #[test]
    fn a_worker_goes_away_when_it_is_told_or_nothing_comes() {
        let (mut daemons, mut workers) = both();
        workers.open();
        daemons.close();
        assert_eq!(workers.take::<u8>(), Found::Nothing);
        workers.open();
        assert_eq!(workers.take::<u8>(), Found::Nothing);
        assert!(!daemons.claim());
    }

    #[test]
    fn what_is_no_task_is_told_apart() {
        let (mut daemons, mut workers) = both();
        workers.open();
        assert!(put(&mut daemons, &()));
        assert!(matches!(workers.take::<String>(), Found::Task(Err(_))));
    }
}
