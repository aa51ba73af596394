//! Reads a container's files in cgroup v1 hierarchies. The kernel gives the smallest memory limit
//! of all ancestors (`hierarchical_*` rows of `memory.stat`), but not the smallest quota.
//! Hierarchies may be mounted in any combination, `cpu` and `cpuacct` together or apart. See
//! Documentation/admin-guide/cgroup-v1/. Start reading at [`Legacy::new`].

use ambit_kernel::text::scan;

use super::cpuacct::Cpuacct;
use super::{Cgroup, CgroupFile, Version, left, lineage};
use crate::Error;
use crate::context::Options;
use crate::cpuset::CpuSet;
use crate::hierarchy::{Controller, Hierarchies};
use crate::limit::Limit;
use crate::membership::Membership;
use crate::policy::CpuPolicy;
use crate::sample::{Busy, MemorySample, MemoryStat, Quota, Sample, SwapSample, Weight};

/// The files of one container in v1 hierarchies.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    memory: Option<MemoryFiles>,
    /// Quota and period of each level.
    quotas: Box<[[CgroupFile; 2]]>,
    /// `None` unless the policy shows it.
    shares: Option<CgroupFile>,
    usage: Option<Cpuacct>,
    usage_sum: Option<CgroupFile>,
    /// Effective and configured.
    cpus: Option<[CgroupFile; 2]>,
}

#[derive(Debug)]
struct MemoryFiles {
    usage: CgroupFile,
    stat: CgroupFile,
    kernel: CgroupFile,
    /// Nearest first, without the root.
    ancestors: Box<[Ancestor]>,
    with_swap: CgroupFile,
    swappiness: CgroupFile,
}

#[derive(Debug)]
struct Ancestor {
    limit: CgroupFile,
    usage: CgroupFile,
    stat: CgroupFile,
}

impl Legacy {
    /// `None` if no v1 hierarchy has a [`Controller`].
    pub(super) fn new(
        hierarchies: &Hierarchies,
        membership: &Membership,
        options: &Options,
    ) -> Option<Self> {
        let place = |controller| hierarchies.legacy_cgroup(controller, membership);
        let cgroup =
            |controller| place(controller).map(|(mount, cgroup)| Cgroup::new(mount, cgroup));
        // The root cgroup accounts for the whole machine. For its memory, the machine's own numbers
        // are used, as on v2.
        let limited = place(Controller::Memory).filter(|(_, cgroup)| !cgroup.is_empty());
        let (cpuset, cpuacct) = (cgroup(Controller::Cpuset), cgroup(Controller::Cpuacct));
        let legacy = Self {
            memory: limited.map(|(mount, path)| {
                let own = Cgroup::new(mount, path);
                MemoryFiles {
                    usage: own.file("memory.usage_in_bytes"),
                    stat: own.file("memory.stat"),
                    kernel: own.file("memory.kmem.usage_in_bytes"),
                    ancestors: lineage(path)
                        .skip(1)
                        .filter(|level| !level.is_empty())
                        .map(|level| Cgroup::new(mount, level))
                        .map(|level| Ancestor {
                            limit: level.file("memory.limit_in_bytes"),
                            usage: level.file("memory.usage_in_bytes"),
                            stat: level.file("memory.stat"),
                        })
                        .collect(),
                    with_swap: own.file("memory.memsw.usage_in_bytes"),
                    swappiness: own.file("memory.swappiness"),
                }
            }),
            quotas: place(Controller::Cpu).map_or_else(Box::default, |(mount, path)| {
                lineage(path)
                    .map(|level| Cgroup::new(mount, level))
                    .map(|level| [level.file("cpu.cfs_quota_us"), level.file("cpu.cfs_period_us")])
                    .collect()
            }),
            // The root has no siblings.
            shares: place(Controller::Cpu)
                .filter(|(_, path)| options.cpu_policy == CpuPolicy::Weight && !path.is_empty())
                .map(|(mount, path)| Cgroup::new(mount, path).file("cpu.shares")),
            usage: cpuacct.as_ref().map(Cpuacct::new),
            usage_sum: cpuacct.map(|cgroup| cgroup.file("cpuacct.stat")),
            cpus: cpuset
                .map(|cgroup| [cgroup.file("cpuset.effective_cpus"), cgroup.file("cpuset.cpus")]),
        };
        (!hierarchies.legacy.is_empty()).then_some(legacy)
    }
}

impl Version for Legacy {
    fn memory(&mut self, sample: &mut Sample, buffer: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(files) = &mut self.memory {
            sample.memory = files.sample(buffer)?;
        }
        Ok(())
    }

