//! Reads a container's files in the unified hierarchy. v2 shows only the limit of each level, so
//! the smallest of all ancestors is computed here. See Documentation/admin-guide/cgroup-v2.rst.
//! Start reading at [`Unified::new`].

use ambit_kernel::text::scan;

use super::niced::Niced;
use super::{Cgroup, CgroupFile, Version, lineage};
use crate::Error;
use crate::context::Options;
use crate::cpuset::CpuSet;
use crate::hierarchy::{Controller, Hierarchies};
use crate::limit::Limit;
use crate::membership::Membership;
use crate::policy::{CpuPolicy, MemoryLimit};
use crate::sample::{Busy, MemorySample, MemoryStat, Quota, Sample, SwapSample, Weight};

/// The files of one container in the unified hierarchy.
#[derive(Debug)]
pub(super) struct Unified {
    memory: Option<MemoryFiles>,
    cpu_max: Vec<CgroupFile>,
    /// Nearest first; empty unless the policy shows them.
    weights: Vec<CgroupFile>,
    cpu_stat: Option<CgroupFile>,
    niced: Niced,
    cpus: Vec<CgroupFile>,
}

#[derive(Debug)]
struct MemoryFiles {
    /// Nearest first, without the root, which has no such files.
    levels: Vec<Level>,
}

/// The files of a cgroup or of one of its ancestors.
#[derive(Debug)]
struct Level {
    usage: CgroupFile,
    stat: CgroupFile,
    max: CgroupFile,
    /// `None` unless `memory.high` counts as a limit.
    high: Option<CgroupFile>,
    swap_usage: CgroupFile,
    swap_max: CgroupFile,
    /// The limit at the last reading.
    limit: Limit,
}

impl Unified {
    /// `None` if the unified hierarchy has no [`Controller`].
    pub(super) fn new(
        hierarchies: &Hierarchies,
        membership: &Membership,
        options: &Options,
    ) -> Option<Self> {
        let (mount, controllers) = hierarchies.unified.as_ref()?;
        if controllers.is_empty() {
            return None;
        }
        let cgroup = mount.relative(membership.unified()?)?;
        let levels: Vec<_> = lineage(cgroup).map(|level| Cgroup::new(mount, level)).collect();
        // The root is last.
        let (own, below_root) = (&levels[0], &levels[..levels.len() - 1]);
        let has = |controller| controllers.contains(&controller);
        Some(Self {
            memory: has(Controller::Memory).then(|| MemoryFiles {
                levels: below_root
                    .iter()
                    .map(|level| Level {
                        usage: level.file("memory.current"),
                        stat: level.file("memory.stat"),
                        max: level.file("memory.max"),
                        high: match options.memory_limit {
                            MemoryLimit::Max => None,
                            MemoryLimit::High => Some(level.file("memory.high")),
                        },
                        swap_usage: level.file("memory.swap.current"),
                        swap_max: level.file("memory.swap.max"),
                        limit: Limit::Unlimited,
                    })
                    .collect(),
            }),
            cpu_max: if has(Controller::Cpu) {
                below_root.iter().map(|level| level.file("cpu.max")).collect()
            } else {
                Vec::new()
            },
            weights: if has(Controller::Cpu) && options.cpu_policy == CpuPolicy::Weight {
                below_root.iter().map(|level| level.file("cpu.weight")).collect()
            } else {
                Vec::new()
            },
            cpu_stat: has(Controller::Cpuacct).then(|| own.file("cpu.stat")),
            niced: Niced::default(),
            cpus: if has(Controller::Cpuset) {
                levels.iter().map(|level| level.file("cpuset.cpus.effective")).collect()
            } else {
                Vec::new()
            },
        })
    }
}

impl Version for Unified {
    fn memory(&mut self, sample: &mut Sample, buffer: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(files) = &mut self.memory {
            sample.memory = files.sample(buffer)?;
        }
        Ok(())
    }

    fn processors(&mut self, sample: &mut Sample, buffer: &mut Vec<u8>) -> Result<(), Error> {
        for level in &mut self.cpu_max {
            if let Some(quota) = level.read(buffer)?.and_then(quota) {
                sample.add_quota(quota, level.cgroup());
            }
        }
        for level in &mut self.weights {
            if let Some(weight) = level.read(buffer)?.and_then(scan::decimal) {
                sample.set_weight(Weight::Unified(weight), level.cgroup());
                break;
            }
        }
        for level in &mut self.cpus {
            if let Some(cpus) = level.read(buffer)?.and_then(CpuSet::parse) {
                sample.cpus = Some(cpus);
                break;
            }
        }
        Ok(())
    }

