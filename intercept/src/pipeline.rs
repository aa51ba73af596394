//! Decides each call, whichever transport it comes from: runs its handler, counts and audits it.
//!
//! The result is always exactly one verdict. A call that is unknown or switched off, and one whose
//! handler fails or panics, is CONTINUE: the kernel then runs the call with the caller's own
//! rights, so that no call hangs and nothing is granted by mistake. Without the audit log, nothing
//! in this file allocates, locks or forks for a call that succeeds.
//!
//! Start reading at [`Pipeline::decide`].

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use ambit_kernel::recorder::{CALL, Recorder, Request, RequestRecord};
use ambit_sysinfo::{Limiter, Views};
use rustix::io::Errno;

use super::account::{Account, Accounts};
use super::audit::{Audit, Caller, Notes, Record};
use super::counters::{Counters, Outcome};
use super::dispatch::Dispatch;
use super::memory::Memory;
use super::operation_queue::OperationQueue;
use super::operations::Operations;
use super::policies::{Current, Policies};
use super::syscalls::HANDLERS;
use super::trapped::Trapped;
use crate::pending::Pending;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Handler, Repeat, Run};
use crate::verdict::{CallError, Verdict};

/// Decides calls.
pub(super) struct Pipeline {
    views: Arc<dyn Views>,
    pub(super) dispatch: Dispatch,
    pub(super) counters: Counters,
    /// The accounts of all containers.
    pub(super) accounts: Accounts,
    pub(super) audit: Audit,
    /// Limits log lines about failures.
    failures: Limiter,
    /// Limits log lines about calls over `limit.acts`.
    over_limit: Limiter,
    operations: Option<Arc<Operations>>,
    /// The calls that need a privileged operation.
    pub(super) queue: OperationQueue,
    pub(super) policies: Current,
    recorder: Option<Arc<dyn Recorder>>,
}

impl Pipeline {
    pub(super) fn new(
        views: Arc<dyn Views>,
        policies: Policies,
        operations: Option<Arc<Operations>>,
        recorder: Option<Arc<dyn Recorder>>,
    ) -> Self {
        Self {
            views,
            operations,
            recorder,
            policies: Current::new(policies),
            dispatch: Dispatch::new(),
            counters: Counters::new(),
            accounts: Accounts::default(),
            audit: Audit::default(),
            failures: Limiter::default(),
            over_limit: Limiter::default(),
            queue: OperationQueue::default(),
        }
    }

    /// Called when the answer to a call was delivered, or when its caller no longer waited for it.
    pub(super) fn on_delivered(&self, trapped: &Trapped, delivered: bool) {
        if let (Some(handler), false) = (trapped.handler, delivered) {
            self.count(handler, Outcome::Late, &trapped.account);
        }
        trapped.on_delivered(delivered);
    }

    fn count(&self, handler: usize, outcome: Outcome, account: &Account) {
        self.counters.count(handler, outcome);
        account.counters.count(handler, outcome);
    }

    /// Returns the verdict on a call. `repeat` says what to do if a predecessor may have begun it.
    pub(super) fn decide(
        &self,
        trapped: &Trapped,
        pending: Pending<'_>,
        memory: Option<BorrowedFd<'_>>,
        repeat: Repeat,
    ) -> Verdict {
        let Some(handler) = trapped.handler else {
            self.counters.count_unknown();
            return Verdict::Continue;
        };
        let (verdict, outcome) = if trapped.is_inspected {
            match RequestRecord::begin(self.recorder.as_deref(), recorded(trapped)) {
                None => (Verdict::Continue, Outcome::Failed),
                Some(_record) => self.answer(HANDLERS[handler], trapped, pending, memory, repeat),
            }
        } else {
            (Verdict::Continue, Outcome::Continued)
        };
        self.count(handler, outcome, &trapped.account);
        verdict
    }

