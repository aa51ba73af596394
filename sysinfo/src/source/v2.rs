//! cgroup v2. Limits are folded over the ancestors, because v2 shows only what was set at each
//! level. Files: Documentation/admin-guide/cgroup-v2.rst.

use super::{CgroupFile, Source, lineage};
use crate::Error;
use crate::cpuset::CpuSet;
use crate::hierarchy::{Controller, Hierarchies};
use crate::limit::Limit;
use crate::membership::Membership;
use crate::sample::{MemorySample, MemoryStat, Quota, Sample, SwapSample};
use crate::scan;

/// The files of one container in the unified hierarchy.
pub(super) struct Unified {
    memory: Option<MemoryFiles>,
    cpu_max: Vec<CgroupFile>,
    cpu_stat: Option<CgroupFile>,
    cpus: Vec<CgroupFile>,
    threads: Option<CgroupFile>,
}

struct MemoryFiles {
    /// One per level: an ancestor accounts for a cgroup that has no memory controller.
    usage: Vec<CgroupFile>,
    stat: Vec<CgroupFile>,
    max: Vec<CgroupFile>,
    swap_usage: Vec<CgroupFile>,
    swap_max: Vec<CgroupFile>,
}

impl Unified {
    /// `None` when the unified hierarchy has none of our controllers.
    pub(super) fn new(hierarchies: &Hierarchies, membership: &Membership) -> Option<Self> {
        let (mount, controllers) = hierarchies.unified.as_ref()?;
        if controllers.is_empty() {
            return None;
        }
        let cgroup = mount.relative(membership.unified()?)?;
        let file = |cgroup: &str, name: &str| CgroupFile::new(mount, cgroup, name);
        let levels = |name: &str| lineage(cgroup).map(|level| file(level, name)).collect();
        let has = |controller| controllers.contains(&controller);
        Some(Self {
            memory: has(Controller::Memory).then(|| MemoryFiles {
                usage: levels("memory.current"),
                stat: levels("memory.stat"),
                max: levels("memory.max"),
                swap_usage: levels("memory.swap.current"),
                swap_max: levels("memory.swap.max"),
            }),
            cpu_max: if has(Controller::Cpu) { levels("cpu.max") } else { Vec::new() },
            cpu_stat: has(Controller::Cpuacct).then(|| file(cgroup, "cpu.stat")),
            cpus: if has(Controller::Cpuset) {
                levels("cpuset.cpus.effective")
            } else {
                Vec::new()
            },
            threads: has(Controller::Pids).then(|| file(cgroup, "pids.current")),
        })
    }

    fn files(&mut self) -> impl Iterator<Item = &mut CgroupFile> {
        let memory = self.memory.iter_mut().flat_map(|memory| {
            let MemoryFiles { usage, stat, max, swap_usage, swap_max } = memory;
            usage.iter_mut().chain(stat).chain(max).chain(swap_usage).chain(swap_max)
        });
        memory
            .chain(&mut self.cpu_max)
            .chain(&mut self.cpu_stat)
            .chain(&mut self.cpus)
            .chain(&mut self.threads)
    }
}

impl Source for Unified {
    fn sample(&mut self, sample: &mut Sample, buffer: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(files) = &mut self.memory {
            sample.memory = files.sample(buffer)?;
        }
        for level in &mut self.cpu_max {
            if let Some(quota) = level.read(buffer)?.and_then(quota) {
                sample.quota = Some(sample.quota.map_or(quota, |tightest| tightest.tighter(quota)));
            }
        }
        if let Some(text) = read(&mut self.cpu_stat, buffer)? {
            for (key, microseconds) in scan::pairs(text) {
                let time = microseconds.saturating_mul(1000);
                match key {
                    b"user_usec" => sample.busy.user = time,
                    b"system_usec" => sample.busy.system = time,
                    b"nice_usec" => sample.busy.nice = time,
                    _ => {}
                }
            }
            // user_usec includes niced time.
            sample.busy.user = sample.busy.user.saturating_sub(sample.busy.nice);
        }
        for level in &mut self.cpus {
            if let Some(cpus) = level.read(buffer)?.and_then(CpuSet::parse) {
                sample.cpus = Some(cpus);
                break;
            }
        }
        if let Some(text) = read(&mut self.threads, buffer)? {
            sample.threads = scan::decimal(text);
        }
        Ok(())
    }

    fn close(&mut self) {
        self.files().for_each(CgroupFile::close);
    }
}

impl MemoryFiles {
    fn sample(&mut self, buffer: &mut Vec<u8>) -> Result<Option<MemorySample>, Error> {
        let Some((level, usage)) = nearest(&mut self.usage, buffer, scan::decimal)? else {
            return Ok(None);
        };
        let stat = self.stat[level].read(buffer)?.map_or_else(MemoryStat::default, stat);
        let mut limit = Limit::Unlimited;
        for level in &mut self.max {
            limit = limit.min(level.read(buffer)?.and_then(scan::limit).unwrap_or_default());
        }
        let mut swap = None;
        if let Some((_, usage)) = nearest(&mut self.swap_usage, buffer, scan::decimal)? {
            let mut limit = Limit::Unlimited;
            for level in &mut self.swap_max {
                limit = limit.min(level.read(buffer)?.and_then(scan::limit).unwrap_or_default());
            }
            swap = Some(SwapSample { usage, limit });
        }
        Ok(Some(MemorySample { usage, limit, stat, swap }))
    }
}

/// The value at the nearest level that has the file, and which level that is.
fn nearest<T>(
    levels: &mut [CgroupFile],
    buffer: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<(usize, T)>, Error> {
    for (index, level) in levels.iter_mut().enumerate() {
        if let Some(value) = level.read(buffer)?.and_then(&parse) {
            return Ok(Some((index, value)));
        }
    }
    Ok(None)
}

fn read<'b>(
    file: &mut Option<CgroupFile>,
    buffer: &'b mut Vec<u8>,
) -> Result<Option<&'b [u8]>, Error> {
    file.as_mut().map_or(Ok(None), |file| file.read(buffer))
}

/// `max 100000` or `50000 100000`
fn quota(text: &[u8]) -> Option<Quota> {
    let mut words = scan::words(text);
    let Limit::At(quota) = scan::limit(words.next()?)? else { return None };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas() {
        assert_eq!(quota(b"max 100000\n"), None);
        assert_eq!(quota(b"150000 100000\n"), Quota::new(150_000, 100_000));
        assert_eq!(quota(b"\n"), None);
    }

    #[test]
    fn rows_that_start_alike_are_told_apart() {
        let rows = stat(b"anon 1\nfile 2\nfile_mapped 3\nanon_thp 4\nnew_row 5\n");
        assert_eq!((rows.anon, rows.file, rows.file_mapped, rows.anon_thp), (1, 2, 3, 4));
    }
}
