//! Files that the kernel keeps in its page cache for a moment: one inode for each container and
//! file, so that what is cached is shown to one container only.
//!
//! **The kernel keeps the lease.** It sends no OPEN (answered ENOSYS once, which holds for the whole
//! connection). While the attributes of a file are valid, reads are answered from its page. When the
//! validity ends, the next open(2) or read(2) sends GETATTR, which takes a new lease; a new mtime
//! makes the kernel drop the page (`FUSE_AUTO_INVAL_DATA`), and READ fetches the text of the lease.
//! There is no timer, and no request while no container reads.
//!
//! The server must never invalidate a page itself (`FUSE_NOTIFY_INVAL_INODE` with an offset of 0 or
//! more): it would sleep uninterruptibly on a page that an unanswered READ has locked, and survive
//! SIGKILL. A READ that a dead server leaves keeps its page locked until it is sent again, so this
//! needs Linux 6.9.
//!
//! A reader in small pieces may see the texts of two leases, so only files with columns are served:
//! each text of a container has the same layout, and a line of two texts is a valid line. The name
//! of a file is its node id (`lease_nodes.rs`). Only root of the machine and the container itself may
//! look it up.
//! Start reading at [`LeaseFilesystem::renew`].

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use ambit_kernel::lock;
use ambit_kernel::recorder::Recorder;
use ambit_sysinfo::Views;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry,
    ReplyStatfs, Request,
};

use crate::connection::{PooledFilesystem, Served};
use crate::counters::Counters;
use crate::handles::window;
use crate::lease_nodes::{PRIMER_NODE, parse};
use crate::overlay::{PAGE, WORLD_READABLE};
use crate::recorder::{Operation, recorded};
use crate::refuse::refuse;
use crate::request_slot::ReplyLease;
use crate::service::errno;
use crate::submount::PRIMER;
use crate::text::Text;
use crate::thread_pool::{self, ThreadKind, ThreadPool};
use crate::tree::{ROOT, file_attributes};

/// Most texts that are kept when others are added, unless they are in use.
const MOST: usize = 512;
/// A text that was used since then is in use.
const IN_USE: Duration = Duration::from_secs(1);

/// How long old numbers are shown while new ones cannot be waited for.
const SHORT: Duration = Duration::from_millis(1);

/// Validity of the root directory.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// The text of a lease.
struct Record {
    text: Arc<[u8]>,
    /// The time that the kernel compares: it drops its page if this is another one.
    generation: SystemTime,
    used: Instant,
}

impl Record {
    fn attributes(&self, node: u64) -> FileAttr {
        attributes(node, self.text.len() as u64, self.generation)
    }
}

/// The files of all containers.
#[derive(Clone)]
pub(crate) struct LeaseFilesystem {
    shared: Arc<Shared>,
    kind: ThreadKind,
}

struct Shared {
    views: Arc<dyn Views>,
    length: Duration,
    counters: Arc<Counters>,
    pool: Arc<ThreadPool>,
    records: Mutex<HashMap<u64, Record>>,
}

impl LeaseFilesystem {
    /// Creates the filesystem of these views, with leases of this length.
    pub(crate) fn new(
        recorder: Option<Arc<dyn Recorder>>,
        views: Arc<dyn Views>,
        counters: Arc<Counters>,
        length: Duration,
    ) -> Self {
        let pool = Arc::new(ThreadPool::with_recorder(recorder));
        let shared = Shared { views, length, counters, pool, records: Mutex::default() };
        Self { shared: Arc::new(shared), kind: ThreadKind::Regular }
    }

    fn records(&self) -> MutexGuard<'_, HashMap<u64, Record>> {
        lock(&self.shared.records)
    }

    /// Returns the node of a name, if the caller may look it up. A hook of an engine runs in the
    /// container. A predecessor may have had leases where there are none now.
    fn find(&self, name: &str, caller: &Request) -> Option<u64> {
        let Shared { views, length, .. } = &*self.shared;
        let is_of_machine = views.is_of_machine(caller.pid());
        if length.is_zero() || (is_of_machine && caller.uid() != 0) {
            return None;
        }
        if name == PRIMER {
            return is_of_machine.then_some(PRIMER_NODE);
        }
        let node = u64::from_str_radix(name, 16).ok()?;
        let (_, first) = parse(node)?;
        let thread = if is_of_machine { first.pid } else { caller.pid() };
        (views.first_process(thread) == Some(first)).then_some(node)
    }

    /// Takes a new lease of a file. Returns its text, generation and length.
    fn renew(&self, node: u64) -> Result<(Arc<[u8]>, SystemTime, Duration), Errno> {
        let (file, first) = parse(node).ok_or(Errno::ENOENT)?;
        let Shared { views, length, .. } = &*self.shared;
        let leased = match thread_pool::must_not_wait() {
            true => views.last_view(first.pid).map(|view| (view, SHORT.min(*length))),
            false => views.lease(first, file.needs, *length),
        };
        let leased = leased.inspect_err(|_| Counters::add(&self.shared.counters.refused));
        let (view, granted) = leased.map_err(|error| errno(&error))?;
        // The opens and reads that the kernel answers are not known.
        Counters::add(&self.shared.counters.opens);
        let mut text = Text::new();
        (file.render_columns)(&view, &mut text);
        if text.as_bytes().len() > PAGE {
            return Err(Errno::EFBIG);
        }
        let mut records = self.records();
        if records.len() >= MOST {
            records.retain(|_, record| record.used.elapsed() < IN_USE);
        }
        // The kernel keeps a page whose text has not changed.
        let same = records.remove(&node).filter(|record| *record.text == *text.as_bytes());
        let (text, generation) = match same {
            Some(Record { text, generation, .. }) => (text, generation),
            None => (text.as_bytes().into(), SystemTime::now()),
        };
        records.insert(node, Record { text: text.clone(), generation, used: Instant::now() });
        Ok((text, generation, granted))
    }

    /// Returns the attributes of a node, and their validity.
    fn attributes(&self, node: u64) -> Result<(FileAttr, Duration), Errno> {
        let long_ago = SystemTime::UNIX_EPOCH;
        if node == ROOT || node == PRIMER_NODE {
            return Ok((attributes(node, 1, long_ago), VALID));
        }
        let (text, generation, length) = self.renew(node)?;
        Ok((attributes(node, text.len() as u64, generation), length))
    }

    /// Returns the text of the current lease.
    fn text(&self, node: u64) -> Result<Arc<[u8]>, Errno> {
        if node == PRIMER_NODE {
            return Ok(Arc::from(*b"\n"));
        }
        let kept = self.records().get(&node).map(|record| record.text.clone());
        kept.map_or_else(|| self.renew(node).map(|(text, ..)| text), Ok)
    }
}

