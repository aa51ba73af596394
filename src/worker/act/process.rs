//! The process that acts: one task at a time, then it waits for the next.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use ambit_kernel::sys::affinity::Stay;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown,
};

use super::bpf;
use super::identity::lay_down;
use super::mailbox::{Found, Mailbox};
use super::mknod::Opens;
use super::task::{Answer, Reply, Task, What};
use crate::worker::child::die_with_parent;
use crate::worker::failure::{Failure, OrFail};
use crate::worker::line::Line;

/// The longest task: a path of a page, and as many groups as there can be.
pub(super) const LONGEST: usize = 1 << 20;
/// Process, root, base, and what the task needs in addition: a file that was found for the caller
/// ([`crate::worker::Find`]), or two descriptors of it.
pub(super) const DESCRIPTORS: usize = 5;
/// How long it waits for the next task.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// What is watched.
const LINE: u64 = 0;
const CALLER: u64 = 1;

struct Worker {
    line: OwnedFd,
    mailbox: Mailbox,
    /// `/proc/self/fd`, which the container's root does not show.
    fds: OwnedFd,
    opens: Opens,
    bpf: bpf::Surroundings,
    /// Watches the line, and the process that asked last.
    watch: OwnedFd,
    caller: Option<OwnedFd>,
    stay: Stay,
}

/// Serves one control group until it is not needed any more.
pub(in crate::worker) fn serve(line: Line, mailbox: &OwnedFd, groups: Vec<OwnedFd>) {
    match prepare(mailbox, groups) {
        Err(failure) => line.report(Err(failure)),
        Ok(Prepared { this, mailbox, fds, watch, bpf }) => {
            if line.done(&[this.as_fd()]).is_ok() {
                let (line, opens, caller) = (line.into_fd(), Vec::new(), None);
                let stay = Stay::anywhere();
                Worker { line, mailbox, fds, opens, bpf, watch, caller, stay }.work();
            }
        }
    }
}

struct Prepared {
    /// This process.
    this: OwnedFd,
    mailbox: Mailbox,
    fds: OwnedFd,
    watch: OwnedFd,
    bpf: bpf::Surroundings,
}

/// Enters the control groups and lays down what is not needed.
fn prepare(mailbox: &OwnedFd, groups: Vec<OwnedFd>) -> Result<Prepared, Failure> {
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
    let mailbox = Mailbox::of(mailbox).or_fail("mmap of a mailbox")?;
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC).or_fail("epoll_create1")?;
    let bpf = bpf::Surroundings::open();
    lay_down().or_fail("capset")?;
    die_with_parent();
    Ok(Prepared { this, mailbox, fds, watch, bpf })
}

impl Worker {
    fn work(&mut self) {
        if self.look_at(&self.line, LINE).is_err() {
            return;
        }
        let mut bytes = vec![0; LONGEST];
        loop {
            let (mut by_line, mut fds) = (false, Vec::new());
            let task = match self.mailbox.take() {
                Found::Task(task) => task,
                found => {
                    by_line = found == Found::Nothing;
                    if by_line {
                        self.wait();
                    }
                    let Some((length, received)) = self.receive(&mut bytes) else { return };
                    fds = received;
                    postcard::from_bytes(&bytes[..length])
                }
            };
            let follows = task.as_ref().is_ok_and(|task: &Task<'_>| task.follows);
            let answer = self.act(task, fds);
            let goes_on = answer.is_some();
            if !goes_on {
                // Whoever asks next gets another worker.
                let _ = rustix::net::shutdown(&self.line, Shutdown::Read);
            }
            // It was not tried: the kernel answers.
            let answer = answer.unwrap_or_else(|| Reply::Kernel.into());
            if !by_line {
                self.mailbox.done(answer.reply, goes_on && follows);
            } else {
                if goes_on && follows {
                    self.mailbox.open();
                }
                if self.send(&answer).is_err() {
                    return;
                }
            }
            if !goes_on {
                return;
            }
        }
    }

    /// Waits for a task on the line, or for the end: of the caller, of whoever asks, or of patience. Then
    /// nobody can ask any more from here on; whoever just did is answered.
    fn wait(&self) {
        let mut room = [MaybeUninit::uninit(); 2];
        let events = loop {
            match epoll::wait(&self.watch, &mut room, Some(&PATIENCE)) {
                Err(rustix::io::Errno::INTR) => {}
                events => break events.map(|(events, _)| &*events).unwrap_or_default(),
            }
        };
        if !events.iter().any(|event: &epoll::Event| event.data.u64() == LINE) {
            let _ = rustix::net::shutdown(&self.line, Shutdown::Read);
        }
    }

    fn look_at(&self, fd: &OwnedFd, what: u64) -> Result<(), rustix::io::Errno> {
        epoll::add(&self.watch, fd, epoll::EventData::new_u64(what), epoll::EventFlags::IN)
    }

    /// From here on it ends with this process.
    fn follow(&mut self, caller: OwnedFd) -> Result<(), rustix::io::Errno> {
        if let Some(before) = self.caller.take() {
            // Closing is not enough: the daemon has it open too.
            epoll::delete(&self.watch, before)?;
        }
        self.look_at(&caller, CALLER)?;
        self.caller = Some(caller);
        Ok(())
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

    /// `None`: it could not become the caller, and is nobody in particular now.
    fn act(&mut self, task: postcard::Result<Task<'_>>, fds: Vec<OwnedFd>) -> Option<Answer> {
        let Ok(Task { who, what, with, processor, .. }) = task else {
            return Some(Reply::Kernel.into());
        };
        self.stay.on(processor);
        let mut fds = fds.into_iter();
        let mut next = |comes: bool| if comes { fds.next() } else { None };
        let (process, root, base) = (next(with.process), next(with.root), next(with.base));
        if let Some(process) = process {
            self.follow(process).ok()?;
        }
        who.take_on(root.as_ref().map(AsFd::as_fd), what.rights()).ok()?;
        if self.is_abandoned() {
            return Some(Reply::Kernel.into());
        }
        // Its own root is the caller's now; an absolute path starts nowhere else.
        let base = base.as_ref().map_or(CWD, AsFd::as_fd);
        let more: Vec<_> = fds.collect();
        let found = more.first().map(AsFd::as_fd);
        Some(match &*what {
            What::Mknod(mknod) => mknod.act(base, found, &mut self.opens).into(),
            What::SetOpaque(set) => set.act(base, found, self.fds.as_fd()).into(),
            What::Bpf(bpf) => bpf.act(&more, &mut self.bpf),
        })
    }
}