    fn answer(
        &self,
        handler: &dyn Handler,
        trapped: &Trapped,
        pending: Pending<'_>,
        memory: Option<BorrowedFd<'_>>,
        repeat: Repeat,
    ) -> (Verdict, Outcome) {
        let Trapped { call, policy, account, .. } = trapped;
        let audited = handler.describe().privileged && self.audit.is_on();
        let cx = Context {
            views: &*self.views,
            pending,
            memory: Memory::new(memory),
            covers_proc: policy.has_name("proc"),
            settings: policy.settings(),
            operations: self.operations.as_deref(),
            container: &account.id,
            account: Some(account),
            notes: Notes::new(audited),
        };
        // Read before the handler runs: a signal may end the call while an operation runs.
        let status = if audited { cx.status(call) } else { Vec::new() };
        let began = audited.then(Instant::now);
        // The handler has no mutable state of this process that a panic could leave inconsistent.
        let result = catch_unwind(AssertUnwindSafe(|| handler.run(call, &cx)));
        let result = result.map(|result| after_repetition(result, repeat));
        let (verdict, outcome) = match result {
            Ok(Ok(Verdict::Continue) | Err(CallError::NotGranted | CallError::Gone)) => {
                (Verdict::Continue, Outcome::Continued)
            }
            Ok(Ok(Verdict::Fail(errno)) | Err(CallError::Fail(errno))) => {
                (Verdict::Fail(errno), Outcome::Refused)
            }
            Ok(Ok(verdict)) => (verdict, Outcome::Granted),
            Ok(Err(CallError::Continue(cause))) => {
                self.report(handler, trapped, &cause);
                cx.notes.set_error(&cause);
                (Verdict::Continue, Outcome::Failed)
            }
            Err(_) => {
                let defect = "a defect: the handler panicked";
                self.report(handler, trapped, &defect);
                cx.notes.set_error(&defect);
                (Verdict::Continue, Outcome::Failed)
            }
        };
        if handler.placement() == Run::Queued && outcome != Outcome::Continued {
            account.count_operation(outcome == Outcome::Granted);
        }
        if let Some(began) = began
            && outcome != Outcome::Continued
            && cx.notes.is_operation()
        {
            self.audit.log(
                account,
                &Record {
                    container: &account.id,
                    call: call.syscall,
                    tid: call.tid,
                    caller: Caller::parse(&status),
                    notes: &cx.notes,
                    outcome: match outcome {
                        _ if cx.notes.is_error() => "error",
                        Outcome::Granted => "granted",
                        _ => "refused",
                    },
                    errno: match verdict {
                        Verdict::Fail(errno) => Some(errno),
                        _ => None,
                    },
                    took: began.elapsed(),
                },
            );
        }
        (verdict, outcome)
    }

    /// Logs that a container has more calls under way than it may, and that the kernel answers one.
    pub(super) fn log_over_limit(&self, account: &Account) {
        let container = &account.id;
        if let Some(suppressed) = self.over_limit.allow() {
            tracing::warn!(
                container,
                suppressed,
                "too many privileged operations are under way (limit.acts): the kernel answers one"
            );
        }
    }

    /// Logs that the kernel refused an answer, which only a defect, or a descriptor that cannot be
    /// installed, can cause. `onward` is the result of leaving the call to the kernel instead.
    pub(super) fn log_refused_answer(
        &self,
        container: &str,
        onward: Result<(), Errno>,
        errno: Errno,
    ) {
        if let Some(suppressed) = self.failures.allow() {
            tracing::error!(
                container,
                suppressed,
                ?onward,
                "an answer was refused (SECCOMP_IOCTL_NOTIF_SEND or ADDFD: {errno})"
            );
        }
    }

    fn report(&self, handler: &dyn Handler, trapped: &Trapped, cause: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.failures.allow() {
            tracing::warn!(
                call = handler.describe().name,
                container = trapped.account.id,
                tid = trapped.call.tid,
                suppressed,
                "the kernel answers a call instead of ambit: {cause}"
            );
        }
    }
}

/// Returns what is recorded of a call while it is handled.
fn recorded(trapped: &Trapped) -> Request {
    let number = u64::from(trapped.data.arch) << 32 | u64::from(trapped.data.nr.cast_unsigned());
    Request { operation: CALL, number, thread: trapped.call.tid }
}

