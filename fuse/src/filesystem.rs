//! The FUSE requests of the overlay: decoded, handled and answered.
//!
//! Every method of [`fuser::Filesystem`] whose default logs a warning for each request is implemented,
//! because containers choose how many they send. A method may wait for nothing but the
//! numbers of a container, and changes nothing. A panic in one costs the request its answer (EIO),
//! not the thread its life. Start reading at `open` and `read`.
//!
//! The kernel remembers ENOSYS: it handles such an operation (FLUSH, POLL, LSEEK, extended
//! attributes) by itself and does not send it again.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use ambit_kernel::recorder::Recorder;
use ambit_sysinfo::Views;
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};

use rustix::fs::OFlags;

use crate::connection::{PooledFilesystem, Served};
use crate::counters::Counters;
use crate::entries::DirectoryEntry;
use crate::recorder::{Operation, recorded};
use crate::refuse::refuse;
use crate::request_slot::OPENED;
use crate::service::Service;
use crate::thread_pool::ThreadKind;
use crate::tree::TreeEntry;

/// Validity of names and attributes of the fixed tree, which never change. Members of families have
/// none, because the dcache is common to all containers. Missing names are not cached either: they
/// are answered by an error and not by an entry without a node.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// Largest read in one request: 256 pages, the kernel's default.
const LARGEST_REQUEST: u32 = 1 << 20;

/// The overlay as fuser serves it.
#[derive(Clone)]
pub(crate) struct OverlayFilesystem {
    service: Arc<Service>,
    kind: ThreadKind,
}

impl OverlayFilesystem {
    /// Creates the overlay of these views. Files at the `passed` paths are shown to every reader as
    /// on the machine.
    pub(crate) fn new(
        recorder: Option<Arc<dyn Recorder>>,
        views: Arc<dyn Views>,
        passed: &'static [&'static str],
    ) -> Self {
        let mut service = Service::new(recorder, views);
        service.passed = passed;
        Self { service: Arc::new(service), kind: ThreadKind::Regular }
    }

    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.service.counters)
    }

    /// Returns the attributes of an entry, and the validity of its name and of them. It is 0 for a
    /// member of a family, and for the size of a file that is longer than a page, because those
    /// differ between callers.
    fn attributes(&self, entry: TreeEntry<'_>, thread: u32) -> (FileAttr, Duration, Duration) {
        let mut attributes = self.service.tree.attributes_of(entry);
        let name_holds = match entry {
            TreeEntry::Fixed(_) => VALID,
            TreeEntry::Member(..) => Duration::ZERO,
        };
        match self.service.own_size(entry.id(), thread) {
            Some(size) => {
                attributes.size = size;
                (attributes, name_holds, Duration::ZERO)
            }
            None => (attributes, name_holds, VALID),
        }
    }
}

/// True for O_DIRECT, which the kernel's files refuse.
pub(crate) fn past_the_cache(flags: OpenFlags) -> bool {
    flags.0 & OFlags::DIRECT.bits().cast_signed() != 0
}

impl PooledFilesystem for OverlayFilesystem {
    fn served(&self) -> Served<'_> {
        let Service { pool, counters, views, .. } = &*self.service;
        Served { pool, counters, kind: self.kind, views: &**views }
    }

    fn with_thread_kind(self, kind: ThreadKind) -> Self {
        Self { kind, ..self }
    }
}