fn attributes(node: u64, size: u64, time: SystemTime) -> FileAttr {
    // 32-bit programs cannot be shown more (`fuse::tree`).
    let id = node >> 32 ^ node & u64::from(u32::MAX);
    match node {
        ROOT => file_attributes(id, FileType::Directory, 0o711, 0, 1, time),
        _ => file_attributes(id, FileType::RegularFile, WORLD_READABLE, size, 1, time),
    }
}

impl PooledFilesystem for LeaseFilesystem {
    fn served(&self) -> Served<'_> {
        let Shared { pool, counters, views, .. } = &*self.shared;
        Served { pool, counters, kind: self.kind, views: &**views }
    }

    fn with_thread_kind(self, kind: ThreadKind) -> Self {
        Self { kind, ..self }
    }
}

impl Filesystem for LeaseFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it the kernel would keep the first text for ever.
        config
            .add_capabilities(InitFlags::FUSE_AUTO_INVAL_DATA)
            .map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        // The kernel reads pages by background requests.
        let _ = config.set_max_background(u16::MAX);
        let _ = config.set_congestion_threshold(u16::MAX);
        Ok(())
    }

    /// Answers without a validity: each look-up is checked, a name without a mount is forgotten, and
    /// the first reader asks for the attributes. Waits for no numbers, so that attach does not.
    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard(recorded(Operation::Lookup, parent, req), reply, |_, reply| {
            let name = name.to_str().filter(|_| parent.0 == ROOT);
            let node = name.and_then(|name| self.find(name, req));
            let Some(node) = node else { return reply.error(Errno::ENOENT) };
            let last = self.records().get(&node).map(|last| last.attributes(node));
            let last =
                last.unwrap_or_else(|| attributes(node, PAGE as u64, SystemTime::UNIX_EPOCH));
            let (not, found) = (Duration::ZERO, FileAttr { ino: INodeNo(node), ..last });
            reply.entry_with_ttls(&not, &not, &found, Generation(0));
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        self.records().remove(&ino.0);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.in_turn(recorded(Operation::Getattr, ino, req), reply, move |own, slot, reply| {
            let last = own.records().get(&ino.0).map(|last| last.attributes(ino.0));
            slot.set_reply(ReplyLease(reply, last));
            let found = own.attributes(ino.0);
            let Some(ReplyLease(reply, _)) = slot.take_reply() else { return };
            match found {
                Ok((attributes, valid)) => reply.attr(&valid, &attributes),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        reader: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.in_turn(recorded(Operation::Read, ino, req), reply, move |own, slot, reply| {
            slot.set_reply(reply);
            let text = own.text(ino.0);
            let Some(reply) = slot.take_reply::<ReplyData>() else { return };
            match (text, reader) {
                (Err(errno), _) => reply.error(errno),
                // A direct read (O_DIRECT).
                (Ok(text), Some(_)) => reply.data(window(&text, offset, size)),
                // The rest of the page is newlines: a reader for whom the file becomes longer before
                // the page is dropped sees an empty line, and no NUL.
                (Ok(text), None) => {
                    let mut page = [b'\n'; PAGE];
                    page[..text.len()].copy_from_slice(&text);
                    reply.data(window(&page, offset, size));
                }
            }
        });
    }

    /// The files have names for attach only, and are not listed.
    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (next, name) in [(1, "."), (2, "..")] {
            if next > offset && reply.add(INodeNo(ROOT), next, FileType::Directory, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1, 1, 1, 1, 1, 4096, 255, 4096);
    }

    refuse! {
        EROFS: setattr mknod mkdir unlink rmdir symlink rename link write create setxattr removexattr
            fallocate copy_file_range;
        EINVAL: readlink fsync;
        ENOSYS: access open flush fsyncdir poll lseek getxattr listxattr getlk setlk bmap;
        ENOTTY: ioctl;
    }
}
