//! What both transports do with a call that was received: have it decided, here or by the queue of acts,
//! and answer it. `thread.rs` receives from listeners of the kernel, `lxc.rs` from monitors of liblxc.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use libseccomp_sys::seccomp_notif_resp;
use nix::errno::Errno;

use super::journal::{Entry, Phase};
use super::pipeline::Pipeline;
use super::trapped::Trapped;
use crate::pending::Pending;
use crate::syscalls::handler::{Cost, Repeat};
use crate::verdict::Verdict;

/// A call as its transport has it until it is answered.
pub(super) trait Transport: Send + Sized + 'static {
    /// How to see that the caller still waits.
    fn pending(&self) -> Pending<'_>;

    /// The caller's memory, if it came with the call.
    fn memory(&self) -> Option<BorrowedFd<'_>>;

    /// Sends the verdict, after the answer was noted in the journal. ENOENT: the caller did not get it.
    fn answer(&self, verdict: &Verdict, entry: &Entry) -> Result<(), Errno>;

    /// Sends an answer that a predecessor has decided. False if the caller did not get it.
    fn answer_again(&self, answer: &seccomp_notif_resp) -> bool;

    /// Lets the kernel answer.
    fn refuse(&self) -> Result<(), Errno>;

    /// Prepares for an answer by another thread. False if there are no descriptors for that.
    fn leave_thread(&mut self) -> bool;

    /// Called by that thread after the answer.
    fn release(self, delivered: bool);
}

/// A call that was received.
pub(super) struct Received<T> {
    pub(super) transport: T,
    pub(super) call: Trapped,
    pub(super) entry: Entry,
    /// How far a predecessor had come with it.
    pub(super) phase: Phase,
}

/// What the thread that received a call did with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// It answered.
    Here {
        /// The caller got the answer.
        delivered: bool,
    },
    /// Another thread has the call, or the kernel answers it.
    Elsewhere,
}

impl<T: Transport> Received<T> {
    /// Has the call answered: on this thread, one of so many, if that does not block.
    pub(super) fn serve(self, now: u64, threads: usize, pipeline: &Arc<Pipeline>) -> Served {
        let account = Arc::clone(&self.call.account);
        let blocks = self.call.cost() == Cost::Act || matches!(self.phase, Phase::Done(_));
        if !blocks && let Some(_under_way) = account.inline(now, threads) {
            return Served::Here { delivered: self.answer(pipeline) };
        }
        self.queue(pipeline);
        Served::Elsewhere
    }

    /// Has the call answered by a thread of the queue. If there is none, the kernel answers.
    fn queue(mut self, pipeline: &Arc<Pipeline>) {
        if !self.transport.leave_thread() {
            let _ = self.transport.refuse();
            return;
        }
        let (account, own) = (Arc::clone(&self.call.account), Arc::clone(pipeline));
        let limit = self.call.policy.settings().limit.acts;
        pipeline.acting().hand_over(&account.id, limit, move |granted| {
            if !granted {
                own.too_many(&self.call.account);
                let _ = self.transport.refuse();
                return;
            }
            if !matches!(self.phase, Phase::Done(_)) {
                self.entry.acting();
            }
            let delivered = self.answer(&own);
            // The journal forgets the call before the next one of its connection is received.
            drop(self.entry);
            self.transport.release(delivered);
        });
    }

    /// Decides and answers. Returns whether the caller got the answer.
    fn answer(&self, pipeline: &Pipeline) -> bool {
        let Self { transport, call, entry, phase } = self;
        let repeat = match phase {
            Phase::Received => Repeat::Safe,
            Phase::Acting => call.repeat(),
            Phase::Done(answer) => return transport.answer_again(answer),
        };
        let verdict = match repeat {
            Repeat::Never => Verdict::Fail(Errno::EINTR),
            _ => pipeline.decide(call, transport.pending(), transport.memory(), repeat),
        };
        let answered = transport.answer(&verdict, entry);
        pipeline.settled(call, answered.is_ok());
        match answered {
            // ENOENT: a signal ended the call, or the caller died. It asks again or never.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => pipeline.refused(&call.account.id, transport.refuse(), errno),
        }
        answered.is_ok()
    }
}
