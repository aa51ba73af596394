//! sched_setscheduler(2), sched_setattr(2) and setpriority(2): priorities of a container's own
//! threads.
//!
//! They are set for the container's root with `CAP_SYS_NICE`, up to the limits of the policy. Calls
//! beyond the limits, and all others, are left to the kernel. The thread must never be one outside
//! of the container: its id is translated from the caller's pid namespace, and it must be in the
//! caller's pid and user namespace. No system call takes a pidfd here, so a race of microseconds
//! remains in which the thread would have to end and its id be reused. Start reading at the method
//! `run`.

use std::os::fd::{AsFd, OwnedFd};

use ambit_kernel::sys::scheduling::{self, Attributes};
use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};

use crate::call::Call;
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter};
use crate::syscalls::operation;
use crate::thread_id;
use crate::verdict::{Refusal, Verdict};
use ambit_worker::operation::{Base, CallerHandle};

const CAP_SYS_NICE: u32 = 23;
/// The flag of sched_setscheduler(2), and that of sched_setattr(2).
const RESET_ON_FORK: i32 = libc::SCHED_RESET_ON_FORK;
const FLAG_RESET_ON_FORK: u64 = 1;
const OTHER: u32 = libc::SCHED_OTHER.unsigned_abs();
const FIFO: u32 = libc::SCHED_FIFO.unsigned_abs();
const RR: u32 = libc::SCHED_RR.unsigned_abs();
const BATCH: u32 = libc::SCHED_BATCH.unsigned_abs();
const IDLE: u32 = libc::SCHED_IDLE.unsigned_abs();

settings! {
    /// sched_setscheduler(2), sched_setattr(2) and setpriority(2): the container's root sets the
    /// priorities of the container's own threads.
    pub struct Settings {
        /// True if the calls are answered.
        pub enabled: bool = false, lxd "sched_setscheduler";
        /// The highest real-time priority; 0 leaves real time to the kernel, which refuses it.
        pub priority: u32 = 0, within 0..=99, such as "10";
        /// How far below 0 nice values may go.
        pub nice: i32 = 20, within 0..=20;
    }
}

/// Answers all three.
pub(super) struct SchedSetscheduler;

impl Handler for SchedSetscheduler {
    fn describe(&self) -> Description {
        Description {
            name: "sched_setscheduler",
            syscalls: &["sched_setscheduler", "sched_setattr", "setpriority"],
            privileged: true,
        }
    }

