//! What a handler of a system call is.
//!
//! Start reading here, then at `sysinfo.rs`, the smallest handler. A handler only ever
//! adds to what the kernel would do: whatever it does not grant is [`Verdict::Continue`], and
//! then the kernel judges.

use super::context::Context;
use crate::call::Call;
use crate::verdict::{Refusal, Verdict};

/// Answers one system call, or several that are one to the user (mknod and mknodat).
pub trait Handler: Sync {
    /// Name, system calls and default. Everything that lists handlers derives from it.
    fn describe(&self) -> Description;

    /// A look at the registers alone, before anything is read or looked up.
    fn screen(&self, _call: &Call) -> Screen {
        Screen::Inspect
    }

    /// The arguments with which the filter reports a call: for one of these (argument, mask, value)
    /// the masked argument has the value. Without any, all calls are reported.
    fn reported(&self, _syscall: &str) -> &'static [(u32, u64, u64)] {
        &[]
    }

    /// Does it take long? Then it does not run on the listener's thread.
    fn cost(&self) -> Cost {
        Cost::Inline
    }

    /// What a successor does with an act of which it knows only that it had begun.
    fn repeat(&self, _call: &Call) -> Repeat {
        Repeat::Safe
    }

    /// The answer to a call of this thread of a container arrived, or a signal came first and the
    /// kernel makes the call again.
    fn settled(&self, _who: (&str, u32), _delivered: bool) {}

    /// Answers the call.
    ///
    /// # Errors
    /// The call is not answered with a result; the refusal says how it goes on.
    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, Refusal>;
}

/// A handler, as the configuration, the profiles and the documentation show it.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The name in the configuration.
    pub name: &'static str,
    /// The system calls it answers, by the kernel's names.
    pub syscalls: &'static [&'static str],
    /// Does it grant what the kernel would refuse? Then only the configuration can switch it
    /// on, never an annotation of the container.
    pub privileged: bool,
}

/// May an act be done twice?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// The second time changes nothing.
    Safe,
    /// If the first was done, the second fails with EEXIST: that is success.
    Exists,
    /// It may not: the call fails with EINTR.
    Never,
}

/// Where a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// On the listener's thread: it never blocks.
    Inline,
    /// On a thread of its own: it acts, and may take as long as its deadline.
    Act,
}

/// What the registers of a call tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// The handler may have an answer.
    Inspect,
    /// It has none: the kernel runs the call.
    Continue,
}
