//! Numbers that are derived from samples.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::host::{HostTexts, HugePool};
use crate::sample::{MemoryStat, NodeSample, SwapSample};
use crate::topology::{NodeAttributes, Topology};

fn host() -> Host {
    Host::parse(HostTexts {
        meminfo: b"MemTotal: 1048576 kB\nMemFree: 524288 kB\nMemAvailable: 600000 kB\n\
                   Cached: 100000 kB\nSwapTotal: 1024 kB\nSwapFree: 512 kB\n",
        ..HostTexts::default()
    })
}

fn limited(limit: Limit, usage: u64, stat: MemoryStat) -> Sample {
    let memory = MemorySample { usage, limit, stat, ..MemorySample::default() };
    Sample { memory: Some(memory), ..Sample::default() }
}

#[test]
fn page_cache_and_slab_are_available() {
    let stat = MemoryStat {
        file: 40 << 20,
        active_file: 30 << 20,
        inactive_file: 10 << 20,
        slab_reclaimable: 5 << 20,
        ..MemoryStat::default()
    };
    let memory = memory(&limited(Limit::At(256 << 20), 100 << 20, stat), &host());
    assert_eq!(memory.total, 256 << 20);
    assert_eq!(memory.free, 156 << 20);
    assert_eq!(memory.available, 201 << 20);
}

#[test]
fn memory_used_by_siblings_or_the_machine_is_not_available() {
    let stat = MemoryStat { file: 8 << 20, inactive_file: 8 << 20, ..MemoryStat::default() };
    let mut sample = limited(Limit::At(300 << 20), 10 << 20, stat);
    let mut shown = |left| {
        sample.memory.as_mut().unwrap().left = left;
        let shown = memory(&sample, &host());
        (shown.total >> 20, shown.free >> 20, shown.available >> 20)
    };
    assert_eq!(shown(Limit::Unlimited), (300, 290, 298));
    assert_eq!(shown(Limit::At(295 << 20)), (300, 290, 295));
    assert_eq!(shown(Limit::At(90 << 20)), (300, 90, 90));
    assert_eq!(shown(Limit::At(0)), (300, 0, 0));
    let unlimited = limited(Limit::Unlimited, 10 << 20, stat);
    let shown = memory(&unlimited, &host());
    assert_eq!((shown.total, shown.available), (1 << 30, 600_000 << 10));
}

#[test]
fn a_container_has_no_more_than_the_nodes_it_is_bound_to() {
    let mut host = host();
    let node = |number, memory| NodeAttributes { number, memory, ..NodeAttributes::default() };
    let nodes = vec![node(0, 262_144), node(1, 786_432)];
    host.topology = Arc::new(Topology { nodes, ..Topology::default() });
    let mut sample = limited(Limit::Unlimited, 10 << 20, MemoryStat::default());
    let allowed = [0].into_iter().collect();
    sample.nodes = Some(NodeSample { allowed, left: Limit::At(90 << 20) });
    let shown = memory(&sample, &host);
    assert_eq!((shown.total >> 20, shown.free >> 20, shown.available >> 20), (256, 90, 90));
    sample.memory = None;
    assert_eq!(memory(&sample, &host).total, 256 << 20);
    let nodes = vec![node(0, 2 << 20)];
    host.topology = Arc::new(Topology { nodes, ..Topology::default() });
    assert_eq!(memory(&sample, &host).total, 1 << 30, "no more than the machine");
}

#[test]
fn huge_pages_of_the_machine_are_in_the_total_and_never_free() {
    let host = Host::parse(HostTexts {
        meminfo: b"MemTotal: 1048576 kB\nMemAvailable: 1000000 kB\nHugetlb: 262144 kB\n",
        ..HostTexts::default()
    });
    let shown = |limit| {
        let shown = memory(&limited(limit, 1 << 20, MemoryStat::default()), &host);
        (shown.total >> 20, shown.free >> 20, shown.huge_only >> 20)
    };
    assert_eq!(shown(Limit::Unlimited), (1024, 767, 256));
    assert_eq!(shown(Limit::At(800 << 20)), (800, 767, 32));
    assert_eq!(shown(Limit::At(512 << 20)), (512, 511, 0));
}

