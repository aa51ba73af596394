//! The context that all containers use: options, the host snapshot, the hierarchies, the budgets.
//! It never changes after the start, except through the types it holds. Start reading at
//! [`Options`].

use std::sync::{Arc, OnceLock};

use crate::KernelFiles;
use crate::account::budget::{Budget, Descriptors, Resource};
use crate::counter_store::{self, CounterStore};
use crate::hierarchy::Hierarchies;
use crate::host_files::HostFiles;
use crate::kernel_names::KernelNames;
use crate::namespace_init::NamespaceIoctls;
use crate::policy::{
    BootTime, CpuPolicy, MemoryLimit, PossibleCpus, StealPolicy, SwapPolicy, ViewOf, WeightFormula,
};
use crate::tasks::RecentCounts;

/// Settings of accounting.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many processors a container is shown.
    pub cpu_policy: CpuPolicy,
    /// The CPU shares of one processor.
    pub weight_base: u64,
    /// How `cpu.weight` was computed from CPU shares.
    pub weight_formula: WeightFormula,
    /// What is shown as stolen time.
    pub steal: StealPolicy,
    /// Which processors and nodes are shown as possible.
    pub possible: PossibleCpus,
    /// Which limit is shown as the container's memory.
    pub memory_limit: MemoryLimit,
    /// How much swap a container is shown.
    pub swap: SwapPolicy,
    /// True if a container is shown how much of its swap is compressed in memory.
    pub zswap: bool,
    /// Which boot time a container is shown.
    pub boot_time: BootTime,
    /// Whose numbers a process in a container is shown.
    pub view_of: ViewOf,
    /// How old a view may be, in nanoseconds.
    pub age_bound: u64,
    /// How long a thread waits for a sample that another thread takes, in nanoseconds. Then it
    /// returns the last view, however old.
    pub patience: u64,
    /// How long after its last request the load averages of a container are sampled, in
    /// nanoseconds. After that they are computed from its processor time at the next request.
    pub load_bound: u64,
    /// How many files of control groups stay open, if the limit of descriptors allows it. Beyond
    /// that, those of the least recently used containers of each account are closed.
    pub kept_files: usize,
    /// The ioctls on namespace files.
    pub ioctls: NamespaceIoctls,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cpu_policy: CpuPolicy::default(),
            weight_base: 1024,
            weight_formula: WeightFormula::default(),
            steal: StealPolicy::default(),
            possible: PossibleCpus::default(),
            memory_limit: MemoryLimit::default(),
            swap: SwapPolicy::default(),
            zswap: true,
            boot_time: BootTime::default(),
            view_of: ViewOf::default(),
            age_bound: 20_000_000,
            patience: 7_000_000_000,
            load_bound: 3600 * 1_000_000_000,
            kept_files: 16384,
            ioctls: NamespaceIoctls::NOTHING,
        }
    }
}

/// Most pressure files of one account: the kernel runs a timer for each trigger.
const PRESSURE_FILES: usize = 128;

/// Makes the budgets of pid namespaces, of cgroups and of pressure files.
pub(crate) fn budgets() -> [Arc<Budget>; 3] {
    let descriptors = Descriptors::of_this_process();
    // Each known container has a slot in the counter store, half of which is for each kind.
    let known = counter_store::MOST / 2;
    [
        Budget::new(Resource::Namespaces, descriptors.namespaces.min(known)),
        Budget::new(Resource::Cgroups, known),
        Budget::with_most(Resource::PressureFiles, descriptors.pressure_files, PRESSURE_FILES),
    ]
}

/// What all containers use; never changes.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) options: Options,
    /// The counter store, once it is opened.
    pub(crate) counter_store: OnceLock<CounterStore>,
    pub(crate) proc: Arc<KernelFiles>,
    pub(crate) host: HostFiles,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) names: KernelNames,
    /// Recent counts of threads, by cgroup.
    pub(crate) counted: RecentCounts,
    pub(crate) own_namespace: u64,
    pub(crate) own_users: u64,
    pub(crate) namespaces: Arc<Budget>,
    /// Budget of known cgroups of the daemon's own pid namespace.
    pub(crate) cgroups: Arc<Budget>,
    /// Budget of open pressure files.
    pub(crate) pressure_files: Arc<Budget>,
    /// The boot time offset of the daemon's own time namespace.
    pub(crate) own_offset: i64,
}
