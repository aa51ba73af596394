//! `/proc/pressure` as a filesystem of its own, on whose files triggers can be set.
//!
//! The overlay is read-only and does not answer POLL, and both hold for a whole connection;
//! triggers need writes and polls. So these three files are served again by a second connection,
//! mounted over `proc/pressure` of the overlay. Reads are answered as in the overlay; a write goes
//! to the pressure file of the container's own cgroup, where the kernel checks it; a poll waits for
//! the kernel's event (`triggers`).
//!
//! A trigger ends with its open file, as in the kernel. The triggers of a server that dies are
//! lost: after a takeover a poll is answered as for a file without a trigger (POLLERR), and
//! programs set it again. Start reading at `PressureFilesystem`.

mod triggers;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_kernel::recorder::Recorder;
use ambit_sysinfo::{KernelFiles, Stall, Views};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::connection::{PooledFilesystem, Served};
use crate::filesystem::past_the_cache;
use crate::recorder::{Operation, recorded};
use crate::refuse::refuse;
use crate::service::{Service, errno};
use crate::thread_pool::{self, ThreadKind};
use crate::tree::{Node, PRESSURE, ROOT};
use triggers::Triggers;
#[cfg(feature = "fuzzing")]
pub(crate) use triggers::window;

/// Validity of names and attributes, which never change.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// Returns the mode of the kernel's files in `/proc/pressure`: since Linux 5.13 every user may write
/// to them. Where there are none, that of newer kernels.
fn mode() -> u16 {
    let file = KernelFiles::procfs().ok().and_then(|proc| {
        rustix::fs::statat(&proc, "pressure/cpu", rustix::fs::AtFlags::empty()).ok()
    });
    file.and_then(|file| u16::try_from(file.st_mode & 0o777).ok()).unwrap_or(0o666)
}

/// The three files.
#[derive(Clone)]
pub(crate) struct PressureFilesystem {
    service: Arc<Service>,
    views: Arc<dyn Views>,
    triggers: Arc<Triggers>,
    kind: ThreadKind,
    mode: u16,
}

impl PressureFilesystem {
    /// Creates the filesystem of these views.
    pub(crate) fn new(recorder: Option<Arc<dyn Recorder>>, views: Arc<dyn Views>) -> Self {
        let service = Arc::new(Service::new(recorder, views.clone()));
        let triggers = Arc::new(Triggers::new());
        Self { service, views, triggers, kind: ThreadKind::Regular, mode: mode() }
    }

    /// Returns the node of the overlay for a node of this filesystem, whose root is the directory.
    fn node(&self, id: u64) -> Result<&Node, Errno> {
        let tree = &self.service.tree;
        let directory = tree.find_path(PRESSURE).ok_or(Errno::ENOENT)?;
        if id == ROOT {
            return Ok(directory);
        }
        tree.node(id).filter(|node| node.parent == directory.id).ok_or(Errno::ENOENT)
    }

    fn attributes(&self, node: &Node) -> FileAttr {
        let attributes = self.service.tree.attributes(node);
        match node.file_type() {
            FileType::Directory => FileAttr { ino: INodeNo(ROOT), ..attributes },
            _ => FileAttr { perm: self.mode, ..attributes },
        }
    }

    /// Opens the kernel's pressure file for an open file.
    fn open_kernels(&self, node: &Node, handle: u64, thread: u32) -> Result<(), Errno> {
        let stall = [Stall::Cpu, Stall::Io, Stall::Memory]
            .into_iter()
            .find(|stall| stall.name() == node.name())
            .ok_or(Errno::EISDIR)?;
        if thread_pool::must_not_wait() {
            return Err(Errno::EIO);
        }
        let file = self.views.trigger_file(thread, stall).map_err(|error| match &error {
            ambit_sysinfo::Error::Read { source, .. } => {
                source.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
            }
            _ => errno(&error),
        })?;
        self.triggers.open(handle, file);
        Ok(())
    }

    fn write(&self, id: u64, handle: u64, thread: u32, text: &[u8]) -> Result<u32, Errno> {
        let node = self.node(id)?;
        // It was not opened for writing, or by a predecessor.
        if !self.triggers.has(handle) {
            self.open_kernels(node, handle, thread)?;
        }
        self.triggers.set(handle, text)?;
        u32::try_from(text.len()).map_err(|_| Errno::EINVAL)
    }
}

impl PooledFilesystem for PressureFilesystem {
    fn served(&self) -> Served<'_> {
        let Service { pool, counters, views, .. } = &*self.service;
        Served { pool, counters, kind: self.kind, views: &**views }
    }

    fn with_thread_kind(self, kind: ThreadKind) -> Self {
        Self { kind, ..self }
    }
}

