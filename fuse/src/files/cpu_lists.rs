//! The files of `/sys/devices/system/cpu` itself: which processors there are, in the kernel's
//! list format and with the kernel's numbers.
//!
//! `online` and `present` are the container's. `possible` and `kernel_max` are the machine's, as on
//! a machine with slots for more processors than it has: tcmalloc, LTTng-UST and libbpf have a table
//! with an entry for each possible processor and index it by the number of the one that a thread
//! runs on, and under a quota that is any of the cpuset's. `offline` is what the kernel says of such
//! a machine: the possible ones that are not online.

use std::fmt::Write;

use ambit_sysinfo::View;
use ambit_sysinfo::cpuset::write_list;

use crate::overlay::{Description, OverlayFile};
use crate::text::Text;

/// One list of processors.
#[derive(Debug)]
pub struct CpuList {
    about: Description,
    shows: Shows,
}

#[derive(Debug)]
enum Shows {
    Visible,
    Possible,
    Offline,
    None,
    LargestNumber,
}

/// `/sys/devices/system/cpu/online`.
pub static ONLINE: CpuList = CpuList {
    about: Description {
        path: "sys/devices/system/cpu/online",
        key: "cpu_online",
        summary: "The processors the container may run on, as a list of their numbers.",
    },
    shows: Shows::Visible,
};

/// `/sys/devices/system/cpu/present`.
pub static PRESENT: CpuList = CpuList {
    about: Description {
        path: "sys/devices/system/cpu/present",
        key: "cpu_present",
        summary: "The same processors as in online.",
    },
    shows: Shows::Visible,
};

/// `/sys/devices/system/cpu/possible`.
pub static POSSIBLE: CpuList = CpuList {
    about: Description {
        path: "sys/devices/system/cpu/possible",
        key: "cpu_possible",
        summary: "The machine's processors, whatever the container may use of them, or, by \
                  overlay.possible, the same as in online.",
    },
    shows: Shows::Possible,
};

/// `/sys/devices/system/cpu/offline`.
pub static OFFLINE: CpuList = CpuList {
    about: Description {
        path: "sys/devices/system/cpu/offline",
        key: "cpu_offline",
        summary: "The possible processors that are not online.",
    },
    shows: Shows::Offline,
};

/// `/sys/devices/system/cpu/isolated`.
pub static ISOLATED: CpuList = CpuList {
    about: Description {
        path: "sys/devices/system/cpu/isolated",
        key: "cpu_isolated",
        summary: "No processor: how the machine's scheduler divides them is not shown.",
    },
    shows: Shows::None,
};

/// `/sys/devices/system/cpu/kernel_max`.
pub static KERNEL_MAX: CpuList = CpuList {
    about: Description {
        path: "sys/devices/system/cpu/kernel_max",
        key: "cpu_kernel_max",
        summary: "The largest number a processor can have under this kernel.",
    },
    shows: Shows::LargestNumber,
};

impl OverlayFile for CpuList {
    fn describe(&self) -> Description {
        self.about
    }

    fn render(&self, view: &View, out: &mut Text) {
        match self.shows {
            // Writing to a `Text` cannot fail.
            Shows::Visible => drop(write!(out, "{}", view.cpu.online)),
            Shows::Possible => drop(write!(out, "{}", view.possible_cpus())),
            Shows::Offline => {
                let offline = view.possible_cpus().without(&view.cpu.online);
                let _ = write_list(out, offline);
            }
            Shows::None => {}
            Shows::LargestNumber => {
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
    use ambit_sysinfo::policy::Possible;

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
    fn possible_processors_are_the_machines_unless_the_view_is_asked_for() {
        let mut view = fixture::view();
        let mut host = (*view.host).clone();
        std::sync::Arc::make_mut(&mut host.topology).possible = CpuSet::first(8);
        view.host = host.into();
        view.cpu.online = CpuSet::parse(b"5").unwrap();
        assert_eq!(fixture::render(&POSSIBLE, &view), "0-7\n");
        assert_eq!(fixture::render(&OFFLINE, &view), "0-4,6-7\n");
        view.cpu.possible = Possible::View;
        assert_eq!(fixture::render(&POSSIBLE, &view), "5\n");
        assert_eq!(fixture::render(&OFFLINE, &view), "\n");
    }

    #[test]
    fn where_the_kernel_tells_nothing_possible_reaches_to_the_last_that_is_online() {
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
