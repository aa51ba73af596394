//! `/proc/loadavg`: load averages of the container's own tasks.
//!
//! Layout and rounding of `fs/proc/loadavg.c`: half of a hundredth is added, then cut.

use ambit_sysinfo::view::Load;
use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/loadavg`.
pub static LOADAVG: OverlayFile = OverlayFile::new("proc/loadavg", StatSet::THREADS, render);

fn render(view: &View, out: &mut Text) {
    for load in [view.load.one, view.load.five, view.load.fifteen] {
        average(load, out);
        out.space();
    }
    out.dec(view.tasks.running).byte(b'/').dec(view.tasks.total).space();
    out.dec(view.tasks.newest_pid).newline();
}

fn average(load: u64, out: &mut Text) {
    const ONE: u64 = 1 << Load::SHIFT;
    let rounded = load.saturating_add(ONE / 200);
    out.hundredths(rounded >> Load::SHIFT, ((rounded & (ONE - 1)) * 100) >> Load::SHIFT);
}

#[cfg(test)]
mod tests {
    use procfs_core::{FromRead, LoadAverage};

    use super::*;
    use crate::fixture;

    #[test]
    fn rounds_as_the_kernel_does() {
        let mut view = fixture::view();
        view.load = Load { one: 2048 + 1024, five: 2047, fifteen: 20 };
        view.tasks.running = 2;
        view.tasks.total = 37;
        view.tasks.newest_pid = 4211;
        let text = fixture::render(&LOADAVG, &view);
        assert_eq!(text, "1.50 1.00 0.01 2/37 4211\n");
        let parsed = LoadAverage::from_read(text.as_bytes()).unwrap();
        assert_eq!((parsed.one, parsed.cur, parsed.max, parsed.latest_pid), (1.5, 2, 37, 4211));
    }
}
