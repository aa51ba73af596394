//! A FUSE server that does nothing: the floor that benchmarks measure the overlay against.
//!
//! It has the overlay's mount options, tree and reply flags, and every file holds the same 4 KiB.
//! The ideal server (`ideal.rs`) is the same, and reads control groups when a file is opened.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use ambit_fuse::tree::{NodeKind, Tree};
use ambit_fuse::{Error, mount, visit};
use fuser::{
    Config, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};

use super::ideal::Ideal;

const VALID: Duration = Duration::from_secs(365 * 24 * 3600);
const THREADS: usize = 2;
static CONTENT: [u8; 4096] = [b'x'; 4096];

struct Null(Tree, Option<Ideal>);

impl Filesystem for Null {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.child(parent.0, name.as_bytes()) {
            Some(node) => reply.entry(&VALID, &self.0.attributes(node), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.node(ino.0) {
            Some(node) => reply.attr(&VALID, &self.0.attributes(node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if let Some(ideal) = &self.1
            && let Some(NodeKind::File(file)) = self.0.node(ino.0).map(|node| &node.kind)
            && ideal.read(request.pid(), file.path).is_err()
        {
            return reply.error(Errno::EIO);
        }
        reply.opened(FileHandle(1), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(CONTENT.len());
        reply.data(&CONTENT[from..from.saturating_add(size as usize).min(CONTENT.len())]);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}

/// Serves at a directory until standard input ends.
pub(crate) fn serve(path: &Path, ideal: Option<Ideal>) -> Result<(), Error> {
    let path = mount::prepare(path, visit::in_place)?;
    let device = mount::open_device()?;
    let kind = mount::MountKind::new(mount::NAME, mount::Writes::Refused);
    let mount = mount::detached(device.as_fd(), &kind)?;
    mount::attach(mount.as_fd(), &path)?;
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    let failed = |source| Error::Session { call: "fuser", source };
    let session = Session::from_fd(Null(Tree::default(), ideal), device, SessionACL::All, config);
    let serving = session.and_then(Session::spawn).map_err(failed);
    if serving.is_ok() {
        let _ = io::stdin().read_to_end(&mut Vec::new());
    }
    mount::detach(&path)?;
    serving?.join().map_err(failed)
}