    fn processors(&mut self, sample: &mut Sample, buffer: &mut Vec<u8>) -> Result<(), Error> {
        for [file, period] in &mut self.quotas {
            let Some(quota) = file.read(buffer)?.and_then(scan::signed) else { continue };
            // -1: no quota.
            let Ok(quota) = u64::try_from(quota) else { continue };
            let Some(period) = period.read(buffer)?.and_then(scan::decimal) else { continue };
            if let Some(quota) = Quota::new(quota, period) {
                sample.add_quota(quota, file.cgroup());
            }
        }
        if let Some(file) = &mut self.shares
            && let Some(shares) = file.read(buffer)?.and_then(scan::decimal)
        {
            sample.set_weight(Weight::Shares(shares), file.cgroup());
        }
        if let Some([effective, configured]) = &mut self.cpus {
            let mut cpus = effective.read(buffer)?.and_then(CpuSet::parse);
            if cpus.as_ref().is_none_or(CpuSet::is_empty) {
                cpus = configured.read(buffer)?.and_then(CpuSet::parse);
            }
            sample.cpus = cpus;
        }
        Ok(())
    }

    fn usage(&mut self, busy: &mut Busy, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let exact = match &mut self.usage {
            Some(files) => files.sample(busy, buffer)?,
            None => false,
        };
        if !exact
            && let Some(file) = &mut self.usage_sum
            && let Some(text) = file.read(buffer)?
        {
            usage_sum(text, busy);
        }
        Ok(())
    }

    fn resume(&mut self, used: &Busy) {
        if let Some(files) = &mut self.usage {
            files.resume(used);
        }
    }

    fn files(&mut self) -> Box<dyn Iterator<Item = &mut CgroupFile> + '_> {
        let memory = self.memory.iter_mut().flat_map(|memory| {
            let MemoryFiles { usage, stat, kernel, ancestors, with_swap, swappiness } = memory;
            let ancestors = ancestors.iter_mut();
            let ancestors =
                ancestors.flat_map(|Ancestor { limit, usage, stat }| [limit, usage, stat]);
            [usage, stat, kernel, with_swap, swappiness].into_iter().chain(ancestors)
        });
        let pairs = self.quotas.iter_mut().chain(&mut self.cpus).flatten();
        let usage = self.usage.iter_mut().flat_map(Cpuacct::files);
        Box::new(
            memory.chain(pairs).chain(usage).chain(&mut self.usage_sum).chain(&mut self.shares),
        )
    }
}

impl MemoryFiles {
    fn sample(&mut self, buffer: &mut Vec<u8>) -> Result<Option<MemorySample>, Error> {
        let Some(usage) = self.usage.read(buffer)?.and_then(scan::decimal) else {
            return Ok(None);
        };
        let Some(text) = self.stat.read(buffer)? else { return Ok(None) };
        let (mut stat, limit, limit_with_swap) = stat(text);
        // No row tells slab from stacks and page tables, nor what of it can be reclaimed.
        stat.slab_unreclaimable = self.kernel.read(buffer)?.and_then(scan::decimal).unwrap_or(0);
        let with_swap = self.with_swap.read(buffer)?.and_then(scan::decimal);
        // With swappiness 0 no page is swapped out any more: the cgroup has no swap beyond its
        // usage.
        let never =
            with_swap.is_some() && self.swappiness.read(buffer)?.and_then(scan::decimal) == Some(0);
        let swap = with_swap.map(|both| swap(usage, both, limit, limit_with_swap, never));
        let reclaimable = stat.reclaimable(usage);
        let both = with_swap.unwrap_or(usage).saturating_sub(reclaimable);
        let mut left = limit.less(usage - reclaimable).min(limit_with_swap.less(both));
        for level in &mut self.ancestors {
            left = left.min(level.left(limit, left, buffer)?);
        }
        Ok(Some(MemorySample { usage, limit, left, stat, swap }))
    }
}

impl Ancestor {
    /// Returns the rest of this level's limit, exact only if it is below `bound`. `tightest` is the
    /// limit that the kernel found over all ancestors: a lower one at this level is not enforced
    /// (`memory.use_hierarchy` is 0, before Linux 5.11).
    fn left(
        &mut self,
        tightest: Limit,
        bound: Limit,
        buffer: &mut Vec<u8>,
    ) -> Result<Limit, Error> {
        let limit = self.limit.read(buffer)?.and_then(scan::decimal).map(Limit::from_v1);
        let limit = limit.filter(|limit| limit.min(tightest) == tightest).unwrap_or_default();
        left(limit, bound, (&mut self.usage, &mut self.stat), |text| stat(text).0, buffer)
    }
}

