//! Taking hold of a caller for a quick act: less of it than for a mount, because it is done for
//! every call.
//!
//! What lasts as long as a thread is opened once ([`Thread`]); what it can change by itself is read
//! for each call. A file of a thread's `/proc` tells of that very thread or fails once it has ended,
//! so a number that has come round again is noticed.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_kernel::text::status::{Credentials, Status};
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, openat, readlinkat_raw};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::identity::Identity;
use super::place::Place;

const USERS: &str = "ns/user";
const CAP_DAC: u64 = 1 << 1 | 1 << 2;

/// Most files of `/proc` are shorter.
const USUAL: usize = 4096;
/// For how long it may not be noticed that a thread was moved to other control groups.
const MOVES: Duration = Duration::from_millis(20);
/// Enough for 65536 groups.
const LONGEST: usize = 1 << 20;

/// A thread that calls, with what need not be opened for each of its calls.
#[derive(Debug)]
pub struct Thread {
    /// Its `/proc/<tid>`.
    proc: OwnedFd,
    status: OwnedFd,
    groups: OwnedFd,
    /// What was read from there, and when.
    seen_groups: Option<(Arc<[u8]>, Instant)>,
    process: Option<Arc<OwnedFd>>,
    /// The link to its user namespace, not what that leads to.
    users_link: OwnedFd,
    /// Its user namespace at the last call, and what the link to it says: no other one has its number
    /// as long as it is open.
    users: Option<(Arc<OwnedFd>, String)>,
    /// Its root at the last call.
    root: Option<(Arc<OwnedFd>, Place)>,
    /// Room for what is read.
    text: Vec<u8>,
}

/// A caller, as descriptors and numbers of the host.
#[derive(Debug)]
pub struct Actor {
    /// Its root, `O_PATH`.
    pub root: Arc<OwnedFd>,
    /// Where paths start: its folder, or the file that it named by a descriptor. `None`: its root.
    pub base: Option<OwnedFd>,
    /// Its process. A worker ends with it: the control group of both may then be removed.
    pub process: Arc<OwnedFd>,
    /// The number of its process.
    pub leader: i32,
    /// Its user namespace.
    pub users: Arc<OwnedFd>,
    /// The text of its `/proc/<tid>/cgroup`.
    pub groups: Arc<[u8]>,
    /// Whom it acts as.
    pub who: Identity,
    /// The capabilities that it can use in its user namespace.
    pub effective: u64,
}

/// Where paths start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// At the caller's root: the path is absolute, or there is none.
    Root,
    /// The caller's folder.
    Folder,
    /// One of its descriptors.
    Descriptor(i32),
}

impl Base {
    /// What `dirfd` means for this path.
    #[must_use]
    pub fn of(dirfd: i32, path: &[u8]) -> Self {
        match dirfd {
            _ if path.first() == Some(&b'/') => Self::Root,
            libc::AT_FDCWD => Self::Folder,
            dirfd => Self::Descriptor(dirfd),
        }
    }
}

impl Thread {
    /// Takes hold of it. `proc` is its `/proc/<tid>`.
    ///
    /// # Errors
    /// It is gone.
    pub fn open(proc: OwnedFd) -> Result<Self, Errno> {
        let (status, groups) = (file(&proc, "status")?, file(&proc, "cgroup")?);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let users_link = openat(&proc, USERS, flags, Mode::empty())?;
        let (seen_groups, process, users, root) = (None, None, None, None);
        let text = Vec::with_capacity(USUAL);
        Ok(Self { proc, status, groups, seen_groups, process, users_link, users, root, text })
    }

    /// Reads what it is now. Whoever calls this makes sure afterwards that it still waits.
    ///
    /// # Errors
    /// It is gone, or there is no such descriptor (EBADF).
    pub fn read(&mut self, base: Base) -> Result<Actor, Errno> {
        read(&self.status, &mut self.text)?;
        let credentials = Credentials::of(Status(&self.text)).ok_or(Errno::SRCH)?;
        let leader = credentials.tgid.cast_signed();
        let who = Identity {
            uid: credentials.fsuid,
            gid: credentials.fsgid,
            groups: credentials.groups,
            umask: credentials.umask.unwrap_or(0o022),
        };
        let base = match base {
            Base::Root => None,
            Base::Folder => Some(path(&self.proc, "cwd")?),
            Base::Descriptor(fd) => {
                Some(path(&self.proc, &format!("fd/{fd}")).map_err(|_| Errno::BADF)?)
            }
        };
        Ok(Actor {
            root: self.root()?,
            base,
            process: self.process(leader)?,
            leader,
            users: self.users()?,
            groups: self.groups()?,
            who,
            effective: credentials.effective,
        })
    }

