//! What both transports do with a received call: have it decided, on this thread or on one of the
//! queue (`operation_queue.rs`), and answer it.
//!
//! `thread.rs` receives calls from listeners, `lxc.rs` from monitors of liblxc. A caller must never
//! be left without an answer: if the answer is refused, the call is left to the kernel. Start
//! reading at [`Received::serve`].

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use libseccomp_sys::seccomp_notif_resp;
use rustix::io::Errno;

use super::journal::{Entry, Phase};
use super::pipeline::Pipeline;
use super::trapped::Trapped;
use crate::pending::Pending;
use crate::syscalls::handler::{Repeat, Run};
use crate::verdict::Verdict;

/// The transport's side of a call, until it is answered.
pub(super) trait Transport: Send + Sized + 'static {
    /// Returns how to check that the caller still waits.
    fn pending(&self) -> Pending<'_>;

    /// Returns the caller's `/proc/<tid>/mem`, if it was sent with the call.
    fn memory(&self) -> Option<BorrowedFd<'_>>;

    /// Records the answer in the journal and sends it. ENOENT if it was not delivered.
    fn answer(&self, verdict: &Verdict, entry: &Entry) -> Result<(), Errno>;

    /// Sends an answer that a predecessor has decided. False if it was not delivered.
    fn answer_again(&self, answer: &seccomp_notif_resp) -> bool;

    /// Leaves the call to the kernel.
    fn refuse(&self) -> Result<(), Errno>;

    /// Prepares for an answer by another thread. False if a descriptor cannot be duplicated.
    fn leave_thread(&mut self) -> bool;

    /// Called after the answer, by the thread that sent it.
    fn release(self, delivered: bool);
}

/// A call that was received.
pub(super) struct Received<T> {
    pub(super) transport: T,
    pub(super) call: Trapped,
    pub(super) entry: Entry,
    /// How far its handling had come when a predecessor died.
    pub(super) phase: Phase,
}

/// Where a received call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// On the thread that received it.
    Here {
        /// True if the caller got the answer.
        delivered: bool,
    },
    /// On another thread, or by the kernel.
    Elsewhere,
}

impl<T: Transport> Received<T> {
    /// Answers the call on this thread, which is one of `threads` listener threads, or queues it if
    /// it may block.
    pub(super) fn serve(self, now: u64, threads: usize, pipeline: &Arc<Pipeline>) -> Served {
        let account = Arc::clone(&self.call.account);
        let blocks = self.call.placement() == Run::Queued || matches!(self.phase, Phase::Done(_));
        if !blocks && let Some(_under_way) = account.inline(now, threads) {
            return Served::Here { delivered: self.answer(pipeline) };
        }
        self.queue(pipeline);
        Served::Elsewhere
    }

    /// Queues the call for another thread. If that is not possible, the kernel answers.
    fn queue(mut self, pipeline: &Arc<Pipeline>) {
        if !self.transport.leave_thread() {
            let _ = self.transport.refuse();
            return;
        }
        let (account, own) = (Arc::clone(&self.call.account), Arc::clone(pipeline));
        let limit = self.call.policy.settings().limit.acts;
        pipeline.queue.enqueue(&account, limit, move |granted| {
            if !granted {
                own.log_over_limit(&self.call.account);
                let _ = self.transport.refuse();
                return;
            }
            if !matches!(self.phase, Phase::Done(_)) {
                self.entry.begin();
            }
            let delivered = self.answer(&own);
            // Clear the slot in the journal before the next call of the connection is received.
            drop(self.entry);
            self.transport.release(delivered);
        });
    }

    /// Decides and answers. True if the caller got the answer.
    fn answer(&self, pipeline: &Pipeline) -> bool {
        let Self { transport, call, entry, phase } = self;
        let repeat = match phase {
            Phase::Received => Repeat::Safe,
            Phase::Begun => call.repeat(),
            Phase::Done(answer) => return transport.answer_again(answer),
        };
        let verdict = match repeat {
            Repeat::Never => Verdict::Fail(Errno::INTR),
            _ => pipeline.decide(call, transport.pending(), transport.memory(), repeat),
        };
        let answered = transport.answer(&verdict, entry);
        pipeline.on_delivered(call, answered.is_ok());
        match answered {
            // ENOENT: a signal interrupted the call, or the caller died.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => pipeline.log_refused_answer(&call.account.id, transport.refuse(), errno),
        }
        answered.is_ok()
    }
}
