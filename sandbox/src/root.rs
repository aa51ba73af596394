//! The sandbox's root: what is mounted where, in order.
//!
//! All of it is built with the host's privileges in a mount namespace that still belongs to the
//! host. The sandbox's own namespace is copied from that one afterwards, and the kernel then
//! locks every mount in it (`mount_namespaces(7)`): the sandbox's root can neither make a
//! read-only mount writable nor uncover what lies below. Never mount anything of the host's from
//! inside the user namespace, where that would not hold.

use std::path::{Path, PathBuf};

use ambit_kernel::output;
use ambit_kernel::text::mountinfo::Mounted;
use anyhow::{Context, Result};
use rustix::mount::MountAttrFlags;

use super::hostmounts;
use super::mounts::{Detached, Kind, Root};
use super::options::{AttachPressure, Bind};
use super::owners::Owners;
use super::scratch::Scratch;
use super::{cgroupview, dev, mask};

/// Folders that are empty and private in a sandbox without a root filesystem of its own, and their
/// names in `Scratch`.
const PRIVATE: [(&str, &str); 3] = [("tmp", "tmp"), ("run", "run"), ("var/tmp", "var-tmp")];
/// Folders of the host's root that are never shown.
const HIDDEN: [&str; 6] = ["/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp"];

/// The parts of the root.
#[derive(Debug)]
pub(super) struct Plan {
    /// The folder that becomes the root; the host's root, read-only, when there is none.
    pub(super) rootfs: Option<PathBuf>,
    pub(super) binds: Vec<Bind>,
    pub(super) devices: Vec<PathBuf>,
    /// True if device nodes of `rootfs` and `binds` work.
    pub(super) device_nodes: bool,
    pub(super) attach_pressure: AttachPressure,
    /// The most memory, in bytes.
    pub(super) memory: Option<u64>,
    /// The sandbox's control groups: where they are shown, and where they are.
    pub(super) cgroups: Vec<(String, PathBuf)>,
}

/// Builds the root and enters it. `files` are mounts of the overlay with their targets. Must run in
/// the sandbox's pid and ipc namespaces and in a private mount namespace of the host's.
pub(super) fn build(plan: &Plan, owners: &Owners, files: &[(String, Detached)]) -> Result<()> {
    let mounts = hostmounts::all()?;
    // Without a umask, folders and devices get exactly the requested modes.
    rustix::process::umask(rustix::fs::Mode::empty());
    let nodev = MountAttrFlags::MOUNT_ATTR_NODEV;
    let data = nodev | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let kernels = data | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;

    // The host's own root is never given with device nodes.
    let given = if plan.device_nodes { MountAttrFlags::empty() } else { nodev };
    let (folder, set, hidden) = match &plan.rootfs {
        Some(folder) => (folder.as_path(), given, &[][..]),
        None => (Path::new("/"), nodev | read_only, &HIDDEN[..]),
    };
    let trunk = copy(folder, set, owners, plan.rootfs.is_some())?;
    let root = Root::over_current(trunk)?;
    if !owners.is_rootless {
        copy_below(&root, &mounts, folder, Path::new("/"), set, owners, hidden)?;
    }

    for place in ["proc", "sys", "dev"] {
        root.make(Path::new(place), Kind::Folder, owners)?;
    }
    let mut scratch = Scratch::new(&root, owners, plan.memory)?;
    root.attach(&Detached::new("proc", &[], kernels)?, "proc")?;
    let mut sys = if owners.is_rootless {
        Detached::copy_of_tree(Path::new("/sys"))?
    } else {
        Detached::copy_of(Path::new("/sys"))?
    };
    sys.set_all(kernels | read_only)?;
    root.attach(&sys, "sys")?;
    cgroupview::build(&root, owners, &plan.cgroups, &mut scratch)?;
    dev::build(&root, owners, &plan.devices, &mut scratch)?;
    if plan.rootfs.is_none() {
        // In a user namespace, only nodes that ambit makes for the sandbox can exist.
        let own = if owners.namespace.is_some() { data.difference(nodev) } else { data };
        for (place, name) in PRIVATE {
            root.attach_if_there(&scratch.take(name, own)?, Path::new(place))?;
        }
        name_servers(&root, owners)?;
    }

    for bind in &plan.binds {
        let set = if bind.read_only { given | read_only } else { given };
        let mount = copy(&bind.source, set, owners, true)?;
        root.make(&bind.target, Kind::of(&mount.0)?, owners)?;
        root.attach(&mount, &bind.target)?;
        if owners.is_rootless {
            continue;
        }
        copy_below(&root, &mounts, &bind.source, &bind.target, set, owners, &[])?;
    }
    for (target, mount) in files {
        root.attach_if_there(mount, Path::new(target))?;
    }
    let hidden = scratch.take("hidden", kernels | read_only)?;
    mask::cover(&root, owners, &plan.devices, hidden)?;
    root.enter()
}

/// Copies one mount of the host with the owners mapped to the sandbox's users. If the filesystem
/// cannot be idmapped, copies it without, and prints a note if `warn` is true.
fn copy(source: &Path, set: MountAttrFlags, owners: &Owners, warn: bool) -> Result<Detached> {
    if owners.is_rootless {
        let mut tree = Detached::copy_of_tree(source)?;
        tree.set_all(set).with_context(|| source.display().to_string())?;
        return Ok(tree);
    }
    let mut mount = Detached::copy_of(source)?;
    mount.set(set).with_context(|| source.display().to_string())?;
    if !belongs(source, owners) && !mount.map_owners(owners) && warn {
        output::complain(format_args!(
            "ambit: the filesystem of {} cannot be idmapped: inside its files belong to user 65534",
            source.display()
        ));
    }
    Ok(mount)
}

/// True if the folder belongs to the sandbox's users already, like a root filesystem that was
/// unpacked for a user namespace.
fn belongs(source: &Path, owners: &Owners) -> bool {
    owners.namespace.is_some()
        && rustix::fs::stat(source).is_ok_and(|status| {
            status.st_uid.checked_sub(owners.uid).is_some_and(|uid| uid < 65_536)
        })
}

/// Copies what is mounted below a folder of the host to the same places below the target.
fn copy_below(
    root: &Root,
    mounts: &[Mounted],
    folder: &Path,
    target: &Path,
    set: MountAttrFlags,
    owners: &Owners,
    hidden: &[&str],
) -> Result<()> {
    for point in hostmounts::below(mounts, folder, hidden) {
        // Something mounted above it may hide it by now.
        let Ok(mut mount) = Detached::copy_of(&point) else { continue };
        mount.set(set)?;
        mount.map_owners(owners);
        let place = target.join(point.strip_prefix(folder).unwrap_or(&point));
        root.attach_if_there(&mount, &place)?;
    }
    Ok(())
}

/// The network is the host's, so its name servers must be found; systemd-resolved and others keep
/// their list below /run, which is private here.
fn name_servers(root: &Root, owners: &Owners) -> Result<()> {
    let Ok(list) = std::fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
    if list.starts_with("/run") {
        let mut mount = Detached::copy_of(&list)?;
        mount.set(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        root.make(&list, Kind::File, owners)?;
        root.attach(&mount, &list)?;
    }
    Ok(())
}
