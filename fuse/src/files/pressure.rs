//! `/proc/pressure/*`: how long the container's own tasks were stalled.
//!
//! The text is that of the kernel for the container's cgroup. Without PSI, or without a cgroup of
//! cgroup2, the files read as on a machine that never stalled. Layout of `psi_show` in
//! `kernel/sched/psi.c`.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

const NEVER: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n\
                     full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

/// One of the files, by what the tasks wait for.
#[derive(Debug, Clone, Copy)]
pub enum Pressure {
    /// `/proc/pressure/cpu`.
    Cpu,
    /// `/proc/pressure/io`.
    Io,
    /// `/proc/pressure/memory`.
    Memory,
}

impl OverlayFile for Pressure {
    fn path(&self) -> &'static str {
        match self {
            Self::Cpu => "proc/pressure/cpu",
            Self::Io => "proc/pressure/io",
            Self::Memory => "proc/pressure/memory",
        }
    }

    fn needs(&self) -> StatSet {
        StatSet::PRESSURE
    }

    fn render(&self, view: &View, out: &mut Text) {
        let pressure = &view.stats.pressure;
        let text = match self {
            Self::Cpu => &pressure.cpu,
            Self::Io => &pressure.io,
            Self::Memory => &pressure.memory,
        };
        out.put(text.as_deref().unwrap_or(NEVER.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use procfs_core::{FromRead, MemoryPressure};

    use super::*;
    use crate::fixture;

    #[test]
    fn shows_the_kernels_text_or_none_at_all() {
        let view = fixture::view();
        let text = fixture::render(&Pressure::Memory, &view);
        let parsed = MemoryPressure::from_read(text.as_bytes()).unwrap();
        assert_eq!(
            (parsed.some.avg10, parsed.some.total, parsed.full.total),
            (1.25, 123_456, 23_456)
        );
        assert_eq!(fixture::render(&Pressure::Io, &view), NEVER);
    }
}
