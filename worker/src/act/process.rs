//! The process of a worker: it carries out one task at a time and waits for the next.
//!
//! After a failed change of identity the worker must never take another task, because its ids are
//! then unknown. It executes nothing and forks nothing. Start reading at [`serve`].

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

/// The longest task, in bytes: a path of a page, and as many groups as there can be (65,536).
pub(super) const LONGEST: usize = 1 << 20;
/// How long a worker waits for the next task.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

struct Worker {
    line: OwnedFd,
    /// `/proc/self/fd`, opened before the root is changed.
    fds: OwnedFd,
    opens: Opens,
    bpf: bpf::Surroundings,
    /// The pidfd of the process that called last.
    caller: Option<OwnedFd>,
}

/// Serves one set of control groups until the worker ends.
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
    /// The pidfd of this process.
    this: OwnedFd,
    fds: OwnedFd,
    bpf: bpf::Surroundings,
}

/// Enters the control groups, opens what needs the host's root, and drops capabilities.
fn prepare(groups: Vec<OwnedFd>) -> Result<Prepared, Failure> {
    let _ = rustix::thread::set_name(c"ambit-act");
    // A new session has no controlling terminal, so it gets no signals from one.
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
                // From here on send(2) of the daemon fails with EPIPE, and it starts another
                // worker.
                let _ = rustix::net::shutdown(&self.line, Shutdown::Read);
            }
            // The operation was not tried, so the call is left to the kernel.
            let answer = answer.unwrap_or_else(|| Reply::Kernel.into());
            if self.send(&answer).is_err() || !goes_on {
                return;
            }
        }
    }

    /// Waits for a task, the end of the daemon, the end of the caller's process, or the timeout. In
    /// the last two cases the socket is shut down, so no further task can be sent. A task that was
    /// sent before is still carried out.
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

    /// True if the daemon has ended. Its last task is still in the socket, but its successor sends
    /// the same task to another worker. If this worker carried it out too, it could do so after the
    /// caller has continued.
    fn is_abandoned(&self) -> bool {
        let mut line = [PollFd::new(&self.line, PollFlags::empty())];
        let _ = poll(&mut line, Some(&Timespec::default()));
        line[0].revents().contains(PollFlags::HUP)
    }

    /// Carries out a task. `None` if the change of identity failed, so that the ids are unknown.
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
