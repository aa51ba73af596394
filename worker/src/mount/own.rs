//! Makes a procfs or sysfs of the caller's namespaces, and covers it with what lies on the
//! container's own.
//!
//! The caller's process makes the superblock with the caller's rights, so the kernel decides as if
//! the caller had called it. If all that the kernel refuses is the mount, because it would show
//! what the container's own hides (`mount_too_revealing` in `fs/namespace.c`), it is made with the
//! host's rights and the attributes of the container's own: the copies that cover it hide the same.
//! They are locked, as those of a container are (mount_namespaces(7)).
//!
//! The kernel lets no container take a lock off: so a whole procfs in the caller's mount namespace
//! hides at least what the engine has hidden. Without such a mount nothing may be made. Start
//! reading at [`mount`].

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use ambit_kernel::text::mountinfo::{self, Mounted};
use ambit_kernel::text::shown::shown;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::kernel_mount::{self, find_target};
use super::order::{Order, Parameters};
use super::{confine, detached_root};
use crate::attach::{self, LEASES};
use crate::caller::WholeCaller;
use crate::child::{Child, OnDrop};
use crate::error::{Context, Error, MarkUntried};
use crate::lookup::{Mounts, find, on};
use crate::report_channel::ReportChannel;

/// The most mounts that are copied.
const MOST: usize = 512;

/// Makes the mount.
pub(super) fn mount(
    order: &Order,
    parameters: &Parameters,
    caller: &WholeCaller,
    until: Instant,
) -> Result<(), Error> {
    let (channel, theirs) = ReportChannel::pair()?;
    let child = Child::start(OnDrop::KillTree, || {
        // A procfs shows the pid namespace of the process that makes it, which a child has.
        let inner = caller.enter_users().and_then(|()| {
            Child::start(OnDrop::Kill, || {
                let done = run_as_caller(&theirs, order, parameters, caller, until);
                theirs.report(done.map(|()| Vec::new()));
            })
        });
        match inner {
            Ok(inner) => inner.wait(until),
            Err(error) => theirs.report(Err(error)),
        }
    })?;
    drop(theirs);
    let mut made = channel.receive(until)?.into_iter();
    let (Some(context), mount) = (made.next(), made.next()) else {
        return Err(Error::new(Errno::PROTO, "a report without a filesystem").mark_untried());
    };
    let (coverer, theirs) = ReportChannel::pair()?;
    let covering = Child::start(OnDrop::Kill, || {
        let covered = cover(order, caller, &context, mount);
        theirs.report(covered.mark_untried().map(|mount| vec![mount]));
    })?;
    drop((theirs, context));
    let covered = coverer.receive(until)?;
    covering.finish();
    channel.done(&covered.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(covered);
    channel.receive(until)?;
    child.finish();
    Ok(())
}

/// Becomes the caller, makes the superblock, and attaches the mount that is sent back.
fn run_as_caller(
    parent: &ReportChannel,
    order: &Order,
    parameters: &Parameters,
    caller: &WholeCaller,
    until: Instant,
) -> Result<(), Error> {
    caller.enter()?;
    let target = find_target(order)?;
    let context = create(order, parameters)?;
    let attributes = attributes(order.attributes);
    match rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes) {
        Ok(mount) => parent.done(&[context.as_fd(), mount.as_fd()])?,
        // The superblock was made, so the caller has the right to it: it would reveal too much.
        Err(Errno::PERM) => parent.done(&[context.as_fd()])?,
        Err(errno) => return Err(errno).context("fsmount as the caller"),
    }
    let mount = parent.receive(until)?.pop();
    let mount =
        mount.ok_or_else(|| Error::new(Errno::IO, "a message without a mount").mark_untried())?;
    kernel_mount::attach(mount.as_fd(), target.as_fd())
}

