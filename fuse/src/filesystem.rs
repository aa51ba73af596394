//! The kernel's requests, decoded and answered.
//!
//! Every method of [`fuser::Filesystem`] is here, so that no request falls to fuser's defaults,
//! which log a warning for each: containers choose how many requests they send. No method waits
//! for anything but the numbers of a container, none changes anything, and a panic costs one
//! request its answer (EIO), not a thread its life.
//!
//! ENOSYS is an answer the kernel remembers: it does by itself what was refused once (FLUSH,
//! FSYNC, POLL, LSEEK, extended attributes) and never asks again.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_sysinfo::Views;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::counters::{Counters, Counts};
use crate::service::Service;
use crate::tree::{Kind, Node};

/// Names and attributes never change, so the kernel need not ask for them again.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// The largest read the kernel splits into one request: 256 pages, its own default ceiling.
const LARGEST_REQUEST: u32 = 1 << 20;

/// The overlay as fuser serves it.
pub struct OverlayFilesystem {
    service: Service,
}

impl OverlayFilesystem {
    /// The overlay over these numbers.
    #[must_use]
    pub fn new(views: Arc<dyn Views>) -> Self {
        Self { service: Service::new(views) }
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.service.counters.counts()
    }

    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.service.counters)
    }

    /// Runs the code of one request. When it panics, the reply it owned is dropped, which makes
    /// fuser answer EIO.
    fn guard(&self, request: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(request)).is_err() {
            Counters::add(&self.service.counters.panics);
        }
    }

    /// The attributes of a node, and how long they hold: the size of a long file is the
    /// reader's own and must be asked for each time.
    fn attributes(&self, node: &Node, req: &Request) -> (FileAttr, Duration) {
        let mut attributes = self.service.tree.attributes(node);
        match self.service.own_size(node.id, req.pid()) {
            Some(size) => {
                attributes.size = size;
                (attributes, Duration::ZERO)
            }
            None => (attributes, VALID),
        }
    }

    /// `.`, `..` and what the directory holds, from an offset on: the offset of the entry that
    /// follows, the entry, its name. Errs for what is no directory.
    fn entries(&self, directory: u64, offset: u64) -> Result<Entries<'_>, Errno> {
        let tree = &self.service.tree;
        let this = tree.node(directory).ok_or(Errno::ENOENT)?;
        let above = tree.node(this.parent).ok_or(Errno::ENOENT)?;
        let children = tree.children(directory).ok_or(Errno::ENOTDIR)?;
        let all = [(this, "."), (above, "..")].into_iter();
        let all = all.chain(children.map(|node| (node, node.name())));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(Box::new((1..).zip(all).skip(skip).map(|(next, (node, name))| (next, node, name))))
    }
}

impl fmt::Debug for OverlayFilesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverlayFilesystem").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

type Entries<'a> = Box<dyn Iterator<Item = (u64, &'a Node, &'static str)> + 'a>;

impl Filesystem for OverlayFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel cannot do, it is not asked for.
        for wanted in [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_PARALLEL_DIROPS] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(LARGEST_REQUEST);
        // RELEASE is a background request, and only so many of these may wait at a time. With the
        // usual 12, a crowd of readers opens faster than its closes get through, and the texts
        // of files closed long ago pile up.
        let _ = config.set_max_background(u16::MAX);
        let _ = config.set_congestion_threshold(u16::MAX);
        Ok(())
    }

    fn destroy(&mut self) {}

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard(|| match self.service.tree.child(parent.0, name.as_bytes()) {
            Some(node) => {
                let (attributes, valid) = self.attributes(node, req);
                reply.entry_with_ttls(&valid, &VALID, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        });
    }

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.guard(|| match self.service.tree.node(ino.0) {
            Some(node) => {
                let (attributes, valid) = self.attributes(node, req);
                reply.attr(&valid, &attributes);
            }
            None => reply.error(Errno::ENOENT),
        });
    }

    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.guard(|| {
            let node = self.service.tree.node(ino.0);
            let refused = match node.map(|node| &node.kind) {
                None => return reply.error(Errno::ENOENT),
                Some(Kind::Directory(_)) => AccessFlags::W_OK,
                Some(Kind::File(_)) => AccessFlags::W_OK | AccessFlags::X_OK,
            };
            if mask.intersects(refused) { reply.error(Errno::EACCES) } else { reply.ok() }
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.guard(|| {
            if flags.acc_mode() != OpenAccMode::O_RDONLY {
                return reply.error(Errno::EACCES);
            }
            match self.service.open(ino.0, req.pid()) {
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
        self.guard(|| {
            // Only a direct read names its reader. Anything else (sendfile, splice, mmap) fills
            // the page cache, which all containers share: it is refused, and programs read.
            if reader.is_none() {
                return reply.error(Errno::EINVAL);
            }
            let mut reply = Some(reply);
            let answer = |text: &[u8]| {
                if let Some(reply) = reply.take() {
                    reply.data(text);
                }
            };
            let read = self.service.read(ino.0, handle.0, req.pid(), (offset, size), answer);
            if let (Err(errno), Some(reply)) = (read, reply) {
                reply.error(errno);
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.guard(|| {
            self.service.release(handle.0);
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.guard(|| match self.service.tree.node(ino.0).map(Node::file_type) {
            Some(FileType::Directory) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Some(_) => reply.error(Errno::ENOTDIR),
            None => reply.error(Errno::ENOENT),
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guard(|| match self.entries(ino.0, offset) {
            Ok(entries) => {
                for (next, node, name) in entries {
                    if reply.add(INodeNo(node.id), next, node.file_type(), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guard(|| match self.entries(ino.0, offset) {
            Ok(entries) => {
                for (next, node, name) in entries {
                    let (attributes, valid) = self.attributes(node, req);
                    let id = INodeNo(node.id);
                    if reply.add(id, next, name, &valid, &attributes, Generation(0)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    /// One free block and only free nodes: exporters divide by the size, and alarms watch for
    /// filesystems that are full.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let nodes = self.service.tree.nodes().len() as u64;
        reply.statfs(1, 1, 1, nodes, nodes, 4096, 255, 4096);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
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
        reply.error(Errno::EROFS);
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }
}