    fn usage(&mut self, busy: &mut Busy, buffer: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(file) = &mut self.cpu_stat
            && let Some(text) = file.read(buffer)?
        {
            self.niced.cpu_stat(text, busy);
        }
        Ok(())
    }

    fn resume(&mut self, used: &Busy) {
        self.niced = Niced::resumed(used);
    }

    fn files(&mut self) -> Box<dyn Iterator<Item = &mut CgroupFile> + '_> {
        let levels = self.memory.iter_mut().flat_map(|memory| &mut memory.levels);
        let memory = levels.flat_map(|level| {
            let Level { usage, stat, max, high, swap_usage, swap_max, limit: _ } = level;
            [usage, stat, max, swap_usage, swap_max].into_iter().chain(high)
        });
        let cpu = self.cpu_max.iter_mut().chain(&mut self.weights).chain(&mut self.cpu_stat);
        Box::new(memory.chain(cpu).chain(&mut self.cpus))
    }
}

impl MemoryFiles {
    fn sample(&mut self, buffer: &mut Vec<u8>) -> Result<Option<MemorySample>, Error> {
        // Without a memory controller in the cgroup itself, the nearest ancestor with one accounts
        // for it.
        let Some((own, usage)) = self.nearest(|level| &mut level.usage, buffer)? else {
            return Ok(None);
        };
        let stat = self.levels[own].stat.read(buffer)?.map_or_else(MemoryStat::default, stat);
        let mut limit = Limit::Unlimited;
        for level in &mut self.levels {
            level.limit = level.limit(buffer)?;
            limit = limit.min(level.limit);
        }
        // Ancestors are also charged for siblings, so they can only leave less.
        let mut left = limit.less(usage - stat.reclaimable(usage));
        for Level { limit, usage, stat: rows, .. } in &mut self.levels[own + 1..] {
            left = left.min(super::left(*limit, left, (usage, rows), self::stat, buffer)?);
        }
        let swap = self.swap(buffer)?;
        Ok(Some(MemorySample { usage, limit, left, stat, swap }))
    }

    fn swap(&mut self, buffer: &mut Vec<u8>) -> Result<Option<SwapSample>, Error> {
        let Some((own, usage)) = self.nearest(|level| &mut level.swap_usage, buffer)? else {
            return Ok(None);
        };
        let mut swap = SwapSample { usage, ..SwapSample::default() };
        for (index, level) in self.levels.iter_mut().enumerate() {
            let limit = level.swap_max.read(buffer)?.and_then(Limit::parse).unwrap_or_default();
            swap.limit = swap.limit.min(limit);
            if index > own
                && limit != Limit::Unlimited
                && let Some(usage) = level.swap_usage.read(buffer)?.and_then(scan::decimal)
            {
                swap.left = swap.left.min(limit.less(usage));
            }
        }
        Ok(Some(swap))
    }

