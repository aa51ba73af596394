//! A trapped call with everything that its answer depends on: handler, policy and account.
//!
//! These are looked up once, when the call is received, and then carried with it. A change of the
//! configuration must not change the policy of a call that was received before.

use std::sync::Arc;

use libseccomp_sys::seccomp_data;

use super::account::Account;
use super::arch::Abi;
use super::call::Call;
use super::dispatch::Dispatch;
use super::policy::Policy;
use super::syscalls::HANDLERS;
use crate::syscalls::handler::{Handler, Prefilter, Repeat, Run};

/// A call that waits for its answer.
#[derive(Debug)]
pub(super) struct Trapped {
    pub(super) call: Call,
    /// The registers as the kernel reported them.
    pub(super) data: seccomp_data,
    /// The index in [`HANDLERS`]. `None` if no handler answers this call.
    pub(super) handler: Option<usize>,
    /// True if the policy has the handler, and the handler may have an answer.
    pub(super) is_inspected: bool,
    /// The policy of the container.
    pub(super) policy: Policy,
    /// The account of the container.
    pub(super) account: Arc<Account>,
}

impl Trapped {
    /// Looks up the call of a thread.
    pub(super) fn look_up(
        dispatch: &Dispatch,
        tid: u32,
        data: seccomp_data,
        account: Arc<Account>,
        policy: Policy,
    ) -> Self {
        let entry = dispatch.find(data.arch, data.nr, &policy);
        let handler = entry.map(|entry| entry.handler);
        let (abi, syscall) = entry.map_or((Abi::Bits64, ""), |entry| (entry.abi, entry.syscall));
        let call = Call { tid, abi, syscall, args: data.args };
        let is_inspected = handler.is_some_and(|index| {
            policy.has(index) && HANDLERS[index].prefilter(&call) == Prefilter::Inspect
        });
        Self { call, data, handler, is_inspected, policy, account }
    }

    fn code(&self) -> Option<&'static dyn Handler> {
        self.handler.map(|index| HANDLERS[index])
    }

    /// Returns where the handler runs.
    pub(super) fn placement(&self) -> Run {
        self.code().filter(|_| self.is_inspected).map_or(Run::Inline, Handler::placement)
    }

    /// Returns what to do if its operation had begun when a predecessor died.
    pub(super) fn repeat(&self) -> Repeat {
        self.code().map_or(Repeat::Safe, |handler| handler.repeat(&self.call))
    }

    /// Tells the handler whether the answer was delivered.
    pub(super) fn on_delivered(&self, delivered: bool) {
        if self.placement() != Run::Inline
            && let Some(handler) = self.code()
        {
            handler.on_delivered((&self.account.id, self.call.tid), delivered);
        }
    }
}
