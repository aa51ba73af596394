//! The files of the overlay, one module each, and the list that everything derives from.

use crate::overlay::OverlayFile;

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
    &cpu_lists::ONLINE,
    &cpu_lists::POSSIBLE,
    &cpu_lists::PRESENT,
    &cpu_lists::OFFLINE,
    &cpu_lists::ISOLATED,
    &cpu_lists::KERNEL_MAX,
    &uevent::CpuUevent,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::FILES;

    #[test]
    fn every_file_is_described() {
        let mut paths = HashSet::new();
        let mut keys = HashSet::new();
        for file in FILES {
            let about = file.describe();
            assert!(paths.insert(about.path), "{} is listed twice", about.path);
            assert!(keys.insert(about.key), "the key {} is used twice", about.key);
            assert!(about.summary.len() > 10 && about.summary.ends_with('.'), "{}", about.path);
            assert!(!about.path.starts_with('/') && !about.path.ends_with('/'));
            assert!(about.path.starts_with("proc/") || about.path.starts_with("sys/"));
            let name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            assert!(about.key.bytes().all(name), "{}", about.key);
        }
    }
}