    /// Returns the value of the nearest level that has the file, and the index of that level.
    fn nearest(
        &mut self,
        file: impl Fn(&mut Level) -> &mut CgroupFile,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<(usize, u64)>, Error> {
        for (index, level) in self.levels.iter_mut().enumerate() {
            if let Some(value) = file(level).read(buffer)?.and_then(scan::decimal) {
                return Ok(Some((index, value)));
            }
        }
        Ok(None)
    }
}

impl Level {
    fn limit(&mut self, buffer: &mut Vec<u8>) -> Result<Limit, Error> {
        let mut limit = self.max.read(buffer)?.and_then(Limit::parse).unwrap_or_default();
        if let Some(high) = &mut self.high {
            limit = limit.min(high.read(buffer)?.and_then(Limit::parse).unwrap_or_default());
        }
        Ok(limit)
    }
}

/// `max 100000` or `50000 100000`
fn quota(text: &[u8]) -> Option<Quota> {
    let mut words = scan::words(text);
    let Limit::At(quota) = Limit::parse(words.next()?)? else { return None };
    Quota::new(quota, scan::decimal(words.next()?)?)
}

fn stat(text: &[u8]) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, bytes) in scan::pairs(text) {
        let field = match key {
            b"anon" => &mut stat.anon,
            b"file" => &mut stat.file,
            b"shmem" => &mut stat.shmem,
            b"file_mapped" => &mut stat.file_mapped,
            b"file_dirty" => &mut stat.file_dirty,
            b"file_writeback" => &mut stat.file_writeback,
            b"swapcached" => &mut stat.swapcached,
            b"anon_thp" => &mut stat.anon_thp,
            b"file_thp" => &mut stat.file_thp,
            b"shmem_thp" => &mut stat.shmem_thp,
            b"inactive_anon" => &mut stat.inactive_anon,
            b"active_anon" => &mut stat.active_anon,
            b"inactive_file" => &mut stat.inactive_file,
            b"active_file" => &mut stat.active_file,
            b"unevictable" => &mut stat.unevictable,
            b"slab_reclaimable" => &mut stat.slab_reclaimable,
            b"slab_unreclaimable" => &mut stat.slab_unreclaimable,
            b"kernel_stack" => &mut stat.kernel_stack,
            b"pagetables" => &mut stat.pagetables,
            b"sec_pagetables" => &mut stat.sec_pagetables,
            b"percpu" => &mut stat.percpu,
            b"zswap" => &mut stat.zswap,
            b"zswapped" => &mut stat.zswapped,
            _ => continue,
        };
        *field = bytes;
    }
    stat
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn parse(text: &[u8]) {
    let _ = (quota(text), stat(text));
    Niced::default().cpu_stat(text, &mut Busy::default());
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn sample_of(texts: &[&[u8]; 8]) -> Sample {
    let limit = |text| Limit::parse(text).unwrap_or_default();
    let swap = scan::decimal(texts[3]).map(|usage| SwapSample {
        usage,
        limit: limit(texts[4]),
        left: limit(texts[1]),
    });
    let mut sample = Sample {
        memory: scan::decimal(texts[0]).map(|usage| MemorySample {
            usage,
            limit: limit(texts[1]),
            left: limit(texts[3]),
            stat: stat(texts[2]),
            swap,
        }),
        quota: quota(texts[5]),
        ..Sample::default()
    };
    Niced::default().cpu_stat(texts[6], &mut sample.busy);
    sample
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;
    use crate::fixture;
    use crate::stats::StatSet;

    #[test]
    fn quotas() {
        assert_eq!(quota(b"max 100000\n"), None);
        assert_eq!(quota(b"150000 100000\n"), Quota::new(150_000, 100_000));
        assert_eq!(quota(b"\n"), None);
    }

    #[test]
    fn rows_with_a_common_prefix_are_distinguished() {
        let rows = stat(b"anon 1\nfile 2\nfile_mapped 3\nanon_thp 4\nnew_row 5\n");
        assert_eq!((rows.anon, rows.file, rows.file_mapped, rows.anon_thp), (1, 2, 3, 4));
    }

    fn sample(cgroup: &str, files: &[(String, &str)], options: &Options) -> Sample {
        let mounts = b"30 1 0:1 / /c rw - cgroup2 cgroup2 rw\n";
        let (_root, hierarchies) = fixture::hierarchies(mounts, files);
        let membership = Membership::parse(format!("0::{cgroup}\n").as_bytes());
        let mut sample = Sample::default();
        let mut source = Source::new(&hierarchies, &membership, options);
        source.sample(StatSet::BASE, &mut sample, &mut Vec::new()).unwrap();
        sample
    }

    #[test]
    fn memory_high_counts_by_the_policy_high() {
        let mut files = vec![("c/cgroup.controllers".to_owned(), "memory\n")];
        for (level, high, max) in [("c/a", "1048576\n", "4194304\n"), ("c/a/b", "max\n", "max\n")] {
            files.push((format!("{level}/memory.current"), "4096\n"));
            files.push((format!("{level}/memory.high"), high));
            files.push((format!("{level}/memory.max"), max));
        }
        let limit = |memory_limit| {
            let options = Options { memory_limit, ..Options::default() };
            sample("/a/b", &files, &options).memory.unwrap().limit
        };
        assert_eq!(limit(MemoryLimit::Max), Limit::At(4 << 20));
        assert_eq!(limit(MemoryLimit::High), Limit::At(1 << 20));
    }

    #[test]
    fn a_limit_at_any_of_64_levels_counts() {
        let mut files = vec![("c/cgroup.controllers".to_owned(), "memory cpu\n")];
        for level in 0..64 {
            let cgroup = format!("c{}", "/x".repeat(level + 1));
            files.push((format!("{cgroup}/memory.current"), "4096\n"));
            let limit = if level == 31 { "1048576\n" } else { "max\n" };
            files.push((format!("{cgroup}/memory.max"), limit));
            let quota = if level == 7 { "50000 100000\n" } else { "max 100000\n" };
            files.push((format!("{cgroup}/cpu.max"), quota));
        }
        let sample = sample(&"/x".repeat(64), &files, &Options::default());
        assert_eq!(sample.memory.unwrap().limit, Limit::At(1 << 20));
        assert_eq!(sample.quota, Quota::new(50_000, 100_000));
        assert_eq!(sample.limit_of, crate::hash::fnv1a(b"x/x/x/x/x/x/x/x"));
    }
}