/// Derives swap from memory and memory+swap, which v1 counts and limits together. The two limits
/// are set one after the other, so that for a moment that of memory+swap can be lower than that of
/// memory.
fn swap(usage: u64, with_swap: u64, memory: Limit, both: Limit, never: bool) -> SwapSample {
    let used = with_swap.saturating_sub(usage);
    let limit = match (both, memory) {
        (Limit::At(both), Limit::At(memory)) => Limit::At(both.saturating_sub(memory)),
        (limit, _) => limit,
    };
    // Ancestors limit memory+swap: swapping out does not change what they leave.
    let limit = if never { limit.min(Limit::At(used)) } else { limit };
    SwapSample { usage: used, limit, left: Limit::Unlimited }
}

/// Parses the rows and both hierarchical limits. Only `total_*` rows include the children.
fn stat(text: &[u8]) -> (MemoryStat, Limit, Limit) {
    let mut stat = MemoryStat::default();
    let (mut limit, mut limit_with_swap) = (Limit::Unlimited, Limit::Unlimited);
    for (key, bytes) in scan::pairs(text) {
        let field = match key {
            b"hierarchical_memory_limit" => {
                limit = Limit::from_v1(bytes);
                continue;
            }
            b"hierarchical_memsw_limit" => {
                limit_with_swap = Limit::from_v1(bytes);
                continue;
            }
            b"total_cache" => &mut stat.file,
            b"total_rss" => &mut stat.anon,
            b"total_rss_huge" => &mut stat.anon_thp,
            b"total_shmem" => &mut stat.shmem,
            b"total_mapped_file" => &mut stat.file_mapped,
            b"total_dirty" => &mut stat.file_dirty,
            b"total_writeback" => &mut stat.file_writeback,
            b"total_swapcached" => &mut stat.swapcached,
            b"total_inactive_anon" => &mut stat.inactive_anon,
            b"total_active_anon" => &mut stat.active_anon,
            b"total_inactive_file" => &mut stat.inactive_file,
            b"total_active_file" => &mut stat.active_file,
            b"total_unevictable" => &mut stat.unevictable,
            _ => continue,
        };
        *field = bytes;
    }
    (stat, limit, limit_with_swap)
}

/// Parses `user` and `system` in USER_HZ ticks, on kernels before 4.9.
fn usage_sum(text: &[u8], busy: &mut Busy) {
    for (key, ticks) in scan::pairs(text) {
        let time = ticks.saturating_mul(crate::clock::TICK);
        match key {
            b"user" => busy.user = time,
            b"system" => busy.system = time,
            _ => {}
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn parse(text: &[u8]) {
    let mut busy = Busy::default();
    super::cpuacct::add(text, &mut busy);
    usage_sum(text, &mut busy);
    let _ = stat(text);
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn sample_of(texts: &[&[u8]; 8]) -> Sample {
    let (stat, limit, both) = stat(texts[2]);
    let usage = scan::decimal(texts[0]);
    let never = scan::decimal(texts[4]) == Some(0);
    let mut sample = Sample {
        memory: usage.map(|usage| MemorySample {
            usage,
            limit,
            left: both,
            stat,
            swap: scan::decimal(texts[3]).map(|with| swap(usage, with, limit, both, never)),
        }),
        ..Sample::default()
    };
    if let (Some(quota), Some(period)) = (scan::signed(texts[5]), scan::decimal(texts[1])) {
        sample.quota = u64::try_from(quota).ok().and_then(|quota| Quota::new(quota, period));
    }
    super::cpuacct::add(texts[6], &mut sample.busy);
    sample
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hierarchical_limits_and_total_rows() {
        let text = b"cache 1\nrss 2\nhierarchical_memory_limit 268435456\n\
                     hierarchical_memsw_limit 9223372036854771712\ntotal_cache 10\ntotal_rss 20\n\
                     total_rss_huge 30\ntotal_mapped_file 40\n";
        let (stat, limit, with_swap) = stat(text);
        assert_eq!((stat.file, stat.anon, stat.anon_thp, stat.file_mapped), (10, 20, 30, 40));
        assert_eq!((limit, with_swap), (Limit::At(268_435_456), Limit::Unlimited));
    }

    proptest! {
        /// In any order of changes of the limits nothing wraps, and swappiness 0 shows no swap
        /// beyond the usage.
        #[test]
        fn swap_never_wraps(usage: u64, with_swap: u64, memory: Option<u64>, both: Option<u64>) {
            let limit = |limit: Option<u64>| limit.map_or(Limit::Unlimited, Limit::At);
            let often = swap(usage, with_swap, limit(memory), limit(both), false);
            let never = swap(usage, with_swap, limit(memory), limit(both), true);
            prop_assert_eq!(often.usage, with_swap.saturating_sub(usage));
            prop_assert!(never.limit.capped_at(u64::MAX) <= never.usage);
            if let (Some(memory), Some(both)) = (memory, both) {
                prop_assert_eq!(often.limit, Limit::At(both.saturating_sub(memory)));
            }
        }
    }
}
