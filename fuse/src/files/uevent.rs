//! `/sys/devices/system/cpu/uevent`: empty, as the kernel's is.
//!
//! The hook that distributions ship for lxcfs binds the whole directory if this file exists. It has
//! no content to render.

use ambit_sysinfo::StatSet;

use crate::overlay::OverlayFile;

/// `/sys/devices/system/cpu/uevent`.
pub static CPU_UEVENT: OverlayFile =
    OverlayFile::new("sys/devices/system/cpu/uevent", StatSet::NONE, |_, _| {});
