//! Lists the mounts of the host below a folder that a sandbox is shown.
//!
//! A recursive clone of the folder is not used: it fails if one filesystem in it cannot be idmapped,
//! and it includes the kernel's filesystems and FUSE mounts of other programs.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ambit_kernel::text::mountinfo::{self, Mounted};
use anyhow::{Context, Result};

/// Filesystems that show the kernel's state, or that only their owner may access.
const KERNELS: [&str; 25] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// Returns all mounts in this process's mount namespace.
pub(super) fn all() -> Result<Vec<Mounted>> {
    mountinfo::own().context("cannot read /proc/self/mountinfo")
}

/// Returns the mount points below `folder` that a sandbox is shown, outer ones first. Those below one
/// of `hidden` or below a filesystem of the kernel are left out.
pub(super) fn below(mounts: &[Mounted], folder: &Path, hidden: &[&str]) -> Vec<PathBuf> {
    let kernels = |mount: &&Mounted| {
        KERNELS.contains(&mount.kind.as_str()) || mount.kind.starts_with("fuse.")
    };
    let mut closed: Vec<&Path> = hidden.iter().map(Path::new).collect();
    closed.extend(mounts.iter().filter(kernels).map(|mount| mount.path.as_path()));
    let mut points: Vec<PathBuf> = mounts
        .iter()
        .map(|mount| &mount.path)
        .filter(|point| point.as_path() != folder && point.starts_with(folder))
        .filter(|point| !closed.iter().any(|place| *place != folder && point.starts_with(place)))
        .cloned()
        .collect();
    points.sort();
    points.dedup();
    points
}

/// Returns a path without its leading `/`, for calls that take the descriptor of a root.
pub(super) fn relative(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes.iter().position(|&byte| byte != b'/').unwrap_or(bytes.len());
    Path::new(std::ffi::OsStr::from_bytes(&bytes[start..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw shared:3 master:1 - sysfs sysfs rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 254:1 /sub /srv/my\\040data rw - xfs /dev/vdb rw
41 40 254:2 / /srv/my\\040data/deep rw - ext4 /dev/vdc rw
42 27 0:40 / /var/lib/overlay rw - fuse.ambit ambit rw
43 27 0:41 / /run rw - tmpfs tmpfs rw
44 43 0:42 / /run/user/0 rw - tmpfs tmpfs rw
";

    fn mounts() -> Vec<Mounted> {
        mountinfo::all(MOUNTS.as_bytes()).collect()
    }

    #[test]
    fn disks_are_shown_and_the_kernels_filesystems_are_not() {
        let shown = below(&mounts(), Path::new("/"), &["/run"]);
        assert_eq!(shown, [Path::new("/srv/my data"), Path::new("/srv/my data/deep")]);
    }

    #[test]
    fn a_folder_that_is_hidden_elsewhere_can_be_shown_itself() {
        assert_eq!(below(&mounts(), Path::new("/run"), &[]), [Path::new("/run/user/0")]);
        assert!(below(&mounts(), Path::new("/srv/my"), &[]).is_empty());
    }

    #[test]
    fn relative_paths_have_no_leading_slash() {
        assert_eq!(relative(Path::new("//usr/lib")), Path::new("usr/lib"));
        assert_eq!(relative(Path::new("/")), Path::new(""));
    }
}