/// Returns the result of a call that a predecessor may have begun. EEXIST then means that the
/// predecessor completed the operation, and died before it could answer.
fn after_repetition(
    result: Result<Verdict, CallError>,
    repeat: Repeat,
) -> Result<Verdict, CallError> {
    match (result, repeat) {
        (Ok(Verdict::Fail(Errno::EXIST)) | Err(CallError::Fail(Errno::EXIST)), Repeat::Exists) => {
            Ok(Verdict::Return(0))
        }
        (result, _) => result,
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("counters", &self.counters).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::super::arch;
    use super::super::policy::Policy;
    use super::*;
    use ambit_sysinfo::{Error, View};
    use libseccomp_sys::seccomp_data;

    struct Broken;

    impl Views for Broken {
        fn view(&self, _tid: u32) -> Result<Arc<View>, Error> {
            Err(Error::Parse { file: "memory.max".into(), wanted: "a number" })
        }
    }

    struct Panics;

    impl Views for Panics {
        fn view(&self, _tid: u32) -> Result<Arc<View>, Error> {
            panic!("expected by the test")
        }
    }

    fn sysinfo(views: impl Views + 'static, policy: &Policy) -> (Verdict, Pipeline) {
        let pipeline = Pipeline::new(Arc::new(views), Policies::default(), None, None);
        let native = arch::of_this_kernel()[0];
        let data = seccomp_data {
            nr: native.number("sysinfo").unwrap(),
            arch: native.audit,
            instruction_pointer: 0,
            args: [0; 6],
        };
        let proc = File::open("/proc/self").unwrap();
        let pending = Pending::Directory(proc.as_fd());
        let account = pipeline.accounts.get("c");
        let tid = std::process::id();
        let call = Trapped::look_up(&pipeline.dispatch, tid, data, account, policy.clone());
        (pipeline.decide(&call, pending, None, Repeat::Safe), pipeline)
    }

    #[test]
    fn a_call_whose_handler_fails_is_left_to_the_kernel() {
        for (verdict, pipeline) in
            [sysinfo(Broken, &Policy::default()), sysinfo(Panics, &Policy::default())]
        {
            assert!(matches!(verdict, Verdict::Continue), "{verdict:?}");
            let count = pipeline.counters.read().calls[0];
            assert_eq!((count.served(), count.continued, count.failed), (0, 0, 1));
        }
    }

    #[test]
    fn a_node_that_a_predecessor_made_is_no_eexist() {
        let after = |errno, repeat| after_repetition(Ok(Verdict::Fail(errno)), repeat);
        for repeat in [Repeat::Safe, Repeat::Never] {
            let result = after(Errno::EXIST, repeat);
            assert!(matches!(result, Ok(Verdict::Fail(Errno::EXIST))), "{result:?}");
        }
        assert!(matches!(after(Errno::EXIST, Repeat::Exists), Ok(Verdict::Return(0))));
        let result = after_repetition(Err(CallError::Fail(Errno::EXIST)), Repeat::Exists);
        assert!(matches!(result, Ok(Verdict::Return(0))), "{result:?}");
        let result = after(Errno::PERM, Repeat::Exists);
        assert!(matches!(result, Ok(Verdict::Fail(Errno::PERM))), "{result:?}");
    }

    #[test]
    fn a_call_that_is_switched_off_is_left_to_the_kernel() {
        let (verdict, pipeline) = sysinfo(Panics, &Policy::none());
        assert!(matches!(verdict, Verdict::Continue), "{verdict:?}");
        assert_eq!(pipeline.counters.read().calls[0].continued, 1);
    }

    #[test]
    fn an_unknown_call_is_left_to_the_kernel() {
        let pipeline = Pipeline::new(Arc::new(Panics), Policies::default(), None, None);
        let data = seccomp_data { nr: -1, arch: 1, instruction_pointer: 0, args: [0; 6] };
        let proc = File::open("/proc/self").unwrap();
        let pending = Pending::Directory(proc.as_fd());
        let account = pipeline.accounts.get("c");
        let call = Trapped::look_up(&pipeline.dispatch, 1, data, account, Policy::default());
        let verdict = pipeline.decide(&call, pending, None, Repeat::Safe);
        assert!(matches!(verdict, Verdict::Continue));
        assert_eq!(pipeline.counters.read().unknown, 1);
    }

    #[test]
    fn a_null_pointer_is_efault() {
        struct Fixed;
        impl Views for Fixed {
            fn view(&self, _tid: u32) -> Result<Arc<View>, Error> {
                Ok(Arc::new(super::super::tests::view()))
            }
        }
        let (verdict, _) = sysinfo(Fixed, &Policy::default());
        assert!(matches!(verdict, Verdict::Fail(Errno::FAULT)), "{verdict:?}");
    }
}
