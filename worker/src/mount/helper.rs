//! Makes a mount by a helper: a configured FUSE program that is started as the caller.
//!
//! The mount is made here for an open `/dev/fuse`, and attached once the filesystem answers. A
//! helper that uses libfuse 3 gets that device. Any other helper opens its own and calls mount(2),
//! which is answered here (`mount_call.rs`); it has mounted when its first process exits with
//! status 0, as all mount programs do. When the filesystem is served, all processes here end: the
//! helper is then a child of the container's init, as if the caller had started it, and ends with
//! the mount. It must never run with rights that the caller does not have. Start reading at
//! [`mount`].

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::sys::fuse_connections::Connections;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::claim::{self, Source};
use super::confine;
use super::environment;
use super::fuse_mount;
use super::host_program::HostProgram;
use super::kernel_mount::{attach, find_target};
use super::order::{Executable, Handler, Order};
use super::program::{HelperContext, Output};
use super::source_lock::SourceLocks;
use super::starter::{LAST_WORDS, Starter};
use crate::caller::WholeCaller;
use crate::child::{Child, OnDrop};
use crate::error::{Context, Error, MarkUntried};
use crate::report_channel::{ReportChannel, wait};

/// Makes the mount, and returns the device number of the filesystem.
///
/// ```text
/// child   has the caller's namespaces, control groups, root, directory, ids and capabilities
///  ├─ starter   the same, but without mounts: starts the helper (`starter.rs`)
///  │   └─ helper   serves the filesystem
///  └─ probe     waits for the filesystem's first answer
/// ```
pub(super) fn mount(
    order: &Order,
    handler: &Handler,
    caller: &WholeCaller,
    locks: &SourceLocks,
    until: Instant,
) -> Result<Option<u64>, Error> {
    let (channel, theirs) = ReportChannel::pair()?;
    let child = Child::start(OnDrop::KillTree, || {
        let result = run_as_caller(&theirs, order, handler, caller, until);
        let failed = result.is_err();
        theirs.report_number(result);
        if failed {
            // Keeps running, so that the parent can find and kill all descendants.
            let _ = theirs.receive(until + LAST_WORDS * 2);
        }
    })?;
    drop(theirs);
    let source: Option<Source> = channel.receive_value(until)?;
    let _lock = source.map(|source| source.lock(locks, until)).transpose()?;
    source.map(|source| source.wait_for_helper(until)).transpose()?;
    channel.done(&[])?;
    // Longer than the child's deadline, so that it can report the helper's message.
    let device = channel.receive_number(until + LAST_WORDS)?;
    child.finish();
    Ok(device)
}

/// Becomes the caller, starts the helper and attaches the mount. Returns the device number of the
/// filesystem, if it is known.
fn run_as_caller(
    parent: &ReportChannel,
    order: &Order,
    handler: &Handler,
    caller: &WholeCaller,
    until: Instant,
) -> Result<Option<u64>, Error> {
    let host = match &handler.program {
        Executable::OnHost(path) => Some(HostProgram::open(path)?),
        Executable::InContainer(_) => None,
    };
    let connections = Connections::open().ok();
    let environ = caller.environment.as_ref().and_then(|fd| fd.try_clone().ok()).map(File::from);
    let environment = environment::read(environ, host.is_some());
    caller.enter_users()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.context("open of /dev/null").mark_untried()?;
    let proc = confine::host_proc().mark_untried()?;
    let output = Output::new().mark_untried()?;
    let environment = &environment;
    let context = HelperContext { null: &null, output: &output, proc: &proc, caller, environment };
    let starter = Starter::fork(order, handler, host.as_ref(), &context, until)?;
    // The container need not have this device. It is opened in the container's user namespace,
    // because the kernel requires that of the mount to be the same.
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    caller.enter()?;
    let target = find_target(order)?;
    let calls = starter.ready(until)?;
    let takes_device = calls.is_none();
    let source = open_source(order);
    let source = source.as_ref().map(AsFd::as_fd);
    let identified = source.map_or(Ok(None), Source::new)?;
    parent.done_with(&identified)?;
    parent.receive(until)?;
    if let Some(source) = source {
        let is_mounted = |device| connections.as_ref().is_none_or(|all| all.of(device).is_some());
        claim::wait_for_locks(source, is_mounted, until)?;
    }
    let make = |device: BorrowedFd<'_>| fuse_mount::make(order, handler, caller, device);
    let attach = |mount: &OwnedFd| {
        attach(mount.as_fd(), target.as_fd()).map(|()| fuse_mount::device(mount.as_fd()).ok())
    };
    let attached = if let Some(calls) = calls {
        drop(device);
        starter.start(None, source)?;
        // As after mount(2) of the kernel, the helper finds its mount on the target.
        let mut mounted = None;
        let served = calls.serve(&starter.channel, proc.as_fd(), until, |device| {
            let mount = make(device)?;
            mounted = Some((attach(&mount)?, mount));
            Ok(())
        });
        let answered = served.and_then(|()| match &mounted {
            Some((device, mount)) => wait_for_answer(mount, until).map(|()| *device),
            None => Err(Error::new(Errno::IO, "exit status 0, but nothing is mounted")),
        });
        if answered.is_err() && mounted.is_some() {
            take_off(order);
        }
        answered
    } else {
        let device = device.context("open of /dev/fuse").mark_untried()?;
        let mount = make(device.as_fd())?;
        starter.start(Some(device.as_fd()), source)?;
        // Once the helper has ended, the connection must be aborted.
        drop(device);
        answered(&mount, &starter.channel, until).and_then(|()| attach(&mount))
    };
    match attached {
        Ok(device) => {
            mark(source, device);
            starter.detach();
            Ok(device)
        }
        Err(error) if error.untried => Err(error),
        Err(error) => {
            let error = output.explain(handler.program.name(), &error);
            let missing = if takes_device { None } else { lacks_device() };
            Err(match missing {
                Some(errno) => {
                    let name = handler.program.name();
                    let needs = format!(
                        "the helper {name} needs /dev/fuse in the container, which it cannot open \
                         ({errno})"
                    );
                    Error::new(Errno::NODEV, format!("{needs}; {}", error.message))
                }
                None => error,
            })
        }
    }
}

