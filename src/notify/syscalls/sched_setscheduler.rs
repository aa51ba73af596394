//! sched_setscheduler(2), sched_setattr(2) and setpriority(2): priorities of a container's own threads.
//!
//! For the container's root with `CAP_SYS_NICE`, up to the limits of the policy. The thread is found
//! in the caller's own pid namespace and must be in it, and in the caller's user namespace: numbers
//! that are taken for the host's act on strangers. Everything else is the kernel's.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};

use crate::notify::acts;
use crate::notify::call::Call;
use crate::notify::context::Context;
use crate::notify::handler::{Description, Handler, Refusal, Screen, Verdict};
use crate::notify::thread_id;
use crate::sys::scheduling::{self, Attributes};
use crate::worker::act::{Actor, Base};

const CAP_SYS_NICE: u32 = 23;
/// `SCHED_RESET_ON_FORK` of sched_setscheduler(2), and the flag of sched_setattr(2).
const RESET_ON_FORK: u32 = 0x4000_0000;
const FLAG_RESET_ON_FORK: u64 = 1;
const OTHER: u32 = libc::SCHED_OTHER.unsigned_abs();
const FIFO: u32 = libc::SCHED_FIFO.unsigned_abs();
const RR: u32 = libc::SCHED_RR.unsigned_abs();
const BATCH: u32 = libc::SCHED_BATCH.unsigned_abs();
const IDLE: u32 = libc::SCHED_IDLE.unsigned_abs();

/// Answers all three.
pub(super) struct SchedSetscheduler;

impl Handler for SchedSetscheduler {
    fn describe(&self) -> Description {
        Description {
            name: "sched_setscheduler",
            syscalls: &["sched_setscheduler", "sched_setattr", "setpriority"],
            default_on: false,
            privileged: true,
            summary: "The container's root sets priorities of its threads, up to a limit.",
        }
    }

    fn screen(&self, call: &Call) -> Screen {
        let answered = match call.syscall {
            "sched_setscheduler" => call.int(0) >= 0 && call.int(1) >= 0 && call.long(2) != 0,
            "sched_setattr" => call.int(0) >= 0 && call.long(1) != 0 && call.uint(2) == 0,
            // Of a process, by its number; groups and users are the kernel's.
            _ => call.int(0) == 0 && call.int(1) >= 0,
        };
        if answered { Screen::Inspect } else { Screen::Continue }
    }

    fn run(&self, call: &Call, cx: &Context<'_>) -> Result<Verdict, Refusal> {
        let (pid, wish) = match call.syscall {
            "sched_setscheduler" => (call.int(0), by_policy(call, cx)?),
            "sched_setattr" => (call.int(0), by_attributes(call, cx)?),
            _ => (call.int(1), Some(Wish::Nice(call.int(2).clamp(-20, 19)))),
        };
        let Some(wish) = wish else { return Ok(Verdict::Continue) };
        let Some(actor) = acts::pin(call, cx, Base::Folder, CAP_SYS_NICE)? else {
            return Ok(Verdict::Continue);
        };
        if !is_root(call, cx, &actor)? {
            return Ok(Verdict::Continue);
        }
        let tid = match pid {
            0 => call.tid.cast_signed(),
            pid => match thread_id::translate(call, cx, pid)? {
                Some(tid) => tid,
                None => return Ok(Verdict::Continue),
            },
        };
        let Some(thread) = own_thread(call, cx, &actor, tid)? else {
            return Ok(Verdict::Continue);
        };
        let Ok(attributes) = wish.attributes(tid) else { return Ok(Verdict::Continue) };
        let limits = (cx.settings.priority, cx.settings.nice);
        match judge(attributes, limits) {
            Judgement::Kernel => return Ok(Verdict::Continue),
            Judgement::Refused => return Ok(Verdict::Fail(Errno::EPERM)),
            Judgement::Granted => {}
        }
        cx.still_pending()?;
        // Its number is its own as long as its folder in /proc is not empty.
        if statat(&thread, "stat", AtFlags::empty()).is_err() {
            return Ok(Verdict::Continue);
        }
        match scheduling::set_attributes(tid, attributes) {
            Ok(()) => {
                let container = cx.container;
                tracing::info!(container, tid, ?attributes, "scheduling set");
                Ok(Verdict::Return(0))
            }
            Err(errno) => Ok(Verdict::Fail(errno)),
        }
    }
}

/// What a caller wants of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Everything anew.
    All(Attributes),
    /// This policy and priority; its nice value stays.
    Policy { policy: u32, flags: u64, priority: u32 },
    /// Another nice value.
    Nice(i32),
}

impl Wish {
    fn attributes(self, tid: i32) -> Result<Attributes, Errno> {
        if let Self::All(attributes) = self {
            return Ok(attributes);
        }
        let now = scheduling::attributes(tid)?;
        Ok(match self {
            Self::All(attributes) => attributes,
            Self::Policy { policy, flags, priority } => {
                Attributes { policy, flags, priority, ..now }
            }
            Self::Nice(nice) => Attributes { nice, ..now },
        })
    }
}

