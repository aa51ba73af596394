//! The options in the data string of mount(2): splits them as the kernel does, and passes on,
//! translates, drops or refuses each one.
//!
//! The superblock is made with the host's rights. So options that name paths or devices (they would
//! be the host's), that make the kernel panic, or that inject faults must never reach the kernel,
//! for no filesystem, and nothing reaches it that no table of `tables.rs` has. Owners are
//! translated, because the container gives its own numbers. Start reading at [`for_kernel`] and
//! [`for_helper`].

use rustix::io::Errno;

use ambit_kernel::text::shown::shown;

use super::filesystem::Filesystem;
use super::tables::{self, ByHelper};

/// One option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// An option that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("the option {0:?} is not for containers: it would act on the host")]
    Host(String),
    #[error("{1} has no option {0:?} that a container may give (docs/mount.md)")]
    Unknown(String, String),
    #[error("no helper of {1} has the option {0:?}, and the mount would not be what was asked for")]
    Helper(String, String),
}

impl Error {
    /// Returns the errno for the caller: an option that is not known is EINVAL, as by the kernel.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Host(_) => Errno::PERM,
            Self::Unknown(..) | Self::Helper(..) => Errno::INVAL,
        }
    }
}

/// Options that would act on the host, for all filesystems: the value is a path, a device, a
/// descriptor or a key of the process that mounts, the user whose credentials are used, a fault to
/// inject, or a warning that may be a panic.
const OF_THE_HOST: [&str; 27] = [
    "journal_dev",
    "journal_path",
    "logdev",
    "rtdev",
    "device",
    "source",
    "domain_id",
    "lowerdir",
    "upperdir",
    "workdir",
    "rdinit",
    "iocharset_path",
    "xip",
    "fd",
    "rfdno",
    "wfdno",
    "cruid",
    "credentials",
    "multiuser",
    "backupuid",
    "backupgid",
    "key",
    "aname",
    "uname",
    "cachetag",
    "fsc",
    "warn_on_error",
];
/// Prefixes of options that test the kernel or inject faults.
const HAZARDS: [&str; 3] = ["fault_", "test_", "fatal_errors"];
/// Owners that are compared with the host's users, whatever the mount shifts.
const RESERVED: [&str; 2] = ["resuid", "resgid"];

/// Splits the string as generic_parse_monolithic() of the kernel does.
pub(super) fn split(data: &[u8]) -> Vec<Item> {
    let items = data.split(|&byte| byte == b',').filter(|item| !item.is_empty());
    let items = items.map(|item| match item.iter().position(|&byte| byte == b'=') {
        Some(at) => Item { key: item[..at].to_vec(), value: Some(item[at + 1..].to_vec()) },
        None => Item { key: item.to_vec(), value: None },
    });
    // The kernel ignores "=value", which has no name.
    items.filter(|item| !item.key.is_empty()).collect()
}

/// Translates an id of the container to the host's id. `None` if the container has no such id.
pub(super) type Owner<'a> = &'a dyn Fn(u32) -> Option<u32>;

