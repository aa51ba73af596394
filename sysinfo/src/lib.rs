//! Accounting: who is asking, what a container has and uses, and the numbers it is shown.
//!
//! The layers never mix: sources read kernel files into a `Sample` of raw values, `derive`
//! turns it into a [`View`], and front ends (files, system calls) format the `View`. This
//! package knows nothing of FUSE, seccomp or text layouts, and forbids `unsafe_code`.
//!
//! Start reading at [`Views`], the one question front ends ask, then [`View`].
#![forbid(unsafe_code)]

mod account;
mod accounting;
mod activity;
mod budget;
mod callers;
mod cgroup_namespace;
pub mod clock;
mod container;
mod context;
mod counter_store;
pub mod cpu;
pub mod cpuset;
pub mod derive;
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
pub mod policy;
pub mod pressure;
mod private_mount;
mod procfs;
pub mod sample;
pub mod source;
pub mod stats;
mod steady;
pub mod sysinfo;
mod tasks;
pub mod topology;
pub mod view;

use std::sync::Arc;

pub use account::{Account, Owner};
pub use accounting::Accounting;
pub use budget::{Budget, Charge, Descriptors, What};
pub use container::Container;
pub use context::Options;
pub use cpuset::CpuSet;
pub use host::{Host, HostTexts};
pub use limit::Limit;
pub use limiter::Limiter;
pub use namespace_init::AskKernel;
pub use pressure::{Stall, TriggerFile};
pub use private_mount::KernelFiles;
pub use stats::StatSet;
pub use topology::Topology;
pub use view::View;

/// Answers the one question front ends ask: which numbers does the container of this thread
/// see now?
pub trait Views: Send + Sync {
    /// The numbers of the container that the thread belongs to. `tid` is a thread id in the
    /// daemon's own pid namespace, as FUSE requests and seccomp notifications report it.
    ///
    /// # Errors
    /// The thread is gone, or nothing was ever read of its container.
    fn view(&self, tid: u32) -> Result<Arc<View>, Error>;

    /// The same, together with numbers that few files show.
    ///
    /// # Errors
    /// As [`Self::view`].
    fn view_with(&self, tid: u32, _wanted: StatSet) -> Result<Arc<View>, Error> {
        self.view(tid)
    }

    /// The same, and who pays for what is held of them.
    ///
    /// # Errors
    /// As [`Self::view`].
    fn numbers(&self, tid: u32, wanted: StatSet) -> Result<Numbers, Error> {
        Ok(Numbers { view: self.view_with(tid, wanted)?, account: None })
    }

    /// The last numbers of a thread's container, whatever their age: nothing is read for them that
    /// could hang.
    ///
    /// # Errors
    /// The thread is gone, or there never were any.
    fn last_view(&self, tid: u32) -> Result<Arc<View>, Error> {
        self.view(tid)
    }

    /// The kernel's pressure file of the container of a thread, for triggers.
    ///
    /// # Errors
    /// The thread is gone, or nothing accounts for its container's pressure (EOPNOTSUPP).
    fn trigger_file(&self, tid: u32, stall: Stall) -> Result<TriggerFile, Error> {
        let _ = tid;
        let source = rustix::io::Errno::OPNOTSUPP.into();
        Err(Error::Read { file: format!("/proc/pressure/{}", stall.name()), source })
    }

    /// Has the thread the personality of a 32-bit program (`PER_LINUX32`)?
    fn has_32_bit_personality(&self, _tid: u32) -> bool {
        false
    }

    /// The machine, where it is known. Asks nothing of any container and never waits for one.
    fn host(&self) -> Option<Arc<Host>> {
        None
    }
}

/// The numbers that a thread sees, and the account of the thread, where there are accounts.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// The numbers.
    pub view: Arc<View>,
    /// Who pays for what an open file holds of them.
    pub account: Option<Arc<Account>>,
}

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread that asked does not exist any more, or is outside the daemon's pid namespace.
    #[error("thread {0} is gone or not visible from the daemon's pid namespace")]
    Gone(u32),
    /// The account of the thread holds all that it may of something.
    #[error("the caller has used up its part of all {0}; what it closes it can open again")]
    UsedUp(What),
    /// A kernel file could not be opened or read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A kernel file has not the format that was expected.
    #[error("cannot understand {file}: {wanted} was expected")]
    Parse {
        /// The file.
        file: String,
        /// What was expected in it.
        wanted: &'static str,
    },
}
