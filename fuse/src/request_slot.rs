//! The request slot of a thread: counts the requests it handles and holds the pending reply, which
//! the watchdog (`thread_pool.rs`) sends if the thread hangs.
//!
//! The thread that takes the pending reply out of the slot sends it, so each request is answered
//! once, on the device from which it came. Start reading at [`RequestSlot::answer_late`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ambit_kernel::lock;
use ambit_kernel::text::stat;
use fuser::{Errno, FileAttr, FileHandle, FopenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen};
use rustix::thread::{Pid, gettid};

use crate::handles::UNKEPT;

/// Flags of every reply to OPEN.
pub(crate) const OPENED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

/// A reply to a request that needs the numbers of a container.
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

/// A reply to GETATTR of a file on lease, and the attributes of the last lease.
#[derive(Debug)]
pub(crate) struct ReplyLease(pub(crate) ReplyAttr, pub(crate) Option<FileAttr>);

replies!(Open(ReplyOpen), Data(ReplyData), Entry(ReplyEntry), Attr(ReplyAttr), Lease(ReplyLease));

/// The request that a thread is handling.
#[derive(Debug)]
pub(crate) struct RequestSlot {
    thread: Pid,
    pub(crate) is_last_resort: bool,
    /// Counts begun and ended requests: odd while the thread handles one.
    sequence: AtomicU64,
    pending: Mutex<Option<AnyReply>>,
}

impl RequestSlot {
    /// Creates the slot of the calling thread.
    pub(crate) fn for_this_thread(is_last_resort: bool) -> Self {
        Self {
            thread: gettid(),
            is_last_resort,
            sequence: AtomicU64::new(0),
            pending: Mutex::default(),
        }
    }

    /// True if the thread runs or waits for a processor. Then it does not hang, however long it
    /// takes.
    pub(crate) fn is_running(&self) -> bool {
        let stat = std::fs::read(format!("/proc/self/task/{}/stat", self.thread));
        stat.is_ok_and(|stat| stat::state(&stat) == Some(b'R'))
    }

    /// Notes that the thread begins or ends a request. It is the only writer, so load and store need
    /// not be atomic together.
    pub(crate) fn advance(&self) {
        let sequence = self.sequence();
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Stores the pending reply. From now on the watchdog may send it.
    pub(crate) fn set_reply(&self, reply: impl Reply) {
        *lock(&self.pending) = Some(reply.wrap());
    }

    /// Takes the pending reply; `None` if the watchdog has sent it.
    pub(crate) fn take_reply<R: Reply>(&self) -> Option<R> {
        let reply = lock(&self.pending).take();
        reply.and_then(R::unwrap)
    }

    /// Drops the pending reply; fuser then answers EIO.
    pub(crate) fn drop_reply(&self) {
        drop(lock(&self.pending).take());
    }

    /// Sends the pending reply if the thread is still at this request. OPEN is answered with a
    /// handle without text: the following READ asks for numbers again, and gets the last good ones
    /// at once if the sample still hangs. A file on lease keeps its last text.
    pub(crate) fn answer_late(&self, sequence: u64) -> bool {
        let mut pending = lock(&self.pending);
        // The sequence number is written before the reply is stored.
        let reply = if self.sequence() == sequence { pending.take() } else { None };
        drop(pending);
        match reply {
            None => return false,
            Some(AnyReply::Open(reply)) => reply.opened(FileHandle(UNKEPT), OPENED),
            Some(AnyReply::Data(reply)) => reply.error(Errno::EIO),
            Some(AnyReply::Entry(reply)) => reply.error(Errno::EIO),
            Some(AnyReply::Attr(reply) | AnyReply::Lease(ReplyLease(reply, None))) => {
                reply.error(Errno::EIO);
            }
            Some(AnyReply::Lease(ReplyLease(reply, Some(last)))) => {
                reply.attr(&Duration::ZERO, &last);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_thread_does_not_hang() {
        let slot = RequestSlot::for_this_thread(false);
        assert!(slot.is_running());
        assert!(
            !RequestSlot { thread: Pid::INIT, ..RequestSlot::for_this_thread(false) }.is_running(),
            "not a thread of this process"
        );
    }
}
