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

use crate::overlay::{OverlayFile, Renderer};
use crate::text::Text;

/// The processors the container may run on.
pub static ONLINE: OverlayFile = of_cpus("sys/devices/system/cpu/online", online);
/// The machine's processors or, by `overlay.possible`, those of `online`.
pub static POSSIBLE: OverlayFile = of_cpus("sys/devices/system/cpu/possible", |view, out| {
    let _ = writeln!(out, "{}", view.possible_cpus());
});
/// Those of `online`.
pub static PRESENT: OverlayFile = of_cpus("sys/devices/system/cpu/present", online);
/// The possible ones that are not online.
pub static OFFLINE: OverlayFile = of_cpus("sys/devices/system/cpu/offline", |view, out| {
    let _ = write_list(out, view.possible_cpus().without(&view.cpu.online));
    out.newline();
});
/// None. How the machine's scheduler divides processors is not shown.
pub static ISOLATED: OverlayFile =
    OverlayFile::new("sys/devices/system/cpu/isolated", StatSet::NONE, |_, out| {
        out.newline();
    });
/// The largest number that a processor can have under this kernel.
pub static KERNEL_MAX: OverlayFile =
    OverlayFile::new("sys/devices/system/cpu/kernel_max", StatSet::NONE, |view, out| {
        let largest = || view.host.online.iter().last().unwrap_or(0);
        out.dec(view.topology().kernel_max.unwrap_or_else(largest).into()).newline();
    });

const fn of_cpus(path: &'static str, render: Renderer) -> OverlayFile {
    OverlayFile::new(path, StatSet::PROCESSORS, render)
}

fn online(view: &View, out: &mut Text) {
    // Writing to a `Text` cannot fail.
    let _ = writeln!(out, "{}", view.cpu.online);
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
        for file in [&ONLINE, &PRESENT] {
            assert_eq!(fixture::render(file, &view), "0-1,8,10-11\n");
        }
        assert_eq!(fixture::render(&ISOLATED, &view), "\n");
    }

    #[test]
    fn possible_processors_follow_the_policy() {
        let mut view = fixture::view();
        let mut host = (*view.host).clone();
        std::sync::Arc::make_mut(&mut host.topology).possible = CpuSet::first(8);
        view.host = host.into();
        view.cpu.online = CpuSet::parse(b"5").unwrap();
        assert_eq!(fixture::render(&POSSIBLE, &view), "0-7\n");
        assert_eq!(fixture::render(&OFFLINE, &view), "0-4,6-7\n");
        view.cpu.possible = PossibleCpus::View;
        assert_eq!(fixture::render(&POSSIBLE, &view), "5\n");
        assert_eq!(fixture::render(&OFFLINE, &view), "\n");
    }

    #[test]
    fn without_a_kernel_file_possible_ends_at_the_last_online_processor() {
        let view = fixture::view();
        assert!(view.topology().possible.is_empty());
        assert_eq!(fixture::render(&POSSIBLE, &view), "0-1\n");
    }

    #[test]
    fn the_largest_number_is_the_kernels() {
        let view = fixture::view();
        assert_eq!(fixture::render(&KERNEL_MAX, &view), "1\n", "the largest that is known");
        let mut host = (*view.host).clone();
        std::sync::Arc::make_mut(&mut host.topology).kernel_max = Some(8191);
        let view = View { host: host.into(), ..view };
        assert_eq!(fixture::render(&KERNEL_MAX, &view), "8191\n");
    }
}
