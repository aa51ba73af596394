//! Which process and cgroup a container is: what never changes while it is known.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};

use super::{Container, SETUP_TIME};
use crate::FirstProcess;
use crate::clock;
use crate::counter_store::RecordKey;
use crate::membership::Membership;

/// Identity of a container; never changes.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The inode of its pid namespace; 0 for a cgroup in the host's pid namespace.
    pub(crate) namespace: u64,
    /// Its first process; `None` in the host's pid namespace.
    pub(crate) init: Option<Init>,
    /// True for the machine itself.
    pub(crate) is_host: bool,
    /// The cgroup that distinguishes it from the container of the pid namespace's first process.
    pub(crate) part: Option<Part>,
}

/// A cgroup with its own numbers in the pid namespace of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// A hash of its path, the same in every process and release.
    pub(crate) key: u64,
    /// True for a cgroup inside of the container, false for another container.
    pub(crate) is_inside: bool,
}

/// The first process of a pid namespace.
#[derive(Debug)]
pub(crate) struct Init {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// The inode of its mount namespace.
    pub(crate) mounts: u64,
    /// Nanoseconds after boot.
    pub(crate) start: u64,
    /// Offset of the container's boot time clock to the daemon's, if it has a time namespace of its
    /// own: the kernel adds it to the clocks that it shows there.
    pub(crate) offset: Option<i64>,
}

impl Init {
    fn try_clone(&self) -> std::io::Result<Self> {
        let Self { pid, mounts, start, offset, .. } = *self;
        Ok(Self { pid, pidfd: self.pidfd.try_clone()?, mounts, start, offset })
    }
}

impl Identity {
    /// Returns the key of its counter record.
    pub(super) fn record_key(&self, membership: &Membership) -> RecordKey {
        match &self.init {
            // Start times are multiples of a tick.
            Some(init) => {
                let part = self.part.map_or(0, |part| part.key % clock::TICK);
                (self.namespace, init.start.saturating_add(part))
            }
            None => (0, membership.key()),
        }
    }
}

impl Container {
    /// Returns its first process.
    pub(crate) fn init(&self) -> Option<&Init> {
        self.identity.init.as_ref()
    }

    /// Returns the identity of a cgroup inside of this container.
    pub(crate) fn part(&self, key: u64) -> std::io::Result<Identity> {
        let init = self.identity.init.as_ref().map(Init::try_clone).transpose()?;
        let part = Some(Part { key, is_inside: true });
        Ok(Identity { namespace: self.identity.namespace, init, is_host: false, part })
    }

    /// True for a cgroup of the machine or of a container, which processes can enter again.
    pub(crate) fn is_cgroup(&self) -> bool {
        self.identity.init.is_none() || self.is_inside()
    }

    pub(super) fn is_inside(&self) -> bool {
        self.identity.part.is_some_and(|part| part.is_inside)
    }

    /// Returns the first process of its pid namespace.
    pub(crate) fn first_process(&self) -> Option<FirstProcess> {
        let init = self.identity.init.as_ref()?;
        Some(FirstProcess::new(init.pid, init.start))
    }

    /// The pid of its first process in the daemon's numbering.
    pub fn init_pid(&self) -> Option<u32> {
        self.identity.init.as_ref().map(|init| init.pid)
    }

    /// True for a container in the pid namespace of another one, or a cgroup inside of it.
    pub fn is_part(&self) -> bool {
        self.identity.part.is_some()
    }

    /// True for the machine itself.
    pub fn is_host(&self) -> bool {
        self.identity.is_host
    }

    /// The inode number of its pid namespace; 0 for a cgroup in the host's pid namespace.
    pub fn pid_namespace(&self) -> u64 {
        self.identity.namespace
    }

    /// True when its first process has ended. A cgroup of the host has none; it is forgotten when
    /// unused.
    pub(crate) fn is_gone(&self) -> bool {
        let Some(init) = &self.identity.init else { return false };
        let mut poll = [PollFd::new(&init.pidfd, PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    pub(crate) fn is_young(&self, now: u64) -> bool {
        self.identity.init.as_ref().is_some_and(|init| now.saturating_sub(init.start) < SETUP_TIME)
    }
}
