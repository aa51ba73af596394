//! A sample: the raw counters of one container at one instant, in the units of cgroup v2. Values
//! that the kernel does not give are `None` or zero. Nothing is interpreted here; `derive.rs` does
//! that.

use crate::cpuset::CpuSet;
use crate::hash::fnv1a;
use crate::limit::Limit;

/// The result of one pass over a container's cgroup files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Memory; `None` when no memory controller accounts for this container.
    pub memory: Option<MemorySample>,
    /// Processors the cpuset allows; `None` without a cpuset controller.
    pub cpus: Option<CpuSet>,
    /// The tightest quota of the cgroup and its ancestors.
    pub quota: Option<Quota>,
    /// The CPU weight; `None` unless the policy shows it.
    pub weight: Option<Weight>,
    /// Hash of the path of the nearest cgroup with a quota, or else of that with the weight, 0
    /// without one: containers with a common quota are shown the same processors. It does not
    /// depend on the value of the quota, nor on sub-cgroups below that cgroup.
    pub limit_of: u64,
    /// Processor time used since the cgroup was made.
    pub busy: Busy,
    /// Threads, by the pids controller.
    pub threads: Option<u64>,
    /// Huge pages of each size that the machine has a pool of and a controller accounts for.
    pub huge: Vec<HugeSample>,
    /// The memory nodes that the cpuset allows; `None` where it allows all that have memory.
    pub nodes: Option<NodeSample>,
}

/// Memory nodes that a container is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSample {
    /// Their numbers; each has memory.
    pub allowed: CpuSet,
    /// What can be allocated on them without swapping, in bytes.
    pub left: Limit,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HugeSample {
    /// The size of one page.
    pub size: u64,
    /// Charged bytes.
    pub usage: u64,
    /// Charged bytes and those promised to mappings; `None` before Linux 5.7.
    pub promised: Option<u64>,
    /// The tightest limit of the cgroup and its ancestors.
    pub limit: Limit,
}

/// Memory usage and limits, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemorySample {
    /// Charged bytes.
    pub usage: u64,
    /// The tightest limit of the cgroup and its ancestors.
    pub limit: Limit,
    /// The smallest rest of any limit of the cgroup and its ancestors: the limit less what is
    /// charged there, siblings included, and cannot be reclaimed.
    pub left: Limit,
    /// The rows of `memory.stat`.
    pub stat: MemoryStat,
    /// Swap; `None` when swap is not accounted.
    pub swap: Option<SwapSample>,
}

/// Swap usage and limit, in bytes, memory not included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwapSample {
    /// Swapped out bytes.
    pub usage: u64,
    /// The tightest limit of the cgroup and its ancestors.
    pub limit: Limit,
    /// The smallest rest of the limit of any ancestor, siblings included.
    pub left: Limit,
}

/// The rows of `memory.stat` that are used, in bytes, children included, under the names of
/// cgroup v2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields carry the kernel's own names")]
pub struct MemoryStat {
    pub anon: u64,
    pub file: u64,
    pub shmem: u64,
    pub file_mapped: u64,
    pub file_dirty: u64,
    pub file_writeback: u64,
    pub swapcached: u64,
    pub anon_thp: u64,
    pub file_thp: u64,
    pub shmem_thp: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub slab_reclaimable: u64,
    pub slab_unreclaimable: u64,
    pub kernel_stack: u64,
    pub pagetables: u64,
    pub sec_pagetables: u64,
    pub percpu: u64,
    pub zswap: u64,
    pub zswapped: u64,
}

impl Sample {
    /// Adds the quota of a cgroup; the nearest first.
    pub(crate) fn add_quota(&mut self, quota: Quota, cgroup: &str) {
        self.quota = Some(match self.quota {
            Some(nearer) => nearer.tighter(quota),
            None => {
                self.limit_of = fnv1a(cgroup.as_bytes());
                quota
            }
        });
    }

    /// Sets the weight, which this cgroup has. Quotas are added before.
    pub(crate) fn set_weight(&mut self, weight: Weight, cgroup: &str) {
        self.weight = Some(weight);
        if self.quota.is_none() {
            self.limit_of = fnv1a(cgroup.as_bytes());
        }
    }
}

impl MemoryStat {
    /// Returns the bytes that can be reclaimed without swapping: page cache without shmem, and
    /// reclaimable slab. At most the usage, behind which the rows lag.
    pub fn reclaimable(&self, usage: u64) -> u64 {
        let file = self.active_file.saturating_add(self.inactive_file).min(self.file);
        file.saturating_add(self.slab_reclaimable).min(usage)
    }
}

/// A CPU bandwidth limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Microseconds of processor time per period.
    pub quota: u64,
    /// The period, in microseconds, never zero.
    pub period: u64,
}

impl Quota {
    /// Makes a quota; `None` for a period of 0.
    pub fn new(quota: u64, period: u64) -> Option<Self> {
        (period > 0).then_some(Self { quota, period })
    }

    /// The tighter of two quotas.
    #[must_use]
    pub fn tighter(self, other: Self) -> Self {
        let own = u128::from(self.quota) * u128::from(other.period);
        let others = u128::from(other.quota) * u128::from(self.period);
        if others < own { other } else { self }
    }

    /// Returns how many processors the quota can keep busy, rounded up, at least one.
    pub fn processors(self) -> usize {
        usize::try_from(self.quota.div_ceil(self.period)).unwrap_or(usize::MAX).max(1)
    }
}

/// A share of processor time among siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// `cpu.shares` of cgroup v1, 2 to 262144.
    Shares(u64),
    /// `cpu.weight` of cgroup v2, 1 to 10000; 0 if `cpu.idle` is set.
    Unified(u64),
}

/// Processor time used, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Busy {
    /// In user mode, niced time not included.
    pub user: u64,
    /// In user mode at low priority, where the kernel tells it apart (cgroup v2, Linux 6.12).
    pub nice: u64,
    /// In the kernel.
    pub system: u64,
    /// Not used: the time for which a quota kept it from running, summed over the machine's
    /// processors. 0 unless the policy shows it.
    pub throttled: u64,
    /// User and system time by processor number, where the kernel gives it (cgroup v1).
    pub per_cpu: Vec<(u64, u64)>,
}

impl Busy {
    /// User, niced and system time together.
    pub fn total(&self) -> u64 {
        self.user.saturating_add(self.nice).saturating_add(self.system)
    }

    /// Returns zero counters, with the allocation of the list kept.
    #[must_use]
    pub fn emptied(mut self) -> Self {
        self.per_cpu.clear();
        Self { per_cpu: self.per_cpu, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_compared_as_ratios_and_rounded_up() {
        let half = Quota::new(50_000, 100_000).unwrap();
        let three_halves = Quota::new(15_000, 10_000).unwrap();
        assert_eq!(half.tighter(three_halves), half);
        assert_eq!(three_halves.tighter(half), half);
        assert_eq!(half.processors(), 1);
        assert_eq!(three_halves.processors(), 2);
        assert_eq!(Quota::new(1, 0), None);
        assert_eq!(Quota::new(u64::MAX, 1).unwrap().processors(), usize::MAX);
    }
}