#[test]
fn a_container_whose_limit_is_not_set_yet_has_what_the_machine_has() {
    let stat = MemoryStat::default();
    assert_eq!(memory(&limited(Limit::At(0), 1 << 20, stat), &host()).total, 1 << 30);
}

#[test]
fn only_cached_pages_can_be_reclaimed_and_only_what_is_used() {
    let stat = MemoryStat { file: 8, active_file: 6, inactive_file: 6, ..MemoryStat::default() };
    assert_eq!((stat.reclaimable(100), stat.reclaimable(5)), (8, 5));
    let more = MemoryStat { slab_reclaimable: 4, ..stat };
    assert_eq!((more.reclaimable(100), more.reclaimable(10)), (12, 10));
}

#[test]
fn without_a_controller_everything_is_the_machines() {
    let memory = memory(&Sample::default(), &host());
    assert_eq!((memory.total, memory.free), (1 << 30, 1 << 29));
    assert_eq!(swap(&Sample::default(), &host(), SwapPolicy::Limit).free, 512 << 10);
}

#[test]
fn swap_is_capped_by_the_machine_and_never_negative() {
    let mut sample = limited(Limit::At(1 << 28), 0, MemoryStat::default());
    let memory = sample.memory.as_mut().unwrap();
    memory.swap = Some(SwapSample { usage: 2 << 20, ..SwapSample::default() });
    let shown = swap(&sample, &host(), SwapPolicy::Limit);
    assert_eq!((shown.total, shown.free), (1 << 20, 0));
}

#[test]
fn huge_pages_are_those_of_the_pool_up_to_the_limit() {
    let mut host = host();
    host.huge_pools = vec![
        HugePool { size: 2 << 20, pages: 100, is_default: true },
        HugePool { size: 1 << 30, pages: 4, is_default: false },
    ];
    let mut sample = limited(Limit::At(1 << 28), 0, MemoryStat::default());
    let shown = memory(&sample, &host);
    assert_eq!((shown.huge_total, shown.huge_bytes), (0, 0), "nothing accounts for them");
    let huge = |size, limit| HugeSample { size, usage: size, promised: Some(3 * size), limit };
    sample.huge = vec![huge(2 << 20, Limit::At(13 << 20)), huge(1 << 30, Limit::Unlimited)];
    let shown = memory(&sample, &host);
    assert_eq!((shown.huge_total, shown.huge_free, shown.huge_reserved), (6, 5, 2));
    assert_eq!(shown.huge_bytes, (12 << 20) + (4 << 30));
    sample.memory = None;
    assert_eq!(memory(&sample, &host).huge_total, 6);
    sample.huge[0].promised = Some(100 << 20);
    assert_eq!(memory(&sample, &host).huge_reserved, 5, "no more than are free");
}

#[test]
fn policies_of_swap() {
    let mut sample = limited(Limit::At(1 << 28), 0, MemoryStat::default());
    let of = |sample: &Sample, policy| {
        let shown = swap(sample, &host(), policy);
        (shown.total, shown.free)
    };
    assert_eq!(of(&sample, SwapPolicy::Limit), (0, 0), "swap is not accounted");
    assert_eq!(of(&sample, SwapPolicy::Host), (1 << 20, 512 << 10), "others use the rest");
    let memory = sample.memory.as_mut().unwrap();
    memory.swap =
        Some(SwapSample { usage: 64 << 10, limit: Limit::At(256 << 10), left: Limit::Unlimited });
    assert_eq!(of(&sample, SwapPolicy::Limit), (256 << 10, 192 << 10));
    assert_eq!(of(&sample, SwapPolicy::Host), (1 << 20, 512 << 10));
    let left = |sample: &mut Sample, left| {
        sample.memory.as_mut().unwrap().swap.as_mut().unwrap().left = left;
    };
    left(&mut sample, Limit::At(8 << 10));
    assert_eq!(of(&sample, SwapPolicy::Limit), (256 << 10, 8 << 10), "a limit above is near");
    left(&mut sample, Limit::Unlimited);
    assert_eq!(of(&sample, SwapPolicy::None), (0, 0));
    assert_eq!(of(&Sample::default(), SwapPolicy::None), (0, 0));
}

