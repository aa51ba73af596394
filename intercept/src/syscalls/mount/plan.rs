//! Decides what to do with a mount(2): makes an [`Order`] of its arguments and the policy.
//!
//! It decides on a copy of the arguments, and must never make a system call. A mount that is not
//! granted is left to the kernel, which refuses it with the errno that programs expect. Start
//! reading at [`MountSettings::plan`].

use std::time::Duration;

use rustix::io::Errno;

use super::filesystem::Filesystem;
use super::flags::Flags;
use super::options::{self, Item, Owner};
use super::sources;
use crate::mounts::{MountSettings, on_the_host};
use ambit_worker::mount::{Executable, Handler, How, Order, Superblock};

/// The arguments of mount(2), copied once.
#[derive(Debug, Clone)]
pub(super) struct Arguments {
    pub(super) source: Option<Vec<u8>>,
    pub(super) target: Vec<u8>,
    pub(super) filesystem: String,
    pub(super) flags: Flags,
    /// Without the NUL at its end.
    pub(super) data: Vec<u8>,
}

/// The translation of ids in options.
#[derive(Clone, Copy)]
pub(super) struct Users<'a> {
    /// Translates users and groups of the container to the host's ids.
    pub(super) owners: [Owner<'a>; 2],
    /// The host's uid and gid of the caller.
    pub(super) us: [u32; 2],
}

/// Why a mount of a granted type is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Option(#[from] options::Error),
    #[error(transparent)]
    Source(#[from] sources::Error),
}

impl Error {
    /// Returns the errno for the caller.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Option(error) => error.errno(),
            Self::Source(_) => Errno::PERM,
        }
    }
}

/// What mounts a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The kernel with the caller's rights: the call is left to it.
    Kernel,
    /// The kernel with the host's rights.
    Host,
    /// This helper.
    Helper(&'a str),
}

impl MountSettings {
    /// Returns what mounts this type.
    pub(super) fn answer(&self, name: &str) -> Answer<'_> {
        let filesystem = Filesystem::new(name);
        if let Some(program) = self.fuse.get(filesystem.name()) {
            return Answer::Helper(program);
        }
        let allowed = self.allowed.iter().any(|one| one == filesystem.name());
        if allowed && !filesystem.is_forbidden() { Answer::Host } else { Answer::Kernel }
    }

    /// Returns the order for a call. `None` if the call is left to the kernel.
    pub(super) fn plan(
        &self,
        arguments: Arguments,
        users: Users<'_>,
    ) -> Result<Option<Order>, Error> {
        let Arguments { source, target, filesystem: name, flags, data } = arguments;
        let filesystem = Filesystem::new(&name);
        let flags = if self.dev_and_suid { flags } else { flags.and_no_devices_nor_suid() };
        let flags = if filesystem.is_read_only() { flags.and_read_only() } else { flags };
        let items = options::split(&data);
        let how = match self.answer(&name) {
            Answer::Kernel => return Ok(None),
            Answer::Host => {
                sources::check(&self.sources, filesystem, source.as_deref(), &items)?;
                let shift = self.shift && filesystem.can_be_shifted();
                let Users { owners, us } = users;
                let items = options::for_kernel(filesystem, items, owners, shift, us)?;
                let parameters = flags.parameters().map(|name| (name.into(), None));
                let items = items.into_iter().map(|Item { key, value }| (key, value));
                How::Kernel(Superblock {
                    parameters: parameters.chain(items).collect(),
                    on_device: filesystem.is_on_a_device(),
                    shift,
                })
            }
            // The call of a FUSE server that has opened /dev/fuse and mounts its own filesystem.
            Answer::Helper(_) if filesystem.is_fuse() && items.iter().any(Item::is_device) => {
                return Ok(None);
            }
            Answer::Helper(program) => How::Helper(Handler {
                program: match on_the_host(program) {
                    Some(path) => Executable::OnHost(path.to_owned()),
                    None => Executable::InContainer(program.to_owned()),
                },
                options: options::for_helper(filesystem, items)?,
                mount_options: flags
                    .options()
                    .chain(["allow_other", "default_permissions"])
                    .map(str::to_owned)
                    .collect(),
            }),
        };
        Ok(Some(Order {
            source,
            target,
            filesystem: filesystem.name().to_owned(),
            attributes: flags.attributes(),
            read_only: flags.read_only(),
            how,
            deadline: self.patience(),
        }))
    }
}