/// Makes the superblock as this process.
fn create(order: &Order, parameters: &Parameters) -> Result<OwnedFd, Error> {
    let kind = order.filesystem.as_str();
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .context(format!("fsopen of {kind} as the caller"))?;
    if let Some(source) = order.source.as_deref() {
        rustix::mount::fsconfig_set_string(&context, "source", source)
            .context("fsconfig of the source")?;
    }
    for (key, value) in parameters {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, &**key, &**value),
            None => rustix::mount::fsconfig_set_flag(&context, &**key),
        }
        .context(format!("fsconfig of the option {}", shown(key)))?;
    }
    rustix::mount::fsconfig_create(&context)
        .context(format!("making a {kind} as the caller: fsconfig"))?;
    Ok(context)
}

fn attributes(bits: u64) -> MountAttrFlags {
    MountAttrFlags::from_bits_retain(u32::try_from(bits).unwrap_or_default())
}

/// Makes the mount if the caller could not, and covers it. This process has the host's rights.
fn cover(
    order: &Order,
    caller: &WholeCaller,
    context: &OwnedFd,
    mount: Option<OwnedFd>,
) -> Result<OwnedFd, Error> {
    let proc = confine::host_proc()?;
    let machine = rustix::fs::open("/proc/self/ns/mnt", OFlags::CLOEXEC, Mode::empty())
        .context("open of ns/mnt")?;
    setns(&caller.mounts, CloneFlags::CLONE_NEWNS).context("setns to the caller's mounts")?;
    let (like, covers) = covers_of(&proc, &order.filesystem)?;
    setns(&machine, CloneFlags::CLONE_NEWNS).context("setns to the machine's mounts")?;
    let covers = of_callers(covers, &order.filesystem);
    let mount = match mount {
        Some(mount) => mount,
        None => {
            let set = attributes(order.attributes | like);
            rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, set)
                .context("fsmount")?
        }
    };
    drop((proc, machine));
    detached_root::enter()?;
    detached_root::place(mount.as_fd())?;
    for (path, cover) in covers {
        let target = match find(&mount, &path, Mounts::Crossed) {
            Ok(target) => target,
            // The new one has nothing there.
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => {
                return Err(errno).context(format!("openat2 of {}", shown(path.as_bytes())));
            }
        };
        if is_empty_folder(target.as_fd()) {
            continue;
        }
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&cover, "", &target, "", flags).context(format!(
            "move_mount to {} of a new {}",
            shown(path.as_bytes()),
            order.filesystem
        ))?;
    }
    detached_root::lock_placed(caller.users())
}

/// Copies of the mounts on a filesystem, each with its path there.
type Covers = Vec<(String, OwnedFd)>;

/// Replaces files on lease, which show the container of the caller, by those of the overlay, which
/// show the container of the reader: the new procfs may be that of a container inside.
fn of_callers(mut covers: Covers, kind: &str) -> Covers {
    let mounts = mountinfo::own().unwrap_or_default();
    let overlay = |cover: &OwnedFd| {
        let minor = on(cover).ok()?.minor?;
        let leases = mounts.iter().find(|mount| {
            mount.minor == minor && mount.kind.starts_with("fuse.") && mount.path.ends_with(LEASES)
        })?;
        leases.path.parent()
    };
    for (path, cover) in &mut covers {
        if let Some(overlay) = overlay(cover)
            && let Ok(copy) = attach::copy(CWD, &overlay.join(kind).join(&path))
        {
            *cover = copy;
        }
    }
    covers
}

