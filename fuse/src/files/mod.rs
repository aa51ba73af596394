//! The files of the overlay, one module for each, and the list of all of them. The tree, bind
//! mounts and tests are derived from the list. A file must not be reachable in another way. Start
//! reading at [`FILES`].

use crate::overlay::OverlayFile;

pub mod arcstats;
pub mod cpu_lists;
pub mod cpuinfo;
pub mod diskstats;
pub mod interrupts;
pub mod loadavg;
pub mod meminfo;
pub mod partitions;
pub mod pressure;
pub mod slabinfo;
pub mod softirqs;
pub mod stat;
pub mod swaps;
pub mod uevent;
pub mod uptime;
pub mod vmstat;
pub mod zoneinfo;

/// All files, in the order in which directories list them.
pub static FILES: &[&OverlayFile] = &[
    &cpuinfo::CPUINFO,
    &meminfo::MEMINFO,
    &stat::STAT,
    &uptime::UPTIME,
    &swaps::SWAPS,
    &loadavg::LOADAVG,
    &vmstat::VMSTAT,
    &zoneinfo::ZONEINFO,
    &diskstats::DISKSTATS,
    &partitions::PARTITIONS,
    &slabinfo::SLABINFO,
    &arcstats::ARCSTATS,
    &interrupts::INTERRUPTS,
    &softirqs::SOFTIRQS,
    &pressure::CPU,
    &pressure::IO,
    &pressure::MEMORY,
    &cpu_lists::ONLINE,
    &cpu_lists::POSSIBLE,
    &cpu_lists::PRESENT,
    &cpu_lists::OFFLINE,
    &cpu_lists::ISOLATED,
    &cpu_lists::KERNEL_MAX,
    &uevent::CPU_UEVENT,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ambit_sysinfo::{CpuSet, StatSet};

    use super::FILES;
    use crate::fixture;

    #[test]
    fn every_path_is_listed_once() {
        let mut paths = HashSet::new();
        for path in FILES.iter().map(|file| file.path) {
            assert!(paths.insert(path), "{path} is listed twice");
            assert!(path.starts_with("proc/") || path.starts_with("sys/"));
        }
    }

    /// The numbers of other groups can be old, so no file may show them.
    #[test]
    fn a_file_shows_no_group_that_it_does_not_need() {
        let now = fixture::view();
        for file in FILES {
            let mut old = now.clone();
            let needs = |group| file.needs.contains(group);
            if !needs(StatSet::MEMORY) {
                (old.memory.total, old.memory.free, old.memory.cached) =
                    (3 << 20, 2 << 20, 1 << 20);
                (old.swap.total, old.swap.free) = (2 << 20, 1 << 20);
                old.nodes = Some(CpuSet::first(1));
            }
            if !needs(StatSet::PROCESSORS) {
                old.cpu.online = CpuSet::first(1);
            }
            if !needs(StatSet::TIMES) {
                old.cpu.times.clear();
                (old.cpu.total.user, old.clock.idle) = (1, 1);
            }
            if !needs(StatSet::THREADS) {
                old.tasks.total = 99;
            }
            if !needs(StatSet::IO) {
                old.stats.devices = [].into();
            }
            if !needs(StatSet::VM_EVENTS) {
                old.stats.vmstat = [].into();
            }
            if !needs(StatSet::PRESSURE) {
                old.stats.pressure = std::sync::Arc::default();
            }
            if !needs(StatSet::ARC) {
                old.stats.arc = ["size".into()].into();
            }
            if !needs(StatSet::INTERRUPTS) {
                old.stats.interrupts = [].into();
            }
            let [now, old] = [&now, &old].map(|view| fixture::render(file, view));
            assert_eq!(now, old, "{}", file.path);
        }
    }
}
