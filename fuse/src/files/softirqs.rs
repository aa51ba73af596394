//! `/proc/softirqs`: the kernel's ten lines with a column for each visible processor.
//!
//! Softirqs are not accounted by cgroups: all counts are 0, as in `/proc/stat`. Layout of
//! `fs/proc/softirqs.c`.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// In the order of their numbers (`include/linux/interrupt.h`).
const LINES: [&str; 10] =
    ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"];

/// `/proc/softirqs`.
pub static SOFTIRQS: OverlayFile = OverlayFile {
    longest: |host| (LINES.len() + 1) * (32 + host.online.len() * 16),
    ..OverlayFile::new("proc/softirqs", StatSet::PROCESSORS, render)
};

fn render(view: &View, out: &mut Text) {
    out.pad_to(20);
    for cpu in view.cpu.online.iter() {
        super::interrupts::heading(cpu, 8, out);
    }
    out.newline();
    for name in LINES {
        out.pad_to(12 - name.len()).put(name).byte(b':');
        for _ in view.cpu.online.iter() {
            out.space().right(0, 10);
        }
        out.newline();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn columns_are_the_visible_processors() {
        let text = fixture::render(&SOFTIRQS, &fixture::view());
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("                    CPU0       CPU2       "));
        assert_eq!(lines.next(), Some("          HI:          0          0"));
        assert_eq!(text.lines().count(), 11);
    }
}
