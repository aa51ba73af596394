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
use super::identity::drop_capabilities;
use super::mknod::Opens;
use super::reply::{Answer, Reply};
use super::task::{Operation, Task};
use crate::child::die_with_parent;
use crate::error::{Context, Error};
use crate::report_channel::ReportChannel;

/// The longest task, in bytes: a path of a page, and as many groups as there can be (65,536).
pub(super) const LONGEST: usize = 1 << 20;
/// How long a worker waits for the next task.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

struct Worker {
    socket: OwnedFd,
    /// `/proc/self/fd`, opened before the root is changed.
    fds: OwnedFd,
    opens: Opens,
    bpf: bpf::HostControlGroups,
    /// The pidfd of the process that called last.
    caller: Option<OwnedFd>,
}

/// Serves one set of control groups until the worker ends.
pub(crate) fn serve(socket: ReportChannel, groups: Vec<OwnedFd>) {
    match prepare(groups) {
        Err(error) => socket.report(Err(error)),
        Ok(Prepared { this, fds, bpf }) => {
            if socket.done(&[this.as_fd()]).is_ok() {
                let (socket, opens, caller) = (socket.into_fd(), Vec::new(), None);
                Worker { socket, fds, opens, bpf, caller }.work();
            }
        }
    }
}

struct Prepared {
    /// The pidfd of this process.
    this: OwnedFd,
    fds: OwnedFd,
    bpf: bpf::HostControlGroups,
}

/// Enters the control groups, opens what needs the host's root, and drops capabilities.
fn prepare(groups: Vec<OwnedFd>) -> Result<Prepared, Error> {
    let _ = rustix::thread::set_name(c"ambit-act");
    // A new session has no controlling terminal, so it gets no signals from one.
    rustix::process::setsid().context("setsid")?;
    for group in groups {
        rustix::io::write(group, b"0").context("write to the caller's cgroup.procs")?;
    }
    let this = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .context("pidfd_open")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fds = rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty())
        .context("open of /proc/self/fd")?;
    let bpf = bpf::HostControlGroups::open();
    drop_capabilities().context("capset")?;
    die_with_parent();
    Ok(Prepared { this, fds, bpf })
}

impl Worker {
    fn work(&mut self) {
        let mut bytes = vec![0; LONGEST];
        loop {
            self.wait();
            let received = channel::receive(&self.socket, &mut bytes, RecvFlags::empty());
            let Ok(Received { length: length @ 1.., fds, .. }) = received else { return };
            let answer = self.perform(postcard::from_bytes(&bytes[..length]), fds);
            let goes_on = answer.is_some();
            if !goes_on {
                // From here on send(2) of the daemon fails with EPIPE, and it starts another
                // worker.
                let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
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
        let mut watched = vec![PollFd::new(&self.socket, PollFlags::IN)];
        watched.extend(self.caller.as_ref().map(|caller| PollFd::new(caller, PollFlags::IN)));
        while poll(&mut watched, Some(&PATIENCE)) == Err(rustix::io::Errno::INTR) {}
        if watched[0].revents().is_empty() {
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
        }
    }

    fn send(&self, answer: &Answer) -> Result<(), rustix::io::Errno> {
        let bytes = postcard::to_allocvec(answer).unwrap_or_default();
        let fd: Vec<_> = answer.fd.as_ref().map(AsFd::as_fd).into_iter().collect();
        channel::send(&self.socket, &bytes, &fd, SendFlags::empty())
    }

    /// True if the daemon has ended. Its last task is still in the socket, but its successor sends
    /// the same task to another worker. If this worker carried it out too, it could do so after the
    /// caller has continued.
    fn is_abandoned(&self) -> bool {
        let mut socket = [PollFd::new(&self.socket, PollFlags::empty())];
        let _ = poll(&mut socket, Some(&Timespec::default()));
        socket[0].revents().contains(PollFlags::HUP)
    }

    /// Carries out a task. `None` if the change of identity failed, so that the ids are unknown.
    fn perform(&mut self, task: postcard::Result<Task<'_>>, fds: Vec<OwnedFd>) -> Option<Answer> {
        let mut fds = fds.into_iter();
        let (Ok(Task { identity, operation }), Some(process), Some(root), Some(base)) =
            (task, fds.next(), fds.next(), fds.next())
        else {
            return Some(Reply::Kernel.into());
        };
        self.caller = Some(process);
        identity.assume(root.as_fd(), operation.rights()).ok()?;
        if self.is_abandoned() {
            return Some(Reply::Kernel.into());
        }
        let base = base.as_fd();
        let more: Vec<_> = fds.collect();
        let found = more.first().map(AsFd::as_fd);
        Some(match &*operation {
            Operation::Mknod(mknod) => mknod.perform(base, found, &mut self.opens).into(),
            Operation::SetOpaque(set) => set.perform(base, found, self.fds.as_fd()).into(),
            Operation::IsRoots(is_roots) => is_roots.perform(base).into(),
            Operation::Bpf(bpf) => bpf.perform(&more, &mut self.bpf),
        })
    }
}
