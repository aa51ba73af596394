//! The operation `bpf`: has device programs verified and attaches them to control groups of a
//! container.
//!
//! A container must never get a descriptor of a program (`stand_in.rs` says why), and a program
//! must never be verified with more rights than `CAP_BPF` and `CAP_NET_ADMIN`: without
//! `CAP_PERFMON` the verifier rejects programs that leak addresses or speculate on them.
//! Descriptors of the caller are duplicated here and not in the daemon: closing a file of a
//! container may block, and a worker can be given up.
//!
//! Start reading at `Bpf::perform`; `control_group.rs` decides which control groups belong to the
//! container.

mod control_group;
mod program;
mod stand_in;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::sys::bpf;
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::identity::use_only;
use super::reply::{Answer, Reply};
use stand_in::{Content, StandIn};

pub(super) use control_group::HostControlGroups;
pub use program::{ALIGNMENT, LONGEST, is_plain};

/// The longest verifier log that a caller gets, in bytes.
pub const LONGEST_LOG: usize = 64 << 10;
/// The most program ids that a worker remembers.
const REMEMBERED: usize = 1024;
/// The most programs of a control group (`BPF_CGROUP_MAX_PROGS`).
const PROGRAMS: usize = 64;

/// The capabilities to load, attach and query programs.
const RIGHTS: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN);
/// The capabilities to open a program by its id.
const OPENING: CapabilitySet = RIGHTS.union(CapabilitySet::SYS_ADMIN);

/// The commands of bpf(2). Two more descriptors are sent with each: the pidfd of the thread whose
/// descriptors are named, and its cgroup namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bpf {
    /// Have a program verified. The answer has a stand-in as descriptor, and the verifier log as
    /// data.
    Load(Load),
    /// Attach a program.
    Attach {
        /// The control group.
        to: Target,
        /// The program: a descriptor of the caller.
        program: i32,
        /// `BPF_F_ALLOW_MULTI` and the like.
        flags: u32,
        /// The program that it replaces: a descriptor of the caller.
        replaced: Option<i32>,
    },
    /// Detach a program.
    Detach {
        /// The control group.
        from: Target,
        /// The program: a descriptor of the caller, or any other number for the only program.
        program: i32,
    },
    /// List the attached programs. The answer has the flags and the program ids as data.
    Query(Target),
    /// Open a program by an id that an earlier query returned. The answer has a stand-in as
    /// descriptor.
    Open(u32),
    /// Describe a program. The answer has the kernel's `struct bpf_prog_info` as data.
    Info(i32),
}

/// A control group that the caller names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// A descriptor of the caller.
    pub fd: i32,
    /// The users of the container, as ranges of ids of the host: first, count.
    pub users: Vec<(u32, u32)>,
}

/// The arguments of `BPF_PROG_LOAD`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The program type. Programs of other types than devices are verified and not attached.
    pub kind: bpf::Kind,
    /// `struct bpf_insn`, eight bytes each.
    pub instructions: Vec<u64>,
    /// The license without its terminating NUL.
    pub license: Vec<u8>,
    /// The name, padded with NULs.
    pub name: [u8; 16],
    /// The flags; [`ALIGNMENT`] has all that are allowed.
    pub flags: u32,
    /// The verifier log.
    pub log: Log,
}

/// The log that a caller requests of the verifier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The log level.
    pub level: u32,
    /// The size of the caller's buffer in bytes, at most [`LONGEST_LOG`].
    pub size: u32,
    /// Set if the caller has a buffer.
    pub wanted: bool,
}

impl Bpf {
    pub(super) fn room(&self) -> usize {
        match self {
            Self::Load(load) if load.log.wanted => LONGEST_LOG,
            Self::Query(_) => (PROGRAMS + 1) * size_of::<u32>(),
            Self::Info(_) => bpf::INFO,
            _ => 0,
        }
    }

