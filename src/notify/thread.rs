//! The listener threads: they take requests, have them decided and answer, all inline.
//!
//! A hand-over to another thread would cost more than the answer (17 against 8 us a round trip)
//! and defeat SYNC_WAKE_UP. So a handler that runs here must not block.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use libseccomp_sys::seccomp_notif;
use nix::errno::Errno;

use super::epoll::{Keep, Ready, Watch};
use super::handler::{Repeat, Verdict};
use super::journal::{Entry, Journal, Phase};
use super::listener::{Listener, response};
use super::lxc;
use super::pipeline::{Pipeline, Request};
use super::policies::Member;
use super::policy::Policy;
use super::{Adopted, Error};
use crate::notify::context::Pending;

/// What a listener thread watches.
#[derive(Debug)]
pub(super) enum Source {
    /// The listener of a container.
    Listener { listener: Arc<Listener>, member: Member },
    /// The socket that liblxc connects to.
    LxcSocket(lxc::Socket),
    /// The connection of one liblxc monitor.
    LxcConnection(lxc::Connection),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener { listener, .. } => listener.as_fd(),
            Self::LxcSocket(socket) => socket.as_fd(),
            Self::LxcConnection(connection) => connection.as_fd(),
        }
    }
}

/// All listener threads.
#[derive(Debug)]
pub(super) struct Threads {
    pipeline: Arc<Pipeline>,
    journal: Arc<Journal>,
    watches: Vec<Watch<Source>>,
    next: AtomicUsize,
}

