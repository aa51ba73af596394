//! The options in the data string of mount(2): splits them as the kernel does, and refuses those
//! that a container may not give.
//!
//! The superblock is made with the host's rights. So options that name paths or devices (they would
//! be the host's), that make the kernel panic, or that inject faults must never reach the kernel,
//! for no filesystem. Owners are translated, because the container gives its own numbers. Start
//! reading at [`for_kernel`].

use super::filesystem::Filesystem;

/// One option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// An option that the container may not give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the option {0:?} is not for containers: it would act on the host")]
pub(super) struct Error(pub(super) String);

/// Options whose value is a path, a device or a descriptor of the process that mounts.
const PATHS: [&str; 17] = [
    "journal_dev",
    "journal_path",
    "logdev",
    "rtdev",
    "device",
    "source",
    "fsid",
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
];
/// Prefixes of options that test the kernel or inject faults.
const HAZARDS: [&str; 4] = ["fault_", "test_", "fatal_errors", "debug_want"];

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

/// Returns the options for a superblock that is made with the host's rights. `owners` translate uid
/// and gid; they are `None` if an idmapped mount shifts all owners. `us` are the host's uid and gid
/// of the caller.
pub(super) fn for_kernel(
    filesystem: Filesystem<'_>,
    mut items: Vec<Item>,
    owners: Option<[Owner<'_>; 2]>,
    us: [u32; 2],
) -> Result<Vec<Item>, Error> {
    for item in &items {
        if !harmless(item) {
            return Err(Error(item.to_string()));
        }
    }
    if let (Some(owners), true) = (owners, filesystem.takes_owners()) {
        for ((key, owner), us) in ["uid", "gid"].into_iter().zip(owners).zip(us) {
            match items.iter_mut().find(|item| item.key == key.as_bytes()) {
                // A value that is not a number is left to the filesystem, which refuses it.
                Some(item) => {
                    if let Some(id) = item.number() {
                        let Some(id) = owner(id) else { return Err(Error(item.to_string())) };
                        item.value = Some(id.to_string().into_bytes());
                    }
                }
                None => items.push(Item::new(key, &us.to_string())),
            }
        }
    }
    // The superblock of an image may demand a panic on errors; the option overrides that.
    if filesystem.may_panic() && !items.iter().any(|item| item.key == b"errors") {
        items.push(Item::new("errors", "remount-ro"));
    }
    Ok(items)
}

/// Options of the kernel's ext4 that helpers do not have and do not need.
const KERNELS_OWN: [&[u8]; 10] = [
    b"errors",
    b"data",
    b"barrier",
    b"acl",
    b"user_xattr",
    b"discard",
    b"commit",
    b"defaults",
    b"seclabel",
    b"relatime",
];

/// Returns the options for a helper. It runs as the caller, so none has to be refused.
pub(super) fn for_helper(items: Vec<Item>) -> Vec<Vec<u8>> {
    let meant = |item: &Item| !KERNELS_OWN.contains(&&*item.key) && !item.key.starts_with(b"x-");
    let joined = |item: Item| match item.value {
        Some(value) => [&item.key[..], b"=", &value].concat(),
        None => item.key,
    };
    items.into_iter().filter(meant).map(joined).collect()
}

fn harmless(item: &Item) -> bool {
    let Ok(key) = std::str::from_utf8(&item.key) else { return false };
    let panics = item.value.as_deref().is_some_and(|value| value.starts_with(b"panic"));
    !PATHS.contains(&key) && !panics && !HAZARDS.iter().any(|hazard| key.starts_with(hazard))
}

impl Item {
    pub(super) fn new(key: &str, value: &str) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }

    /// True if it names an open `/dev/fuse`.
    pub(super) fn is_device(&self) -> bool {
        self.key == b"fd"
    }

    fn number(&self) -> Option<u32> {
        std::str::from_utf8(self.value.as_deref()?).ok()?.parse().ok()
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.key))?;
        match &self.value {
            Some(value) => write!(f, "={}", String::from_utf8_lossy(value)),
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
        for_kernel(Filesystem::new(kind), split(data.as_bytes()), Some(owners), [100_000, 7])
            .map(|items| shown(&items))
    }

    #[test]
    fn options_are_split_as_by_the_kernel() {
        let items = split(b",noload,,data=journal,=x,a=,b=c=d,\xff");
        let expected = ["noload", "data=journal", "a=", "b=c=d", "\u{fffd}"];
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
            "trans=fd,rfdno=3,wfdno=3",
            "a,\u{0}=b,logdev=x",
        ] {
            assert!(kernel_options("ext4", data).is_err(), "{data}");
        }
        assert!(for_kernel(Filesystem::new("ext4"), split(b"\xff=x"), None, [0, 0]).is_err());
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
        let shifted =
            for_kernel(Filesystem::new("vfat"), split(b"uid=5"), None, [100_000, 7]).unwrap();
        assert_eq!(shown(&shifted)[0], "uid=5", "shifted as a whole");
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_into_harmless_options(data: Vec<u8>) {
            let items = split(&data);
            for item in &items {
                prop_assert!(!item.key.contains(&b'=') && !item.key.contains(&b','));
                prop_assert!(!item.value.as_ref().is_some_and(|value| value.contains(&b',')));
            }
            if let Ok(passed) = for_kernel(Filesystem::new("ext4"), items, Some(NO_IDS), [1, 1]) {
                prop_assert!(passed.iter().all(harmless));
            }
        }
    }
}