    /// Runs the command. `more` has the pidfd of the thread, and its cgroup namespace.
    pub(super) fn perform(&self, more: &[OwnedFd], host: &mut HostControlGroups) -> Answer {
        let [thread, groups, ..] = more else { return Reply::Kernel.into() };
        let caller = CallerThread { thread: thread.as_fd(), groups: groups.as_fd() };
        let opened = |fd| Answer { fd: Some(fd), ..Reply::Done.into() };
        let data = |bytes| Answer { bytes, ..Reply::Done.into() };
        let done = match self {
            Self::Load(load) => return load.verify(),
            Self::Attach { to, program, flags, replaced } => {
                caller.attach(to, *program, *flags, *replaced, host).map(|()| Reply::Done.into())
            }
            Self::Detach { from, program } => {
                caller.detach(from, *program, host).map(|()| Reply::Done.into())
            }
            Self::Query(target) => caller.query(target, host).map(data),
            Self::Open(id) => open(*id, host).map(opened),
            Self::Info(fd) => caller.info(*fd, host).map(data),
        };
        done.unwrap_or_else(Answer::from)
    }
}

impl Load {
    /// Loads the program under this name.
    fn load(&self, name: [u8; 16], log: Option<&mut [u8]>) -> Result<OwnedFd, Reply> {
        let license = std::ffi::CString::new(&*self.license).unwrap_or_default();
        let program = bpf::Program {
            kind: self.kind,
            instructions: &self.instructions,
            license: &license,
            name,
            flags: self.flags,
        };
        let Log { level, size, .. } = self.log;
        with(RIGHTS, || bpf::load(program, bpf::Log { level, size, buffer: log }))
    }

    /// Has the program verified, and makes its stand-in.
    fn verify(&self) -> Answer {
        let mut log = vec![0; if self.log.wanted { LONGEST_LOG } else { 0 }];
        let loaded = self.load(self.name, self.log.wanted.then_some(&mut *log));
        // The caller gets the log with its terminating NUL.
        let end = log.iter().position(|&byte| byte == 0).map_or(log.len(), |end| end + 1);
        log.truncate(if end > 1 { end } else { 0 });
        let silent = Self { log: Log::default(), ..self.clone() };
        let made = loaded
            .and_then(|_| stand_in::make(&Content::Program(silent)).map_err(|_| Reply::Kernel));
        match made {
            Ok(file) => Answer { reply: Reply::Done, bytes: log, fd: Some(file) },
            Err(reply) => Answer { bytes: log, ..reply.into() },
        }
    }
}

/// Makes the stand-in of a program whose id an earlier query returned. All other ids are refused:
/// they may be programs of the host.
fn open(id: u32, host: &HostControlGroups) -> Result<OwnedFd, Reply> {
    if !host.known.contains(&id) {
        return Err(Reply::Failed(Errno::PERM));
    }
    // Fails if the program is no longer loaded.
    with(OPENING, || bpf::by_id(id))?;
    stand_in::make(&Content::Attached(id)).map_err(|_| Reply::Kernel)
}

/// The thread whose descriptors are named, and its cgroup namespace.
#[derive(Clone, Copy)]
struct CallerThread<'a> {
    thread: BorrowedFd<'a>,
    groups: BorrowedFd<'a>,
}

