//! A machine and a container for the tests of the renderers.

use std::sync::Arc;

use ambit_sysinfo::view::{Clock, Cpu, Load, Memory, Origin, Swap, Tasks, Times};
use ambit_sysinfo::{CpuSet, Host, HostTexts, View};
use procfs_core::{ExplicitSystemInfo, SystemInfoInterface};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/meminfo` of a machine with kernel 6.18.
pub(crate) const MEMINFO: &str = include_str!("../tests/fixtures/meminfo");
/// `/proc/cpuinfo` of the same machine.
pub(crate) const CPUINFO: &str = include_str!("../tests/fixtures/cpuinfo");

/// A container with processors 0 and 2, every number different.
pub(crate) fn view() -> View {
    const MIB: u64 = 1 << 20;
    let host = Host::parse(HostTexts {
        meminfo: MEMINFO.as_bytes(),
        cpuinfo: CPUINFO.as_bytes(),
        stat: b"cpu  1\ncpu0 1\ncpu1 1\nbtime 1795476668\n",
        online: b"0-1\n",
    });
    let times = |user, system, idle| Times { user, system, idle, ..Times::default() };
    View {
        origin: Origin::Container,
        memory: Memory {
            total: 256 * MIB,
            free: 100 * MIB,
            available: 150 * MIB,
            used: 156 * MIB,
            cached: 60 * MIB,
            active_anon: 11 * MIB,
            inactive_anon: 12 * MIB,
            active_file: 13 * MIB,
            inactive_file: 14 * MIB,
            unevictable: 15 * MIB,
            anon: 16 * MIB,
            mapped: 17 * MIB,
            shmem: 18 * MIB,
            dirty: 19 * MIB,
            writeback: 20 * MIB,
            slab_reclaimable: 21 * MIB,
            slab_unreclaimable: 22 * MIB,
            kernel_reclaimable: 23 * MIB,
            kernel_stack: 24 * MIB,
            page_tables: 25 * MIB,
            secondary_page_tables: 26 * MIB,
            percpu: 27 * MIB,
            anon_huge: 28 * MIB,
            shmem_huge: 29 * MIB,
            shmem_pmd_mapped: 30 * MIB,
            file_huge: 31 * MIB,
            file_pmd_mapped: 32 * MIB,
        },
        swap: Swap {
            total: 64 * MIB,
            free: 40 * MIB,
            cached: MIB,
            zswap: 2 * MIB,
            zswapped: 3 * MIB,
        },
        cpu: Cpu {
            online: CpuSet::parse(b"0,2").unwrap(),
            times: vec![(0, times(10, 4, 450)), (2, times(20, 8, 450))],
            total: times(30, 12, 900),
        },
        tasks: Tasks { total: 9, running: 2, blocked: 1, newest_pid: 77, forks: 123 },
        load: Load { one: 1024, five: 512, fifteen: 256 },
        clock: Clock { uptime: 61_230_000_000, idle: 9_000_000_000, boot_time: host.boot_time },
        host: Arc::new(host),
    }
}

/// The labels of [`MEMINFO`].
pub(crate) fn meminfo_labels() -> impl Iterator<Item = &'static str> {
    MEMINFO.lines().filter_map(|line| Some(line.split_once(':')?.0))
}

/// What a container reads.
pub(crate) fn render(file: &dyn OverlayFile, view: &View) -> String {
    let mut text = Text::new();
    file.render(view, &mut text);
    String::from_utf8(text.as_bytes().to_vec()).unwrap()
}

/// What `procfs-core` wants to know of a system to parse `/proc/stat`.
pub(crate) fn system() -> impl SystemInfoInterface {
    ExplicitSystemInfo {
        boot_time_secs: 0,
        ticks_per_second: 100,
        page_size: 4096,
        is_little_endian: true,
    }
}
