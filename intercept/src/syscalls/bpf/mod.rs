//! bpf(2): programs that decide which devices a cgroup may use.
//!
//! Container engines and service managers use them on cgroup v2 for the cgroups that they make. A
//! container may load such a program, attach and detach it below its own cgroup, and query the
//! programs that are attached there; `ambit_worker::operation::bpf` does that. A container must
//! never get a program: it gets a file that stands for one. The caller's `union bpf_attr` is read
//! once, and only known fields of it are passed on (`request.rs`); programs are checked before the
//! verifier sees them. All other calls are left to the kernel. Start reading at the method `run`.

mod request;

use std::os::fd::AsFd;

use rustix::io::Errno;

use self::request::Request;
use super::ranges;
use crate::call::Call;
use crate::caller_thread;
use crate::operations;
use crate::replay_cache::ReplayCache;
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter, Repeat, Run};
use crate::syscalls::operation;
use crate::verdict::{CallError, Verdict};
use ambit_worker::operation::bpf::{Bpf, Target};
use ambit_worker::operation::{Answer, Base, CallerHandle, Operation, Reply};

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

// include/uapi/linux/bpf.h
const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;

/// Results of changes, for callers that signals interrupt.
static REPLAYS: ReplayCache<Bpf> = ReplayCache::new();

settings! {
    /// bpf(2): device policies of control groups that the container makes (cgroup v2). It grants
    /// nothing without `devices`.
    pub struct Settings {
        /// True if the call is answered.
        pub enabled: bool = false, lxd "bpf";
        /// True if programs that decide on devices may be loaded and attached.
        pub devices: bool = false, such as "true", lxd "bpf.devices";
    }
}

/// Answers bpf(2).
pub(super) struct BpfPrograms;

impl Handler for BpfPrograms {
    fn describe(&self) -> Description {
        Description { name: "bpf", syscalls: &["bpf"], privileged: true }
    }

    fn reported(&self, _syscall: &str) -> &'static [(u32, u64, u64)] {
        const COMMAND: u64 = u32::MAX as u64;
        &[
            (0, COMMAND, PROG_LOAD as u64),
            (0, COMMAND, PROG_ATTACH as u64),
            (0, COMMAND, PROG_DETACH as u64),
            (0, COMMAND, PROG_GET_FD_BY_ID as u64),
            (0, COMMAND, OBJ_GET_INFO_BY_FD as u64),
            (0, COMMAND, PROG_QUERY as u64),
        ]
    }

    fn placement(&self) -> Run {
        Run::Queued
    }

    fn repeat(&self, call: &Call) -> Repeat {
        match call.uint(0) {
            // Attaching twice is EINVAL, detaching twice ENOENT: neither tells whether the first
            // attempt succeeded.
            PROG_ATTACH | PROG_DETACH => Repeat::Never,
            // If the caller has ended, the program that was loaded for it is closed.
            _ => Repeat::Safe,
        }
    }

    fn on_delivered(&self, who: (&str, u32), delivered: bool) {
        REPLAYS.on_delivered(who, delivered);
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        match call.uint(0) {
            PROG_LOAD | PROG_ATTACH | PROG_DETACH | PROG_GET_FD_BY_ID | OBJ_GET_INFO_BY_FD
            | PROG_QUERY => Prefilter::Inspect,
            _ => Prefilter::Continue,
        }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        if !cx.settings.bpf.devices {
            return Ok(Verdict::Continue);
        }
        // Only a caller with the capability gets an errno for a wrong request.
        let may = |handle: &CallerHandle| may_load(|capability| handle.can(capability));
        let handle = operation::pin_if(call, cx, Base::Root, may)?;
        cx.note("command", || name(call.uint(0)).to_owned());
        if matches!(call.uint(0), OBJ_GET_INFO_BY_FD | PROG_QUERY) {
            // A query changes nothing.
            cx.notes.no_operation();
        }
        let request = request::read(call, cx)?;
        let users = ranges(call, cx, "uid_map")?;
        let target = |fd| Target { fd, users };
        match request {
            Request::Load { program, log } => {
                let answer = ask(call, cx, &handle, Bpf::Load(program))?;
                if !answer.bytes.is_empty() {
                    cx.write(call, log, &answer.bytes)?;
                }
                Ok(opened(answer))
            }
            Request::Open(id) => Ok(opened(ask(call, cx, &handle, Bpf::Open(id))?)),
            Request::Info(info) => {
                let answer = ask(call, cx, &handle, Bpf::Info(info.fd))?;
                match answer.reply {
                    Reply::Done => info.write_result(call, cx, &answer.bytes),
                    reply => Ok(ended(reply)),
                }
            }
            Request::Query(query) => {
                let answer = ask(call, cx, &handle, Bpf::Query(target(query.target)))?;
                match answer.reply {
                    Reply::Done => query.write_result(call, cx, &answer.bytes),
                    reply => Ok(ended(reply)),
                }
            }
            Request::Attach { target: fd, program, flags, replaced } => {
                cx.note("cgroup_fd", || fd.to_string());
                cx.note("flags", || flags.to_string());
                let attach = Bpf::Attach { to: target(fd), program, flags, replaced };
                change(call, cx, &handle, &attach)
            }
            Request::Detach { target: fd, program } => {
                cx.note("cgroup_fd", || fd.to_string());
                change(call, cx, &handle, &Bpf::Detach { from: target(fd), program })
            }
        }
    }
}

