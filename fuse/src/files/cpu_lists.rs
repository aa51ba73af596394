//! The files of `/sys/devices/system/cpu` itself: which processors there are, in the kernel's
//! list format and with the kernel's numbers.
//!
//! `online` and `present` are the container's. `possible` and `kernel_max` are the machine's, as on
//! a machine with more CPU slots than processors: tcmalloc, LTTng-UST and libbpf have a table with
//! an entry for each possible processor and index it by the number of the processor that a thread
//! runs on, which under a quota is any of the cpuset. `offline` is possible less online, as in the
//! kernel.

use std::fmt::Write;

use ambit_sysinfo::cpuset::write_list;
use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// One of the files of `/sys/devices/system/cpu`.
#[derive(Debug)]
pub enum CpuList {
    /// `online`: the processors the container may run on.
    Online,
    /// `possible`: the machine's processors or, by `overlay.possible`, those of `online`.
    Possible,
    /// `present`: those of `online`.
    Present,
    /// `offline`: the possible ones that are not online.
    Offline,
    /// `isolated`: none. How the machine's scheduler divides processors is not shown.
    Isolated,
    /// `kernel_max`: the largest number that a processor can have under this kernel.
    KernelMax,
}

impl OverlayFile for CpuList {
    fn path(&self) -> &'static str {
        match self {
            Self::Online => "sys/devices/system/cpu/online",
            Self::Possible => "sys/devices/system/cpu/possible",
            Self::Present => "sys/devices/system/cpu/present",
            Self::Offline => "sys/devices/system/cpu/offline",
            Self::Isolated => "sys/devices/system/cpu/isolated",
            Self::KernelMax => "sys/devices/system/cpu/kernel_max",
        }
    }

    fn needs(&self) -> StatSet {
        match self {
            Self::Online | Self::Present | Self::Possible | Self::Offline => StatSet::PROCESSORS,
            Self::Isolated | Self::KernelMax => StatSet::NONE,
        }
    }

    fn render(&self, view: &View, out: &mut Text) {
        match self {
            // Writing to a `Text` cannot fail.
            Self::Online | Self::Present => drop(write!(out, "{}", view.cpu.online)),
            Self::Possible => drop(write!(out, "{}", view.possible_cpus())),
            Self::Offline => {
                let offline = view.possible_cpus().without(&view.cpu.online);
                let _ = write_list(out, offline);
            }
            Self::Isolated => {}
            Self::KernelMax => {
                let largest = || view.host.online.iter().last().unwrap_or(0);
                out.dec(view.topology().kernel_max.unwrap_or_else(largest).into());
            }
        }
        out.newline();
    }
}

#[cfg(test)]
mod tests {
    use ambit_sysinfo::CpuSet;
    use ambit_sysinfo::policy::PossibleCpus;

    use super::*;
    use crate::fixture;

    #[test]
    fn lists_the_visible_processors() {
        let mut view = fixture::view();
        view.cpu.online = CpuSet::parse(b"0-1,8,10-11").unwrap();
        for file in [&CpuList::Online, &CpuList::Present] {
            assert_eq!(fixture::render(file, &view), "0-1,8,10-11\n");
        }
        assert_eq!(fixture::render(&CpuList::Isolated, &view), "\n");
    }

    #[test]
    fn possible_processors_follow_the_policy() {
        let mut view = fixture::view();
        let mut host = (*view.host).clone();
        std::sync::Arc::make_mut(&mut host.topology).possible = CpuSet::first(8);
        view.host = host.into();
        view.cpu.online = CpuSet::parse(b"5").unwrap();
        assert_eq!(fixture::render(&CpuList::Possible, &view), "0-7\n");
        assert_eq!(fixture::render(&CpuList::Offline, &view), "0-4,6-7\n");
        view.cpu.possible = PossibleCpus::View;
        assert_eq!(fixture::render(&CpuList::Possible, &view), "5\n");
        assert_eq!(fixture::render(&CpuList::Offline, &view), "\n");
    }

    #[test]
    fn without_a_kernel_file_possible_ends_at_the_last_online_processor() {
        let view = fixture::view();
        assert!(view.topology().possible.is_empty());
        assert_eq!(fixture::render(&CpuList::Possible, &view), "0-1\n");
    }

    #[test]
    fn the_largest_number_is_the_kernels() {
        let view = fixture::view();
        assert_eq!(fixture::render(&CpuList::KernelMax, &view), "1\n", "the largest that is known");
        let mut host = (*view.host).clone();
        std::sync::Arc::make_mut(&mut host.topology).kernel_max = Some(8191);
        let view = View { host: host.into(), ..view };
        assert_eq!(fixture::render(&CpuList::KernelMax, &view), "8191\n");
    }
}
