//! The process that acts: one task at a time, then it waits for the next.

use std::os::fd::{AsFd, OwnedFd};

use ambit_kernel::channel::{self, Received};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::bpf;
use super::identity::lay_down;
use super::mknod::Opens;
use super::reply::{Answer, Reply};
use super::task::{Task, What};
use crate::child::die_with_parent;
use crate::failure::{Failure, OrFail};
use crate::line::Line;

/// The longest task: a path of a page, and as many groups as there can be.
pub(super) const LONGEST: usize = 1 << 20;
/// How long it waits for the next task.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

struct Worker {
    line: OwnedFd,
    /// `/proc/self/fd`, which the container's root does not show.
    fds: OwnedFd,
    opens: Opens,
    bpf: bpf::Surroundings,
    /// The process that asked last.
    caller: Option<OwnedFd>,
}

/// Serves one control group until it is not needed any more.
pub(crate) fn serve(line: Line, groups: Vec<OwnedFd>) {
    match prepare(groups) {
        Err(failure) => line.report(Err(failure)),
        Ok(Prepared { this, fds, bpf }) => {
            if line.done(&[this.as_fd()]).is_ok() {
                let (line, opens, caller) = (line.into_fd(), Vec::new(), None);
                Worker { line, fds, opens, bpf, caller }.work();
            }
        }
    }
}

struct Prepared {
    /// This process.
    this: OwnedFd,
    fds: OwnedFd,
    bpf: bpf::Surroundings,
}

/// Enters the control groups and lays down what is not needed.
fn prepare(groups: Vec<OwnedFd>) -> Result<Prepared, Failure> {
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
    Ok(Prepared { this, fds, bpf })
}

impl Worker {
    fn work(&mut self) {
        let mut bytes = vec![0; LONGEST];
        loop {
            self.wait();
            let received = channel::receive(&self.line, &mut bytes, RecvFlags::empty());
            let Ok(Received { length: length @ 1.., fds, .. }) = received else { return };
            let answer = self.act(postcard::from_bytes(&bytes[..length]), fds);
            let goes_on = answer.is_some();
            if !goes_on {
                // The next task goes to another worker.
                let _ = rustix::net::shutdown(&self.line, Shutdown::Read);
            }
            // It was not tried: the kernel answers.
            let answer = answer.unwrap_or_else(|| Reply::Kernel.into());
            if self.send(&answer).is_err() || !goes_on {
                return;
            }
        }
    }

    /// Waits for a task, or for the end: of the caller, of the daemon, or of patience. From then on no
    /// task can be sent; one that was just sent is still done.
    fn wait(&self) {
        let mut watched = vec![PollFd::new(&self.line, PollFlags::IN)];
        watched.extend(self.caller.as_ref().map(|caller| PollFd::new(caller, PollFlags::IN)));
        while poll(&mut watched, Some(&PATIENCE)) == Err(rustix::io::Errno::INTR) {}
        if watched[0].revents().is_empty() {
            let _ = rustix::net::shutdown(&self.line, Shutdown::Read);
        }
    }

    fn send(&self, answer: &Answer) -> Result<(), rustix::io::Errno> {
        let bytes = postcard::to_allocvec(answer).unwrap_or_default();
        let fd: Vec<_> = answer.fd.as_ref().map(AsFd::as_fd).into_iter().collect();
        channel::send(&self.line, &bytes, &fd, SendFlags::empty())
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
        let mut fds = fds.into_iter();
        let (Ok(Task { who, what }), Some(process), Some(root), Some(base)) =
            (task, fds.next(), fds.next(), fds.next())
        else {
            return Some(Reply::Kernel.into());
        };
        self.caller = Some(process);
        who.take_on(root.as_fd(), what.rights()).ok()?;
        if self.is_abandoned() {
            return Some(Reply::Kernel.into());
        }
        let base = base.as_fd();
        let more: Vec<_> = fds.collect();
        let found = more.first().map(AsFd::as_fd);
        Some(match &*what {
            What::Mknod(mknod) => mknod.act(base, found, &mut self.opens).into(),
            What::SetOpaque(set) => set.act(base, found, self.fds.as_fd()).into(),
            What::Bpf(bpf) => bpf.act(&more, &mut self.bpf),
        })
    }
}