/// Arguments of sched_setscheduler(2). `None`: the kernel refuses or judges them.
fn by_policy(call: &Call, cx: &Context<'_>) -> Result<Option<Wish>, Refusal> {
    let mut priority = [0; 4];
    if !whole(cx.read(call, call.long(2), &mut priority), priority.len())? {
        return Ok(None);
    }
    let policy = call.uint(1);
    let flags = if policy & RESET_ON_FORK == 0 { 0 } else { FLAG_RESET_ON_FORK };
    let priority = u32::try_from(i32::from_ne_bytes(priority));
    let wish = |priority| Wish::Policy { policy: policy & !RESET_ON_FORK, flags, priority };
    Ok(priority.ok().map(wish))
}

/// Arguments of sched_setattr(2).
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
        deadline: [long(24), long(32), long(40)],
    };
    // What comes after it, and other flags, are the kernel's.
    let plain = matches!(attributes.size, 0 | 48) && attributes.flags & !FLAG_RESET_ON_FORK == 0;
    plain.then_some(attributes)
}

/// Was everything read? What cannot be read is the kernel's to refuse.
fn whole(read: Result<usize, Refusal>, length: usize) -> Result<bool, Refusal> {
    match read {
        Ok(read) => Ok(read == length),
        Err(Refusal::Fail(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    Granted,
    /// More than the policy allows.
    Refused,
    /// It knows the errno.
    Kernel,
}

/// `limits` are the highest priority and the lowest nice value.
fn judge(wish: Attributes, limits: (u32, i32)) -> Judgement {
    let (highest, lowest) = limits;
    match wish.policy {
        OTHER | BATCH | IDLE if wish.priority == 0 && (-20..=19).contains(&wish.nice) => {
            if wish.nice >= lowest { Judgement::Granted } else { Judgement::Refused }
        }
        FIFO | RR if (1..=99).contains(&wish.priority) && highest > 0 => {
            if wish.priority <= highest { Judgement::Granted } else { Judgement::Refused }
        }
        _ => Judgement::Kernel,
    }
}

/// Is the caller the root of its user namespace?
fn is_root(call: &Call, cx: &Context<'_>, actor: &Actor) -> Result<bool, Refusal> {
    let proc = cx.proc(call)?;
    let mut text = String::new();
    let map = openat(&proc, "uid_map", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let read = map
        .ok()
        .and_then(|map| std::fs::File::from(map).take(1 << 16).read_to_string(&mut text).ok());
    cx.still_pending()?;
    let root = text.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (inside == 0).then_some(outside)
    });
    Ok(read.is_some() && root == Some(actor.who.uid))
}

/// The folder in /proc of a thread of the caller's own pid and user namespace.
fn own_thread(
    call: &Call,
    cx: &Context<'_>,
    actor: &Actor,
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
    let users = rustix::fs::fstat(&actor.users).ok().map(|stat| (stat.st_dev, stat.st_ino));
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

    fn real_time(priority: u32) -> Attributes {
        Attributes { policy: FIFO, priority, ..Attributes::default() }
    }

    #[test]
    fn priorities_have_a_limit() {
        assert_eq!(judge(real_time(10), (10, -20)), Judgement::Granted);
        assert_eq!(judge(real_time(11), (10, -20)), Judgement::Refused);
        assert_eq!(judge(real_time(1), (0, -20)), Judgement::Kernel, "not configured");
        assert_eq!(judge(real_time(0), (99, -20)), Judgement::Kernel);
        assert_eq!(judge(real_time(100), (99, -20)), Judgement::Kernel);
        let nice = |nice| Attributes { nice, ..Attributes::default() };
        assert_eq!(judge(nice(-5), (0, -5)), Judgement::Granted);
        assert_eq!(judge(nice(-6), (0, -5)), Judgement::Refused);
        assert_eq!(judge(nice(-21), (0, -20)), Judgement::Kernel);
        let deadline = Attributes { policy: 6, ..Attributes::default() };
        assert_eq!(judge(deadline, (99, -20)), Judgement::Kernel);
    }

    #[test]
    fn attributes_are_taken_apart_as_the_kernel_lays_them_out() {
        let mut bytes = [0; 48];
        bytes[..4].copy_from_slice(&48u32.to_ne_bytes());
        bytes[4..8].copy_from_slice(&FIFO.to_ne_bytes());
        bytes[8] = 1;
        bytes[16..20].copy_from_slice(&(-3i32).to_ne_bytes());
        bytes[20..24].copy_from_slice(&7u32.to_ne_bytes());
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.policy, parsed.flags, parsed.nice, parsed.priority), (FIFO, 1, -3, 7));
        bytes[0] = 56;
        assert_eq!(parse(&bytes), None, "a newer structure");
        bytes[0] = 48;
        bytes[8] = 0x20;
        assert_eq!(parse(&bytes), None, "clamping of utilization");
    }
}
