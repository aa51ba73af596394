//! The files of `/sys/devices/system/cpu` itself: which processors there are, in the kernel's
//! list format and with the kernel's numbers.
//!
//! What is online, present and possible is the same: glibc counts `possible` since 2.36 and the
//! directories `cpuN` before, and no processor of a container waits to be plugged in.

use std::fmt::Write;

use ambit_sysinfo::View;

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
        summary: "The same processors as in online.",
    },
    shows: Shows::Visible,
};

/// `/sys/devices/system/cpu/offline`.
pub static OFFLINE: CpuList = CpuList {
    about: Description {
        path: "sys/devices/system/cpu/offline",
        key: "cpu_offline",
        summary: "No processor: those of others do not exist in the container.",
    },
    shows: Shows::None,
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

    use super::*;
    use crate::fixture;

    #[test]
    fn lists_the_visible_processors() {
        let mut view = fixture::view();
        view.cpu.online = CpuSet::parse(b"0-1,8,10-11").unwrap();
        for file in [&ONLINE, &PRESENT, &POSSIBLE] {
            assert_eq!(fixture::render(file, &view), "0-1,8,10-11\n");
        }
        for file in [&OFFLINE, &ISOLATED] {
            assert_eq!(fixture::render(file, &view), "\n");
        }
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
