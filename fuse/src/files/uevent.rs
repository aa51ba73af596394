//! `/sys/devices/system/cpu/uevent`: empty, as the kernel's is. It is there because the hook that
//! distributions ship for lxcfs takes it for the sign that the whole directory can be bound.

use ambit_sysinfo::View;

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/sys/devices/system/cpu/uevent`.
#[derive(Debug)]
pub struct CpuUevent;

impl OverlayFile for CpuUevent {
    fn path(&self) -> &'static str {
        "sys/devices/system/cpu/uevent"
    }

    fn render(&self, _: &View, _: &mut Text) {}
}
