//! What the sandbox sees as `/proc/pressure/*`: the pressure files of its own control group, bound.
//!
//! They have the same format, and their triggers and poll are the kernel's own, with no daemon in
//! the path. They are in every cgroup2 hierarchy, also beside v1 ones, and belong to the
//! sandbox's root. Where the hierarchy is mounted with `nsdelegate`, the kernel refuses to set
//! triggers in the group that is the top of a cgroup namespace: there, and where nothing accounts
//! for pressure, the sandbox gets the overlay's files, whose server sets triggers on its behalf.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use ambit_kernel::sys::release;
use anyhow::{Context, Result};

use super::cgroup::Group;
use super::hostmounts;
use super::owners::Owners;

/// The files by their names in `/proc/pressure`.
const FILES: [&str; 3] = ["cpu", "io", "memory"];

/// The pressure files of the sandbox's control group, if it can set triggers on them.
#[derive(Debug)]
pub(super) struct Pressure {
    folder: Option<PathBuf>,
}

impl Pressure {
    /// Those of a group, given to the sandbox's root.
    pub(super) fn of(group: &Group, owners: &Owners) -> Result<Self> {
        let accounts = |folder: &PathBuf| folder.join("memory.pressure").exists();
        let folder = group.places().iter().map(|(_, folder)| folder.clone()).find(accounts);
        let Some(folder) = folder.filter(|_| !delegates_by_namespace()) else {
            return Ok(Self { folder: None });
        };
        for name in FILES {
            let file = folder.join(format!("{name}.pressure"));
            let give = || {
                std::os::unix::fs::chown(&file, Some(owners.uid), Some(owners.gid))?;
                if users_may_set_triggers() {
                    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
                }
                std::io::Result::Ok(())
            };
            give().with_context(|| format!("cannot give {} to the sandbox", file.display()))?;
        }
        Ok(Self { folder: Some(folder) })
    }

    /// The file to bind in the place of one of the overlay, such as `proc/pressure/cpu`.
    pub(super) fn file(&self, overlays: &str) -> Option<PathBuf> {
        let name = overlays.strip_prefix("proc/pressure/")?;
        Some(self.folder.as_ref()?.join(format!("{name}.pressure")))
    }
}

/// True if the cgroup2 hierarchy is mounted with `nsdelegate`.
fn delegates_by_namespace() -> bool {
    let Ok(mounts) = hostmounts::all() else { return true };
    let mut unified = mounts.iter().filter(|mount| mount.kind == "cgroup2");
    unified.any(|mount| mount.options.split(',').any(|option| option == "nsdelegate"))
}

/// True if users without CAP_SYS_RESOURCE may set triggers. Since Linux 6.4 they may, with windows of
/// a multiple of two seconds, and the files in `/proc/pressure` are writable for all. Before, each
/// trigger had a real-time kernel thread.
fn users_may_set_triggers() -> bool {
    release::is_at_least((6, 4))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn only_pressure_files_are_the_groups_own() {
        let of = |folder: Option<&str>| Pressure { folder: folder.map(PathBuf::from) };
        let own = of(Some("/sys/fs/cgroup/x"));
        let file = own.file("proc/pressure/io");
        assert_eq!(file.as_deref(), Some(Path::new("/sys/fs/cgroup/x/io.pressure")));
        assert_eq!(own.file("proc/meminfo"), None);
        assert_eq!(of(None).file("proc/pressure/io"), None);
    }
}
