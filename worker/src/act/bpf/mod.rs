//! Programs that decide on devices: having them verified, and attaching them to control groups of a
//! container.
//!
//! A container never gets a program itself (`stand_in.rs` says why). Descriptors that it names by
//! number are taken here and not in the daemon: what a container has open may hang when it is closed, and
//! this process can be left to itself. A program never gets more rights to be verified than `CAP_BPF` and
//! `CAP_NET_ADMIN` give: without `CAP_PERFMON` the verifier forbids what leaks addresses and speculates
//! on. `place.rs` says which control groups are the container's.

mod place;
mod program;
mod stand_in;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::sys::bpf;
use nix::errno::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::identity::use_only;
use super::reply::{Answer, Reply};
use stand_in::{Content, StandIn};

pub(super) use place::Surroundings;
pub use program::{ALIGNMENT, LONGEST, is_plain};

/// The longest log of the verifier that a caller gets.
pub const LONGEST_LOG: usize = 64 << 10;
/// Numbers of programs that a worker remembers.
const REMEMBERED: usize = 1024;
/// The most programs of a control group.
const PROGRAMS: usize = 64;

const RIGHTS: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN);
/// Opening a program by its number takes more.
const OPENING: CapabilitySet = RIGHTS.union(CapabilitySet::SYS_ADMIN);

/// What is to be done. In addition to what every task has come a descriptor of the thread whose
/// descriptors are meant, and its cgroup namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bpf {
    /// Have a program verified. The answer has what stands for it, and the verifier's log as bytes.
    Load(Load),
    /// Attach one.
    Attach {
        /// To which control group.
        to: Target,
        /// A descriptor of the caller.
        program: i32,
        /// `BPF_F_ALLOW_MULTI` and the like.
        flags: u32,
        /// Instead of this one, a descriptor too.
        replaced: Option<i32>,
    },
    /// Detach one.
    Detach {
        /// From which control group.
        from: Target,
        /// A descriptor of the caller, or none.
        program: i32,
    },
    /// Ask for those that are attached. The answer has flags and numbers as bytes.
    Query(Target),
    /// Open one that was asked for before, by its number. The answer has what stands for it.
    Open(u32),
    /// Ask what a program is. The answer has the kernel's `struct bpf_prog_info`.
    Info(i32),
}

/// A control group that the caller names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// A descriptor of the caller.
    pub fd: i32,
    /// The users of the container on the host: first, count.
    pub users: Vec<(u32, u32)>,
}

/// A program that is to be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// What it decides on. Of other kinds only the verifier's opinion is to be had.
    pub kind: bpf::Kind,
    /// `struct bpf_insn`, eight bytes each.
    pub instructions: Vec<u64>,
    /// Without the zero at its end.
    pub license: Vec<u8>,
    /// With zeros at its end.
    pub name: [u8; 16],
    /// Of the alignment of memory.
    pub flags: u32,
    /// What the verifier is to say.
    pub log: Log,
}

/// What the verifier is to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// How much.
    pub level: u32,
    /// How many bytes at most; as the caller has it, but not more than [`LONGEST_LOG`].
    pub size: u32,
    /// Is there a place for it?
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

    /// `more` is the thread and its cgroup namespace.
    pub(super) fn act(&self, more: &[OwnedFd], surroundings: &mut Surroundings) -> Answer {
        let [thread, groups, ..] = more else { return Reply::Kernel.into() };
        let caller = Caller { thread: thread.as_fd(), groups: groups.as_fd() };
        let opened = |fd| Answer { fd: Some(fd), ..Reply::Done.into() };
        let told = |bytes| Answer { bytes, ..Reply::Done.into() };
        let done = match self {
            Self::Load(load) => return load.verify(),
            Self::Attach { to, program, flags, replaced } => caller
                .attach(to, *program, *flags, *replaced, surroundings)
                .map(|()| Reply::Done.into()),
            Self::Detach { from, program } => {
                caller.detach(from, *program, surroundings).map(|()| Reply::Done.into())
            }
            Self::Query(target) => caller.query(target, surroundings).map(told),
            Self::Open(id) => open(*id, surroundings).map(opened),
            Self::Info(fd) => caller.info(*fd, surroundings).map(told),
        };
        done.unwrap_or_else(Answer::from)
    }
}

impl Load {
    /// Loads it under this name.
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

    /// Has the verifier judge it, and makes what stands for it.
    fn verify(&self) -> Answer {
        let mut log = vec![0; if self.log.wanted { LONGEST_LOG } else { 0 }];
        let loaded = self.load(self.name, self.log.wanted.then_some(&mut *log));
        // With the zero at its end.
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

/// What stands for a program whose number was told before: numbers of others are none of the container's
/// business.
fn open(id: u32, surroundings: &Surroundings) -> Result<OwnedFd, Reply> {
    if !surroundings.told.contains(&id) {
        return Err(Reply::Failed(Errno::EPERM));
    }
    // Is it there?
    with(OPENING, || bpf::by_id(id))?;
    stand_in::make(&Content::Attached(id)).map_err(|_| Reply::Kernel)
}

/// Whose descriptors and control groups are meant.
#[derive(Clone, Copy)]
struct Caller<'a> {
    thread: BorrowedFd<'a>,
    groups: BorrowedFd<'a>,
}

impl Caller<'_> {
    /// One of its descriptors.
    fn take(self, fd: i32) -> Result<OwnedFd, Reply> {
        if fd < 0 {
            return Err(Reply::Failed(Errno::EBADF));
        }
        with(CapabilitySet::SYS_PTRACE, || {
            pidfd_getfd(self.thread, fd, PidfdGetfdFlags::empty())
                .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
        })
    }