/// Returns the order for a procfs or sysfs of the caller's own namespaces. The kernel checks all
/// options by the caller's rights.
pub(super) fn plan_own(arguments: Arguments, deadline: Duration) -> Order {
    let Arguments { source, target, filesystem, flags, data } = arguments;
    let items = options::split(&data).into_iter().map(|Item { key, value }| (key, value));
    let parameters = flags.parameters().map(|name| (name.into(), None)).chain(items).collect();
    Order {
        source,
        target,
        filesystem,
        attributes: flags.attributes(),
        read_only: flags.read_only(),
        how: How::Own(parameters),
        deadline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(
        allowed: &[&str],
        helper: &[(&str, &str)],
        shift: bool,
        call: Arguments,
    ) -> Option<Order> {
        let helpers = helper.iter().map(|&(key, program)| (key.to_owned(), program.to_owned()));
        let settings = MountSettings {
            allowed: allowed.iter().map(|&name| name.to_owned()).collect(),
            fuse: helpers.collect(),
            shift,
            ..MountSettings::default()
        };
        let owners: [Owner<'_>; 2] = [&|id| Some(id + 1000), &|id| Some(id + 2000)];
        settings.plan(call, Users { owners, us: [1000, 2000] }).unwrap()
    }

    fn call(filesystem: &str, flags: u64, data: &str) -> Arguments {
        Arguments {
            source: Some(b"/dev/vdb".to_vec()),
            target: b"/mnt".to_vec(),
            filesystem: filesystem.to_owned(),
            flags: Flags::of_new_mount(flags).unwrap(),
            data: data.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_type_in_no_list_is_left_to_the_kernel() {
        assert_eq!(plan(&["ext4"], &[], false, call("xfs", 0, "")), None);
        assert_eq!(plan(&["debugfs", "tmpfs"], &[], false, call("debugfs", 0, "")), None);
        assert_eq!(plan(&["ext4"], &[], false, call("ext4 ", 0, "")), None);
    }

    #[test]
    fn an_allowed_type_is_mounted_by_the_kernel_without_devices() {
        let order = plan(&["ext4"], &[], true, call("ext4.image", 1, "noload")).unwrap();
        assert_eq!(
            (order.filesystem.as_str(), order.attributes, order.read_only),
            ("ext4", 7, true)
        );
        let How::Kernel(superblock) = order.how else { panic!("{:?}", order.how) };
        assert!(superblock.on_device && superblock.shift);
        let value = |value: &str| Some(value.as_bytes().to_vec());
        assert_eq!(
            superblock.parameters,
            [
                (b"ro".to_vec(), None),
                (b"noload".to_vec(), None),
                (b"errors".to_vec(), value("remount-ro"))
            ]
        );
    }

    #[test]
    fn a_type_that_is_never_written_is_mounted_read_only() {
        for (kind, helper) in [("squashfs", "squashfuse"), ("fuse.fuseiso", "fuseiso")] {
            let order = plan(&[], &[(kind, helper)], true, call(kind, 0, "")).unwrap();
            assert!(order.read_only && order.attributes & 1 == 1, "{kind}");
        }
        let order = plan(&["erofs"], &[], true, call("erofs", 0, "")).unwrap();
        let How::Kernel(superblock) = order.how else { panic!("{:?}", order.how) };
        assert_eq!(superblock.parameters, [(b"ro".to_vec(), None)]);
    }

    #[test]
    fn settings_grant_sources_devices_and_shifted_owners() {
        let plan = |settings: MountSettings, call| {
            let allowed = vec!["ext4".to_owned(), "9p".to_owned()];
            let owners: [Owner<'_>; 2] = [&|id| Some(id), &|id| Some(id)];
            let users = Users { owners, us: [0, 0] };
            MountSettings { allowed, ..settings }.plan(call, users).map(Option::unwrap)
        };
        let shift = |shift| {
            let settings = MountSettings { shift, ..MountSettings::default() };
            match plan(settings, call("ext4", 0, "")).unwrap().how {
                How::Kernel(superblock) => superblock.shift,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([true, false].map(shift), [true, false]);
        let settings = MountSettings { dev_and_suid: true, ..MountSettings::default() };
        assert_eq!(plan(settings, call("ext4", 0, "")).unwrap().attributes, 0);
        let error = plan(MountSettings::default(), call("9p", 0, "")).unwrap_err();
        assert_eq!(error.errno(), Errno::PERM);
        let settings = MountSettings { sources: vec!["9p=/dev/*".into()], ..Default::default() };
        assert!(plan(settings, call("9p", 0, "")).is_ok());
    }

    #[test]
    fn hugetlbfs_belongs_to_the_caller() {
        let order = plan(&["hugetlbfs"], &[], true, call("hugetlbfs", 0, "uid=5")).unwrap();
        let How::Kernel(superblock) = order.how else { panic!("{:?}", order.how) };
        assert!(!superblock.shift && !superblock.on_device);
        let shown: Vec<_> = superblock.parameters.iter().map(|(_, value)| value.clone()).collect();
        assert_eq!(shown, [Some(b"1005".to_vec()), Some(b"2000".to_vec())]);
    }

    #[test]
    fn a_fuse_server_that_mounts_its_own_filesystem_is_left_to_the_kernel() {
        let helper = [("fuse.sshfs", "sshfs")];
        let order = plan(&[], &helper, false, call("fuse.sshfs", 0, "reconnect")).unwrap();
        assert_eq!(order.filesystem, "fuse.sshfs");
        let own = call("fuse.sshfs", 0, "fd=3,rootmode=40000,user_id=0,group_id=0");
        assert_eq!(plan(&[], &helper, false, own), None);
    }

    #[test]
    fn a_helper_gets_no_options_that_only_the_kernel_has() {
        let data = "errors=remount-ro,offset=512,x-systemd.automount";
        let order = plan(&[], &[("ext4", "fuse2fs")], true, call("ext4", 1 | 1024, data)).unwrap();
        let How::Helper(handler) = order.how else { panic!("{:?}", order.how) };
        assert_eq!(handler.program, Executable::InContainer("fuse2fs".into()));
        assert_eq!(handler.options, [b"offset=512".to_vec()]);
        assert_eq!(
            handler.mount_options,
            ["ro", "nosuid", "nodev", "noatime", "allow_other", "default_permissions"]
        );
    }
}