/// Returns the options for a superblock that is made with the host's rights. `shift` is true if an
/// idmapped mount shifts all owners. `us` are the host's uid and gid of the caller.
pub(super) fn for_kernel(
    filesystem: Filesystem<'_>,
    mut items: Vec<Item>,
    owners: [Owner<'_>; 2],
    shift: bool,
    us: [u32; 2],
) -> Result<Vec<Item>, Error> {
    items.retain(|item| !tables::is_found_by_the_kernel(filesystem.name(), &item.key));
    for item in &items {
        if is_of_the_host(item) {
            return Err(Error::Host(item.to_string()));
        }
        if tables::find(filesystem.name(), &item.key).is_none() {
            return Err(Error::Unknown(item.to_string(), filesystem.name().to_owned()));
        }
    }
    for (key, owner) in RESERVED.into_iter().zip(owners) {
        items.iter_mut().filter(|item| item.is(key)).try_for_each(|item| item.translate(owner))?;
    }
    if !shift && filesystem.takes_owners() {
        for ((key, owner), us) in ["uid", "gid"].into_iter().zip(owners).zip(us) {
            let mut given = items.iter_mut().filter(|item| item.is(key)).peekable();
            if given.peek().is_none() {
                drop(given);
                items.push(Item::new(key, &us.to_string()));
            } else {
                given.try_for_each(|item| item.translate(owner))?;
            }
        }
    }
    // The superblock of an image may demand a panic on errors; the option overrides that.
    if filesystem.may_panic() && !items.iter().any(|item| item.is("errors")) {
        items.push(Item::new("errors", "remount-ro"));
    }
    Ok(items)
}

/// Options that mount programs know and filesystems do not.
const OF_MOUNT_PROGRAMS: [&str; 3] = ["defaults", "seclabel", "relatime"];

/// Returns the options for a helper. It runs as the caller, so options of its own are passed on.
pub(super) fn for_helper(
    filesystem: Filesystem<'_>,
    items: Vec<Item>,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut passed = Vec::new();
    for mut item in items {
        if item.key.starts_with(b"x-") || OF_MOUNT_PROGRAMS.iter().any(|name| item.is(name)) {
            continue;
        }
        let refused = || Error::Helper(item.to_string(), filesystem.name().to_owned());
        match tables::find(filesystem.name(), &item.key) {
            None | Some((_, ByHelper::Pass)) => {}
            Some((_, ByHelper::As(name))) => {
                item = Item { key: name.into(), value: None };
            }
            Some((value, ByHelper::Drop)) if value.takes(item.value.as_deref()) => continue,
            Some((_, ByHelper::Drop | ByHelper::Refuse)) => return Err(refused()),
        }
        passed.push(match item.value {
            Some(value) => [&item.key[..], b"=", &value].concat(),
            None => item.key,
        });
    }
    Ok(passed)
}

fn is_of_the_host(item: &Item) -> bool {
    let panics = item.value.as_deref().is_some_and(|value| value.starts_with(b"panic"));
    let hazard = HAZARDS.iter().any(|hazard| item.key.starts_with(hazard.as_bytes()));
    panics || hazard || OF_THE_HOST.iter().any(|name| item.is(name))
}

impl Item {
    pub(super) fn new(key: &str, value: &str) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }

    /// True if it names an open `/dev/fuse`.
    pub(super) fn is_device(&self) -> bool {
        self.key == b"fd"
    }

    fn is(&self, key: &str) -> bool {
        self.key == key.as_bytes()
    }

    /// Translates the value, an id of the container. A value that is not a number is left to the
    /// filesystem, which refuses it.
    fn translate(&mut self, owner: Owner<'_>) -> Result<(), Error> {
        if let Some(id) = self.number() {
            let Some(id) = owner(id) else { return Err(Error::Host(self.to_string())) };
            self.value = Some(id.to_string().into_bytes());
        }
        Ok(())
    }

    fn number(&self) -> Option<u32> {
        std::str::from_utf8(self.value.as_deref()?).ok()?.parse().ok()
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", shown(&self.key))?;
        match &self.value {
            Some(value) => write!(f, "={}", shown(value)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_IDS: [Owner<'static>; 2] = [&|_| None, &|_| None];

    fn shown(items: &[Item]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }

    fn kernel_options(kind: &str, data: &str) -> Result<Vec<String>, Error> {
        let owners: [Owner<'_>; 2] = [&|id| Some(100_000 + id), &|id| (id < 10).then_some(id + 7)];
        for_kernel(Filesystem::new(kind), split(data.as_bytes()), owners, false, [100_000, 7])
            .map(|items| shown(&items))
    }

    fn helper_options(kind: &str, data: &str) -> Result<String, Errno> {
        let passed = for_helper(Filesystem::new(kind), split(data.as_bytes()));
        let passed = passed.map_err(|error| error.errno())?;
        Ok(String::from_utf8(passed.join(&b',')).unwrap())
    }

    #[test]
    fn options_are_split_as_by_the_kernel() {
        let items = split(b",noload,,data=journal,=x,a=,b=c=d,\xff");
        let expected = ["noload", "data=journal", "a=", "b=c=d", "\\xff"];
        assert_eq!(shown(&items), expected);
        assert_eq!(split(b""), []);
    }

    #[test]
    fn options_with_paths_panics_and_faults_are_refused() {
        for data in [
            "journal_path=/dev/sda",
            "noload,journal_dev=0x801",
            "errors=panic",
            "device=/dev/sda",
            "fatal_errors=panic",
            "fault_injection=1",
            "source=/dev/sda",
            "warn_on_error",
            "resgid=5000",
        ] {
            let error = kernel_options("ext4", data).unwrap_err();
            assert_eq!(error.errno(), Errno::PERM, "{data}: {error}");
        }
        for (kind, data) in [
            ("9p", "trans=fd,rfdno=3,wfdno=3"),
            ("cifs", "cruid=0"),
            ("xfs", "logdev=/dev/sda"),
            ("ceph", "key=host"),
            ("9p", "aname=/etc"),
        ] {
            assert_eq!(kernel_options(kind, data).unwrap_err().errno(), Errno::PERM, "{data}");
        }
    }

    #[test]
    fn an_option_that_no_table_has_is_einval() {
        for (kind, data) in [("ext4", "no_such_option"), ("xfs", "noload"), ("minix", "noload")] {
            let error = kernel_options(kind, data).unwrap_err();
            assert_eq!(error.errno(), Errno::INVAL, "{data}");
        }
        let odd = for_kernel(Filesystem::new("ext4"), split(b"\xff=x"), NO_IDS, true, [0, 0]);
        assert_eq!(odd.unwrap_err().errno(), Errno::INVAL);
        assert_eq!(kernel_options("minix", "ro,sync").unwrap(), ["ro", "sync"]);
    }

    #[test]
    fn an_image_cannot_demand_a_panic() {
        assert_eq!(kernel_options("ext4", "").unwrap(), ["errors=remount-ro"]);
        assert_eq!(kernel_options("ext4", "errors=continue").unwrap(), ["errors=continue"]);
        assert_eq!(kernel_options("xfs", "nouuid").unwrap(), ["nouuid"]);
    }

    #[test]
    fn owners_are_translated_to_the_hosts_ids() {
        assert_eq!(
            kernel_options("hugetlbfs", "uid=5,pagesize=2M").unwrap(),
            ["uid=100005", "pagesize=2M", "gid=7"]
        );
        assert_eq!(
            kernel_options("vfat", "gid=x").unwrap()[0],
            "gid=x",
            "the filesystem refuses it"
        );
        assert!(kernel_options("vfat", "gid=5000").is_err(), "not one of the container's");
        assert!(kernel_options("vfat", "gid=5,gid=5000").is_err(), "the last one counts");
        let owners: [Owner<'_>; 2] = [&|id| Some(100_000 + id), &|id| Some(id)];
        let shifted = |kind, data: &str| {
            let items = split(data.as_bytes());
            shown(&for_kernel(Filesystem::new(kind), items, owners, true, [0, 0]).unwrap())
        };
        assert_eq!(shifted("vfat", "uid=5"), ["uid=5"], "shifted as a whole");
        assert_eq!(shifted("ext4", "resuid=5")[0], "resuid=100005", "compared with the caller's");
    }

    #[test]
    fn what_a_network_program_adds_is_left_to_the_kernel() {
        assert_eq!(kernel_options("nfs", "vers=3,mountport=635").unwrap(), ["vers=3"]);
        let shares = kernel_options("cifs", "prefixpath=../x,soft").unwrap();
        assert_eq!(shares, ["soft"]);
    }

    #[test]
    fn a_helper_gets_what_it_knows_and_no_hints() {
        let hints = "errors=remount-ro,nobarrier,delalloc,resuid=5,stripe=16,usrquota,jqfmt=vfsv1,\
                     data=ordered,commit=5,barrier=1,init_itable=10,acl,discard,defaults,x-y=z";
        assert_eq!(helper_options("ext4", hints).unwrap(), "");
        assert_eq!(helper_options("ext4", "noload,offset=512").unwrap(), "norecovery,offset=512");
        assert_eq!(helper_options("ntfs", "uid=5,prealloc").unwrap(), "uid=5");
        assert_eq!(helper_options("fuse.sshfs", "reconnect,uid=5").unwrap(), "reconnect,uid=5");
        for (kind, data) in [
            ("ext4", "sb=8193"),
            ("ext4", "grpid"),
            ("ext4", "data=nonsense"),
            ("ext4", "commit=often"),
            ("ext4", "nobarrier=1"),
            ("ext4", "errors=panic"),
            ("btrfs", "subvol=a"),
            ("exfat", "keep_last_dots"),
        ] {
            assert_eq!(helper_options(kind, data), Err(Errno::INVAL), "{kind} {data}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_into_harmless_options(data: Vec<u8>) {
            let items = split(&data);
            for item in &items {
                prop_assert!(!item.key.contains(&b'=') && !item.key.contains(&b','));
                prop_assert!(!item.value.as_ref().is_some_and(|value| value.contains(&b',')));
            }
            if let Ok(passed) = for_kernel(Filesystem::new("ext4"), items, NO_IDS, true, [1, 1]) {
                prop_assert!(!passed.iter().any(is_of_the_host));
            }
        }
    }
}
