//! The transport of liblxc's proxy protocol, which the key `lxc.seccomp.notify.proxy` switches on.
//!
//! The monitor of each container connects once and sends one packet per trapped call; it blocks
//! until the answer arrives. An answer has no number: one that came after the monitor's timeout of
//! 30 s would be taken for the answer to the next call. So a late answer must never be sent: the
//! connection is closed instead, and the monitor connects again.
//!
//! A packet stays in the socket, which the keeper holds too, until its answer was sent. A successor
//! finds it there with its descriptors, and in the journal how far its handling had come.
//! `lxc_packet.rs` has the layout. Start reading at [`Connection::serve`].

mod call;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ambit_keeper::client::KeeperClient;
use ambit_kernel::channel;
use ambit_sysinfo::{Charge, Limiter};
use libseccomp_sys::seccomp_notif;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, send};

use self::call::LxcCall;
use super::bucket;
use super::epoll::Next;
use super::journal::{Entry, Journal, LeftCall, Phase};
use super::listener::{self, response};
use super::lxc_packet::{self, LONGEST, Packet};
use super::lxc_users::{REST, UserConnections};
use super::pipeline::Pipeline;
use super::policies::{Container, Member, cgroup_of};
use super::policy::Policy;
use super::transport::{Received, Served};
use super::trapped::Trapped;
use crate::verdict::Verdict;
use ambit_keeper::socket::{Entrance, Peer, Users};

/// How long a connection is paused whose packet another thread is answering, in nanoseconds.
const BUSY: u64 = 5_000_000;

/// The name of the socket with the keeper.
const SOCKET: &str = "lxc";
/// The prefix of a connection's name with the keeper; its number follows.
pub(super) const CONNECTION: &str = "lxc-";

/// Returns the socket that monitors connect to.
pub(super) fn entrance(path: PathBuf) -> Entrance {
    Entrance::new(SOCKET, path, SocketType::SEQPACKET, Users::All)
}

/// The connection of one monitor.
#[derive(Debug)]
pub(super) struct Connection {
    fd: OwnedFd,
    /// Set while a thread handles the packet, which stays in the socket until it is answered.
    serving: AtomicBool,
    monitor: Arc<Monitor>,
}

/// The state of a monitor, shared by all descriptors of its connection.
#[derive(Debug)]
struct Monitor {
    /// The process id of the monitor in the daemon's pid namespace.
    pid: i32,
    /// The container of the last packet; a monitor has only one.
    member: Mutex<Option<Member>>,
    /// The call that a predecessor was handling.
    left: Mutex<Option<Box<(LeftCall, Entry)>>>,
    /// Set after `SYNC_WAKE_UP` was set on its listener.
    has_sync_wake_up: AtomicBool,
    /// Set for a monitor of a user other than root (`lxc_users.rs`).
    of_user: Option<Charge>,
    /// Limits log lines about the monitor.
    warnings: Limiter,
    link: KeeperClient,
    /// The number of the connection with the keeper.
    number: u64,
}

/// Returns a connection to the listener threads after another thread had it.
type GiveBack = Box<dyn FnOnce(Arc<Connection>) + Send>;

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `/proc/<tid>`, `/proc/<tid>/mem`, and since liblxc 4.0.5 the listener.
type Descriptors = [Option<OwnedFd>; 3];

impl Connection {
    /// Returns a connection that a monitor has just made. `None` if its user has too many.
    pub(super) fn accepted(
        peer: Peer,
        users: &UserConnections,
        link: KeeperClient,
    ) -> Option<Self> {
        let Peer { fd, pid, user } = peer;
        let of_user = if user == 0 { None } else { Some(users.admit(user)?) };
        let number = link.number();
        link.store(&format!("{CONNECTION}{number}"), &fd);
        Some(Self::new(fd, pid, of_user, number, link, Mutex::default()))
    }

    /// Returns a connection that a predecessor accepted.
    pub(super) fn take_over(
        fd: OwnedFd,
        number: u64,
        users: &UserConnections,
        link: KeeperClient,
        journal: &Arc<Journal>,
    ) -> Option<Self> {
        let peer = getsockopt(&fd, PeerCredentials).ok()?;
        let of_user = if peer.uid() == 0 { None } else { Some(users.admit(peer.uid())?) };
        let left = Mutex::new(journal.take_left(number).pop().map(Box::new));
        Some(Self::new(fd, peer.pid(), of_user, number, link, left))
    }

