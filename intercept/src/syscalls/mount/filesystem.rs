//! What has to be known of filesystem types to mount them for somebody else.
//!
//! Types that are not listed here are taken for filesystems on a block device, the strictest kind.

/// Kernel interfaces: mounted with the host's rights they are the host's, whatever a policy says.
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
/// Filesystems without a device: their source is a word or an address of the network.
const NO_DEVICE: [&str; 10] =
    ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "hugetlbfs", "orangefs", "gfs2meta"];
/// Of these, those whose source is no place.
const NO_SOURCE: [&str; 1] = ["hugetlbfs"];
/// Filesystems whose files have the owners that options say.
const OWNERS: [&str; 9] =
    ["hugetlbfs", "vfat", "msdos", "exfat", "ntfs3", "ntfs", "hfs", "hfsplus", "hpfs"];
/// Filesystems that are never written, those of helpers that go by their own name among them.
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
/// Filesystems whose superblock can say that errors are to end the host.
const PANIC: [&str; 3] = ["ext2", "ext3", "ext4"];
/// The end of a type's name that means: the source is an image file.
const IMAGE: &str = ".image";

/// A type of filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filesystem<'a>(&'a str);

impl<'a> Filesystem<'a> {
    /// By the name that mount(2) was given. `ext4.image` is ext4: mount(8) makes a loop device for
    /// the image before it calls mount(2) if it knows the type, which inside a container it cannot.
    pub(super) fn new(name: &'a str) -> Self {
        Self(name.strip_suffix(IMAGE).unwrap_or(name))
    }

    /// The kernel's name of it.
    pub(super) fn name(self) -> &'a str {
        self.0
    }

    /// Is it a filesystem of a program, `fuse` or `fuse.sshfs`? Such a program mounts with the same
    /// type as whoever asks for it.
    pub(super) fn is_fuse(self) -> bool {
        self.0 == "fuse" || self.0.starts_with("fuse.")
    }

    /// Is it an interface of the kernel that is never mounted for anybody?
    pub(super) fn is_forbidden(self) -> bool {
        NEVER.contains(&self.0) || self.0.starts_with("fuse.")
    }

    /// Is its source a block device or an image?
    pub(super) fn is_on_a_device(self) -> bool {
        !NO_DEVICE.contains(&self.0)
    }

    /// Is its source a server or a share that is reached with the host's rights?
    pub(super) fn is_remote(self) -> bool {
        !self.is_on_a_device() && !NO_SOURCE.contains(&self.0)
    }

    /// Do its options `uid` and `gid` say who owns the files?
    pub(super) fn takes_owners(self) -> bool {
        OWNERS.contains(&self.0)
    }

    /// Can its owners be shifted as a whole? The pages of hugetlbfs are charged to owners, and its
    /// options say who they are.
    pub(super) fn can_be_shifted(self) -> bool {
        self.0 != "hugetlbfs"
    }

    /// True for a filesystem that is never written. So many can be mounted from one image.
    pub(super) fn is_read_only(self) -> bool {
        READ_ONLY.contains(&self.0.strip_prefix("fuse.").unwrap_or(self.0))
    }

    /// Can an image order a panic?
    pub(super) fn may_panic(self) -> bool {
        PANIC.contains(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_types_too() {
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