/// Returns why the caller cannot open `/dev/fuse`. `None` if it can.
fn lacks_device() -> Option<Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::openat(CWD, "/dev/fuse", flags, Mode::empty());
    opened.err()
}

/// Waits for the first answer of a filesystem whose mount program has ended: the server may end at
/// once.
fn wait_for_answer(mount: &OwnedFd, until: Instant) -> Result<(), Error> {
    let (probe, channel) = start_probe(mount.as_fd())?;
    channel.receive(until)?;
    probe.finish();
    Ok(())
}

/// Takes the mount off the target. Does not call into the filesystem.
fn take_off(order: &Order) {
    let _ = rustix::mount::unmount(&*order.target, rustix::mount::UnmountFlags::DETACH);
}

/// Starts a process that waits for the filesystem's first answer.
fn start_probe(root: BorrowedFd<'_>) -> Result<(Child, ReportChannel), Error> {
    let (channel, theirs) = ReportChannel::pair()?;
    let probe = Child::start(OnDrop::Kill, || {
        theirs.report(fuse_mount::probe(root).map(|()| Vec::new()));
    })?;
    Ok((probe, channel))
}

/// Opens the file or block device that the helper will serve, for reading and, if possible,
/// writing. `None` if the source is something else, or cannot be opened: the helper then reports
/// the error.
fn open_source(order: &Order) -> Option<OwnedFd> {
    let path = order.source.as_deref()?;
    let kind = rustix::fs::stat(path).map(|status| FileType::from_raw_mode(status.st_mode));
    if !matches!(kind, Ok(FileType::RegularFile | FileType::BlockDevice)) {
        return None;
    }
    let open = |access| {
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::openat(CWD, path, flags, Mode::empty())
    };
    let write = if order.read_only { Err(Errno::ROFS) } else { open(OFlags::RDWR) };
    write.or_else(|_| open(OFlags::RDONLY)).ok()
}

/// Marks the source as used by the filesystem on this device.
fn mark(source: Option<BorrowedFd<'_>>, device: Option<u64>) {
    if let Some(source) = source {
        claim::mark(source, device.unwrap_or_default());
    }
}

/// Waits for the filesystem's first answer, or for an error of the helper.
fn answered(mount: &OwnedFd, helper: &ReportChannel, until: Instant) -> Result<(), Error> {
    let (probe, channel) = start_probe(mount.as_fd())?;
    let mut ends = [PollFd::new(&channel, PollFlags::IN), PollFd::new(helper, PollFlags::IN)];
    wait(&mut ends, until)?;
    let (answer, end) = (!ends[0].revents().is_empty(), !ends[1].revents().is_empty());
    let background = end && !answer;
    if background {
        // The helper has daemonized, or it has failed.
        helper.receive(until)?;
    }
    match channel.receive(until) {
        Ok(_) => {
            probe.finish();
            Ok(())
        }
        Err(error) => {
            // The helper has closed the device: its exit status and output have the reason.
            if !background {
                helper.receive(until.min(Instant::now() + LAST_WORDS))?;
            }
            Err(error)
        }
    }
}