impl Threads {
    /// One thread per four processors: a round trip is mostly two context switches, and the
    /// target sleeps meanwhile.
    pub(super) fn start(
        pipeline: Pipeline,
        journal: Arc<Journal>,
    ) -> Result<(Arc<Self>, Vec<Handle>), Error> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let count = (processors / 4).max(1);
        let watches = (0..count).map(|_| Watch::new()).collect::<Result<_, _>>()?;
        let threads = Arc::new(Self {
            pipeline: Arc::new(pipeline),
            journal,
            watches,
            next: AtomicUsize::new(0),
        });
        let mut handles = Vec::with_capacity(count);
        for index in 0..count {
            let own = Arc::clone(&threads);
            let spawned = std::thread::Builder::new()
                .name(format!("notify-{index}"))
                .spawn(move || own.serve(index));
            match spawned {
                Ok(handle) => handles.push(handle),
                Err(source) => {
                    threads.stop();
                    return Err(Error::System { what: "cannot start a listener thread", source });
                }
            }
        }
        Ok((threads, handles))
    }

    /// Gives a source to one of the threads.
    pub(super) fn add(&self, source: Source) -> Result<(), Error> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.watches.len();
        self.watches[index].add(source)
    }

    /// Goes on with the listener of a predecessor: finishes what that one had received, then watches
    /// it.
    pub(super) fn take_over(&self, listener: Listener, mut member: Member) -> Result<(), Error> {
        let listener = Arc::new(listener);
        let container = Arc::clone(&member.container);
        let policy = member.policy(self.pipeline.policies()).clone();
        for (left, entry) in self.journal.left(listener.number()) {
            let notification = left.notification;
            let repeat = match left.phase {
                Phase::Received => Repeat::Safe,
                Phase::Acting => self.pipeline.repeat(&notification.data),
                Phase::Done(answer) => {
                    // ENOENT: it was sent, or nobody waits any more.
                    let _ = listener.send(answer);
                    continue;
                }
            };
            if repeat == Repeat::Never {
                let _ = listener.answer(notification.id, &Verdict::Fail(Errno::EINTR));
            } else if self.pipeline.takes_long(&notification.data, &policy) {
                self.hand_over(&listener, &container.id, &policy, notification, (entry, repeat));
            } else {
                let id = &container.id;
                let repeat = Repeat::Safe;
                decide(&self.pipeline, &listener, id, &policy, &notification, &entry, repeat);
            }
        }
        self.add(Source::Listener { listener, member })
    }

    pub(super) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    pub(super) fn pipeline(&self) -> &Arc<Pipeline> {
        &self.pipeline
    }

    /// Makes the threads end; each finishes what it is at.
    pub(super) fn stop(&self) {
        self.watches.iter().for_each(Watch::stop);
    }

    fn serve(self: &Arc<Self>, index: usize) -> Vec<Adopted> {
        let left = self.watches[index].run(|source, ready| self.ready(source, ready));
        let adopted = left.into_iter().filter_map(|source| match source {
            Source::Listener { listener, member } => {
                let listener = match Arc::try_unwrap(listener) {
                    Ok(listener) => listener.into_fd(),
                    // An act is under way.
                    Err(shared) => shared.duplicate().ok()?.into_fd(),
                };
                let container = member.container.id.clone();
                Some(Adopted { listener, container, policy: member.last_policy().clone() })
            }
            Source::LxcSocket(_) | Source::LxcConnection(_) => None,
        });
        adopted.collect()
    }

    fn ready(self: &Arc<Self>, source: &mut Source, ready: Ready) -> Keep {
        match source {
            // All tasks under the filter are gone: nobody will ever call again.
            Source::Listener { listener, .. } if ready.hung_up => {
                listener.forget();
                Keep::No
            }
            Source::Listener { listener, member } => {
                let container = Arc::clone(&member.container);
                self.answer(listener, &container.id, member.policy(self.pipeline.policies()))
            }
            Source::LxcSocket(socket) => {
                if let Some(connection) = socket.accept() {
                    self.watch(connection);
                }
                Keep::Yes
            }
            Source::LxcConnection(connection) if ready.readable => {
                let threads = Arc::clone(self);
                let back = move |connection| threads.watch(connection);
                connection.serve(&self.pipeline, &self.journal, back)
            }
            Source::LxcConnection(connection) => {
                connection.forget();
                Keep::No
            }
        }
    }

    fn watch(&self, connection: lxc::Connection) {
        if let Err(error) = self.add(Source::LxcConnection(connection)) {
            tracing::error!("a connection of liblxc is lost: {error}");
        }
    }

    /// Takes exactly one request and answers it. One, because a second RECV would sleep if there
    /// is none, and a readiness promises only one.
    fn answer(&self, listener: &Arc<Listener>, container: &str, policy: &Policy) -> Keep {
        let mut entry = self.journal.entry();
        let notification = match entry.receive(listener) {
            Ok(notification) => notification,
            // The target died or got a signal between readiness and RECV; we got a signal.
            Err(Errno::ENOENT | Errno::EINTR) => return Keep::Yes,
            Err(errno) => {
                tracing::error!(container, "SECCOMP_IOCTL_NOTIF_RECV: {errno}; listener dropped");
                listener.forget();
                return Keep::No;
            }
        };
        if self.pipeline.takes_long(&notification.data, policy) {
            self.hand_over(listener, container, policy, notification, (entry, Repeat::Safe));
        } else {
            let repeat = Repeat::Safe;
            decide(&self.pipeline, listener, container, policy, &notification, &entry, repeat);
        }
        Keep::Yes
    }

    /// Has a request decided and answered by a thread of its own. If there is none, the kernel
    /// answers.
    fn hand_over(
        &self,
        listener: &Arc<Listener>,
        container: &str,
        policy: &Policy,
        notification: seccomp_notif,
        (entry, repeat): (Entry, Repeat),
    ) {
        let (pipeline, own) = (Arc::clone(&self.pipeline), Arc::clone(listener));
        let (id, policy, limit) = (container.to_owned(), policy.clone(), policy.settings().acts);
        let handed = self.pipeline.acting().hand_over(container, limit, move || {
            entry.acting();
            decide(&pipeline, &own, &id, &policy, &notification, &entry, repeat);
        });
        if !handed {
            tracing::warn!(container, "too many calls are acted on: the kernel answers one");
            let _ = listener.answer(notification.id, &Verdict::Continue);
        }
    }
}

/// Has a call decided and answers it; a predecessor may have been at it.
fn decide(
    pipeline: &Pipeline,
    listener: &Listener,
    container: &str,
    policy: &Policy,
    notification: &seccomp_notif,
    entry: &Entry,
    repeat: Repeat,
) {
    let verdict = pipeline.decide(&Request {
        container,
        policy,
        tid: notification.pid,
        data: notification.data,
        pending: Pending::Listener(listener.as_fd(), notification.id),
    });
    let verdict = repeated(verdict, repeat);
    if !matches!(verdict, Verdict::Install(_)) {
        entry.done(&response(notification.id, &verdict));
    }
    let answered = listener.answer(notification.id, &verdict);
    pipeline.settled(&notification.data, (container, notification.pid), answered.is_ok());
    match answered {
        // ENOENT: a signal ended the call, or the target died. It asks again or never.
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => pipeline.refused(container, notification.id, listener, errno),
    }
}

/// The verdict on a call that a predecessor may have been at.
pub(super) fn repeated(verdict: Verdict, repeat: Repeat) -> Verdict {
    match (verdict, repeat) {
        // The predecessor did it and could not tell any more.
        (Verdict::Fail(Errno::EEXIST), Repeat::Exists) => Verdict::Return(0),
        (verdict, _) => verdict,
    }
}

/// A running thread; it returns the listeners it still had.
pub(super) type Handle = JoinHandle<Vec<Adopted>>;