/// Rows of any size, small ones as often as large ones.
fn any_stat() -> impl Strategy<Value = MemoryStat> {
    proptest::array::uniform23((any::<u64>(), 0..64)).prop_map(|rows| {
        let mut rows = rows.into_iter().map(|(row, scale)| row >> scale);
        let mut next = || rows.next().unwrap_or_default();
        MemoryStat {
            anon: next(),
            file: next(),
            shmem: next(),
            file_mapped: next(),
            file_dirty: next(),
            file_writeback: next(),
            swapcached: next(),
            anon_thp: next(),
            file_thp: next(),
            shmem_thp: next(),
            inactive_anon: next(),
            active_anon: next(),
            inactive_file: next(),
            active_file: next(),
            unevictable: next(),
            slab_reclaimable: next(),
            slab_unreclaimable: next(),
            kernel_stack: next(),
            pagetables: next(),
            sec_pagetables: next(),
            percpu: next(),
            zswap: next(),
            zswapped: next(),
        }
    })
}

proptest! {
    #[test]
    fn invariants_hold_for_any_numbers_of_the_machine(
        kib in proptest::array::uniform7((any::<u64>(), 14..64)),
    ) {
        let [total, free, available, cached, huge, swap, swap_free] =
            kib.map(|(kib, scale)| kib >> scale);
        let meminfo = format!(
            "MemTotal: {total} kB\nMemFree: {free} kB\nMemAvailable: {available} kB\n\
             Cached: {cached} kB\nHugetlb: {huge} kB\nSwapTotal: {swap} kB\n\
             SwapFree: {swap_free} kB\n"
        );
        let texts = HostTexts { meminfo: meminfo.as_bytes(), ..HostTexts::default() };
        let host = Host::parse(texts);
        let shown = memory(&Sample::default(), &host);
        prop_assert!(shown.free <= shown.available && shown.available <= shown.total);
        prop_assert!(shown.free + shown.used <= shown.total);
        prop_assert!(shown.cached <= shown.used && shown.huge_only <= shown.used);
        let swap = super::swap(&Sample::default(), &host, SwapPolicy::Limit);
        prop_assert!(swap.free + swap.used <= swap.total);
    }

    #[test]
    fn invariants_hold_for_any_counters(
        limit: Option<u64>, usage: u64, stat in any_stat(), scale in 0_u32..63,
        swap_usage: Option<u64>, swap_limit: Option<u64>, left: Option<u64>,
    ) {
        // Small numbers as often as large ones.
        let (usage, swap_usage) = (usage >> scale, swap_usage.map(|usage| usage >> scale));
        let limit_of = |limit: Option<u64>| limit.map_or(Limit::Unlimited, Limit::At);
        let mut sample = limited(limit_of(limit.map(|limit| limit >> scale)), usage, stat);
        if let Some(memory) = &mut sample.memory {
            let limit = limit_of(swap_limit.map(|limit| limit >> scale));
            let left = limit_of(left.map(|left| left >> scale));
            memory.left = left;
            memory.swap = swap_usage.map(|usage| SwapSample { usage, limit, left });
        }
        let shown = memory(&sample, &host());
        prop_assert!(shown.total > 0 && shown.total <= host().memory_total);
        prop_assert!(shown.free <= shown.available && shown.available <= shown.total);
        prop_assert!(shown.free + shown.used <= shown.total);
        prop_assert!(shown.available <= 600_000 << 10, "the machine's");
        prop_assert!(shown.cached + shown.slab_reclaimable + shown.slab_unreclaimable <= shown.used);
        prop_assert!(shown.shmem <= shown.cached);
        for part in [
            shown.active_anon, shown.inactive_anon, shown.active_file, shown.inactive_file,
            shown.unevictable, shown.anon, shown.mapped, shown.dirty, shown.writeback,
            shown.kernel_reclaimable, shown.kernel_stack, shown.page_tables,
            shown.secondary_page_tables, shown.percpu, shown.anon_huge, shown.shmem_huge,
            shown.file_huge,
        ] {
            prop_assert!(part <= shown.used);
        }
        for policy in [SwapPolicy::Limit, SwapPolicy::Host, SwapPolicy::None] {
            let swap = swap(&sample, &host(), policy);
            prop_assert!(swap.free <= swap.total && swap.total <= host().swap_total);
            let used = swap.total - swap.free;
            prop_assert!(swap.cached <= used && swap.zswapped <= used);
            prop_assert!(swap.zswap <= shown.used && swap.cached <= usage);
        }
    }
}