    fn new(
        fd: OwnedFd,
        pid: i32,
        of_user: Option<Charge>,
        number: u64,
        link: KeeperClient,
        left: Mutex<Option<Box<(LeftCall, Entry)>>>,
    ) -> Self {
        let (member, has_sync_wake_up) = (Mutex::default(), AtomicBool::new(false));
        let warnings = Limiter::default();
        let monitor =
            Monitor { pid, member, left, has_sync_wake_up, of_user, warnings, link, number };
        Self { fd, serving: AtomicBool::new(false), monitor: Arc::new(monitor) }
    }

    /// Returns the same connection by another descriptor, for a thread that answers later.
    fn duplicate(&self) -> std::io::Result<Self> {
        let (fd, monitor) = (self.fd.try_clone()?, Arc::clone(&self.monitor));
        Ok(Self { fd, serving: AtomicBool::new(false), monitor })
    }

    /// Makes the keeper close its duplicate too. Called when the connection has ended.
    pub(super) fn forget(&self) {
        let Monitor { link, number, .. } = &*self.monitor;
        link.remove(&format!("{CONNECTION}{number}"));
    }

    /// Returns the name of its container, from the monitor's cgroup `lxc.monitor.NAME`: the monitor
    /// sends nothing that names it before the first call, and later no more than the cookie.
    pub(super) fn container(&self) -> String {
        let group = cgroup_of(&format!("/proc/{}/cgroup", self.monitor.pid));
        let name = group.rsplit('/').next().and_then(|last| last.strip_prefix("lxc.monitor."));
        name.map_or_else(|| format!("monitor {} of liblxc", self.monitor.pid), str::to_owned)
    }

    /// Answers one packet. A call that may block is answered by another thread, which then calls
    /// `give_back` with the connection. Until then no listener thread watches the connection,
    /// because the packet keeps it readable.
    pub(super) fn serve(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        journal: &Arc<Journal>,
        threads: usize,
        give_back: GiveBack,
    ) -> Next {
        // This thread has replaced one that hangs in an answer, and sees the same packet.
        if self.serving.swap(true, Ordering::Acquire) {
            return Next::Pause(BUSY);
        }
        let next = self.serve_one(pipeline, journal, threads, give_back);
        self.serving.store(false, Ordering::Release);
        next
    }

