//! What all containers share: options, the host, where the cgroups are.

use std::sync::{Arc, OnceLock};

use crate::baselines::Baselines;
use crate::cpu::CpuPolicy;
use crate::hierarchy::Hierarchies;
use crate::host_files::HostFiles;
use crate::kernel_names::KernelNames;
use crate::namespace_init::AskKernel;
use crate::policy::{BootTime, MemoryLimit, SwapPolicy};
use crate::procfs::Procfs;

/// How accounting works.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many processors a container is shown.
    pub cpu_policy: CpuPolicy,
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
    /// How many containers keep their files open; the least recently asked ones close theirs.
    pub open_containers: usize,
    /// Finds the init of a pid namespace (Linux 6.11).
    pub ask_kernel: AskKernel,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cpu_policy: CpuPolicy::default(),
            memory_limit: MemoryLimit::default(),
            swap: SwapPolicy::default(),
            zswap: true,
            boot_time: BootTime::default(),
            age_bound: 20_000_000,
            patience: 7_000_000_000,
            open_containers: 256,
            ask_kernel: |_| Err(std::io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Shared by all containers; never changes.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    /// Where counters are remembered for a successor.
    pub(crate) baselines: OnceLock<Baselines>,
    pub(crate) proc: Arc<Procfs>,
    pub(crate) host: HostFiles,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) names: KernelNames,
    /// The daemon's own pid namespace.
    pub(crate) own_namespace: u64,
    /// The boot time offset of the daemon's own time namespace.
    pub(crate) own_offset: i64,
}
