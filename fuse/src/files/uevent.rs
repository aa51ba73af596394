//! `/sys/devices/system/cpu/uevent`: empty, as the kernel's is.
//!
//! The hook that distributions ship for lxcfs binds the whole directory if this file exists. It has
//! no content to render.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/sys/devices/system/cpu/uevent`.
#[derive(Debug)]
pub struct CpuUevent;

impl OverlayFile for CpuUevent {
    fn path(&self) -> &'static str {
        "sys/devices/system/cpu/uevent"
    }

    fn needs(&self) -> StatSet {
        StatSet::NONE
    }

    fn render(&self, _: &View, _: &mut Text) {}
}
