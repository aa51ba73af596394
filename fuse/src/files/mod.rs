//! The files of the overlay, one module for each, and the list of all of them. The tree, bind
//! mounts and tests are derived from the list. A file must not be reachable in another way. Start
//! reading at [`FILES`].

use crate::overlay::OverlayFile;
use cpu_lists::CpuList;

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
pub static FILES: &[&dyn OverlayFile] = &[
    &cpuinfo::CpuInfo,
    &meminfo::Meminfo,
    &stat::Stat,
    &uptime::Uptime,
    &swaps::Swaps,
    &loadavg::Loadavg,
    &vmstat::Vmstat,
    &zoneinfo::Zoneinfo,
    &diskstats::Diskstats,
    &partitions::Partitions,
    &slabinfo::Slabinfo,
    &interrupts::Interrupts,
    &softirqs::Softirqs,
    &pressure::Pressure::Cpu,
    &pressure::Pressure::Io,
    &pressure::Pressure::Memory,
    &CpuList::Online,
    &CpuList::Possible,
    &CpuList::Present,
    &CpuList::Offline,
    &CpuList::Isolated,
    &CpuList::KernelMax,
    &uevent::CpuUevent,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::FILES;

    #[test]
    fn every_path_is_listed_once() {
        let mut paths = HashSet::new();
        for path in FILES.iter().map(|file| file.path()) {
            assert!(paths.insert(path), "{path} is listed twice");
            assert!(path.starts_with("proc/") || path.starts_with("sys/"));
        }
    }
}
