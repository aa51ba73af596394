//! `/proc/pressure/*`: how long the container's own tasks were stalled.
//!
//! The text is that of the kernel for the container's cgroup. Without PSI, or without a cgroup of
//! cgroup2, the files read as on a machine that never stalled. Layout of `psi_show` in
//! `kernel/sched/psi.c`.

use ambit_sysinfo::StatSet;

use crate::overlay::{OverlayFile, Renderer};
use crate::text::Text;

const NEVER: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n\
                     full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

/// `/proc/pressure/cpu`.
pub static CPU: OverlayFile =
    file("proc/pressure/cpu", |view, out| put(view.stats.pressure.cpu.as_deref(), out));
/// `/proc/pressure/io`.
pub static IO: OverlayFile =
    file("proc/pressure/io", |view, out| put(view.stats.pressure.io.as_deref(), out));
/// `/proc/pressure/memory`.
pub static MEMORY: OverlayFile =
    file("proc/pressure/memory", |view, out| put(view.stats.pressure.memory.as_deref(), out));

const fn file(path: &'static str, render: Renderer) -> OverlayFile {
    OverlayFile::new(path, StatSet::PRESSURE, render)
}

fn put(text: Option<&[u8]>, out: &mut Text) {
    out.put(text.unwrap_or(NEVER.as_bytes()));
}

#[cfg(test)]
mod tests {
    use procfs_core::{FromRead, MemoryPressure};

    use super::*;
    use crate::fixture;

    #[test]
    fn shows_the_kernels_text_or_none_at_all() {
        let view = fixture::view();
        let text = fixture::render(&MEMORY, &view);
        let parsed = MemoryPressure::from_read(text.as_bytes()).unwrap();
        assert_eq!(
            (parsed.some.avg10, parsed.some.total, parsed.full.total),
            (1.25, 123_456, 23_456)
        );
        assert_eq!(fixture::render(&IO, &view), NEVER);
    }
}
