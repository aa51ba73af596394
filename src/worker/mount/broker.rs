//! The process that starts mounts: forked before the daemon has threads, single-threaded, with the
//! host's rights.
//!
//! It forks one process for every mount and goes on listening, so a mount that hangs holds up
//! nobody. It keeps no descriptor but its own end of the connection, ends with the daemon, and
//! lets the mounts that are under way come to their end.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use super::caller::{Caller, Facts};
use super::child::leave;
use super::failure::{Failure, OrFail};
use super::line::Line;
use super::order::Order;
use crate::sys::close_range::close_all_but;
use crate::sys::fork::{Fork, fork};

/// The longest request: three strings of a page each, written as numbers.
const LONGEST: usize = 128 << 10;
/// How many descriptors a request has at most; v1 has a control group for each controller.
const DESCRIPTORS: usize = 48;
/// How much longer than its deadline a mount may take to report.
const GRACE: Duration = Duration::from_secs(3);

/// What is to be done, without the descriptors. Those are, in this order: where to report, users,
/// mounts, root, folder, other namespaces, control groups.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    order: Order,
    facts: Facts,
    others: Vec<i32>,
}

/// The connection to the broker.
#[derive(Debug)]
pub struct Broker(OwnedFd);

impl Broker {
    /// Starts it.
    ///
    /// # Errors
    /// This process has threads already, or there is no room for another one.
    pub fn start() -> std::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        match fork()? {
            Fork::Parent(_) => Ok(Self(ours)),
            Fork::Child => {
                let _ = rustix::thread::set_name(c"ambit-mounts");
                // Nobody else may wait for what a mount leaves behind, and until somebody does, the
                // container that it was for cannot end.
                let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
                let _ = close_all_but(theirs.as_raw_fd().unsigned_abs());
                serve(&theirs);
                leave(0)
            }
        }
    }

    /// Has something mounted, and waits for it.
    ///
    /// # Errors
    /// Nothing was mounted.
    pub fn mount(&self, order: &Order, caller: &Caller) -> Result<(), Failure> {
        let (line, theirs) = Line::pair()?;
        let request = Request {
            order: order.clone(),
            facts: caller.facts.clone(),
            others: caller.others.iter().map(|(kind, _)| *kind).collect(),
        };
        let bytes = serde_json::to_vec(&request)
            .map_err(|error| Failure::new(Errno::EINVAL, error.to_string()))?;
        let mut fds = vec![
            theirs.as_fd(),
            caller.users.as_fd(),
            caller.mounts.as_fd(),
            caller.root.as_fd(),
            caller.folder.as_fd(),
        ];
        fds.extend(caller.others.iter().map(|(_, namespace)| namespace.as_fd()));
        fds.extend(caller.groups.iter().map(AsFd::as_fd));
        self.send(&bytes, &fds)?;
        drop(theirs);
        line.receive(Instant::now() + order.deadline + GRACE).map(drop)
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if bytes.len() > LONGEST || !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Failure::new(Errno::E2BIG, "the request is too long for the broker"));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
            .or_fail("the broker for mounts is gone: sendmsg")?;
        Ok(())
    }
}

/// Until the daemon is gone.
fn serve(socket: &OwnedFd) {
    let mut bytes = vec![0; LONGEST];
    loop {
        let running = loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        // Whoever ended while nobody asks for anything is waited for a little later.
        let soon = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let patience = running.then_some(&soon);
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], patience) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        let Some((request, mut fds)) = receive(socket, &mut bytes) else { return };
        if fds.len() < 5 {
            continue;
        }
        match fork() {
            Ok(Fork::Child) => {
                let report = Line::from(fds.remove(0));
                let done = act(&request, fds);
                report.report(done.map(|()| Vec::new()));
                leave(0)
            }
            // Without a process its line is closed, and the daemon says so.
            Ok(Fork::Parent(_)) | Err(_) => {}
        }
    }
}

fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(bytes)];
    let received =
        rustix::net::recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    (received.bytes > 0).then(|| (bytes[..received.bytes].to_vec(), fds))
}

fn act(request: &[u8], fds: Vec<OwnedFd>) -> Result<(), Failure> {
    let wrong = |what: &str| Failure::new(Errno::EPROTO, format!("a wrong request: {what}"));
    let request: Request =
        serde_json::from_slice(request).map_err(|error| wrong(&error.to_string()))?;
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| wrong("a descriptor is missing"));
    let (users, mounts, root, folder) = (next()?, next()?, next()?, next()?);
    let others: Result<Vec<_>, Failure> =
        request.others.iter().map(|&kind| Ok((kind, next()?))).collect();
    let (others, facts) = (others?, request.facts);
    let groups = fds.collect();
    let caller = Caller { users, mounts, others, root, folder, groups, facts };
    super::run(&request.order, &caller)
}
