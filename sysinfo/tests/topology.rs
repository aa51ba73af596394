//! Reads the topology of a recorded machine and checks what views show of it: no view may name a
//! processor or node that it hides, and the shares of the nodes add up.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use ambit_sysinfo::stats::Stats;
use ambit_sysinfo::topology::{Attribute, CACHE_FILES, TOPOLOGY_FILES, attribute};
use ambit_sysinfo::view::{Clock, Cpu, Load, Memory, Origin, Swap, Tasks};
use ambit_sysinfo::{CpuSet, Host, Topology, View};
use proptest::prelude::*;

#[path = "../../tests/fixtures/machine.rs"]
mod machine;

fn view(topology: &Arc<Topology>, online: CpuSet) -> View {
    View {
        stats: Stats::default(),
        origin: Origin::Container,
        host: Arc::new(Host { topology: Arc::clone(topology), ..Host::default() }),
        memory: Memory::default(),
        swap: Swap::default(),
        nodes: None,
        cpu: Cpu { online, ..Cpu::default() },
        tasks: Tasks::default(),
        load: Load::default(),
        clock: Clock::default(),
    }
}

fn at(names: &[(&str, ambit_sysinfo::topology::Form)], name: &str) -> usize {
    names.iter().position(|file| file.0 == name).unwrap()
}

#[test]
fn the_topology_of_the_machine_is_read() {
    let topology = machine::topology();
    assert_eq!((topology.kernel_max, topology.mask_digits), (Some(8191), 4));
    assert_eq!(topology.cpus.len(), 16);
    assert_eq!(topology.nodes.len(), 2);
    let cpu = topology.cpu(13).unwrap();
    assert_eq!((cpu.node, cpu.has_online), (Some(1), true));
    assert!(!topology.cpu(0).unwrap().has_online, "the boot processor stays");
    let of = |name| attribute(&cpu.topology, at(TOPOLOGY_FILES, name));
    assert_eq!(of("physical_package_id"), Some(&Attribute::Value("1".into())));
    assert_eq!(of("cluster_id"), None, "this kernel lacks it");
    let siblings = Arc::new(CpuSet::parse(b"5,13").unwrap());
    assert_eq!(of("thread_siblings_list"), Some(&Attribute::List(siblings.clone())));
    assert_eq!(of("thread_siblings"), Some(&Attribute::Mask(siblings)));
    let cache = cpu.cache(3).unwrap();
    assert_eq!(
        attribute(&cache.files, at(CACHE_FILES, "size")),
        Some(&Attribute::Value("16384K".into()))
    );
    let node = topology.node(1).unwrap();
    assert_eq!((node.cpus.to_string().as_str(), node.memory), ("4-7,12-15", 8_388_607));
    assert_eq!(node.distances, [(0, 21), (1, 10)]);
    assert_eq!((&*node.meminfo[0].label, node.meminfo[0].width), ("MemTotal", 15));
}

#[test]
fn a_machine_without_these_files_has_an_empty_topology() {
    let empty = tempfile::tempdir().unwrap();
    let topology = Topology::read(File::open(empty.path()).unwrap().as_fd());
    assert_eq!(topology, Topology::default());
}

#[test]
fn memory_is_on_the_nodes_that_the_container_is_bound_to() {
    let topology = Arc::new(machine::topology());
    let mut view = view(&topology, [0, 1].into_iter().collect());
    view.memory.total = 1 << 30;
    view.nodes = Some([1].into_iter().collect());
    let nodes: Vec<_> = view.shown_nodes().map(|node| node.number).collect();
    assert_eq!(nodes, [0, 1], "that of the processors, and that of the memory");
    assert_eq!([0, 1].map(|node| view.part_of(node, 1 << 20)), [0, 1 << 20]);
}

proptest! {
    #[test]
    fn every_view_shows_a_part_that_fits_together(
        cpus in proptest::collection::btree_set(0..machine::CPUS, 1..16),
        number in 0u64..1 << 40,
    ) {
        thread_local! { static MACHINE: Arc<Topology> = Arc::new(machine::topology()); }
        let online: CpuSet = cpus.iter().copied().collect();
        let view = view(&MACHINE.with(Arc::clone), online.clone());
        prop_assert_eq!(view.shown_cpus(), online);
        for cpu in 0..machine::CPUS {
            let attributes = view.cpu_attributes(cpu);
            prop_assert_eq!(attributes.is_some(), cpus.contains(&cpu));
            let Some(attributes) = attributes else { continue };
            let caches = attributes.caches.iter().flat_map(|cache| &cache.files);
            for (_, attribute) in attributes.topology.iter().chain(caches) {
                if let Attribute::List(set) | Attribute::Mask(set) = attribute {
                    let shown: BTreeSet<_> = view.shown_of(set).iter().collect();
                    prop_assert!(shown.contains(&cpu) && shown.is_subset(&cpus));
                }
            }
            let node = view.node_attributes(attributes.node.unwrap()).unwrap();
            prop_assert!(node.cpus.contains(cpu), "its node is shown");
        }
        let parts = view.shown_nodes().map(|node| view.part_of(node.number, number));
        prop_assert_eq!(parts.sum::<u64>(), number);
        // The share of a node is at most its memory, however much memory the container has.
        let mut large = view.clone();
        large.memory.total = number << 10;
        for node in large.shown_nodes() {
            prop_assert!(large.part_of(node.number, number) <= node.memory.min(number));
        }
        let nodes: Vec<_> = view.shown_nodes().map(|node| node.number).collect();
        let hidden = (0..2).filter(|node| !nodes.contains(node));
        prop_assert!(hidden.into_iter().all(|node| view.part_of(node, number) == 0));
    }
}
