//! The numbers that a container is shown.
//!
//! A [`View`] is derived from one [`Sample`](crate::sample::Sample) in one place (`derive.rs`) and is
//! immutable. Every file and every intercepted system call formats a view; none of them computes.
//! Units: bytes for memory, USER_HZ ticks for processor times, nanoseconds for clocks.

use std::sync::Arc;

use crate::cpuset::CpuSet;
use crate::host::Host;
use crate::policy::PossibleCpus;
use crate::stats::Stats;

/// All numbers one container is shown at one instant.
#[derive(Debug, Clone)]
pub struct View {
    /// Whether these are the numbers of a container or of the machine.
    pub origin: Origin,
    /// The machine: order of the lines in `/proc/meminfo`, processor descriptions.
    pub host: Arc<Host>,
    /// Memory, in bytes.
    pub memory: Memory,
    /// Swap, in bytes.
    pub swap: Swap,
    /// The memory nodes that the container is bound to; `None` where it may use all.
    pub nodes: Option<CpuSet>,
    /// Visible processors and the time spent on them.
    pub cpu: Cpu,
    /// Tasks by state.
    pub tasks: Tasks,
    /// Load averages.
    pub load: Load,
    /// Uptime and boot time.
    pub clock: Clock,
    /// Statistics that were asked for.
    pub stats: Stats,
}

/// Whether a [`View`] has the numbers of a container or of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The machine itself: the caller is in the root cgroup of every hierarchy and in the
    /// host's pid namespace. Files are the kernel's own text ([`Host::raw`]).
    Host,
    /// A container.
    Container,
}

/// Memory of a container. `free <= available <= total` always holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields carry the kernel's own names")]
pub struct Memory {
    /// The tightest limit over the cgroup and its ancestors, at most the machine's memory.
    pub total: u64,
    /// `total` less everything that is charged and less `huge_only`; at most `available`.
    pub free: u64,
    /// What can be allocated without swapping: free memory, page cache and reclaimable slab,
    /// reduced to what the limits of ancestors and the machine leave.
    pub available: u64,
    /// Charged bytes, page cache included.
    pub used: u64,
    /// The part of `total` that is in pools of huge pages of the machine.
    pub huge_only: u64,
    /// Page cache including shmem, as `Cached:` counts it.
    pub cached: u64,
    pub active_anon: u64,
    pub inactive_anon: u64,
    pub active_file: u64,
    pub inactive_file: u64,
    pub unevictable: u64,
    /// Anonymous pages mapped by processes, shmem excluded.
    pub anon: u64,
    pub mapped: u64,
    pub shmem: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub slab_reclaimable: u64,
    pub slab_unreclaimable: u64,
    /// Slab and other kernel memory that can be reclaimed.
    pub kernel_reclaimable: u64,
    pub kernel_stack: u64,
    pub page_tables: u64,
    pub secondary_page_tables: u64,
    pub percpu: u64,
    pub anon_huge: u64,
    pub shmem_huge: u64,
    pub shmem_pmd_mapped: u64,
    pub file_huge: u64,
    pub file_pmd_mapped: u64,
    /// Huge pages of the default size that the container may have, in pages.
    pub huge_total: u64,
    /// Those of them that it does not use.
    pub huge_free: u64,
    /// Those of the free ones that are promised to its mappings.
    pub huge_reserved: u64,
    /// Huge pages of all sizes that it may have, in bytes.
    pub huge_bytes: u64,
}

/// Swap of a container. `free <= total` always holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swap {
    /// The limit of swap, at most the machine's swap.
    pub total: u64,
    /// Unused swap, reduced to what the limits of ancestors and the machine leave.
    pub free: u64,
    /// What the container has swapped out.
    pub used: u64,
    /// Pages that are both in memory and in swap.
    pub cached: u64,
    /// Memory taken by compressed pages.
    pub zswap: u64,
    /// Original size of the compressed pages.
    pub zswapped: u64,
}

/// Visible processors. They keep the kernel's own numbers, so that affinity masks,
/// `/sys/devices/system/cpu` and `/proc` name the same processors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// The processors the container is shown.
    pub online: CpuSet,
    /// Time of each visible processor, in ascending order of its number.
    pub times: Vec<(u32, Times)>,
    /// The aggregate line: the sum of `times`, plus the time of processors that were visible
    /// before, so that it never decreases.
    pub total: Times,
    /// Seed of the choice of processors under a quota: see [`Topology::choose`].
    ///
    /// [`Topology::choose`]: crate::Topology::choose
    pub seed: u64,
    /// Which processors are shown as possible.
    pub possible: PossibleCpus,
}

/// The ten columns of a `cpu` line, in USER_HZ ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the columns carry the kernel's own names")]
pub struct Times {
    pub user: u64,
    pub nice: u64,
    pub system: u64,
    pub idle: u64,
    pub iowait: u64,
    pub irq: u64,
    pub softirq: u64,
    pub steal: u64,
    pub guest: u64,
    pub guest_nice: u64,
}

/// Tasks of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Threads, at least one.
    pub total: u64,
    /// Runnable threads when last sampled, at least one: the reader.
    pub running: u64,
    /// Threads in I/O wait when last sampled, as far as cgroups tell.
    pub blocked: u64,
    /// The newest process id seen, in the container's own numbering.
    pub newest_pid: u64,
    /// Processes created, as far as seen; never decreases.
    pub forks: u64,
}

/// Load averages in the kernel's fixed point: 1.00 is `1 << Load::SHIFT`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Over one minute.
    pub one: u64,
    /// Over five minutes.
    pub five: u64,
    /// Over fifteen minutes.
    pub fifteen: u64,
}

impl Load {
    /// Bits after the binary point, the kernel's `FSHIFT`.
    pub const SHIFT: u32 = 11;
}

/// Clocks of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds since the container started; at most the machine's uptime.
    pub uptime: u64,
    /// Nanoseconds its visible processors were idle, summed over them.
    pub idle: u64,
    /// Boot time in seconds since the epoch, as start times in `/proc/<pid>/stat` are to be
    /// read: the host's, unless the container has a time namespace of its own.
    pub boot_time: u64,
}