    fn serve_one(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        journal: &Arc<Journal>,
        threads: usize,
        give_back: GiveBack,
    ) -> Next {
        if self.monitor.of_user.is_some() {
            return self.leave_to_kernel();
        }
        let received = Instant::now();
        let mut buffer = [0; LONGEST];
        let (length, descriptors) = match self.look(&mut buffer) {
            Ok(Some(packet)) => packet,
            Ok(None) | Err(Errno::CONNRESET) => return self.ended(),
            Err(Errno::AGAIN | Errno::INTR) => return Next::Watch,
            Err(errno) => {
                self.warn(&format_args!("recvmsg: {errno}"));
                return self.ended();
            }
        };
        let decoded = match (length, descriptors) {
            (Some(length), [Some(proc), Some(memory), listener]) => {
                let packet = lxc_packet::decode(&buffer[..length]);
                packet.map(|packet| (packet, proc, memory, listener))
            }
            (Some(_), _) => Err(lxc_packet::Error::Descriptors),
            (None, _) => Err(lxc_packet::Error::Length),
        };
        let (packet, proc, memory, listener) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                self.warn(&error);
                self.consume();
                // The monitor takes an empty packet as a refusal. Without an answer it would block.
                return if self.send(&[]) { Next::Watch } else { self.ended() };
            }
        };
        if let Some(listener) = &listener
            && !self.monitor.has_sync_wake_up.swap(true, Ordering::Relaxed)
        {
            listener::set_sync_wake_up(listener.as_fd());
        }
        let call = self.look_up(&packet, pipeline);
        let (entry, phase) = self.begin(&packet, &call.account.payer, journal);
        let now = bucket::now();
        let wait = call.account.spend(now, call.policy.settings().limit.calls);
        let (connection, id, packet) = (Arc::clone(self), packet.id, packet.fixed);
        let transport =
            LxcCall { connection, packet, id, proc, memory, listener, received, give_back };
        match (Received { transport, call, entry, phase }).serve(now, threads, pipeline) {
            Served::Here { delivered: true } => wait.map_or(Next::Watch, Next::Pause),
            Served::Here { delivered: false } => self.ended(),
            // The thread that answers has the connection now.
            Served::Elsewhere => Next::Drop,
        }
    }

    /// Leaves the call of a user's monitor to the kernel. Its descriptors are not received.
    fn leave_to_kernel(&self) -> Next {
        let mut buffer = [0; LONGEST];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let length = match rustix::net::recv(&self.fd, &mut buffer, flags) {
            Ok((0, _)) | Err(Errno::CONNRESET) => return self.ended(),
            Ok((length, _)) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Next::Watch,
            Err(_) => return self.ended(),
        };
        let sent = match lxc_packet::decode(&buffer[..length]) {
            Ok(packet) => {
                let answer = response(packet.id, &Verdict::Continue);
                self.send(&lxc_packet::reply(packet.fixed, &answer))
            }
            // The monitor takes an empty packet as a refusal.
            Err(_) => self.send(&[]),
        };
        self.consume();
        if sent { Next::Pause(REST) } else { self.ended() }
    }

    fn ended(&self) -> Next {
        self.forget();
        Next::Drop
    }

    /// Records a call in the journal, or takes over the entry that a predecessor has for it.
    fn begin(
        &self,
        packet: &Packet<'_>,
        payer: &Arc<ambit_sysinfo::Account>,
        journal: &Arc<Journal>,
    ) -> (Entry, Phase) {
        let left = self.monitor.left.lock().unwrap_or_else(PoisonError::into_inner).take();
        // An entry with another id belongs to a call that was answered.
        if let Some((left, entry)) =
            left.map(|left| *left).filter(|(left, _)| left.notification.id == packet.id)
        {
            return (entry, left.phase);
        }
        let entry = journal.new_entry(payer);
        let (id, pid, flags, data) = (packet.id, packet.tid, 0, packet.data);
        entry.record_call(self.monitor.number, seccomp_notif { id, pid, flags, data });
        (entry, Phase::Received)
    }

    /// Returns the call of a packet, with its container's policy.
    fn look_up(&self, packet: &Packet<'_>, pipeline: &Pipeline) -> Trapped {
        let mut member = self.monitor.member.lock().unwrap_or_else(PoisonError::into_inner);
        member.take_if(|member| member.container.cookie != packet.cookie());
        let member = member.get_or_insert_with(|| {
            let id = match packet.cookie() {
                // Containers that a drop-in equips have none, and each has an account of its own.
                "" => self.container(),
                cookie => cookie.to_owned(),
            };
            Member::configured(Container {
                id,
                cookie: packet.cookie().to_owned(),
                cgroup: cgroup_of(&format!("/proc/{}/cgroup", packet.init_pid)),
                ..Container::default()
            })
        });
        let account = Arc::clone(member.account(&pipeline.accounts));
        if account.announce() {
            let names = member.policy(&pipeline.policies).names().collect::<Vec<_>>().join(",");
            let (container, pid) = (&*member.container.id, packet.init_pid);
            tracing::info!(container, pid, names, "calls are answered");
        }
        // The thread id counts in the monitor's pid namespace. That is the daemon's namespace if
        // the monitor has the same id in both.
        let policy = if packet.monitor_pid == self.monitor.pid {
            member.policy(&pipeline.policies).clone()
        } else {
            let theirs = packet.monitor_pid;
            self.warn(&format_args!("it calls itself process {theirs}: not our namespace"));
            Policy::none()
        };
        Trapped::look_up(&pipeline.dispatch, packet.tid, packet.data, account, policy)
    }

    /// Peeks at the packet. Returns its length (`None` if it is too long or lost descriptors) and
    /// its descriptors. `None` if the monitor has closed the connection.
    fn look(&self, buffer: &mut [u8]) -> Result<Option<(Option<usize>, Descriptors)>, Errno> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let message = channel::receive(&self.fd, buffer, flags)?;
        if message.length == 0 {
            return Ok(None);
        }
        let mut descriptors = Descriptors::default();
        let is_whole =
            !(message.is_cut || message.has_lost_fds) && message.fds.len() <= descriptors.len();
        descriptors.iter_mut().zip(message.fds).for_each(|(slot, fd)| *slot = Some(fd));
        Ok(Some((is_whole.then_some(message.length), descriptors)))
    }

    /// Removes the packet from the socket, after it was answered.
    fn consume(&self) {
        let _ = rustix::net::recv(&self.fd, &mut [0; 1][..], RecvFlags::DONTWAIT);
    }

    /// False if the monitor has ended, or if its socket is full: then it does not wait for an
    /// answer.
    fn send(&self, packet: &[u8]) -> bool {
        send(&self.fd, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
    }

    fn warn(&self, what: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.monitor.warnings.allow() {
            tracing::warn!(monitor = self.monitor.pid, suppressed, "a request of liblxc: {what}");
        }
    }
}

#[cfg(test)]
mod tests;
