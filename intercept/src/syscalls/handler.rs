//! The trait of a handler, which answers one system call.
//!
//! A call that a handler does not grant must be [`Verdict::Continue`]: the kernel then runs it with
//! the caller's own rights. A handler must never refuse a call that the kernel would grant. Start
//! reading here, then at `sysinfo.rs`, the smallest handler.

use super::context::Context;
use crate::call::Call;
use crate::verdict::{CallError, Verdict};

/// Answers one system call, or several that are one thing to the user (mknod and mknodat).
pub trait Handler: Sync {
    /// Returns the name and the system calls. Everything that lists handlers derives from it.
    fn describe(&self) -> Description;

    /// Decides by the registers alone whether the handler may have an answer, before anything is
    /// read.
    fn prefilter(&self, _call: &Call) -> Prefilter {
        Prefilter::Inspect
    }

    /// Returns the conditions on which the filter reports a call, as (argument, mask, value): one
    /// of the masked arguments must have the value. If there are none, all calls are reported.
    fn reported(&self, _syscall: &str) -> &'static [(u32, u64, u64)] {
        &[]
    }

    /// Returns where the handler runs.
    fn placement(&self) -> Run {
        Run::Inline
    }

    /// Returns what a successor does with an operation that had begun, and may have been completed.
    fn repeat(&self, _call: &Call) -> Repeat {
        Repeat::Safe
    }

    /// Called after the answer to a call of `who` (container, thread id) was sent. It was not
    /// delivered if a signal came first; the kernel may then restart the call.
    fn on_delivered(&self, _who: (&str, u32), _delivered: bool) {}

    /// Answers the call.
    ///
    /// # Errors
    /// There is no result; the refusal says what happens to the call.
    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError>;
}

/// A handler as the configuration, the profiles and the documentation show it.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The name in the configuration.
    pub name: &'static str,
    /// The system calls it answers, by the kernel's names.
    pub syscalls: &'static [&'static str],
    /// True if it grants what the kernel would refuse. Only the configuration can switch such a
    /// handler on, never an annotation of the container.
    pub privileged: bool,
}

/// Whether an operation may be performed twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// The second time changes nothing.
    Safe,
    /// If the first attempt succeeded, the second fails with EEXIST, which then counts as success.
    Exists,
    /// It may not be performed twice: the call fails with EINTR.
    Never,
}

/// Where a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// On the listener thread: it never blocks.
    Inline,
    /// On a thread of the queue: it performs a privileged operation, which may take until its
    /// deadline.
    Queued,
}

/// The decision by the registers of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefilter {
    /// The handler may have an answer.
    Inspect,
    /// The handler has no answer: the kernel runs the call.
    Continue,
}
