//! Translates the flags of mount(2) for fsmount(2), fsconfig(2) and mount helpers.
//!
//! mount(2) has the flags of a *mount* (nosuid, noatime) and those of its *superblock* (sync,
//! lazytime) in one word; fsmount(2) and fsconfig(2) have them apart, with other values. `ro` is
//! both, as in mount(2). Nothing here decides whether anything may be mounted. Start reading at
//! [`Flags::of_new_mount`].

/// Flags of calls that do not mount a new filesystem. These are left to the kernel.
const OTHER_CALLS: u64 = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_MOVE | PROPAGATION;
const PROPAGATION: u64 = libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;
/// `MS_NOSYMFOLLOW` (Linux 5.10).
const NOSYMFOLLOW: u64 = 0x100;
/// Flags that the kernel refuses from user space.
const NOUSER: u64 = 1 << 31;

/// (flag of mount(2), attribute of fsmount(2))
const ATTRIBUTES: [(u64, u64); 6] = [
    (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
    (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
    (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
    (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    (NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
];

/// (flag of mount(2), parameter of fsconfig(2))
const PARAMETERS: [(u64, &str); 5] = [
    (libc::MS_RDONLY, "ro"),
    (libc::MS_SYNCHRONOUS, "sync"),
    (libc::MS_DIRSYNC, "dirsync"),
    (libc::MS_MANDLOCK, "mand"),
    (libc::MS_LAZYTIME, "lazytime"),
];

/// (flag of mount(2), option of a mount program)
const OPTIONS: [(u64, &str); 7] = [
    (libc::MS_RDONLY, "ro"),
    (libc::MS_NOSUID, "nosuid"),
    (libc::MS_NODEV, "nodev"),
    (libc::MS_NOEXEC, "noexec"),
    (libc::MS_SYNCHRONOUS, "sync"),
    (libc::MS_DIRSYNC, "dirsync"),
    (libc::MS_NOATIME, "noatime"),
];

/// The conditions for new mounts in the filter: no flag of other calls, with and without the magic
/// number `MS_MGC_VAL`, whose bits overlap with those flags.
pub(super) const NEW_MOUNTS: [(u32, u64, u64); 2] =
    [(3, OTHER_CALLS, 0), (3, 0xffff_0000 | OTHER_CALLS & 0xffff, libc::MS_MGC_VAL & 0xffff_0000)];

/// The flags of a call that makes a new mount of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags(u64);

impl Flags {
    /// Returns the flags of a new mount. `None` if the call is a remount, a bind, a move or a
    /// change of propagation, or if it has bits that are not known here.
    pub(super) fn of_new_mount(bits: u64) -> Option<Self> {
        // The kernel still removes the magic number that was required before Linux 2.4 (mount(2)).
        let magic = bits & 0xffff_0000 == (libc::MS_MGC_VAL & 0xffff_0000);
        let bits = if magic { bits & !libc::MS_MGC_MSK } else { bits };
        (bits & (OTHER_CALLS | NOUSER) == 0 && u32::try_from(bits).is_ok()).then_some(Self(bits))
    }

    /// True if nothing may be written.
    pub(super) fn read_only(self) -> bool {
        self.0 & libc::MS_RDONLY != 0
    }

    /// Returns the flags with nosuid and nodev.
    pub(super) fn and_no_devices_nor_suid(self) -> Self {
        Self(self.0 | libc::MS_NOSUID | libc::MS_NODEV)
    }

    /// Returns the flags with ro.
    pub(super) fn and_read_only(self) -> Self {
        Self(self.0 | libc::MS_RDONLY)
    }

    /// Returns `MOUNT_ATTR_*`, for fsmount(2).
    pub(super) fn attributes(self) -> u64 {
        let attributes = chosen(&ATTRIBUTES, self.0).fold(0, |all, one| all | one);
        // As path_mount() of the kernel: relatime unless noatime, and strictatime overrides both.
        attributes
            | if self.0 & libc::MS_STRICTATIME != 0 {
                libc::MOUNT_ATTR_STRICTATIME
            } else if self.0 & libc::MS_NOATIME != 0 {
                libc::MOUNT_ATTR_NOATIME
            } else {
                libc::MOUNT_ATTR_RELATIME
            }
    }

    /// Returns the parameters of the superblock, for fsconfig(2).
    pub(super) fn parameters(self) -> impl Iterator<Item = &'static str> {
        chosen(&PARAMETERS, self.0)
    }

    /// Returns the options for a helper. Those that libfuse does not know are left out: none of
    /// them grants anything.
    pub(super) fn options(self) -> impl Iterator<Item = &'static str> {
        chosen(&OPTIONS, self.0)
    }
}

fn chosen<T: Copy>(table: &'static [(u64, T)], bits: u64) -> impl Iterator<Item = T> {
    table.iter().filter(move |(flag, _)| bits & flag != 0).map(|&(_, value)| value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flags(bits: u64) -> Flags {
        Flags::of_new_mount(bits).unwrap()
    }

    #[test]
    fn calls_that_do_not_mount_a_new_filesystem_are_left_to_the_kernel() {
        for bits in [32, 4096, 4096 | 16384, 8192, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 31] {
            assert_eq!(Flags::of_new_mount(bits), None, "{bits:#x}");
        }
        assert_eq!(Flags::of_new_mount(1 << 40), None);
    }

    #[test]
    fn the_magic_number_is_ignored() {
        assert_eq!(Flags::of_new_mount(0xc0ed_0001), Some(Flags(1)));
        assert_eq!(Flags::of_new_mount(0xc0ed_0020), None, "a remount nevertheless");
        assert_eq!(Flags::of_new_mount(0xc0ee_0000), None, "not the magic: NOUSER and others");
    }

    #[test]
    fn flags_of_access_times_override_each_other_as_in_the_kernel() {
        assert_eq!(flags(0).attributes(), 0);
        assert_eq!(flags(libc::MS_RELATIME).attributes(), 0);
        assert_eq!(flags(libc::MS_NOATIME).attributes(), 0x10);
        assert_eq!(flags(libc::MS_STRICTATIME).attributes(), 0x20);
        assert_eq!(flags(libc::MS_STRICTATIME | libc::MS_NOATIME).attributes(), 0x20);
        assert_eq!(flags(libc::MS_NOATIME | libc::MS_NODIRATIME).attributes(), 0x90);
    }

    #[test]
    fn a_read_only_mount_has_a_read_only_superblock() {
        let read_only = flags(libc::MS_RDONLY | libc::MS_LAZYTIME | NOSYMFOLLOW);
        assert_eq!(read_only.attributes(), 0x1 | 0x20_0000);
        assert_eq!(read_only.parameters().collect::<Vec<_>>(), ["ro", "lazytime"]);
        assert_eq!(read_only.options().collect::<Vec<_>>(), ["ro"]);
    }

    proptest! {
        #[test]
        fn the_filter_reports_every_new_mount(bits in any::<u32>(), magic: bool) {
            let bits = u64::from(if magic { bits & 0xffff | 0xc0ed_0000 } else { bits });
            let reported = NEW_MOUNTS.iter().any(|(_, mask, value)| bits & mask == *value);
            let new = Flags::of_new_mount(bits).is_some();
            prop_assert!(reported || !new);
            prop_assert!(new || bits & NOUSER != 0 || !reported);
        }

        #[test]
        fn attributes_are_accepted_by_fsmount(bits in any::<u64>()) {
            if let Some(flags) = Flags::of_new_mount(bits) {
                let attributes = flags.and_no_devices_nor_suid().attributes();
                let known = 0x0020_00ff;
                prop_assert_eq!(attributes & !known, 0);
                prop_assert_eq!(attributes & 6, 6);
                prop_assert!((attributes & 0x70) <= 0x20);
            }
        }
    }
}
