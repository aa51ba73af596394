//! Accounting: identifies the container of a calling thread, reads its limits and usage, and
//! derives the numbers it is shown.
//!
//! The layers never mix: sources read kernel files into a `Sample` of raw values, `derive`
//! turns it into a [`View`], and front ends (files, system calls) format the `View`. This
//! package knows nothing of FUSE, seccomp or text layouts, and forbids `unsafe_code`.
//!
//! Start reading at [`Views`], the interface for front ends, then [`View`].
#![forbid(unsafe_code)]

mod account;
mod accounting;
mod activity;
mod callers;
mod cgroup_namespace;
pub mod clock;
mod container;
mod context;
mod controller;
mod counter_store;
pub mod cpu;
pub mod cpuset;
pub mod derive;
pub mod engines;
#[cfg(test)]
mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod hash;
pub mod hierarchy;
pub mod host;
pub mod host_files;
mod kernel_file;
mod kernel_names;
pub mod limit;
mod limiter;
mod load;
pub mod membership;
mod namespace_init;
mod personality;
mod pinned;
pub mod policy;
pub mod pressure;
mod private_mount;
mod procfs;
pub mod sample;
pub mod source;
mod stat_sampler;
pub mod stats;
mod steady;
pub mod sysinfo;
mod tasks;
pub mod topology;
pub mod view;
mod whose_view;

use std::sync::Arc;
use std::time::Duration;

pub use account::budget::{Budget, Charge, Descriptors, Resource};
pub use account::{Account, Accounts, Owner};
pub use accounting::Accounting;
pub use container::Container;
pub use context::Options;
pub use counter_store::COUNTER_STORE;
pub use cpuset::CpuSet;
pub use host::{Host, HostTexts};
pub use limit::Limit;
pub use limiter::Limiter;
pub use namespace_init::NamespaceIoctls;
pub use pressure::{Stall, TriggerFile};
pub use private_mount::KernelFiles;
pub use stats::StatSet;
pub use topology::Topology;
pub use view::View;

/// The interface for front ends: returns the numbers of the container of a thread.
pub trait Views: Send + Sync {
    /// Returns the numbers of the container that the thread belongs to. `tid` is a thread id in the
    /// daemon's own pid namespace, as FUSE requests and seccomp notifications report it.
    ///
    /// # Errors
    /// The thread has ended, or no sample of its container was ever taken.
    fn view(&self, tid: u32) -> Result<Arc<View>, Error>;

    /// Returns a view of which these groups are current; [`Self::view`] has [`StatSet::BASE`].
    fn view_with(&self, tid: u32, _wanted: StatSet) -> Result<Arc<View>, Error> {
        self.view(tid)
    }

    /// Returns the number of the owner of a thread whose container was not asked for before, or is
    /// being set up: its numbers take much longer than those of another one.
    fn newcomer(&self, _tid: u32) -> Option<u64> {
        None
    }

    /// Returns the number of the owner of a thread in a container.
    fn owner(&self, _tid: u32) -> Option<u64> {
        None
    }

    /// Returns the view and the account that is charged for text that an open file keeps of it.
    fn numbers(&self, tid: u32, wanted: StatSet) -> Result<Numbers, Error> {
        Ok(Numbers { view: self.view_with(tid, wanted)?, account: None })
    }

    /// Returns the last numbers of a thread's container, whatever their age. Reads no file of a
    /// container, so it cannot hang.
    ///
    /// # Errors
    /// The thread has ended, or no sample of its container was ever taken.
    fn last_view(&self, tid: u32) -> Result<Arc<View>, Error> {
        self.view(tid)
    }

    /// Opens the kernel's pressure file of the container of a thread, to set a trigger on it.
    ///
    /// # Errors
    /// The thread has ended, or its container has no pressure file (EOPNOTSUPP).
    fn trigger_file(&self, tid: u32, stall: Stall) -> Result<TriggerFile, Error> {
        let _ = tid;
        let source = rustix::io::Errno::OPNOTSUPP.into();
        Err(Error::Read { file: format!("/proc/pressure/{}", stall.name()), source })
    }

    /// True for a thread in the daemon's own pid namespace.
    fn is_of_machine(&self, _tid: u32) -> bool {
        false
    }

    /// Returns the first process of a thread's container. `None` if other processes of its pid
    /// namespace can be in another container, or none.
    fn first_process(&self, _tid: u32) -> Option<FirstProcess> {
        None
    }

    /// Takes a lease of these groups of a container's numbers: until it ends, all views of it show
    /// what the returned one does. Returns its length, which is at most the given one.
    ///
    /// # Errors
    /// The container has ended, or no sample of it was ever taken.
    fn lease(
        &self,
        first: FirstProcess,
        _wanted: StatSet,
        _length: Duration,
    ) -> Result<(Arc<View>, Duration), Error> {
        Err(Error::Gone(first.pid))
    }

    /// True for a thread with the personality of a 32-bit program (`PER_LINUX32`).
    fn has_32_bit_personality(&self, _tid: u32) -> bool {
        false
    }

    /// Returns the machine, if it is known. Reads no file of a container and never waits for one.
    fn host(&self) -> Option<Arc<Host>> {
        None
    }
}

/// The first process of a pid namespace, which names a container in every server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstProcess {
    /// Its pid in the daemon's pid namespace.
    pub pid: u32,
    /// When it started, in ticks after boot, modulo 2^32.
    pub start: u32,
}

impl FirstProcess {
    /// Reads when a process started, from the machine's `/proc`. `None` if it has ended.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some(Self::new(pid, clock::start_of(&stat)?))
    }

    /// Start times are multiples of a tick. The lower half tells processes of one pid apart.
    fn new(pid: u32, start: u64) -> Self {
        let start = (start / clock::TICK) & u64::from(u32::MAX);
        Self { pid, start: u32::try_from(start).unwrap_or_default() }
    }
}

/// The numbers that a thread sees, and its account.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// The view of the thread's container.
    pub view: Arc<View>,
    /// The account that pays for text kept in open files; `None` where there are no accounts.
    pub account: Option<Arc<Account>>,
}

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread does not exist any more, or is outside the daemon's pid namespace.
    #[error("thread {0} is gone or not visible from the daemon's pid namespace")]
    Gone(u32),
    /// The account of the thread holds as much of a resource as it may.
    #[error("the account of the caller holds as many {0} as it may; close some to open others")]
    UsedUp(Resource),
    /// A kernel file could not be opened or read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// A kernel file does not have the expected format.
    #[error("cannot understand {file}: {wanted} was expected")]
    Parse {
        /// The file.
        file: String,
        /// What was expected in it.
        wanted: &'static str,
    },
}