impl CallerThread<'_> {
    /// Duplicates one of its descriptors.
    fn duplicate(self, fd: i32) -> Result<OwnedFd, Reply> {
        if fd < 0 {
            return Err(Reply::Failed(Errno::BADF));
        }
        with(CapabilitySet::SYS_PTRACE, || pidfd_getfd(self.thread, fd, PidfdGetfdFlags::empty()))
    }

    /// Reads the stand-in that one of its descriptors refers to.
    fn stand_in(self, fd: i32) -> Result<StandIn, Reply> {
        stand_in::read(self.duplicate(fd)?).ok_or(Reply::Failed(Errno::INVAL))
    }

    /// Opens a control group, if it belongs to the container.
    fn group(self, target: &Target, host: &HostControlGroups) -> Result<OwnedFd, Reply> {
        let named = self.duplicate(target.fd)?;
        host.own(named.as_fd(), self.groups, &target.users)
    }

    fn attach(
        self,
        to: &Target,
        program: i32,
        flags: u32,
        replaced: Option<i32>,
        host: &HostControlGroups,
    ) -> Result<(), Reply> {
        let program = self.stand_in(program)?;
        let group = self.group(to, host)?;
        // As in the kernel: all programs of a control group are attached with the same flags.
        let (held, programs) = with(RIGHTS, || bpf::attached(group.as_fd()))?;
        if !programs.is_empty() && held != flags & (bpf::ALLOW_OVERRIDE | bpf::ALLOW_MULTI) {
            return Err(Reply::Failed(Errno::PERM));
        }
        let replaced = replaced.map(|fd| self.stand_in(fd)).transpose()?;
        let old = replaced.map(|old| find(&group, &old)?.ok_or(Reply::Failed(Errno::NOENT)));
        let old = old.transpose()?;
        let there = find(&group, &program)?;
        // As in the kernel: a program is attached only once, unless it replaces itself.
        let number = |program: &Option<Found>| program.as_ref().map(|program| program.id);
        if there.is_some() && number(&there) != number(&old) {
            return Err(Reply::Failed(Errno::INVAL));
        }
        let loaded = match &program.content {
            Content::Program(load) if load.kind == bpf::Kind::Device => {
                load.load(program.name, None)?
            }
            Content::Program(_) => return Err(Reply::Failed(Errno::INVAL)),
            // Only an id that an earlier query returned, from any control group of the container.
            Content::Attached(id) if host.known.contains(id) => with(OPENING, || bpf::by_id(*id))?,
            Content::Attached(_) => return Err(Reply::Failed(Errno::PERM)),
        };
        let old = old.as_ref().map(|old| old.program.as_fd());
        with(RIGHTS, || bpf::attach(group.as_fd(), loaded.as_fd(), flags, old))
    }

    fn detach(self, from: &Target, program: i32, host: &HostControlGroups) -> Result<(), Reply> {
        // Without a program, the kernel detaches the only one or returns an error.
        let program = self.stand_in(program).ok();
        let group = self.group(from, host)?;
        let found = match program {
            Some(program) => Some(find(&group, &program)?.ok_or(Reply::Failed(Errno::NOENT))?),
            None => None,
        };
        let found = found.as_ref().map(|found| found.program.as_fd());
        with(RIGHTS, || bpf::detach(group.as_fd(), found))
    }

    fn query(self, target: &Target, host: &mut HostControlGroups) -> Result<Vec<u8>, Reply> {
        let group = self.group(target, host)?;
        let (flags, ids) = with(RIGHTS, || bpf::attached(group.as_fd()))?;
        let known = &mut host.known;
        if known.len() + ids.len() > REMEMBERED {
            known.clear();
        }
        known.extend(&ids);
        Ok([flags].iter().chain(&ids).flat_map(|number| number.to_ne_bytes()).collect())
    }

    fn info(self, fd: i32, host: &HostControlGroups) -> Result<Vec<u8>, Reply> {
        // Other objects have information that the kernel returns.
        let program = self.stand_in(fd).map_err(|_| Reply::Kernel)?;
        let loaded = match &program.content {
            Content::Program(load) => load.load(load.name, None)?,
            Content::Attached(id) if host.known.contains(id) => with(OPENING, || bpf::by_id(*id))?,
            Content::Attached(_) => return Err(Reply::Failed(Errno::PERM)),
        };
        // Without capabilities the kernel does not return the instructions.
        with(CapabilitySet::empty(), || bpf::info(loaded.as_fd()).map(|info| info.to_vec()))
    }
}

/// An attached program.
struct Found {
    id: u32,
    program: OwnedFd,
}

/// Finds the attached program that a stand-in refers to.
fn find(group: &OwnedFd, wanted: &StandIn) -> Result<Option<Found>, Reply> {
    let (_, ids) = with(RIGHTS, || bpf::attached(group.as_fd()))?;
    for id in ids {
        // It may have been detached and freed in the meantime.
        let Ok(program) = with(OPENING, || bpf::by_id(id)) else { continue };
        let is = match wanted.content {
            Content::Attached(number) => number == id,
            Content::Program(_) => with(RIGHTS, || bpf::info(program.as_fd()))
                .is_ok_and(|info| bpf::name(&info) == wanted.name),
        };
        if is {
            return Ok(Some(Found { id, program }));
        }
    }
    Ok(None)
}

/// Calls `act` with these effective capabilities, and clears them afterwards.
fn with<T>(rights: CapabilitySet, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Reply> {
    use_only(rights).map_err(|_| Reply::Kernel)?;
    let done = act();
    use_only(CapabilitySet::empty()).map_err(|_| Reply::Kernel)?;
    done.map_err(Reply::Failed)
}