    /// Its process, and the text of its `/proc/<tid>/cgroup`, if it was read before.
    #[must_use]
    pub fn seen(&self) -> Option<(&Arc<OwnedFd>, &Arc<[u8]>)> {
        Some((self.process.as_ref()?, &self.seen_groups.as_ref()?.0))
    }

    /// Somebody else may move a thread, at any time: it may be told of a little later, as with the
    /// numbers of a view. With a dozen hierarchies of v1 nothing takes longer to read.
    fn groups(&mut self) -> Result<Arc<[u8]>, Errno> {
        if let Some((groups, read)) = &self.seen_groups
            && read.elapsed() < MOVES
        {
            return Ok(Arc::clone(groups));
        }
        read(&self.groups, &mut self.text)?;
        let groups = match self.seen_groups.take() {
            Some((same, _)) if *same == *self.text => same,
            _ => (*self.text).into(),
        };
        self.seen_groups = Some((Arc::clone(&groups), Instant::now()));
        Ok(groups)
    }

    /// Threads never change their process.
    fn process(&mut self, leader: i32) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(process) = &self.process {
            return Ok(Arc::clone(process));
        }
        let number = Pid::from_raw(leader).ok_or(Errno::SRCH)?;
        let process = Arc::new(pidfd_open(number, PidfdFlags::empty())?);
        Ok(Arc::clone(self.process.insert(process)))
    }

    fn users(&mut self) -> Result<Arc<OwnedFd>, Errno> {
        if let Some((users, name)) = &self.users {
            let mut room = [MaybeUninit::uninit(); 64];
            let (now, _) = readlinkat_raw(&self.users_link, "", &mut room)?;
            if *now == *name.as_bytes() {
                return Ok(Arc::clone(users));
            }
        }
        let users = Arc::new(file(&self.proc, USERS)?);
        let number = rustix::fs::fstat(&users)?.st_ino;
        self.users = Some((Arc::clone(&users), format!("user:[{number}]")));
        Ok(users)
    }

    fn root(&mut self) -> Result<Arc<OwnedFd>, Errno> {
        const NAME: &str = "root";
        if let Some((root, place)) = &self.root
            && Place::of(self.proc.as_fd(), NAME).as_ref() == Some(place)
        {
            return Ok(Arc::clone(root));
        }
        let root = Arc::new(path(&self.proc, NAME)?);
        let place = Place::of(root.as_fd(), "");
        self.root = place.map(|place| (Arc::clone(&root), place));
        Ok(root)
    }
}

impl Actor {
    /// Can it use this capability?
    #[must_use]
    pub fn can(&self, capability: u32) -> bool {
        self.effective >> capability & 1 == 1
    }

    /// May it pass over permissions of files of its own user namespace?
    #[must_use]
    pub fn passes_over_permissions(&self) -> bool {
        self.effective & CAP_DAC != 0
    }
}

fn file(proc: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    openat(proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn path(proc: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    openat(proc, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a file of `/proc` as it is now.
fn read(file: &OwnedFd, text: &mut Vec<u8>) -> Result<(), Errno> {
    text.clear();
    loop {
        let (at, room) = (text.len(), text.capacity() - text.len());
        let read = rustix::io::pread(file, spare_capacity(text), at as u64)?;
        // The kernel fills the room that there is, or it has no more.
        if read < room {
            return Ok(());
        }
        if text.len() >= LONGEST {
            return Err(Errno::TOOBIG);
        }
        text.reserve(text.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_read_anew_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let proc = format!("/proc/{}", child.id());
        let proc = openat(rustix::fs::CWD, proc, flags, Mode::empty()).unwrap();
        let mut thread = Thread::open(proc).unwrap();
        let first = thread.read(Base::Folder).unwrap();
        let again = thread.read(Base::Root).unwrap();
        assert!(first.base.is_some() && again.base.is_none());
        assert_eq!((first.leader, &first.who), (again.leader, &again.who));
        assert!(Arc::ptr_eq(&first.process, &again.process));
        assert!(Arc::ptr_eq(&first.users, &again.users));
        assert_eq!(thread.read(Base::Descriptor(99)).unwrap_err(), Errno::BADF);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(thread.read(Base::Root).is_err());
    }
}
