//! What all containers share: options, the host, where the cgroups are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::KernelFiles;
use crate::budget::{Budget, Descriptors, What};
use crate::counter_store::{self, CounterStore};
use crate::cpu::CpuPolicy;
use crate::hierarchy::Hierarchies;
use crate::host_files::HostFiles;
use crate::kernel_names::KernelNames;
use crate::namespace_init::AskKernel;
use crate::policy::{BootTime, MemoryLimit, Possible, SwapPolicy};
use crate::tasks::RecentCounts;

/// How accounting works.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many processors a container is shown.
    pub cpu_policy: CpuPolicy,
    /// Which processors and nodes a container is told that there could be.
    pub possible: Possible,
    /// Which limit is the container's memory.
    pub memory_limit: MemoryLimit,
    /// How much swap a container is shown.
    pub swap: SwapPolicy,
    /// Is a container shown how much of its swap is compressed in memory?
    pub zswap: bool,
    /// Which boot time a container is shown.
    pub boot_time: BootTime,
    /// How old a view may be, in nanoseconds.
    pub age_bound: u64,
    /// How long a sample that another thread takes is waited for, in nanoseconds; then the last
    /// view is shown, however old.
    pub patience: u64,
    /// How long after it was last asked for the load averages of a container are kept up, in
    /// nanoseconds. After that they are made up for when it is asked for again.
    pub load_bound: u64,
    /// How many containers keep their files open. The others close theirs: of each account those that
    /// were asked for least recently.
    pub open_containers: usize,
    /// Asks the kernel about namespaces.
    pub ask_kernel: AskKernel,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cpu_policy: CpuPolicy::default(),
            possible: Possible::default(),
            memory_limit: MemoryLimit::default(),
            swap: SwapPolicy::default(),
            zswap: true,
            boot_time: BootTime::default(),
            age_bound: 20_000_000,
            patience: 7_000_000_000,
            load_bound: 3600 * 1_000_000_000,
            open_containers: 256,
            ask_kernel: AskKernel::NOTHING,
        }
    }
}

/// Pressure files that one account may hold: the kernel runs a timer for each trigger.
const PRESSURE_FILES: usize = 128;

/// The budgets of a process: of pid namespaces, of cgroups and of pressure files.
pub(crate) fn budgets() -> [Arc<Budget>; 3] {
    let descriptors = Descriptors::of_this_process();
    // Each has a place in the counter store, one half of which is for either.
    let known = counter_store::MOST / 2;
    [
        Budget::new(What::Namespaces, descriptors.namespaces.min(known)),
        Budget::new(What::Cgroups, known),
        Budget::with_most(What::PressureFiles, descriptors.pressure_files, PRESSURE_FILES),
    ]
}

/// How many containers have files open.
#[derive(Debug, Default, Clone)]
pub(crate) struct OpenCounter(Arc<AtomicUsize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenGuard(OpenCounter);

impl OpenCounter {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn register(&self) -> OpenGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        OpenGuard(self.clone())
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Shared by all containers; never changes.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) options: Options,
    /// Where counters are remembered for a successor.
    pub(crate) counter_store: OnceLock<CounterStore>,
    pub(crate) proc: Arc<KernelFiles>,
    pub(crate) host: HostFiles,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) names: KernelNames,
    /// Threads that were counted a moment ago.
    pub(crate) counted: RecentCounts,
    /// The daemon's own pid namespace.
    pub(crate) own_namespace: u64,
    /// The daemon's own user namespace.
    pub(crate) own_users: u64,
    /// Pid namespaces that may be known.
    pub(crate) namespaces: Arc<Budget>,
    /// Cgroups of the daemon's own pid namespace that may be known.
    pub(crate) cgroups: Arc<Budget>,
    /// Pressure files that may be open.
    pub(crate) pressure_files: Arc<Budget>,
    /// Containers that have files open.
    pub(crate) open: OpenCounter,
    /// The boot time offset of the daemon's own time namespace.
    pub(crate) own_offset: i64,
}