    /// What one of its descriptors stands for.
    fn stand_in(self, fd: i32) -> Result<StandIn, Reply> {
        stand_in::read(self.take(fd)?).ok_or(Reply::Failed(Errno::EINVAL))
    }

    /// The control group that is meant, if it is one of the container's.
    fn place(self, target: &Target, surroundings: &Surroundings) -> Result<OwnedFd, Reply> {
        let named = self.take(target.fd)?;
        surroundings.own(named.as_fd(), self.groups, &target.users)
    }

    fn attach(
        self,
        to: &Target,
        program: i32,
        flags: u32,
        replaced: Option<i32>,
        surroundings: &Surroundings,
    ) -> Result<(), Reply> {
        let program = self.stand_in(program)?;
        let place = self.place(to, surroundings)?;
        let replaced = replaced.map(|fd| self.stand_in(fd)).transpose()?;
        let old = replaced.map(|old| find(&place, &old)?.ok_or(Reply::Failed(Errno::ENOENT)));
        let old = old.transpose()?;
        let there = find(&place, &program)?;
        // As the kernel: one is attached only once, unless it takes its own place.
        let number = |program: &Option<Found>| program.as_ref().map(|program| program.id);
        if there.is_some() && number(&there) != number(&old) {
            return Err(Reply::Failed(Errno::EINVAL));
        }
        let loaded = match &program.content {
            Content::Program(load) if load.kind == bpf::Kind::Device => {
                load.load(program.name, None)?
            }
            Content::Program(_) => return Err(Reply::Failed(Errno::EINVAL)),
            // Only one that was told of, wherever in the container it is attached.
            Content::Attached(id) if surroundings.told.contains(id) => {
                with(OPENING, || bpf::by_id(*id))?
            }
            Content::Attached(_) => return Err(Reply::Failed(Errno::EPERM)),
        };
        let old = old.as_ref().map(|old| old.program.as_fd());
        with(RIGHTS, || bpf::attach(place.as_fd(), loaded.as_fd(), flags, old))
    }

    fn detach(self, from: &Target, program: i32, surroundings: &Surroundings) -> Result<(), Reply> {
        // None of them: the kernel then takes the only one, or refuses.
        let program = self.stand_in(program).ok();
        let place = self.place(from, surroundings)?;
        let found = match program {
            Some(program) => Some(find(&place, &program)?.ok_or(Reply::Failed(Errno::ENOENT))?),
            None => None,
        };
        let found = found.as_ref().map(|found| found.program.as_fd());
        with(RIGHTS, || bpf::detach(place.as_fd(), found))
    }

    fn query(self, target: &Target, surroundings: &mut Surroundings) -> Result<Vec<u8>, Reply> {
        let place = self.place(target, surroundings)?;
        let (flags, ids) = with(RIGHTS, || bpf::attached(place.as_fd()))?;
        let told = &mut surroundings.told;
        if told.len() + ids.len() > REMEMBERED {
            told.clear();
        }
        told.extend(&ids);
        Ok([flags].iter().chain(&ids).flat_map(|number| number.to_ne_bytes()).collect())
    }

    fn info(self, fd: i32, surroundings: &Surroundings) -> Result<Vec<u8>, Reply> {
        // Of anything else the kernel tells.
        let program = self.stand_in(fd).map_err(|_| Reply::Kernel)?;
        let loaded = match &program.content {
            Content::Program(load) => load.load(load.name, None)?,
            Content::Attached(id) if surroundings.told.contains(id) => {
                with(OPENING, || bpf::by_id(*id))?
            }
            Content::Attached(_) => return Err(Reply::Failed(Errno::EPERM)),
        };
        // Without the rights to see what it consists of.
        with(CapabilitySet::empty(), || bpf::info(loaded.as_fd()).map(|info| info.to_vec()))
    }
}

/// A program that is attached.
struct Found {
    id: u32,
    program: OwnedFd,
}

/// The one attached to a control group that this stands for.
fn find(place: &OwnedFd, wanted: &StandIn) -> Result<Option<Found>, Reply> {
    let (_, ids) = with(RIGHTS, || bpf::attached(place.as_fd()))?;
    for id in ids {
        // It may be gone in the meantime.
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

/// Does something with these capabilities, and without any afterwards.
fn with<T>(rights: CapabilitySet, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Reply> {
    use_only(rights).map_err(|_| Reply::Kernel)?;
    let done = act();
    use_only(CapabilitySet::empty()).map_err(|_| Reply::Kernel)?;
    done.map_err(Reply::Failed)
}