/// True if a caller may load and attach device programs: it has CAP_SYS_ADMIN, or since Linux 5.8
/// both CAP_BPF and CAP_NET_ADMIN.
fn may_load(can: impl Fn(u32) -> bool) -> bool {
    can(CAP_SYS_ADMIN) || can(CAP_BPF) && can(CAP_NET_ADMIN)
}

/// Returns the name of a command, for the audit log.
fn name(command: u32) -> &'static str {
    match command {
        PROG_LOAD => "PROG_LOAD",
        PROG_ATTACH => "PROG_ATTACH",
        PROG_DETACH => "PROG_DETACH",
        PROG_GET_FD_BY_ID => "PROG_GET_FD_BY_ID",
        OBJ_GET_INFO_BY_FD => "OBJ_GET_INFO_BY_FD",
        PROG_QUERY => "PROG_QUERY",
        _ => "another",
    }
}

/// Performs an operation that must not be performed twice.
fn change(
    call: &Call,
    cx: &Context<'_>,
    handle: &CallerHandle,
    bpf: &Bpf,
) -> Result<Verdict, CallError> {
    REPLAYS.perform((cx.container, call.tid), bpf, operations::patience(), cx, || {
        let answer = ask(call, cx, handle, bpf.clone())?;
        if answer.reply == Reply::Done
            && let Some(suppressed) = cx.may_log(0)
        {
            let what = if matches!(bpf, Bpf::Attach { .. }) { "attached" } else { "detached" };
            let (container, tid) = (cx.container, call.tid);
            tracing::info!(container, tid, suppressed, "device program {what}");
        }
        Ok(ended(answer.reply))
    })
}

fn ask(
    call: &Call,
    cx: &Context<'_>,
    handle: &CallerHandle,
    bpf: Bpf,
) -> Result<Answer, CallError> {
    let groups = cx.open(call, "ns/cgroup")?;
    let thread = caller_thread::pidfd(call, cx, handle)?;
    // A container without a cgroup namespace of its own has no cgroup of its own.
    if !operation::belongs_to_a_container(&groups) {
        return Err(CallError::NotGranted);
    }
    operation::request(call, cx, handle, &Operation::Bpf(bpf), &[thread.as_fd(), groups.as_fd()])
}

fn ended(reply: Reply) -> Verdict {
    match reply {
        Reply::Done => Verdict::Return(0),
        Reply::Failed(errno) => Verdict::Fail(errno),
        Reply::Kernel | Reply::MagicLink => Verdict::Continue,
        // A bpf operation never makes a device node.
        Reply::NoDevices => Verdict::Fail(Errno::PERM),
    }
}

fn opened(answer: Answer) -> Verdict {
    match (answer.reply, answer.fd) {
        (Reply::Done, Some(fd)) => Verdict::Install(fd),
        // The descriptor of the worker's answer was lost.
        (Reply::Done, None) => Verdict::Continue,
        (reply, _) => ended(reply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Abi;

    #[test]
    fn device_programs_need_the_capabilities_that_the_kernel_demands() {
        let may = |capabilities: &[u32]| may_load(|capability| capabilities.contains(&capability));
        assert!(may(&[CAP_SYS_ADMIN]) && may(&[CAP_BPF, CAP_NET_ADMIN]));
        for too_few in [&[][..], &[CAP_BPF], &[CAP_NET_ADMIN]] {
            assert!(!may(too_few), "{too_few:?}");
        }
    }

    #[test]
    fn an_attachment_that_may_have_been_made_is_not_repeated() {
        let repeat = |command: u32| {
            let args = [command.into(), 0, 0, 0, 0, 0];
            BpfPrograms.repeat(&Call { tid: 1, abi: Abi::Bits64, syscall: "bpf", args })
        };
        assert_eq!([PROG_ATTACH, PROG_DETACH].map(repeat), [Repeat::Never; 2]);
        assert_eq!([PROG_LOAD, PROG_QUERY].map(repeat), [Repeat::Safe; 2]);
    }
}
