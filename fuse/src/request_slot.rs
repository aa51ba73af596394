//! The reply that a request still owes, where the warden finds it when its thread hangs.
//!
//! Whoever takes it answers: there is one reply, so the kernel is answered once, on the device from
//! which the request came.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ambit_kernel::text::stat;
use fuser::{Errno, FileHandle, FopenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen};
use rustix::thread::{Pid, gettid};

use crate::handles::UNKEPT;

/// What every file is opened with.
pub(crate) const OPENED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

/// A reply to one of the requests that ask for numbers.
pub(crate) trait Reply: Sized {
    fn wrap(self) -> AnyReply;
    fn unwrap(any: AnyReply) -> Option<Self>;
}

macro_rules! replies {
    ($($kind:ident($reply:ty)),*) => {
        #[derive(Debug)]
        pub(crate) enum AnyReply {
            $($kind($reply)),*
        }

        $(impl Reply for $reply {
            fn wrap(self) -> AnyReply {
                AnyReply::$kind(self)
            }

            fn unwrap(any: AnyReply) -> Option<Self> {
                match any {
                    AnyReply::$kind(reply) => Some(reply),
                    _ => None,
                }
            }
        })*
    };
}

replies!(Open(ReplyOpen), Data(ReplyData), Entry(ReplyEntry), Attr(ReplyAttr));

/// What a thread is at.
#[derive(Debug)]
pub(crate) struct RequestSlot {
    thread: Pid,
    /// It is one of last resort.
    pub(crate) is_last_resort: bool,
    /// How often it began or ended a request: odd while it is at one.
    sequence: AtomicU64,
    pending: Mutex<Option<AnyReply>>,
}

impl RequestSlot {
    /// That of the calling thread.
    pub(crate) fn for_this_thread(is_last_resort: bool) -> Self {
        Self {
            thread: gettid(),
            is_last_resort,
            sequence: AtomicU64::new(0),
            pending: Mutex::default(),
        }
    }

    /// Does the thread run, or wait for a processor only? It does not hang then, however long it takes.
    pub(crate) fn is_running(&self) -> bool {
        let stat = std::fs::read(format!("/proc/self/task/{}/stat", self.thread));
        stat.is_ok_and(|stat| stat::state(&stat) == Some(b'R'))
    }

    pub(crate) fn begin_request(&self) {
        self.advance();
    }

    pub(crate) fn end_request(&self) {
        self.advance();
    }

    /// Nobody else writes it.
    fn advance(&self) {
        let sequence = self.sequence();
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// From now on the warden may answer.
    pub(crate) fn set_reply(&self, reply: impl Reply) {
        *self.lock() = Some(reply.wrap());
    }

    /// The reply, unless the warden has answered.
    pub(crate) fn take_reply<R: Reply>(&self) -> Option<R> {
        let reply = self.lock().take();
        reply.and_then(R::unwrap)
    }

    /// Drops a reply that nobody will send: the kernel is told EIO.
    pub(crate) fn drop_reply(&self) {
        drop(self.lock().take());
    }

    /// Answers in place of the thread, if it is still at this request. A file is opened without a
    /// text: who reads it asks again, and is shown the last good numbers at once where a sample hangs.
    pub(crate) fn answer_late(&self, sequence: u64) -> bool {
        let mut pending = self.lock();
        // The number of a request is written before its reply is put here.
        let reply = if self.sequence() == sequence { pending.take() } else { None };
        drop(pending);
        match reply {
            None => return false,
            Some(AnyReply::Open(reply)) => reply.opened(FileHandle(UNKEPT), OPENED),
            Some(AnyReply::Data(reply)) => reply.error(Errno::EIO),
            Some(AnyReply::Entry(reply)) => reply.error(Errno::EIO),
            Some(AnyReply::Attr(reply)) => reply.error(Errno::EIO),
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Option<AnyReply>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_does_not_hang() {
        let slot = RequestSlot::for_this_thread(false);
        assert!(slot.is_running());
        assert!(
            !RequestSlot { thread: Pid::INIT, ..RequestSlot::for_this_thread(false) }.is_running(),
            "no thread of ours"
        );
    }
}
