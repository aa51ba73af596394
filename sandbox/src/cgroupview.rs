//! The sandbox's `/sys/fs/cgroup`: its own control groups, read-only.
//!
//! They are bind mounts of exactly its own groups, so the groups above them are not visible. Inside
//! its cgroup namespace the kernel shows each of them as `/`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::mount::MountAttrFlags;

use super::mounts::{Detached, Kind, Root};
use super::owners::Owners;
use super::scratch::Scratch;

const PLACE: &str = "sys/fs/cgroup";

/// Mounts each group at its name below `/sys/fs/cgroup`. An empty name is `/sys/fs/cgroup` itself, as
/// with cgroup v2 alone.
pub(super) fn build(
    root: &Root,
    owners: &Owners,
    groups: &[(String, PathBuf)],
    scratch: &mut Scratch,
) -> Result<()> {
    if groups.is_empty() {
        // An ordinary user's sandbox, which has no group of its own.
        return Ok(());
    }
    let set = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let shelf = match groups {
        [(name, _)] if name.is_empty() => None,
        _ => {
            let shelf = scratch.take("cgroup", set & !MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            if !root.attach_if_there(&shelf, Path::new(PLACE))? {
                return Ok(());
            }
            Some(shelf)
        }
    };
    for (name, folder) in groups {
        let mut group = Detached::copy_of(folder)?;
        group.set(set)?;
        let place = Path::new(PLACE).join(name);
        if shelf.is_some() {
            root.make(&place, Kind::Folder, owners)?;
        }
        root.attach(&group, place.as_path())?;
    }
    shelf.map_or(Ok(()), |mut shelf| shelf.set(set))
}
