//! Helpers for the unit tests of renderers: a recorded machine with a container, and rendering of a
//! file for it. Compiled for tests only. Start reading at [`render`].

use ambit_sysinfo::View;
use procfs_core::{ExplicitSystemInfo, SystemInfoInterface};

pub(crate) use container::{CPUINFO, MEMINFO, VMSTAT, view};

use crate::overlay::OverlayFile;
use crate::text::Text;

#[path = "../tests/fixtures/container.rs"]
mod container;

pub(crate) fn meminfo_labels() -> impl Iterator<Item = &'static str> {
    MEMINFO.lines().filter_map(|line| Some(line.split_once(':')?.0))
}

/// Renders a file for a container.
pub(crate) fn render(file: &OverlayFile, view: &View) -> String {
    let mut text = Text::new();
    (file.render)(view, &mut text);
    String::from_utf8(text.as_bytes().to_vec()).unwrap()
}

/// The system properties with which `procfs-core` parses `/proc/stat`.
pub(crate) fn system() -> impl SystemInfoInterface {
    ExplicitSystemInfo {
        boot_time_secs: 0,
        ticks_per_second: 100,
        page_size: 4096,
        is_little_endian: true,
    }
}