impl Filesystem for OverlayFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A flag that the kernel does not have is ignored.
        for wanted in [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_PARALLEL_DIROPS] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(LARGEST_REQUEST);
        // RELEASE is a background request, of which a limited number may be queued. With the
        // default of 12, many readers open files faster than their closes are sent, and the texts
        // of closed files accumulate.
        let _ = config.set_max_background(u16::MAX);
        let _ = config.set_congestion_threshold(u16::MAX);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (thread, name) = (req.pid(), name.to_owned());
        self.in_turn(recorded(Operation::Lookup, parent, req), reply, move |own, slot, reply| {
            slot.set_reply(reply);
            let found = own.service.child(parent.0, name.as_bytes(), thread);
            let found = found.map(|entry| own.attributes(entry, thread));
            let Some(reply) = slot.take_reply::<ReplyEntry>() else { return };
            match found {
                Ok((attributes, name_holds, valid)) => {
                    reply.entry_with_ttls(&valid, &name_holds, &attributes, Generation(0));
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let thread = req.pid();
        self.in_turn(recorded(Operation::Getattr, ino, req), reply, move |own, slot, reply| {
            slot.set_reply(reply);
            let found = own.service.entry(ino.0, thread);
            let found = found.map(|entry| own.attributes(entry, thread));
            let Some(reply) = slot.take_reply::<ReplyAttr>() else { return };
            match found {
                Ok((attributes, _, valid)) => reply.attr(&valid, &attributes),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (thread, user) = (req.pid(), req.uid());
        self.in_turn(recorded(Operation::Access, ino, req), reply, move |own, _, reply| {
            let refused = match own.service.entry(ino.0, thread) {
                Err(errno) => return reply.error(errno),
                Ok(entry) if entry.file_type() == FileType::Directory => AccessFlags::W_OK,
                Ok(_) if !own.service.allows(ino.0, user) => AccessFlags::all(),
                Ok(_) => AccessFlags::W_OK | AccessFlags::X_OK,
            };
            if mask.intersects(refused) { reply.error(Errno::EACCES) } else { reply.ok() }
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (thread, user) = (req.pid(), req.uid());
        self.in_turn(recorded(Operation::Open, ino, req), reply, move |own, slot, reply| {
            let service = &own.service;
            if flags.acc_mode() != OpenAccMode::O_RDONLY || !service.allows(ino.0, user) {
                return reply.error(Errno::EACCES);
            }
            if past_the_cache(flags) {
                return reply.error(Errno::EINVAL);
            }
            slot.set_reply(reply);
            let opened = service.open(ino.0, thread);
            match (opened, slot.take_reply::<ReplyOpen>()) {
                (Ok(handle), Some(reply)) => reply.opened(FileHandle(handle), OPENED),
                (Err(errno), Some(reply)) => reply.error(errno),
                // The watchdog has answered the reader, with another handle.
                (Ok(handle), None) => service.release(handle),
                (Err(_), None) => {}
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
        self.in_turn(recorded(Operation::Read, ino, req), reply, move |own, slot, reply| {
            // Only a direct read has the id of its thread. Others (sendfile, splice, mmap) fill the
            // page cache, which is common to all containers: they are refused, and programs fall
            // back to read(2).
            if reader.is_none() {
                return reply.error(Errno::EINVAL);
            }
            slot.set_reply(reply);
            let answer = |text: &[u8]| {
                if let Some(reply) = slot.take_reply::<ReplyData>() {
                    reply.data(text);
                }
            };
            let read = own.service.read(ino.0, handle.0, thread, (offset, size), answer);
            if let Err(errno) = read
                && let Some(reply) = slot.take_reply::<ReplyData>()
            {
                reply.error(errno);
            }
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
            self.service.release(handle.0);
            reply.ok();
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let thread = req.pid();
        self.in_turn(recorded(Operation::Opendir, ino, req), reply, move |own, _, reply| {
            match own.service.entry(ino.0, thread).map(|entry| entry.file_type()) {
                // Without FOPEN_CACHE_DIR the kernel caches no listing.
                Ok(FileType::Directory) => reply.opened(FileHandle(0), FopenFlags::empty()),
                Ok(_) => reply.error(Errno::ENOTDIR),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let thread = req.pid();
        self.in_turn(recorded(Operation::Readdir, ino, req), reply, move |own, _, mut reply| {
            match own.service.list(ino.0, offset, thread) {
                Ok(entries) => {
                    for DirectoryEntry { next, entry, name } in entries {
                        if reply.add(INodeNo(entry.id()), next, entry.file_type(), &*name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let thread = req.pid();
        self.in_turn(
            recorded(Operation::Readdirplus, ino, req),
            reply,
            move |own, _, mut reply| match own.service.list(ino.0, offset, thread) {
                Ok(entries) => {
                    for DirectoryEntry { next, entry, name } in entries {
                        let (attributes, name_holds, valid) = own.attributes(entry, thread);
                        let (id, valid) = (INodeNo(entry.id()), valid.min(name_holds));
                        if reply.add(id, next, &*name, &valid, &attributes, Generation(0)) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    /// One free block and only free inodes: exporters divide by the size, and monitoring alerts on
    /// full filesystems.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let nodes = self.service.tree.nodes().len() as u64;
        reply.statfs(1, 1, 1, nodes, nodes, 4096, 255, 4096);
    }

    /// fsync(2) fails for files of `/proc` and does nothing for those of `/sys`, as in the kernel.
    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.service.tree.node(ino.0) {
            Some(node) if node.path.starts_with("proc/") => reply.error(Errno::EINVAL),
            _ => reply.ok(),
        }
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let thread = req.pid();
        self.in_turn(
            recorded(Operation::Readlink, ino, req),
            reply,
            move |own, _, reply| match own.service.target(ino.0, thread) {
                Ok(target) => reply.data(target.as_bytes()),
                Err(errno) => reply.error(errno),
            },
        );
    }

    refuse! {
        EROFS: setattr mknod mkdir unlink rmdir symlink rename link write create setxattr removexattr
            fallocate copy_file_range;
        ENOSYS: flush fsyncdir poll lseek getxattr listxattr getlk setlk bmap;
        ENOTTY: ioctl;
    }
}
