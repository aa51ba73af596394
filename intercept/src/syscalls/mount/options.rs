//! The data string of mount(2): options between commas, as the kernel takes them apart, and which
//! of them a container may give.
//!
//! The superblock is made with the host's rights. So options that name paths or devices (they
//! would be the host's), that make the kernel panic, or that inject faults are refused, whatever
//! the filesystem. Owners are translated, because they are the container's numbers.

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
pub(super) struct Refused(pub(super) String);

/// Options whose value is a path, a device or a descriptor of whoever mounts.
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
/// Beginnings of options that are for those who develop or attack the kernel.
const HAZARDS: [&str; 4] = ["fault_", "test_", "fatal_errors", "debug_want"];

/// Takes the string apart as generic_parse_monolithic() of the kernel.
pub(super) fn split(data: &[u8]) -> Vec<Item> {
    let items = data.split(|&byte| byte == b',').filter(|item| !item.is_empty());
    let items = items.map(|item| match item.iter().position(|&byte| byte == b'=') {
        Some(at) => Item { key: item[..at].to_vec(), value: Some(item[at + 1..].to_vec()) },
        None => Item { key: item.to_vec(), value: None },
    });
    // "=value" has no name, and the kernel passes over it.
    items.filter(|item| !item.key.is_empty()).collect()
}

/// Translates an owner of the container's into the host's number.
pub(super) type Owner<'a> = &'a dyn Fn(u32) -> Option<u32>;

/// The options for a superblock that is made with the host's rights. `owners` are for uid and gid,
/// and only given when the mount's owners are not shifted as a whole; `us` is who mounts.
pub(super) fn screen(
    filesystem: Filesystem<'_>,
    mut items: Vec<Item>,
    owners: Option<[Owner<'_>; 2]>,
    us: [u32; 2],
) -> Result<Vec<Item>, Refused> {
    for item in &items {
        if !harmless(item) {
            return Err(Refused(item.to_string()));
        }
    }
    if let (Some(owners), true) = (owners, filesystem.takes_owners()) {
        for ((key, owner), us) in ["uid", "gid"].into_iter().zip(owners).zip(us) {
            match items.iter_mut().find(|item| item.key == key.as_bytes()) {
                // What is no number is left to the filesystem, which says what is wrong with it.
                Some(item) => {
                    if let Some(id) = item.number() {
                        let Some(id) = owner(id) else { return Err(Refused(item.to_string())) };
                        item.value = Some(id.to_string().into_bytes());
                    }
                }
                None => items.push(Item::new(key, &us.to_string())),
            }
        }
    }
    // An image may say "panic" in its superblock, and then a flaw in it ends the host.
    if filesystem.may_panic() && !items.iter().any(|item| item.key == b"errors") {
        items.push(Item::new("errors", "remount-ro"));
    }
    Ok(items)
}

/// Options of the kernel's ext4 that a helper neither has nor needs.
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

/// The options for a helper. It runs as the caller, so nothing has to be kept from it.
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

    /// Does it name an open `/dev/fuse`?
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

    const NOBODY: [Owner<'static>; 2] = [&|_| None, &|_| None];

    fn shown(items: &[Item]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }

    fn screened(kind: &str, data: &str) -> Result<Vec<String>, Refused> {
        let owners: [Owner<'_>; 2] = [&|id| Some(100_000 + id), &|id| (id < 10).then_some(id + 7)];
        screen(Filesystem::new(kind), split(data.as_bytes()), Some(owners), [100_000, 7])
            .map(|items| shown(&items))
    }

    #[test]
    fn strings_are_taken_apart_as_by_the_kernel() {
        let items = split(b",noload,,data=journal,=x,a=,b=c=d,\xff");
        let expected = ["noload", "data=journal", "a=", "b=c=d", "\u{fffd}"];
        assert_eq!(shown(&items), expected);
        assert_eq!(split(b""), []);
    }

    #[test]
    fn paths_of_the_host_and_panics_are_refused() {
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
            assert!(screened("ext4", data).is_err(), "{data}");
        }
        assert!(screen(Filesystem::new("ext4"), split(b"\xff=x"), None, [0, 0]).is_err());
    }

    #[test]
    fn what_an_image_says_of_errors_is_overruled() {
        assert_eq!(screened("ext4", "").unwrap(), ["errors=remount-ro"]);
        assert_eq!(screened("ext4", "errors=continue").unwrap(), ["errors=continue"]);
        assert_eq!(screened("xfs", "nouuid").unwrap(), ["nouuid"]);
    }

    #[test]
    fn owners_are_the_containers_numbers() {
        assert_eq!(
            screened("hugetlbfs", "uid=5,pagesize=2M").unwrap(),
            ["uid=100005", "pagesize=2M", "gid=7"]
        );
        assert_eq!(screened("vfat", "gid=x").unwrap()[0], "gid=x", "the filesystem complains");
        assert!(screened("vfat", "gid=5000").is_err(), "not one of the container's");
        let shifted = screen(Filesystem::new("vfat"), split(b"uid=5"), None, [100_000, 7]).unwrap();
        assert_eq!(shown(&shifted)[0], "uid=5", "shifted as a whole");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart_and_nothing_gets_a_second_meaning(data: Vec<u8>) {
            let items = split(&data);
            for item in &items {
                prop_assert!(!item.key.contains(&b'=') && !item.key.contains(&b','));
                prop_assert!(!item.value.as_ref().is_some_and(|value| value.contains(&b',')));
            }
            if let Ok(passed) = screen(Filesystem::new("ext4"), items, Some(NOBODY), [1, 1]) {
                prop_assert!(passed.iter().all(harmless));
            }
        }
    }
}
