//! The process that acts: one task at a time, then it waits for the next.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown,
};

use super::bpf;
use super::identity::lay_down;
use super::mknod::Opens;
use super::task::{Answer, Reply, Task, What};
use crate::worker::child::die_with_parent;
use crate::worker::failure::{Failure, OrFail};
use crate::worker::line::Line;

/// The longest task: a path of a page, written as numbers, and as many groups as there can be.
pub(super) const LONGEST: usize = 1 << 20;
/// Process, root, base, and what the task needs in addition.
pub(super) const DESCRIPTORS: usize = 5;
/// How long it waits for the next task.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

struct Worker {
    line: OwnedFd,
    /// `/proc/self/fd`, which the container's root does not show.
    fds: OwnedFd,
    opens: Opens,
    bpf: bpf::Surroundings,
}

/// Serves one control group until it is not needed any more.
pub(in crate::worker) fn serve(line: Line, groups: Vec<OwnedFd>) {
    match prepare(groups) {
        Err(failure) => line.report(Err(failure)),
        Ok((this, fds, bpf)) => {
            if line.done(&[this.as_fd()]).is_ok() {
                Worker { line: line.into_fd(), fds, opens: Vec::new(), bpf }.work();
            }
        }
    }
}

/// Enters the control groups and lays down what is not needed. Returns a descriptor of this
/// process, its folder of descriptors, and what programs need.
fn prepare(groups: Vec<OwnedFd>) -> Result<(OwnedFd, OwnedFd, bpf::Surroundings), Failure> {
    let _ = rustix::thread::set_name(c"ambit-act");
    // Without a controlling terminal, and out of reach of the signals of one.
    rustix::process::setsid().or_fail("setsid")?;
    for group in groups {
        rustix::io::write(group, b"0").or_fail("write to the caller's cgroup.procs")?;
    }
    let this = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .or_fail("pidfd_open")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fds = rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty())
        .or_fail("open of /proc/self/fd")?;
    let bpf = bpf::Surroundings::open();
    lay_down().or_fail("capset")?;
    die_with_parent();
    Ok((this, fds, bpf))
}

impl Worker {
    fn work(&mut self) {
        let mut bytes = vec![0; LONGEST];
        // The process that asked last.
        let mut caller = None;
        loop {
            self.wait(caller.as_ref());
            let Some((length, mut fds)) = self.receive(&mut bytes) else { return };
            let answer = self.act(&bytes[..length], &fds);
            if self.send(&answer).is_err() {
                return;
            }
            if !fds.is_empty() {
                caller = Some(fds.swap_remove(0));
            }
        }
    }

    /// Waits for a task. When there is none, from here on nobody can ask any more; whoever just did
    /// is answered.
    fn wait(&self, caller: Option<&OwnedFd>) {
        let line = PollFd::new(&self.line, PollFlags::IN);
        let mut ends: Vec<_> =
            caller.map(|fd| PollFd::new(fd, PollFlags::IN)).into_iter().collect();
        ends.push(line);
        loop {
            match poll(&mut ends, Some(&PATIENCE)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(1..) if ends.last().is_some_and(|line| !line.revents().is_empty()) => return,
                Ok(_) | Err(_) => {
                    let _ = rustix::net::shutdown(&self.line, Shutdown::Read);
                    return;
                }
            }
        }
    }

    fn receive(&self, bytes: &mut [u8]) -> Option<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.line, parts, &mut control, flags).ok()?;
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<_> = fds.flatten().collect();
        (received.bytes > 0).then_some((received.bytes, fds))
    }

    fn send(&self, answer: &Answer) -> Result<(), rustix::io::Errno> {
        let number = answer.reply.number().to_ne_bytes();
        let fd: Vec<_> = answer.fd.as_ref().map(AsFd::as_fd).into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fd.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fd));
        }
        let parts = [IoSlice::new(&number), IoSlice::new(&answer.bytes)];
        rustix::net::sendmsg(&self.line, &parts, &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// Is whoever asked dead? What it asked last is still there, but its successor has another worker do
    /// it, and done by both it would be done again after the caller has gone on.
    fn is_abandoned(&self) -> bool {
        let mut line = [PollFd::new(&self.line, PollFlags::empty())];
        let _ = poll(&mut line, Some(&Timespec::default()));
        line[0].revents().contains(PollFlags::HUP)
    }

    fn act(&mut self, task: &[u8], fds: &[OwnedFd]) -> Answer {
        let (Ok(task), [_, root, base, more @ ..]) = (serde_json::from_slice::<Task>(task), fds)
        else {
            return Reply::Failed(Errno::EPROTO).into();
        };
        if task.who.take_on(root.as_fd(), task.what.rights()).is_err() {
            return Reply::Failed(Errno::EPERM).into();
        }
        if self.is_abandoned() {
            return Reply::Kernel.into();
        }
        let (base, found) = (base.as_fd(), more.first().map(AsFd::as_fd));
        match &task.what {
            What::Mknod(mknod) => mknod.act(base, found, &mut self.opens).into(),
            What::SetOpaque(set) => set.act(base, found, self.fds.as_fd()).into(),
            What::Bpf(bpf) => bpf.act(more, &mut self.bpf),
        }
    }
}
