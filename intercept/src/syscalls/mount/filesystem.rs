//! Properties of filesystem types that matter when the daemon mounts them for a container.
//!
//! A type that is not listed here must be treated as the strictest kind, a filesystem on a block
//! device. Nothing here decides whether a container may mount a type: `plan.rs` does.

/// Kernel interfaces. Mounted with the host's rights, they would show and control the host.
const NEVER: [&str; 34] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "cpuset",
    "devtmpfs",
    "devpts",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "efivarfs",
    "pstore",
    "bpf",
    "binfmt_misc",
    "fusectl",
    "mqueue",
    "nfsd",
    "rpc_pipefs",
    "selinuxfs",
    "smackfs",
    "resctrl",
    "autofs",
    "tmpfs",
    "ramfs",
    "rootfs",
    "overlay",
    "fuse",
    "fuseblk",
    "fuse.fuse",
    "virtiofs",
    "hostfs",
    "pipefs",
    "sockfs",
];
/// Filesystems without a block device: their source is a word or a network address.
const NO_DEVICE: [&str; 10] =
    ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "hugetlbfs", "orangefs", "gfs2meta"];
/// Those of [`NO_DEVICE`] whose source means nothing.
const NO_SOURCE: [&str; 1] = ["hugetlbfs"];
/// Filesystems whose options say who owns the files.
const OWNERS: [&str; 9] =
    ["hugetlbfs", "vfat", "msdos", "exfat", "ntfs3", "ntfs", "hfs", "hfsplus", "hpfs"];
/// Filesystems that are never written, also under the names of their helpers.
const READ_ONLY: [&str; 9] = [
    "squashfs",
    "erofs",
    "iso9660",
    "cramfs",
    "romfs",
    "squashfuse",
    "erofsfuse",
    "fuseiso",
    "dwarfs",
];
/// Filesystems whose superblock can demand a kernel panic on errors.
const PANIC: [&str; 3] = ["ext2", "ext3", "ext4"];
/// The suffix of a type's name for an image file as the source.
const IMAGE: &str = ".image";

/// A type of filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filesystem<'a>(&'a str);

impl<'a> Filesystem<'a> {
    /// Returns the type with the name that was passed to mount(2). `ext4.image` is ext4: for a type
    /// that it knows, mount(8) would first make a loop device, which it cannot do in a container.
    pub(super) fn new(name: &'a str) -> Self {
        Self(name.strip_suffix(IMAGE).unwrap_or(name))
    }

    /// Returns the kernel's name of the type.
    pub(super) fn name(self) -> &'a str {
        self.0
    }

    /// True for `fuse` and types such as `fuse.sshfs`. The FUSE server itself calls mount(2) with
    /// the same type as the user who asks for the mount.
    pub(super) fn is_fuse(self) -> bool {
        self.0 == "fuse" || self.0.starts_with("fuse.")
    }

    /// True for a kernel interface or a FUSE filesystem, which the kernel never mounts for a
    /// container.
    pub(super) fn is_forbidden(self) -> bool {
        NEVER.contains(&self.0) || self.0.starts_with("fuse.")
    }

    /// True if its source is a block device or an image.
    pub(super) fn is_on_a_device(self) -> bool {
        !NO_DEVICE.contains(&self.0)
    }

    /// True if its source is a server or a share that the kernel reaches with the host's rights.
    pub(super) fn is_remote(self) -> bool {
        !self.is_on_a_device() && !NO_SOURCE.contains(&self.0)
    }

    /// True if its options `uid` and `gid` say who owns the files.
    pub(super) fn takes_owners(self) -> bool {
        OWNERS.contains(&self.0)
    }

    /// True if its owners can be shifted by an idmapped mount. hugetlbfs charges pages to the
    /// owners that its options name, so these are translated instead.
    pub(super) fn can_be_shifted(self) -> bool {
        self.0 != "hugetlbfs"
    }

    /// True for a filesystem that is never written. Such an image can be mounted several times.
    pub(super) fn is_read_only(self) -> bool {
        READ_ONLY.contains(&self.0.strip_prefix("fuse.").unwrap_or(self.0))
    }

    /// True if an image can demand a kernel panic on errors.
    pub(super) fn may_panic(self) -> bool {
        PANIC.contains(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_image_is_not_part_of_the_type() {
        assert_eq!(Filesystem::new("ext4.image").name(), "ext4");
        assert_eq!(Filesystem::new("image"), Filesystem("image"));
        assert!(Filesystem::new("proc.image").is_forbidden());
    }

    #[test]
    fn kernel_interfaces_are_never_mounted() {
        for name in ["proc", "sysfs", "debugfs", "devtmpfs", "fuse.sshfs"] {
            assert!(Filesystem::new(name).is_forbidden(), "{name}");
        }
        for name in ["ext4", "hugetlbfs", "nfs4", "unheard-of"] {
            assert!(!Filesystem::new(name).is_forbidden(), "{name}");
        }
        assert!(Filesystem::new("unheard-of").is_on_a_device());
        let remote =
            ["nfs4", "9p", "hugetlbfs", "ext4"].map(|name| Filesystem::new(name).is_remote());
        assert_eq!(remote, [true, true, false, false]);
    }
}
