//! Makes a mount by a helper: a configured FUSE program that is started as the caller.
//!
//! A helper that uses libfuse 3 gets an open `/dev/fuse`, whose mount is attached once the
//! filesystem answers. Any other helper calls mount(2) itself, and has mounted when its first
//! process exits with status 0, as all mount programs do. When the filesystem is served, all
//! processes here end: the helper is then a child of the container's init, as if the caller had
//! started it, and ends with the mount. It must never run with rights that the caller does not
//! have. Start reading at [`mount`].

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ambit_kernel::sys::fuse_connections::Connections;
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::claim::{self, Source};
use super::confine;
use super::environment;
use super::fuse_mount;
use super::host_program::HostProgram;
use super::kernel_mount::{attach, find_target};
use super::order::{Executable, Handler, Order};
use super::program::{self, HelperContext, Output, Program};
use super::source_lock::SourceLocks;
use crate::caller::Caller;
use crate::child::{Child, OnDrop};
use crate::error::{Context, Error, MarkUntried, ToErrno};
use crate::report_channel::{ReportChannel, wait};

/// How long to wait for a helper's message after its failure has been detected.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Makes the mount, and returns the device number of the filesystem.
///
/// ```text
/// child   has the caller's namespaces, control groups, root, directory, ids and capabilities
///  ├─ starter   in its pid namespace: starts the helper, is the subreaper of what it daemonizes
///  │   └─ helper   serves the filesystem
///  └─ probe     waits for the filesystem's first answer
/// ```
pub(super) fn mount(
    order: &Order,
    handler: &Handler,
    caller: &Caller,
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
    caller: &Caller,
    until: Instant,
) -> Result<Option<u64>, Error> {
    let host = match &handler.program {
        Executable::OnHost(path) => Ok(HostProgram::open(path)?),
        Executable::InContainer(name) => Err(name),
    };
    let connections = Connections::open().ok();
    let environ = caller.environment.as_ref().and_then(|fd| fd.try_clone().ok()).map(File::from);
    let environment = environment::read(environ, host.is_ok());
    caller.enter_users()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.context("open of /dev/null").mark_untried()?;
    // The container need not have this device. It is opened in the container's user namespace,
    // because the kernel requires that of the mount to be the same.
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let proc = confine::host_proc().mark_untried()?;
    caller.enter()?;
    let target = find_target(order)?;
    let program = match host {
        Ok(program) => Program::of_the_host(&program)?,
        Err(name) => Program::find(name)?,
    };
    let source = open_source(order);
    let source = source.as_ref().map(AsFd::as_fd);
    let identified = source.map_or(Ok(None), Source::new)?;
    parent.done_with(&identified)?;
    parent.receive(until)?;
    if let Some(source) = source {
        let is_mounted = |device| connections.as_ref().is_none_or(|all| all.of(device).is_some());
        claim::wait_for_locks(source, is_mounted, until)?;
    }
    let output = Output::new().mark_untried()?;
    let environment = &environment;
    let context =
        HelperContext { null: &null, output: &output, proc: &proc, source, caller, environment };
    let result = if program.takes_device() {
        let device = device.context("open of /dev/fuse").mark_untried()?;
        let mount = fuse_mount::make(order, handler, caller, device.as_fd())?;
        let words = program.arguments_with_device(order, handler, device.as_fd())?;
        let (starter, channel) = start(&program, &words, Some(device), &context, until)?;
        let device = fuse_mount::device(mount.as_fd()).ok();
        answered(&mount, &channel, until)
            .and_then(|()| {
                mark(source, device);
                attach(mount.as_fd(), target.as_fd())
            })
            .map(|()| (starter, device))
    } else {
        drop(device);
        let before = fuse_mount::mount_id(order)?;
        let words = program.arguments(order, handler)?;
        let (starter, channel) = start(&program, &words, None, &context, until)?;
        channel.receive(until).and_then(|_| mounted_by_helper(order, before, until)).map(|device| {
            mark(source, device);
            (starter, device)
        })
    };
    match result {
        Ok((starter, device)) => {
            starter.detach();
            Ok(device)
        }
        Err(error) if error.untried => Err(error),
        Err(error) => {
            let error = output.explain(handler.program.name(), &error);
            // A helper with libfuse 3 has got the device.
            let missing = if program.takes_device() { None } else { lacks_device() };
            Err(match missing {
                Some(errno) => {
                    let name = handler.program.name();
                    let needs = format!(
                        "the helper {name} needs /dev/fuse in the container, which it cannot open \
                         ({errno})"
                    );
                    Error::new(Errno::ENODEV, format!("{needs}; {}", error.message))
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
    opened.err().map(|errno| errno.errno())
}

/// Returns the device number of what a helper has mounted on the target, where the mount `before`
/// was, if the filesystem answers. Otherwise takes it off.
fn mounted_by_helper(order: &Order, before: u64, until: Instant) -> Result<Option<u64>, Error> {
    if fuse_mount::mount_id(order)? == before {
        return Err(Error::new(Errno::EIO, "exit status 0, but nothing is mounted"));
    }
    let root = fuse_mount::root_on(order)?;
    // The mount program has ended when the server begins, which may end at once.
    let (probe, channel) = start_probe(root.as_fd())?;
    let done = channel
        .receive(until)
        .and_then(|_| fuse_mount::set_attributes(root.as_fd(), order))
        .map(|()| fuse_mount::device(root.as_fd()).ok());
    match done {
        Ok(device) => {
            probe.finish();
            Ok(device)
        }
        Err(error) => {
            fuse_mount::take_off(order);
            Err(error)
        }
    }
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
    let write = if order.read_only { Err(rustix::io::Errno::ROFS) } else { open(OFlags::RDWR) };
    write.or_else(|_| open(OFlags::RDONLY)).ok()
}

/// Marks the source as used by the filesystem on this device.
fn mark(source: Option<BorrowedFd<'_>>, device: Option<u64>) {
    if let Some(source) = source {
        claim::mark(source, device.unwrap_or_default());
    }
}

/// Forks the starter, which starts the helper and waits for it.
fn start(
    program: &Program,
    words: &[std::ffi::CString],
    device: Option<File>,
    context: &HelperContext<'_>,
    until: Instant,
) -> Result<(Child, ReportChannel), Error> {
    let (channel, theirs) = ReportChannel::pair()?;
    let starter = Child::start(OnDrop::Leave, move || {
        let run = move || program::execute(program, words, device.as_ref(), context);
        let ended = program::watch(run);
        // Daemonized processes must be descendants of the starter until the mount is made.
        theirs.report(ended.map(|()| Vec::new()));
        let _ = theirs.receive(until + LAST_WORDS);
    })?;
    Ok((starter, channel))
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