/// Finds the whole procfs or sysfs of the mount namespace that this process is in: the one at the
/// usual place, or the first one. Returns its attributes and copies of the mounts on it.
fn covers_of(proc: &OwnedFd, kind: &str) -> Result<(u64, Covers), Error> {
    let file = rustix::fs::openat(proc, "self/mountinfo", OFlags::CLOEXEC, Mode::empty());
    let mut text = Vec::new();
    File::from(file.context("open of mountinfo")?)
        .read_to_end(&mut text)
        .context("read of mountinfo")?;
    let mounts: Vec<_> = mountinfo::all(&text).collect();
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let root = root.context("open of the root of the caller's mounts")?;
    let usual = Path::new(if kind == "proc" { "/proc" } else { "/sys" });
    let mut whole: Vec<_> = mounts.iter().filter(|mount| is_whole(mount, kind)).collect();
    whole.sort_by_key(|mount| mount.path != usual);
    // One that lies under another mount does not count.
    let found = whole.into_iter().find_map(|mount| {
        let path = mount.path.strip_prefix("/").ok()?.to_str()?;
        let folder = find(&root, path, Mounts::Crossed).ok()?;
        (on(&folder).ok()?.mount == mount.id).then_some((mount, folder))
    });
    let Some((own, folder)) = found else {
        return Err(Error::new(Errno::PERM, format!("the container has no whole {kind}")));
    };
    let mut seen = HashSet::new();
    let mut covers = Vec::new();
    for child in mounts.iter().filter(|mount| mount.parent == own.id) {
        let path = child.path.strip_prefix(&own.path).ok().and_then(Path::to_str);
        let Some(path) = path.filter(|path| is_of_the_machine(path)) else { continue };
        if !seen.insert(path.to_owned()) {
            continue;
        }
        if covers.len() == MOST {
            return Err(Error::new(Errno::NOSPC, format!("more than {MOST} mounts on {kind}")));
        }
        let top = find(&folder, path, Mounts::Crossed)
            .context(format!("openat2 of {}", shown(path.as_bytes())))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        let copy = rustix::mount::open_tree(&top, "", flags).context(format!(
            "open_tree of {} of the container's {kind}",
            shown(path.as_bytes())
        ))?;
        covers.push((path.to_owned(), copy));
    }
    Ok((bits_of(&own.attributes), covers))
}

fn is_whole(mount: &Mounted, kind: &str) -> bool {
    mount.kind == kind
        && mount.root.as_os_str() == "/"
        && !mount.options.split(',').any(|option| option == "subset=pid")
}

/// True unless the path is that of a process: other processes have that number in the new procfs.
fn is_of_the_machine(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    !first.is_empty() && !first.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the attributes that restrict a mount.
fn bits_of(attributes: &str) -> u64 {
    let bit = |name: &str| match name {
        "ro" => libc::MOUNT_ATTR_RDONLY,
        "nosuid" => libc::MOUNT_ATTR_NOSUID,
        "nodev" => libc::MOUNT_ATTR_NODEV,
        "noexec" => libc::MOUNT_ATTR_NOEXEC,
        _ => 0,
    };
    attributes.split(',').fold(0, |bits, name| bits | bit(name))
}

/// True for an empty folder: what is mounted on it hides nothing, such as control groups.
fn is_empty_folder(place: BorrowedFd<'_>) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::openat(place, ".", flags, Mode::empty()) else { return false };
    let Ok(entries) = Dir::new(folder) else { return false };
    entries.flatten().all(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_mount_is_a_model() {
        let line = |root: &str, kind: &str, options: &str| {
            let text = format!("30 20 0:24 {root} /proc rw,nosuid,ro - {kind} proc {options}\n");
            mountinfo::all(text.as_bytes()).next().unwrap()
        };
        assert!(is_whole(&line("/", "proc", "rw"), "proc"));
        assert!(!is_whole(&line("/", "proc", "rw,hidepid=ptraceable,subset=pid"), "proc"));
        assert!(!is_whole(&line("/sys", "proc", "rw"), "proc"));
        assert!(!is_whole(&line("/", "sysfs", "rw"), "proc"));
        assert_eq!(bits_of("ro,nosuid,relatime"), 3);
    }

    #[test]
    fn mounts_on_a_process_are_not_copied() {
        assert!(is_of_the_machine("meminfo") && is_of_the_machine("sys/kernel"));
        assert!(!is_of_the_machine("12/status") && !is_of_the_machine(""));
    }
}
