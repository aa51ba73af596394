//! The kernel's side of a FUSE connection over a socket pair: requests are bytes as
//! `include/uapi/linux/fuse.h` lays them out. Nothing here allocates in `read_request`, so that
//! the budget test counts the server alone.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "every test includes this and uses a part of it"
)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ambit_fuse::{MountOptions, Overlay};
use ambit_sysinfo::Views;
use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const READLINK: u32 = 5;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const ACCESS: u32 = 34;
pub const READDIRPLUS: u32 = 44;

pub const ENOENT: i32 = 2;
pub const ESRCH: i32 = 3;
pub const EIO: i32 = 5;
pub const EACCES: i32 = 13;
pub const EISDIR: i32 = 21;
pub const EINVAL: i32 = 22;
pub const ENOSYS: i32 = 38;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

/// The kernel's end.
pub struct Kernel {
    socket: OwnedFd,
    next: u64,
    /// The thread that requests come from.
    pub thread: u32,
    /// The user that requests come from.
    pub user: u32,
    request: [u8; 512],
    answer: Vec<u8>,
}

/// An attribute structure, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// The INIT request of a 6.18 kernel.
pub fn init_record() -> Vec<u8> {
    let mut record = vec![0; 104];
    record[..4].copy_from_slice(&104u32.to_ne_bytes());
    record[4..8].copy_from_slice(&INIT.to_ne_bytes());
    record[8..16].copy_from_slice(&1u64.to_ne_bytes());
    for (at, word) in [(40, 7u32), (44, 45), (48, 131_072), (52, 0x73FF_FFFB), (56, 0xFD)] {
        record[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    record
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

impl Kernel {
    fn over(socket: OwnedFd) -> Self {
        Self {
            socket,
            next: 100,
            thread: 4242,
            user: 0,
            request: [0; 512],
            answer: vec![0; 2 << 20],
        }
    }

    /// Starts a connection and its server.
    pub fn start(views: Arc<dyn Views>, threads: usize) -> (Self, Overlay) {
        Self::start_with(views, MountOptions { threads, ..MountOptions::new("/nowhere") })
    }

    /// Starts a connection and its server with these options.
    pub fn start_with(views: Arc<dyn Views>, options: MountOptions) -> (Self, Overlay) {
        let (ours, device) = pair();
        rustix::net::send(&ours, &init_record(), SendFlags::empty()).unwrap();
        let overlay = Overlay::serve(device, options, views).unwrap();
        let mut kernel = Self::over(ours);
        let (unique, error, body) = kernel.receive();
        assert_eq!((unique, error, body.len()), (1, 0, 64), "INIT is answered");
        assert_eq!(u32_at(&body, 0), 7);
        assert_eq!(overlay.init_record(), init_record());
        (kernel, overlay)
    }

    /// A connection that another process began, and a server that takes it over.
    pub fn take_over(views: Arc<dyn Views>) -> (Self, Overlay) {
        let (ours, device) = pair();
        let options = MountOptions::new("/nowhere");
        let overlay = Overlay::takeover(device, &init_record(), options, views).unwrap();
        let mut kernel = Self::over(ours);
        let (unique, code, body) = kernel.receive();
        assert_eq!((unique, code, body.len()), (0, 7, 0), "RESEND, and no second INIT reply");
        (kernel, overlay)
    }

    /// Sends bytes that may be no request at all.
    pub fn send_raw(&self, bytes: &[u8]) {
        retry_on_intr(|| rustix::net::send(&self.socket, bytes, SendFlags::empty())).unwrap();
    }

    /// Sends a request and returns its id.
    pub fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.next += 2;
        self.send_as(self.next, opcode, node, body);
        self.next
    }

    /// Sends a request under an id.
    pub fn send_as(&mut self, unique: u64, opcode: u32, node: u64, body: &[u8]) {
        let len = IN_HEADER + body.len();
        let request = &mut self.request[..len];
        request.fill(0);
        request[..4].copy_from_slice(&u32::try_from(len).unwrap().to_ne_bytes());
        request[4..8].copy_from_slice(&opcode.to_ne_bytes());
        request[8..16].copy_from_slice(&unique.to_ne_bytes());
        request[16..24].copy_from_slice(&node.to_ne_bytes());
        request[28..32].copy_from_slice(&100_000u32.to_ne_bytes());
        request[24..28].copy_from_slice(&self.user.to_ne_bytes());
        request[32..36].copy_from_slice(&self.thread.to_ne_bytes());
        request[IN_HEADER..].copy_from_slice(body);
        let request = &*request;
        retry_on_intr(|| rustix::net::send(&self.socket, request, SendFlags::empty())).unwrap();
    }

    /// Receives an answer: id, error (positive) or notification code, body.
    pub fn receive(&mut self) -> (u64, i32, Vec<u8>) {
        let (unique, error, body) = self.receive_borrowed();
        (unique, error, body.to_vec())
    }

    fn receive_borrowed(&mut self) -> (u64, i32, &[u8]) {
        // The timer of the fuzzer interrupts system calls.
        let (length, _) = retry_on_intr(|| {
            rustix::net::recv(&self.socket, &mut self.answer[..], RecvFlags::empty())
        })
        .unwrap();
        let answer = &self.answer[..length];
        assert!(length >= OUT_HEADER, "the server closed the connection");
        assert_eq!(u32_at(answer, 0) as usize, length);
        let error = i32::from_ne_bytes(answer[4..8].try_into().unwrap());
        (u64_at(answer, 8), error.abs(), &answer[OUT_HEADER..])
    }

    /// Sends a request and receives its answer.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.call_borrowed(opcode, node, body).map(<[u8]>::to_vec)
    }

    fn call_borrowed(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<&[u8], i32> {
        let asked = self.send(opcode, node, body);
        let (unique, error, body) = self.receive_borrowed();
        assert_eq!(unique, asked);
        if error == 0 { Ok(body) } else { Err(error) }
    }

    /// Looks up a name of the fixed tree, which has a validity.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<Attr, i32> {
        let (attr, name_holds) = self.lookup_any(parent, name)?;
        assert!(name_holds > 300 * 86_400, "{name}");
        Ok(attr)
    }

    /// Looks up a member of a family, which must not have a validity.
    pub fn lookup_own(&mut self, parent: u64, name: &str) -> Result<Attr, i32> {
        let (attr, name_holds) = self.lookup_any(parent, name)?;
        assert_eq!(name_holds, 0, "{name}");
        Ok(attr)
    }

    /// Attributes, and seconds for which the name holds.
    fn lookup_any(&mut self, parent: u64, name: &str) -> Result<(Attr, u64), i32> {
        let mut body = name.as_bytes().to_vec();
        body.push(0);
        let entry = self.call(LOOKUP, parent, &body)?;
        assert_eq!(entry.len(), 128);
        // The size of a long file differs between callers and has no validity.
        assert!(u64_at(&entry, 24) == 0 || u64_at(&entry, 24) > 300 * 86_400);
        assert_eq!(u32_at(&entry, 32), 0, "no part of a second");
        let attr = attr(&entry[40..]);
        assert_eq!(attr.ino, u64_at(&entry, 0));
        Ok((attr, u64_at(&entry, 16)))
    }

    /// The target of a link.
    pub fn readlink(&mut self, node: u64) -> Result<String, i32> {
        self.call(READLINK, node, &[]).map(|target| String::from_utf8(target).unwrap())
    }

    /// Walks a path from the root.
    pub fn walk(&mut self, path: &str) -> Result<Attr, i32> {
        let mut found = Err(ENOENT);
        let mut at = 1;
        for name in path.split('/') {
            let (attr, _) = self.lookup_any(at, name)?;
            at = attr.ino;
            found = Ok(attr);
        }
        found
    }

    pub fn getattr(&mut self, node: u64) -> Result<Attr, i32> {
        let answer = self.call(GETATTR, node, &[0; 16])?;
        assert_eq!(answer.len(), 104);
        Ok(attr(&answer[16..]))
    }

    /// Opens a file and asserts the flags for direct I/O and no FLUSH.
    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        let mut body = [0; 8];
        body[..4].copy_from_slice(&flags.to_ne_bytes());
        let answer = self.call_borrowed(OPEN, node, &body)?;
        assert_eq!((answer.len(), u32_at(answer, 8)), (16, 1 | 1 << 5));
        Ok(u64_at(answer, 0))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.read_borrowed(node, handle, offset, size).map(<[u8]>::to_vec)
    }

    pub fn read_borrowed(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<&[u8], i32> {
        self.call_borrowed(READ, node, &read_request(handle, offset, size))
    }

    pub fn release(&mut self, node: u64, handle: u64) {
        let mut body = [0; 24];
        body[..8].copy_from_slice(&handle.to_ne_bytes());
        assert!(self.call_borrowed(RELEASE, node, &body).unwrap().is_empty());
    }

    /// Opens, reads to the end, closes.
    pub fn cat(&mut self, path: &str) -> Result<String, i32> {
        let node = self.walk(path)?.ino;
        let handle = self.open(node, 0)?;
        let mut text = Vec::new();
        loop {
            let part = self.read(node, handle, text.len() as u64, 131_072)?;
            if part.is_empty() {
                break;
            }
            text.extend_from_slice(&part);
        }
        self.release(node, handle);
        Ok(String::from_utf8(text).unwrap())
    }

    /// Lists a directory through buffers of this size: (name, node, type).
    pub fn list(&mut self, node: u64, opcode: u32, size: u32) -> Vec<(String, u64, u32)> {
        self.call(OPENDIR, node, &[0; 8]).unwrap();
        let skip = if opcode == READDIRPLUS { 128 } else { 0 };
        let mut found = Vec::new();
        let mut offset = 0;
        loop {
            let page = self.call(opcode, node, &read_request(0, offset, size)).unwrap();
            if page.is_empty() {
                return found;
            }
            assert!(page.len() <= size as usize);
            let mut rest = &page[..];
            while !rest.is_empty() {
                let entry = &rest[skip..];
                let name_len = u32_at(entry, 16) as usize;
                let name = String::from_utf8(entry[24..24 + name_len].to_vec()).unwrap();
                if skip > 0 {
                    assert_eq!(u64_at(rest, 0), u64_at(entry, 0));
                }
                found.push((name, u64_at(entry, 0), u32_at(entry, 20)));
                offset = u64_at(entry, 8);
                rest = &rest[(skip + 24 + name_len).next_multiple_of(8)..];
            }
        }
    }
}

pub fn read_request(handle: u64, offset: u64, size: u32) -> [u8; 40] {
    let mut body = [0; 40];
    body[..8].copy_from_slice(&handle.to_ne_bytes());
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&size.to_ne_bytes());
    // FUSE_READ_LOCKOWNER: every direct read of a process carries it.
    body[20..24].copy_from_slice(&2u32.to_ne_bytes());
    body
}

fn attr(bytes: &[u8]) -> Attr {
    Attr {
        ino: u64_at(bytes, 0),
        size: u64_at(bytes, 8),
        mode: u32_at(bytes, 60),
        uid: u32_at(bytes, 68),
        gid: u32_at(bytes, 72),
    }
}
