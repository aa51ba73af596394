//! Reads the huge pages of one container: `hugetlb.<size>.*` of v2 or v1.
//!
//! Read only on machines that have a pool of huge pages, which are few. In both versions the files
//! show the limit of one level only, so the smallest of all ancestors is taken. See
//! Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/hugetlb.rst. Start reading at
//! [`HugeFiles::sample`].

use ambit_kernel::text::scan;

use super::{Cgroup, CgroupFile, lineage};
use crate::Error;
use crate::hierarchy::{Controller, Hierarchies};
use crate::host::HugePool;
use crate::limit::Limit;
use crate::membership::Membership;
use crate::sample::HugeSample;

/// The files of one container, for the pools of the machine.
#[derive(Debug, Default)]
pub(crate) struct HugeFiles {
    sizes: Vec<Files>,
}

#[derive(Debug)]
struct Files {
    size: u64,
    usage: CgroupFile,
    promised: CgroupFile,
    limits: Vec<CgroupFile>,
}

impl HugeFiles {
    /// Reads the huge pages of each pool.
    pub(crate) fn sample(
        &mut self,
        pools: &[HugePool],
        hierarchies: &Hierarchies,
        membership: &Membership,
        found: &mut Vec<HugeSample>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        if !pools.iter().map(|pool| pool.size).eq(self.sizes.iter().map(|files| files.size)) {
            let files = |pool: &HugePool| Files::new(pool.size, hierarchies, membership);
            self.sizes = pools.iter().filter_map(files).collect();
        }
        for files in &mut self.sizes {
            let Some(usage) = files.usage.read(buffer)?.and_then(scan::decimal) else { continue };
            let promised = files.promised.read(buffer)?.and_then(scan::decimal);
            let mut limit = Limit::Unlimited;
            for level in &mut files.limits {
                limit = limit.min(level.read(buffer)?.and_then(Limit::parse).unwrap_or_default());
            }
            found.push(HugeSample { size: files.size, usage, promised, limit });
        }
        Ok(())
    }

    pub(crate) fn close(&mut self) {
        self.sizes.clear();
    }
}

impl Files {
    /// `None` without a hugetlb controller, and for the root cgroup, which has no such files.
    fn new(size: u64, hierarchies: &Hierarchies, membership: &Membership) -> Option<Self> {
        let (mount, cgroup, is_unified) =
            hierarchies.cgroup_with(Controller::Hugetlb, membership)?;
        let [usage, promised, limit] = if is_unified {
            ["current", "rsvd.current", "max"]
        } else {
            ["usage_in_bytes", "rsvd.usage_in_bytes", "limit_in_bytes"]
        };
        if cgroup.is_empty() {
            return None;
        }
        let name = name(size);
        let file = |level: &str, file: &str| {
            Cgroup::new(mount, level).file(format!("hugetlb.{name}.{file}"))
        };
        Some(Self {
            size,
            usage: file(cgroup, usage),
            promised: file(cgroup, promised),
            limits: lineage(cgroup).map(|level| file(level, limit)).collect(),
        })
    }
}

/// `2MB`, as `mem_fmt` of `mm/hugetlb_cgroup.c` prints it.
fn name(size: u64) -> String {
    match size {
        0x4000_0000.. => format!("{}GB", size >> 30),
        0x10_0000.. => format!("{}MB", size >> 20),
        _ => format!("{}KB", size >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(mounts: &[u8], cgroup: &[u8], files: &[(&str, &str)]) -> Vec<HugeSample> {
        let (_root, hierarchies) = crate::fixture::hierarchies(mounts, files);
        let pools = [2 << 20, 1 << 30].map(|size| HugePool { size, pages: 8, is_default: false });
        let mut found = Vec::new();
        let membership = Membership::parse(cgroup);
        let mut read = HugeFiles::default();
        for _ in 0..2 {
            found.clear();
            read.sample(&pools, &hierarchies, &membership, &mut found, &mut Vec::new()).unwrap();
        }
        found
    }

    #[test]
    fn names_of_sizes() {
        assert_eq!(
            [64 << 10, 2 << 20, 512 << 20, 16 << 30].map(name),
            ["64KB", "2MB", "512MB", "16GB"]
        );
    }

    #[test]
    fn the_tightest_limit_of_all_levels_in_v2() {
        let files = [
            ("c/cgroup.controllers", "hugetlb\n"),
            ("c/a/hugetlb.2MB.max", "8388608\n"),
            ("c/a/b/hugetlb.2MB.max", "max\n"),
            ("c/a/b/hugetlb.2MB.current", "4194304\n"),
            ("c/a/b/hugetlb.2MB.rsvd.current", "6291456\n"),
        ];
        let found = sample(b"30 1 0:1 / /c rw - cgroup2 cgroup2 rw\n", b"0::/a/b\n", &files);
        let expected = HugeSample {
            size: 2 << 20,
            usage: 4 << 20,
            promised: Some(6 << 20),
            limit: Limit::At(8 << 20),
        };
        assert_eq!(found, [expected], "and nothing accounts for 1 GiB");
    }

    #[test]
    fn the_tightest_limit_of_all_levels_in_v1() {
        let files = [
            ("h/hugetlb.1GB.limit_in_bytes", "9223372035781033984\n"),
            ("h/a/hugetlb.1GB.limit_in_bytes", "2147483648\n"),
            ("h/a/hugetlb.1GB.usage_in_bytes", "1073741824\n"),
        ];
        let mounts = b"30 1 0:1 / /h rw - cgroup cgroup rw,hugetlb\n";
        let found = sample(mounts, b"3:hugetlb:/a\n", &files);
        let expected =
            HugeSample { size: 1 << 30, usage: 1 << 30, promised: None, limit: Limit::At(2 << 30) };
        assert_eq!(found, [expected]);
    }
}
