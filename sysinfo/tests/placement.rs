//! The choice of processors under a quota: containers spread evenly over the allowed processors,
//! cores, caches and nodes stay whole, and a change of quota or cpuset moves as few processors as
//! possible.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::sync::Arc;

use ambit_sysinfo::cpu;
use ambit_sysinfo::hash::fnv1a;
use ambit_sysinfo::sample::{Quota, Sample};
use ambit_sysinfo::stats::Stats;
use ambit_sysinfo::view::{Clock, Cpu, Load, Memory, Origin, Swap, Tasks};
use ambit_sysinfo::{CpuSet, Host, Options, Topology, View};
use proptest::collection::btree_set;
use proptest::prelude::*;

#[path = "../../tests/fixtures/machine.rs"]
mod machine;

const CONTAINERS: u64 = 6400;

thread_local! { static MACHINE: Arc<Topology> = Arc::new(machine::topology()); }

fn set(list: &str) -> CpuSet {
    CpuSet::parse(list.as_bytes()).unwrap()
}

/// Seeds as they come from names that differ in one digit.
fn seeds() -> impl Iterator<Item = u64> {
    (0..CONTAINERS).map(|number| fnv1a(format!("docker/{number}").as_bytes()))
}

/// How often each processor is chosen, by number.
fn chosen(topology: &Topology, allowed: &CpuSet, count: usize) -> Vec<u64> {
    let mut often = vec![0; CpuSet::MAX as usize + 1];
    for seed in seeds() {
        let chosen = topology.choose(allowed, count, seed);
        assert_eq!((chosen.len(), chosen.intersection(allowed)), (count, chosen.clone()));
        chosen.iter().for_each(|cpu| often[cpu as usize] += 1);
    }
    often
}

#[test]
fn containers_spread_evenly_over_the_allowed_processors() {
    let machine = machine::topology();
    let unknown = Topology::default();
    for (topology, allowed, counts) in [
        (&machine, "0-15", &[1, 2, 3, 4, 6, 8, 12][..]),
        // A part of the cores of one node, and threads of different cores.
        (&machine, "1-3,9-11", &[1, 2, 4]),
        (&machine, "0,5,11", &[1]),
        // A machine without topology.
        (&unknown, "0-63", &[1, 2, 48]),
        (&unknown, "0,63,700", &[1, 2]),
    ] {
        let allowed = set(allowed);
        for &count in counts {
            let often = chosen(topology, &allowed, count);
            let mean = CONTAINERS * count as u64 / allowed.len() as u64;
            for cpu in allowed.iter() {
                let often = often[cpu as usize];
                // The standard deviation is below the root of the mean: this is 5 of them.
                assert!(
                    often.abs_diff(mean).pow(2) < 25 * mean,
                    "{count} of {allowed}: processor {cpu} is chosen {often} times, not {mean}"
                );
            }
        }
    }
}

/// The machine has 2 nodes of 4 cores, and the threads of a core are 8 apart.
#[test]
fn cores_and_nodes_stay_whole() {
    let topology = machine::topology();
    let distinct =
        |chosen: &CpuSet, of: fn(u32) -> u32| chosen.iter().map(of).collect::<BTreeSet<_>>().len();
    for seed in seeds() {
        for count in 1..=16 {
            let chosen = topology.choose(&set("0-15"), count, seed);
            let (cores, nodes) =
                (distinct(&chosen, |cpu| cpu % 8), distinct(&chosen, |cpu| cpu % 8 / 4));
            assert_eq!(cores, count.div_ceil(2), "{count}: {chosen}");
            assert_eq!(nodes, count.div_ceil(8), "{count}: {chosen}");
        }
    }
}

/// If these numbers change, running containers are moved to other processors.
#[test]
fn the_choice_is_the_same_in_every_release() {
    let topology = machine::topology();
    let choose = |name: &str, count| {
        topology.choose(&set("0-15"), count, fnv1a(name.as_bytes())).to_string()
    };
    assert_eq!(
        [choose("docker/a", 1), choose("docker/b", 1), choose("c", 4)],
        ["15", "5", "0,3,8,11"]
    );
}

#[test]
fn containers_of_one_quota_each_do_not_share_the_lowest_processor() {
    let host = Host { online: CpuSet::first(64), ..Host::default() };
    let shown = seeds().take(50).map(|seed| {
        let quota = Quota::new(100_000, 100_000);
        let sample = Sample { quota, limit_of: seed, ..Sample::default() };
        cpu::visible(&sample, &host, &Options::default()).to_string()
    });
    assert!(shown.collect::<BTreeSet<_>>().len() > 25, "fifty containers on 64 processors");
}

fn view(online: CpuSet, seed: u64) -> View {
    let topology = MACHINE.with(Arc::clone);
    View {
        nodes: None,
        stats: Stats::default(),
        origin: Origin::Container,
        host: Arc::new(Host { topology, ..Host::default() }),
        memory: Memory::default(),
        swap: Swap::default(),
        cpu: Cpu { online, seed, ..Cpu::default() },
        tasks: Tasks::default(),
        load: Load::default(),
        clock: Clock::default(),
    }
}

#[test]
fn an_affinity_mask_has_shown_processors_first() {
    let shown = |mask: &str, online: &str| view(set(online), 7).affinity_of(&set(mask));
    assert_eq!(shown("0-3", "2-3"), set("2-3"));
    assert_eq!(shown("5", "0-1"), set("5"), "a thread pinned elsewhere");
    let moved = shown("0-3", "3,9");
    assert!(moved.contains(3) && moved.len() == 2, "9 is not allowed, another takes its place");
    assert_eq!(shown("4-5", "").len(), 1, "never empty");
}

proptest! {
    #[test]
    fn a_larger_quota_adds_to_a_smaller_one(
        allowed in btree_set(0u32..20, 1..20), seed: u64,
    ) {
        let allowed: CpuSet = allowed.into_iter().collect();
        MACHINE.with(|topology| {
            let mut before = CpuSet::default();
            for count in 1..=allowed.len() {
                let chosen = topology.choose(&allowed, count, seed);
                prop_assert_eq!(chosen.len(), count);
                prop_assert_eq!(chosen.intersection(&allowed), chosen.clone());
                prop_assert_eq!(before.intersection(&chosen), before);
                before = chosen;
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_processor_that_is_taken_away_moves_no_other(
        allowed in btree_set(0u32..20, 3..20), seed: u64, taken: prop::sample::Index,
    ) {
        let taken = *taken.get(&allowed.iter().copied().collect::<Vec<_>>());
        let all: CpuSet = allowed.iter().copied().collect();
        let rest: CpuSet = allowed.into_iter().filter(|&cpu| cpu != taken).collect();
        MACHINE.with(|topology| {
            let (one, other) = (topology.choose(&all, 1, seed), topology.choose(&rest, 1, seed));
            prop_assert!(one == other || one.contains(taken));
            Ok(())
        })?;
    }

    #[test]
    fn an_affinity_mask_is_a_part_of_the_kernels_with_as_many_as_are_shown(
        mask in btree_set(0u32..20, 1..20), shown in btree_set(0u32..20, 0..20), seed: u64,
    ) {
        let mask: CpuSet = mask.into_iter().collect();
        let shown: CpuSet = shown.into_iter().collect();
        let result = view(shown.clone(), seed).affinity_of(&mask);
        prop_assert_eq!(result.intersection(&mask), result.clone());
        prop_assert_eq!(result.len(), shown.len().max(1).min(mask.len()));
        prop_assert_eq!(result.intersection(&shown), mask.intersection(&shown));
    }
}
