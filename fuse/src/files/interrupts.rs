//! `/proc/interrupts`: the architecture's own lines with a column for each visible processor.
//!
//! Interrupts are not accounted by cgroups: all counts are 0, as in `/proc/stat`. Lines of
//! devices are left out, because they name the machine's hardware. Layout of
//! `show_interrupts` in `kernel/irq/proc.c`.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/interrupts`.
pub static INTERRUPTS: OverlayFile = OverlayFile {
    // An upper bound for the lines of every architecture.
    longest: |host| 32 * (48 + host.online.len() * 16),
    ..OverlayFile::new("proc/interrupts", StatSet::PROCESSORS.and(StatSet::INTERRUPTS), render)
};

fn render(view: &View, out: &mut Text) {
    out.pad_to(11);
    for cpu in view.cpu.online.iter() {
        heading(cpu, 8, out);
    }
    out.newline();
    for line in view.stats.interrupts.iter() {
        out.pad_to(3usize.saturating_sub(line.label.len())).put(line.label.as_bytes());
        out.byte(b':');
        let columns = if line.per_cpu { view.cpu.online.len() } else { 1 };
        for _ in 0..columns {
            out.space().right(0, 10);
        }
        out.put(line.description.as_bytes()).newline();
    }
}

/// Writes `CPU7` and blanks up to the next column.
pub(super) fn heading(cpu: u32, width: usize, out: &mut Text) {
    out.put("CPU").dec(cpu.into());
    let digits = cpu.checked_ilog10().map_or(1, |log| log as usize + 1);
    (digits..width).for_each(|_| {
        out.space();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn lines_of_the_architecture_without_counts() {
        let text = fixture::render(&INTERRUPTS, &fixture::view());
        assert_eq!(
            text,
            "           CPU0       CPU2       \n\
             NMI:          0          0   Non-maskable interrupts\n\
             LOC:          0          0   Local timer interrupts\n\
             ERR:          0\n"
        );
    }
}