    fn prefilter(&self, call: &Call) -> Prefilter {
        let answered = match call.syscall {
            "sched_setscheduler" => call.int(0) >= 0 && call.int(1) >= 0 && call.long(2) != 0,
            "sched_setattr" => call.int(0) >= 0 && call.long(1) != 0 && call.uint(2) == 0,
            // PRIO_PROCESS only: process groups and users are left to the kernel.
            _ => call.int(0) == 0 && call.int(1) >= 0,
        };
        if answered { Prefilter::Inspect } else { Prefilter::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, Refusal> {
        let (pid, wish) = match call.syscall {
            "sched_setscheduler" => (call.int(0), by_policy(call, cx)?),
            "sched_setattr" => (call.int(0), by_attributes(call, cx)?),
            _ => (call.int(1), Some(Wish::Nice(call.int(2).clamp(-20, 19)))),
        };
        let Some(wish) = wish else { return Ok(Verdict::Continue) };
        let Some(handle) = operation::pin(call, cx, Base::Root, CAP_SYS_NICE)? else {
            return Ok(Verdict::Continue);
        };
        if !is_root(call, cx, &handle)? {
            return Ok(Verdict::Continue);
        }
        let tid = match pid {
            0 => call.tid.cast_signed(),
            pid => match thread_id::translate(call, cx, pid)? {
                Some(tid) => tid,
                None => return Ok(Verdict::Continue),
            },
        };
        let Some(thread) = own_thread(call, cx, &handle, tid)? else {
            return Ok(Verdict::Continue);
        };
        let Settings { priority, nice, .. } = cx.settings.sched_setscheduler;
        if !wish.is_within(priority, -nice) {
            return Ok(Verdict::Continue);
        }
        cx.note("thread", || pid.to_string());
        cx.note("wish", || format!("{wish:?}"));
        cx.still_pending()?;
        // The id still belongs to the thread if its /proc/<tid> is not empty.
        if statat(&thread, "stat", AtFlags::empty()).is_err() {
            return Ok(Verdict::Continue);
        }
        match wish.grant(tid) {
            Ok(()) => {
                if let Some(suppressed) = cx.may_log(0) {
                    let container = cx.container;
                    tracing::info!(container, tid, ?wish, suppressed, "scheduling set");
                }
                Ok(Verdict::Return(0))
            }
            // The daemon itself lacks the capability.
            Err(Errno::EPERM | Errno::EACCES) => Ok(Verdict::Continue),
            Err(errno) => Ok(Verdict::Fail(errno)),
        }
    }
}

/// The scheduling that a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// All attributes: sched_setattr(2).
    All(Attributes),
    /// Policy, possibly with SCHED_RESET_ON_FORK, and priority: sched_setscheduler(2).
    Policy(i32, i32),
    /// A nice value: setpriority(2).
    Nice(i32),
}

impl Wish {
    /// True if it is granted, up to this real-time priority and down to this nice value.
    fn is_within(self, highest: u32, lowest: i32) -> bool {
        let granted = |policy: u32, priority: u32| match policy {
            OTHER | BATCH | IDLE => priority == 0,
            FIFO | RR => (1..=highest).contains(&priority),
            _ => false,
        };
        match self {
            Self::All(Attributes { policy, priority, nice, .. }) => {
                granted(policy, priority) && (lowest..=19).contains(&nice)
            }
            Self::Policy(policy, priority) => {
                let both = (u32::try_from(policy & !RESET_ON_FORK), u32::try_from(priority));
                matches!(both, (Ok(policy), Ok(priority)) if granted(policy, priority))
            }
            Self::Nice(nice) => nice >= lowest,
        }
    }

