//! sched_setscheduler(2), sched_setattr(2) and setpriority(2): priorities of a container's own
//! threads.
//!
//! They are set for the container's root with `CAP_SYS_NICE`, up to the limits of the policy. Calls
//! beyond the limits, and all others, are left to the kernel. `own_thread.rs` finds the thread. Start
//! reading at the method `run`.

use ambit_kernel::sys::scheduling::{self, Attributes};
use rustix::io::Errno;

use crate::call::Call;
use crate::settings::settings;
use crate::syscalls::context::Context;
use crate::syscalls::handler::{Description, Handler, Prefilter};
use crate::syscalls::own_thread::OwnThread;
use crate::verdict::{CallError, Verdict};

/// The flag of sched_setscheduler(2), and that of sched_setattr(2).
const RESET_ON_FORK: i32 = libc::SCHED_RESET_ON_FORK;
const FLAG_RESET_ON_FORK: u64 = 1;
/// The thread keeps its policy (Linux 5.3), and its setting of [`FLAG_RESET_ON_FORK`] with it.
const FLAG_KEEP_POLICY: u64 = 8;
/// The largest `struct sched_attr`: a page of the smallest size.
const LARGEST: usize = 4096;
/// The fields of a `struct sched_attr` that are known here, with those of Linux 5.3, which have no
/// effect without flags of their own.
const KNOWN: usize = 56;
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

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, CallError> {
        let (pid, scheduling) = match call.syscall {
            "sched_setscheduler" => (call.int(0), by_policy(call, cx)?),
            "sched_setattr" => (call.int(0), by_attributes(call, cx)?),
            _ => (call.int(1), Scheduling::Nice(call.int(2).clamp(-20, 19))),
        };
        let thread = OwnThread::find(call, cx, pid)?;
        let tid = thread.tid;
        let Some(scheduling) = scheduling.with_policy_of(tid) else { return Ok(Verdict::Continue) };
        let Settings { priority, nice, .. } = cx.settings.sched_setscheduler;
        if !scheduling.is_within(priority, -nice) {
            return Ok(Verdict::Continue);
        }
        cx.note("thread", || pid.to_string());
        cx.note("scheduling", || format!("{scheduling:?}"));
        thread.check(cx)?;
        match scheduling.grant(tid) {
            Ok(()) => {
                if let Some(suppressed) = cx.may_log(0) {
                    let container = cx.container;
                    tracing::info!(container, tid, ?scheduling, suppressed, "scheduling set");
                }
                Ok(Verdict::Return(0))
            }
            // The daemon itself lacks the capability.
            Err(Errno::PERM | Errno::ACCESS) => Ok(Verdict::Continue),
            Err(errno) => Ok(Verdict::Fail(errno)),
        }
    }
}

/// The scheduling that a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheduling {
    /// All attributes: sched_setattr(2).
    All(Attributes),
    /// Policy, possibly with SCHED_RESET_ON_FORK, and priority: sched_setscheduler(2).
    Policy(i32, i32),
    /// A nice value: setpriority(2).
    Nice(i32),
}

impl Scheduling {
    /// Returns the scheduling with the thread's present policy, if it shall keep that: what is set
    /// is then what was decided on. `None` if the thread has ended.
    fn with_policy_of(self, tid: i32) -> Option<Self> {
        match self {
            Self::All(attributes) if attributes.flags & FLAG_KEEP_POLICY != 0 => {
                Some(Self::All(keep_policy(attributes, scheduling::policy(tid).ok()?)))
            }
            other => Some(other),
        }
    }

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
                let thread = rustix::process::Pid::from_raw(tid).ok_or(Errno::SRCH)?;
                rustix::process::setpriority_process(Some(thread), nice)
            }
        }
    }
}

/// Reads the arguments of sched_setscheduler(2).
fn by_policy(call: &Call, cx: &Context<'_>) -> Result<Scheduling, CallError> {
    let mut priority = [0; 4];
    cx.read_all(call, call.long(2), &mut priority)?;
    Ok(Scheduling::Policy(call.int(1), i32::from_ne_bytes(priority)))
}

