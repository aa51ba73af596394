//! Makes a filesystem of the kernel with the host's rights, by the new mount API.
//!
//! Runs in a process of its own, with the root of [`detached_root::enter_with_proc`]. It gets the
//! source as a descriptor that was opened as the caller, and returns a detached mount. It must
//! never look up a path that the container can change. Error messages of the filesystem are read
//! from its context. Start reading at [`make`].

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::sys::mount_setattr::mount_setattr;
use ambit_kernel::text::shown::shown;
use nix::sched::{CloneFlags, setns};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::claim::{self, Source};
use super::order::{Order, Superblock};
use super::{detached_root, loop_device};
use crate::caller::WholeCaller;
use crate::error::{Context, Error, MarkUntried};

/// Makes the mount.
pub(super) fn make(
    order: &Order,
    superblock: &Superblock,
    source: Option<&OwnedFd>,
    caller: &WholeCaller,
    until: Instant,
) -> Result<OwnedFd, Error> {
    // A network filesystem uses the caller's network interfaces.
    if let Some((_, network)) =
        caller.others.iter().find(|(kind, _)| *kind == CloneFlags::CLONE_NEWNET.bits())
    {
        setns(network, CloneFlags::CLONE_NEWNET)
            .context("setns to the caller's network")
            .mark_untried()?;
    }
    let control = match source {
        Some(source) if is_file(source.as_fd())? => Some(
            OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/loop-control")
                .context("open of /dev/loop-control: image files need loop devices")
                .mark_untried()?,
        ),
        _ => None,
    };
    let loader = Loader::open(&order.filesystem)?;
    detached_root::enter_with_proc().mark_untried()?;
    let made = source.map_or(Ok(None), |source| made_already(source.as_fd(), until))?;
    let device = match (source, &control, made) {
        (.., Some(made)) => Some(made),
        (Some(image), Some(control), None) => {
            Some(loop_device::attach(control, image.as_fd(), order.read_only)?)
        }
        _ => None,
    };
    let mount = create(order, superblock, source, device.as_ref(), loader)?;
    if superblock.shift {
        shift(&mount, caller, &order.filesystem)?;
    }
    detached_root::lock(&mount, caller.users()).mark_untried()
}

/// Waits until the source may be mounted. Returns the loop device that ambit has made for it
/// already, if there is one.
fn made_already(source: BorrowedFd<'_>, until: Instant) -> Result<Option<File>, Error> {
    claim::wait_for_locks(source, claim::is_mounted, until)?;
    match Source::new(source)? {
        Some(source) => source.wait_for_kernel(until),
        None => Ok(None),
    }
}

fn is_file(source: BorrowedFd<'_>) -> Result<bool, Error> {
    let status = rustix::fs::fstat(source).context("fstat of the source")?;
    Ok(FileType::from_raw_mode(status.st_mode) == FileType::RegularFile)
}

/// A filesystem context. It is opened before the root changes, because fsopen(2) may load a module.
struct Loader(OwnedFd);

impl Loader {
    fn open(filesystem: &str) -> Result<Self, Error> {
        rustix::mount::fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)
            .map(Self)
            .context(format!("fsopen of {filesystem}"))
    }
}

fn create(
    order: &Order,
    superblock: &Superblock,
    source: Option<&OwnedFd>,
    device: Option<&File>,
    Loader(context): Loader,
) -> Result<OwnedFd, Error> {
    let explain = |what: String| {
        let context = context.as_fd();
        move |errno: Errno| {
            let said = words_of(context);
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            Error::new(errno, format!("{what}: {errno}{said}"))
        }
    };
    let given = order.source.as_deref();
    let named = match (device.map(AsFd::as_fd).or(source.map(AsFd::as_fd)), given) {
        (Some(file), given) => Some(detached_root::name(file, given.unwrap_or_default())),
        (None, given) => given.map(<[u8]>::to_vec),
    };
    if let Some(name) = named {
        rustix::mount::fsconfig_set_string(&context, "source", &*name)
            .map_err(explain("fsconfig of the source".into()))?;
    }
    for (key, value) in &superblock.parameters {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, &**key, &**value),
            None => rustix::mount::fsconfig_set_flag(&context, &**key),
        }
        .map_err(explain(format!("fsconfig of the option {}", shown(key))))?;
    }
    rustix::mount::fsconfig_create(&context)
        .map_err(explain(format!("making the {} filesystem: fsconfig", order.filesystem)))?;
    let attributes = MountAttrFlags::from_bits_retain(
        u32::try_from(order.attributes).map_err(|_| Error::new(Errno::INVAL, "attributes"))?,
    );
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(explain("fsmount".into()))
}

/// Reads the error messages of the filesystem.
fn words_of(context: BorrowedFd<'_>) -> String {
    let mut words = Vec::new();
    let mut line = [0; 1024];
    // read(2) returns one message, and ENODATA after the last. The kernel keeps eight.
    while let Ok(length @ 1..) = rustix::io::read(context, &mut line) {
        // The options of the caller are in them.
        words.push(shown(line[..length].trim_ascii_end()));
        if words.len() == 8 {
            break;
        }
    }
    words.join("; ")
}

/// Maps file owners to the caller's user namespace.
fn shift(mount: &OwnedFd, caller: &WholeCaller, filesystem: &str) -> Result<(), Error> {
    mount_setattr(mount, MountAttrFlags::empty(), Some(caller.users.as_fd())).map_err(|errno| {
        match errno {
            Errno::INVAL => Error::new(
                Errno::OPNOTSUPP,
                format!(
                    "this kernel cannot shift the owners of {filesystem} (mount_setattr with \
                     MOUNT_ATTR_IDMAP: EINVAL): leave mount.shift out, or use mount.fuse"
                ),
            ),
            Errno::NOSYS => Error::new(
                Errno::OPNOTSUPP,
                "mount.shift needs Linux 5.12 (mount_setattr): leave it out, or use mount.fuse",
            ),
            _ => Error::new(errno, format!("mount_setattr(MOUNT_ATTR_IDMAP): {errno}")),
        }
    })
}
