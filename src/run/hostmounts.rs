//! Which mounts of the host lie below a folder, so that a sandbox can be shown the folder whole.
//!
//! A recursive clone would not do: it fails as a whole when one filesystem in it cannot be
//! idmapped, and it would carry the kernel's own filesystems and other programs' FUSE mounts
//! along. Pure parsing; the only file read is `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Filesystems that show the kernel's state, or that only their owner may look into.
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

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where in the filesystem the mount begins.
    pub(super) root: PathBuf,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// The filesystem's name, such as `ext4`.
    pub(super) kind: String,
    /// Options of the filesystem itself, separated by commas.
    pub(super) options: String,
}

/// All mounts this process sees.
pub(super) fn all() -> Result<Vec<Mount>> {
    let file = "/proc/self/mountinfo";
    let text = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// The places below `folder` where something worth showing is mounted, outer ones first. What
/// lies below one of `hidden` or below a filesystem of the kernel's is left out.
pub(super) fn below(mounts: &[Mount], folder: &Path, hidden: &[&str]) -> Vec<PathBuf> {
    let kernels =
        |mount: &&Mount| KERNELS.contains(&mount.kind.as_str()) || mount.kind.starts_with("fuse.");
    let mut closed: Vec<&Path> = hidden.iter().map(Path::new).collect();
    closed.extend(mounts.iter().filter(kernels).map(|mount| mount.point.as_path()));
    let mut points: Vec<PathBuf> = mounts
        .iter()
        .map(|mount| &mount.point)
        .filter(|point| point.as_path() != folder && point.starts_with(folder))
        .filter(|point| !closed.iter().any(|place| *place != folder && point.starts_with(place)))
        .cloned()
        .collect();
    points.sort();
    points.dedup();
    points
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let root = unescape(fields.nth(3)?);
    let point = unescape(fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    // After the source.
    let options = String::from_utf8_lossy(fields.nth(1).unwrap_or_default()).into_owned();
    Some(Mount { root, point, kind, options })
}

/// Undoes the kernel's `\040` for bytes that would break the line.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// A path relative to `/`, as calls below a root's descriptor want it.
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

    fn mounts() -> Vec<Mount> {
        MOUNTS.as_bytes().split(|&byte| byte == b'\n').filter_map(parse).collect()
    }

    #[test]
    fn lines_are_taken_apart() {
        let mounts = mounts();
        assert_eq!(mounts.len(), 9);
        assert_eq!((mounts[1].kind.as_str(), mounts[1].options.as_str()), ("sysfs", "rw"));
        assert_eq!(mounts[4].point, Path::new("/srv/my data"));
        assert_eq!(mounts[4].root, Path::new("/sub"));
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