    fn grant(self, tid: i32) -> Result<(), Errno> {
        match self {
            Self::All(attributes) => scheduling::set_attributes(tid, attributes),
            Self::Policy(policy, priority) => scheduling::set_policy(tid, policy, priority),
            Self::Nice(nice) => {
                let thread = rustix::process::Pid::from_raw(tid).ok_or(Errno::ESRCH)?;
                rustix::process::setpriority_process(Some(thread), nice)
                    .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
            }
        }
    }
}

/// Reads the arguments of sched_setscheduler(2). `None` if the call is left to the kernel.
fn by_policy(call: &Call, cx: &Context<'_>) -> Result<Option<Wish>, Refusal> {
    let mut priority = [0; 4];
    if !whole(cx.read(call, call.long(2), &mut priority), priority.len())? {
        return Ok(None);
    }
    Ok(Some(Wish::Policy(call.int(1), i32::from_ne_bytes(priority))))
}

/// Reads the arguments of sched_setattr(2). `None` if the call is left to the kernel.
fn by_attributes(call: &Call, cx: &Context<'_>) -> Result<Option<Wish>, Refusal> {
    let mut bytes = [0; size_of::<Attributes>()];
    if !whole(cx.read(call, call.long(1), &mut bytes), bytes.len())? {
        return Ok(None);
    }
    Ok(parse(&bytes).map(Wish::All))
}

fn parse(bytes: &[u8; size_of::<Attributes>()]) -> Option<Attributes> {
    let word = |at: usize| bytes[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or_default();
    let long = |at: usize| bytes[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default();
    let attributes = Attributes {
        size: word(0),
        policy: word(4),
        flags: long(8),
        nice: word(16).cast_signed(),
        priority: word(20),
        times: [long(24), long(32), long(40)],
    };
    // Calls with other flags are left to the kernel. Without those flags, the fields that Linux 5.3
    // appended have no effect.
    let plain =
        matches!(attributes.size, 0 | 48 | 56) && attributes.flags & !FLAG_RESET_ON_FORK == 0;
    plain.then_some(attributes)
}

/// True if all of it was read. Otherwise the call is left to the kernel.
fn whole(read: Result<usize, Refusal>, length: usize) -> Result<bool, Refusal> {
    match read {
        Ok(read) => Ok(read == length),
        Err(Refusal::Fail(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

/// True if the caller is root in its user namespace.
fn is_root(call: &Call, cx: &Context<'_>, handle: &CallerHandle) -> Result<bool, Refusal> {
    Ok(super::id_map(call, cx, "uid_map")?.outside(0) == Some(handle.who.uid))
}

/// Opens the `/proc/<tid>` of a thread. `None` if it is not in the caller's pid and user namespace.
fn own_thread(
    call: &Call,
    cx: &Context<'_>,
    handle: &CallerHandle,
    tid: i32,
) -> Result<Option<OwnedFd>, Refusal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(thread) = openat(CWD, format!("/proc/{tid}"), flags, Mode::empty()) else {
        return Ok(None);
    };
    let caller = cx.proc(call)?;
    let namespace = |proc: &OwnedFd, name: &str| {
        statat(proc.as_fd(), name, AtFlags::empty()).ok().map(|stat| (stat.st_dev, stat.st_ino))
    };
    let users = rustix::fs::fstat(&handle.users).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let same = namespace(&caller, "ns/pid").is_some()
        && namespace(&caller, "ns/pid") == namespace(&thread, "ns/pid")
        && users.is_some()
        && users == namespace(&thread, "ns/user");
    cx.still_pending()?;
    Ok(same.then_some(thread))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduling_beyond_the_limits_is_not_granted() {
        let fifo = |priority| Wish::Policy(libc::SCHED_FIFO | RESET_ON_FORK, priority);
        assert!(fifo(10).is_within(10, -20) && !fifo(11).is_within(10, -20));
        assert!(!fifo(1).is_within(0, -20), "not configured");
        assert!(!fifo(0).is_within(99, -20) && !fifo(-1).is_within(99, -20));
        assert!(Wish::Policy(libc::SCHED_BATCH, 0).is_within(0, 0));
        assert!(!Wish::Policy(libc::SCHED_OTHER, 1).is_within(99, -20));
        let deadline = Attributes { policy: 6, ..Attributes::default() };
        assert!(!Wish::All(deadline).is_within(99, -20));
        for wish in [|nice| Wish::All(Attributes { nice, ..Attributes::default() }), Wish::Nice] {
            assert!(wish(-5).is_within(0, -5) && !wish(-6).is_within(0, -5));
        }
    }

    #[test]
    fn sched_attr_is_parsed_as_the_kernel_lays_it_out() {
        let mut bytes = [0; 48];
        bytes[..4].copy_from_slice(&48u32.to_ne_bytes());
        bytes[4..8].copy_from_slice(&FIFO.to_ne_bytes());
        bytes[8] = 1;
        bytes[16..20].copy_from_slice(&(-3i32).to_ne_bytes());
        bytes[20..24].copy_from_slice(&7u32.to_ne_bytes());
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.policy, parsed.flags, parsed.nice, parsed.priority), (FIFO, 1, -3, 7));
        bytes[0] = 56;
        assert_eq!(parse(&bytes).unwrap().priority, 7);
        bytes[0] = 64;
        assert_eq!(parse(&bytes), None, "a newer structure");
        bytes[0] = 48;
        bytes[8] = 0x20;
        assert_eq!(parse(&bytes), None, "clamping of utilization");
    }
}