/// Reads the arguments of sched_setattr(2).
fn by_attributes(call: &Call, cx: &Context<'_>) -> Result<Scheduling, CallError> {
    let mut size = [0; 4];
    cx.read_all(call, call.long(1), &mut size)?;
    let length = match u32::from_ne_bytes(size) as usize {
        0 => size_of::<Attributes>(),
        length => length,
    };
    if !(size_of::<Attributes>()..=LARGEST).contains(&length) {
        return Err(CallError::NotGranted);
    }
    let mut bytes = vec![0; length];
    cx.read_all(call, call.long(1), &mut bytes)?;
    parse(&bytes).map(Scheduling::All).ok_or(CallError::NotGranted)
}

/// Returns the attributes of a thread that keeps its policy, which `sched_getscheduler` has returned.
fn keep_policy(attributes: Attributes, policy: i32) -> Attributes {
    let resets = policy & RESET_ON_FORK != 0;
    let flags = attributes.flags & !(FLAG_KEEP_POLICY | FLAG_RESET_ON_FORK);
    let flags = flags | if resets { FLAG_RESET_ON_FORK } else { 0 };
    Attributes { policy: (policy & !RESET_ON_FORK).unsigned_abs(), flags, ..attributes }
}

/// Parses a `struct sched_attr`, which has at least 48 bytes. `None` if the call is left to the
/// kernel.
fn parse(bytes: &[u8]) -> Option<Attributes> {
    let word = |at: usize| bytes[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or_default();
    let long = |at: usize| bytes[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default();
    let attributes = Attributes {
        size: word(0),
        policy: word(4),
        flags: long(8),
        // As the kernel does.
        nice: word(16).cast_signed().clamp(-20, 19),
        priority: word(20),
        times: [long(24), long(32), long(40)],
    };
    // Calls with other flags are left to the kernel, and those with fields that are not known.
    let plain = attributes.flags & !(FLAG_RESET_ON_FORK | FLAG_KEEP_POLICY) == 0
        && bytes.iter().skip(KNOWN).all(|&byte| byte == 0);
    plain.then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduling_beyond_the_limits_is_not_granted() {
        let fifo = |priority| Scheduling::Policy(libc::SCHED_FIFO | RESET_ON_FORK, priority);
        assert!(fifo(10).is_within(10, -20) && !fifo(11).is_within(10, -20));
        assert!(!fifo(1).is_within(0, -20), "not configured");
        assert!(!fifo(0).is_within(99, -20) && !fifo(-1).is_within(99, -20));
        assert!(Scheduling::Policy(libc::SCHED_BATCH, 0).is_within(0, 0));
        assert!(!Scheduling::Policy(libc::SCHED_OTHER, 1).is_within(99, -20));
        let deadline = Attributes { policy: 6, ..Attributes::default() };
        assert!(!Scheduling::All(deadline).is_within(99, -20));
        for scheduling in
            [|nice| Scheduling::All(Attributes { nice, ..Attributes::default() }), Scheduling::Nice]
        {
            assert!(scheduling(-5).is_within(0, -5) && !scheduling(-6).is_within(0, -5));
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
        bytes[16..20].copy_from_slice(&(-100i32).to_ne_bytes());
        assert_eq!(parse(&bytes).unwrap().nice, -20, "as the kernel cuts it");
        let mut newer = [&bytes[..], &[0; 24]].concat();
        assert_eq!(parse(&newer).unwrap().priority, 7, "a newer structure with zeros");
        newer[60] = 1;
        assert_eq!(parse(&newer), None, "a field that is not known");
        bytes[8] = 0x20;
        assert_eq!(parse(&bytes), None, "clamping of utilization");
    }

    #[test]
    fn a_thread_that_keeps_its_policy_is_decided_by_it() {
        let keep = Attributes { flags: FLAG_KEEP_POLICY, priority: 5, ..Attributes::default() };
        let kept = keep_policy(keep, libc::SCHED_RR | RESET_ON_FORK);
        assert_eq!((kept.policy, kept.flags, kept.priority), (RR, FLAG_RESET_ON_FORK, 5));
        assert!(Scheduling::All(kept).is_within(5, 0) && !Scheduling::All(kept).is_within(4, 0));
        let plain = Attributes { flags: FLAG_KEEP_POLICY | FLAG_RESET_ON_FORK, ..keep };
        assert_eq!(keep_policy(plain, libc::SCHED_OTHER).flags, 0, "the kernel keeps that too");
    }
}
