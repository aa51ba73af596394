//! A trapped call with everything that its answer depends on. It is looked up once and then carried.

use std::sync::Arc;

use libseccomp_sys::seccomp_data;

use super::account::Account;
use super::arch::Abi;
use super::call::Call;
use super::dispatch::Dispatch;
use super::policy::Policy;
use super::syscalls::HANDLERS;
use crate::syscalls::handler::{Cost, Handler, Repeat, Screen};

/// A call that waits for its answer.
#[derive(Debug)]
pub(super) struct Trapped {
    pub(super) call: Call,
    /// The registers as the kernel reported them.
    pub(super) data: seccomp_data,
    /// The index in [`HANDLERS`]; `None` if no handler answers such calls.
    pub(super) handler: Option<usize>,
    /// The container has the handler, which may have an answer.
    pub(super) is_inspected: bool,
    /// What is answered for the container.
    pub(super) policy: Policy,
    /// What the container has had.
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
        let entry = dispatch.find(data.arch, data.nr);
        let handler = entry.map(|entry| entry.handler);
        let (abi, syscall) = entry.map_or((Abi::Bits64, ""), |entry| (entry.abi, entry.syscall));
        let call = Call { tid, abi, syscall, args: data.args };
        let is_inspected = handler.is_some_and(|index| {
            policy.has(index) && HANDLERS[index].screen(&call) == Screen::Inspect
        });
        Self { call, data, handler, is_inspected, policy, account }
    }

    fn code(&self) -> Option<&'static dyn Handler> {
        self.handler.map(|index| HANDLERS[index])
    }

    /// Where it is decided.
    pub(super) fn cost(&self) -> Cost {
        self.code().filter(|_| self.is_inspected).map_or(Cost::Inline, Handler::cost)
    }

    /// What is done if its act had begun when a predecessor died.
    pub(super) fn repeat(&self) -> Repeat {
        self.code().map_or(Repeat::Safe, |handler| handler.repeat(&self.call))
    }

    /// Tells the handler whether the caller got the answer.
    pub(super) fn settled(&self, delivered: bool) {
        if self.cost() != Cost::Inline
            && let Some(handler) = self.code()
        {
            handler.settled((&self.account.id, self.call.tid), delivered);
        }
    }
}
