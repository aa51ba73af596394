//! `/sys/devices/system/cpu/online`: the processors the container is shown, in the kernel's
//! list format and with the kernel's numbers.

use std::fmt::Write;

use ambit_sysinfo::View;

use crate::overlay::{Description, OverlayFile};
use crate::text::Text;

/// `/sys/devices/system/cpu/online`.
#[derive(Debug)]
pub struct CpuOnline;

impl OverlayFile for CpuOnline {
    fn describe(&self) -> Description {
        Description {
            path: "sys/devices/system/cpu/online",
            key: "cpu_online",
            summary: "The processors the container may run on, as a list of their numbers.",
        }
    }

    fn render(&self, view: &View, out: &mut Text) {
        // Writing to a `Text` cannot fail.
        let _ = write!(out, "{}", view.cpu.online);
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
        assert_eq!(fixture::render(&CpuOnline, &view), "0-1,8,10-11\n");
    }
}