impl Filesystem for PressureFilesystem {
    fn init(&mut self, _: &Request, _: &mut KernelConfig) -> io::Result<()> {
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.in_turn(recorded(Operation::Lookup, parent, req), reply, move |own, _, reply| {
            let directory = own.node(parent.0).map(|node| node.id);
            let found = directory.and_then(|directory| {
                own.service.tree.child(directory, name.as_bytes()).ok_or(Errno::ENOENT)
            });
            match found {
                Ok(node) => reply.entry(&VALID, &own.attributes(node), Generation(0)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.in_turn(recorded(Operation::Getattr, ino, req), reply, move |own, _, reply| match own
            .node(ino.0)
        {
            Ok(node) => reply.attr(&VALID, &own.attributes(node)),
            Err(errno) => reply.error(errno),
        });
    }

    /// The `>` of a shell truncates, which the kernel's files allow.
    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.guard(recorded(Operation::Setattr, ino, req), reply, |_, reply| {
            match self.node(ino.0) {
                _ if mode.is_some() || uid.is_some() || gid.is_some() => reply.error(Errno::EPERM),
                Ok(node) => reply.attr(&VALID, &self.attributes(node)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let thread = req.pid();
        self.in_turn(recorded(Operation::Open, ino, req), reply, move |own, _, reply| {
            let opened = own.node(ino.0).and_then(|node| {
                if past_the_cache(flags) {
                    return Err(Errno::EINVAL);
                }
                let handle = own.service.open(node.id, thread)?;
                if flags.acc_mode() != OpenAccMode::O_RDONLY {
                    // UNKEPT is the handle of several files, so it cannot have a trigger.
                    let opened = match handle {
                        0 => Err(Errno::EMFILE),
                        _ => own.open_kernels(node, handle, thread),
                    };
                    // Without PSI the kernel's files fail on write(2), not on open(2).
                    if let Err(errno) = opened
                        && errno != Errno::EOPNOTSUPP
                    {
                        own.service.release(handle);
                        return Err(errno);
                    }
                }
                Ok(handle)
            });
            match opened {
                Ok(handle) => reply.opened(
                    FileHandle(handle),
                    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
                ),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        reader: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let thread = req.pid();
        self.in_turn(recorded(Operation::Read, ino, req), reply, move |own, _, reply| {
            // As in the overlay: the page cache is common to all containers.
            if reader.is_none() {
                return reply.error(Errno::EINVAL);
            }
            let mut reply = Some(reply);
            let answer = |text: &[u8]| {
                if let Some(reply) = reply.take() {
                    reply.data(text);
                }
            };
            let node = own.node(ino.0).map(|node| node.id);
            let read = node
                .and_then(|node| own.service.read(node, handle.0, thread, (offset, size), answer));
            if let (Err(errno), Some(reply)) = (read, reply) {
                reply.error(errno);
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: u64,
        text: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.guard(recorded(Operation::Write, ino, req), reply, |_, reply| {
            match self.write(ino.0, handle.0, req.pid(), text) {
                Ok(written) => reply.written(written),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn poll(
        &self,
        req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.guard(recorded(Operation::Poll, ino, req), reply, |_, reply| {
            let sleeps = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
            reply.poll(self.triggers.poll(handle.0, events, sleeps.then_some(notifier)));
        });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.guard(recorded(Operation::Release, ino, req), reply, |_, reply| {
            self.triggers.release(handle.0);
            self.service.release(handle.0);
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.node(ino.0).map(Node::file_type) {
            Ok(FileType::Directory) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Ok(_) => reply.error(Errno::ENOTDIR),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.in_turn(recorded(Operation::Readdir, ino, req), reply, move |own, _, mut reply| {
            let tree = &own.service.tree;
            let files = own.node(ROOT).ok().and_then(|directory| tree.children(directory.id));
            let files = files.into_iter().flatten();
            let files = files.map(|node| (node.id, node.file_type(), node.name()));
            let dots = [".", ".."].map(|name| (ROOT, FileType::Directory, name));
            let entries = (1..).zip(dots.into_iter().chain(files));
            for (next, (id, kind, name)) in entries.filter(|(next, _)| *next > offset) {
                if reply.add(INodeNo(id), next, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1, 1, 1, 4, 4, 4096, 255, 4096);
    }

    refuse! {
        ENOENT: mknod mkdir symlink link create;
        EPERM: unlink rmdir rename;
        EOPNOTSUPP: setxattr removexattr fallocate;
        EINVAL: readlink fsync;
        ENOSYS: flush fsyncdir lseek getxattr listxattr bmap;
        ENOTTY: ioctl;
    }
}
