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

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ambit_keeper::client::KeeperClient;
use ambit_kernel::channel;
use ambit_sysinfo::{Charge, Limiter};
use libseccomp_sys::{seccomp_notif, seccomp_notif_resp};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, send};

use super::bucket;
use super::epoll::Next;
use super::journal::{Entry, Journal, LeftCall, Phase};
use super::listener::{self, response};
use super::lxc_packet::{self, FIXED, LONGEST, Packet};
use super::lxc_users::{REST, UserConnections};
use super::pipeline::Pipeline;
use super::policies::{Container, Member, cgroup_of};
use super::policy::Policy;
use super::transport::{Received, Served, Transport};
use super::trapped::Trapped;
use crate::pending::Pending;
use crate::verdict::Verdict;
use ambit_keeper::socket::{Entrance, Peer, Users};

/// An answer that takes longer is not sent. Well below the 30 s after which liblxc stops waiting.
const DEADLINE: Duration = Duration::from_secs(25);

/// How long a connection is paused whose packet another thread is answering, in nanoseconds.
const BUSY: u64 = 5_000_000;

/// How long a monitor may take to pass an answer to the kernel.
const PASSING_ON: Duration = Duration::from_secs(2);

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

/// A call that arrived in a packet.
struct LxcCall {
    connection: Arc<Connection>,
    /// The packet without its cookie.
    packet: [u8; FIXED],
    id: u64,
    proc: OwnedFd,
    memory: OwnedFd,
    listener: Option<OwnedFd>,
    received: Instant,
    give_back: GiveBack,
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
            Monitor { pid, of_user, member, left, has_sync_wake_up, warnings, link, number };
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
        let account = Arc::clone(member.account(pipeline.accounts()));
        if account.announce() {
            let names = member.policy(pipeline.policies()).names().collect::<Vec<_>>().join(",");
            let (container, pid) = (&*member.container.id, packet.init_pid);
            tracing::info!(container, pid, names, "calls are answered");
        }
        // The thread id counts in the monitor's pid namespace. That is the daemon's namespace if
        // the monitor has the same id in both.
        let policy = if packet.monitor_pid == self.monitor.pid {
            member.policy(pipeline.policies()).clone()
        } else {
            let theirs = packet.monitor_pid;
            self.warn(&format_args!("it calls itself process {theirs}: not our namespace"));
            Policy::none()
        };
        pipeline.look_up(packet.tid, packet.data, account, policy)
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
        if let Some(suppressed) = self.monitor.warnings.pass() {
            tracing::warn!(monitor = self.monitor.pid, suppressed, "a request of liblxc: {what}");
        }
    }
}

impl LxcCall {
    fn reply(&self, answer: &seccomp_notif_resp) -> bool {
        let sent = self.connection.send(&lxc_packet::reply(self.packet, answer));
        self.connection.consume();
        sent
    }
}

impl Transport for LxcCall {
    fn pending(&self) -> Pending<'_> {
        match &self.listener {
            Some(listener) => Pending::Listener(listener.as_fd(), self.id),
            None => Pending::Directory(self.proc.as_fd()),
        }
    }

    fn memory(&self) -> Option<BorrowedFd<'_>> {
        Some(self.memory.as_fd())
    }

    fn answer(&self, verdict: &Verdict, entry: &Entry) -> Result<(), nix::errno::Errno> {
        let gone = Err(nix::errno::Errno::ENOENT);
        if self.received.elapsed() >= DEADLINE || self.pending().check().is_err() {
            return gone;
        }
        if let (Verdict::Install(fd), Some(listener)) = (verdict, &self.listener)
            && let Err(errno) = listener::install(listener.as_fd(), self.id, fd.as_fd())
        {
            self.connection.warn(&format_args!("SECCOMP_IOCTL_NOTIF_ADDFD: {errno}"));
        }
        // Installing a descriptor has answered the call. The answer that the monitor passes on
        // after that has no effect.
        let answer = response(self.id, verdict);
        entry.record_answer(&answer);
        if self.reply(&answer) { Ok(()) } else { gone }
    }

    /// Sends the answer unless the predecessor has sent it. If it has, the monitor passes it on
    /// within a moment, and the call is not pending any more. A second answer would be taken for
    /// the answer to the next call.
    fn answer_again(&self, answer: &seccomp_notif_resp) -> bool {
        // Without the listener this cannot be found out.
        let Some(listener) = &self.listener else { return false };
        let until = Instant::now() + PASSING_ON;
        while listener::id_valid(listener.as_fd(), self.id).is_ok() {
            if Instant::now() >= until {
                return self.reply(answer);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.connection.consume();
        true
    }

    /// Closes the connection. The monitor then leaves the call to the kernel, and connects again.
    fn refuse(&self) -> Result<(), nix::errno::Errno> {
        self.connection.ended();
        Ok(())
    }

    fn leave_thread(&mut self) -> bool {
        let duplicate = self.connection.duplicate();
        duplicate.map(|connection| self.connection = Arc::new(connection)).is_ok()
    }

    fn release(self, delivered: bool) {
        if delivered {
            return (self.give_back)(self.connection);
        }
        // The monitor connects again.
        self.connection.ended();
        let _ = rustix::net::shutdown(&self.connection.fd, rustix::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::tests::Fixed;
    use super::*;
    use ambit_keeper::client::Inherited;

    struct Peer {
        fd: OwnedFd,
        connection: Arc<Connection>,
        pipeline: Arc<Pipeline>,
        journal: Arc<Journal>,
    }

    impl Peer {
        fn new() -> Self {
            let (fd, server) = channel::pair().unwrap();
            let pid = i32::try_from(std::process::id()).unwrap();
            let connection = Arc::new(Connection::new(
                server,
                pid,
                None,
                0,
                KeeperClient::default(),
                Mutex::default(),
            ));
            let journal =
                Journal::open(&KeeperClient::default(), &mut Inherited::default()).unwrap();
            let pipeline = Arc::new(Pipeline::new(Arc::new(Fixed::new())));
            Self { fd, connection, pipeline, journal }
        }

        fn ask(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> (Next, Option<Vec<u8>>) {
            channel::send(&self.fd, packet, fds, SendFlags::empty()).unwrap();
            let next = self.connection.serve(&self.pipeline, &self.journal, 1, Box::new(drop));
            let mut answer = vec![0; 4096];
            let read = rustix::net::recv(&self.fd, &mut *answer, RecvFlags::DONTWAIT);
            (next, read.ok().map(|(read, _)| answer[..read].to_vec()))
        }
    }

    /// Opens the memory of this process.
    fn memory() -> File {
        File::options().read(true).write(true).open("/proc/self/mem").unwrap()
    }

    /// Returns a packet for sysinfo(2) of this process, with a buffer at this address.
    fn packet(cookie: &str, address: u64) -> Vec<u8> {
        let me = i32::try_from(std::process::id()).unwrap();
        lxc_packet::tests::sysinfo(me, me.unsigned_abs(), address, cookie)
    }

    #[test]
    fn a_monitor_that_sends_no_listener_gets_an_answer_of_136_bytes() {
        let monitor = Peer::new();
        let proc = File::open("/proc/self").unwrap();
        let buffer = [0u8; 112];
        let packet = packet("101", buffer.as_ptr() as u64);
        let (next, answer) = monitor.ask(&packet, &[proc.as_fd(), memory().as_fd()]);
        assert_eq!(next, Next::Watch);
        let answer = answer.unwrap();
        assert_eq!(answer.len(), 136, "without the cookie");
        assert_eq!(answer[..120], packet[..120], "all but the response is repeated");
        assert_eq!(answer[120..136], [0; 16], "success");
        let total = u64::from_ne_bytes(buffer[32..40].try_into().unwrap());
        assert_eq!(total, Fixed::TOTAL);
    }

    #[test]
    fn a_packet_stays_until_it_is_answered() {
        let monitor = Peer::new();
        let proc = File::open("/proc/self").unwrap();
        let buffer = [0u8; 112];
        let packet = packet("101", buffer.as_ptr() as u64);
        let memory = memory();
        let fds = [proc.as_fd(), memory.as_fd()];
        channel::send(&monitor.fd, &packet, &fds, SendFlags::empty()).unwrap();
        let mut seen = [0; LONGEST];
        for _ in 0..2 {
            let (length, descriptors) = monitor.connection.look(&mut seen).unwrap().unwrap();
            assert_eq!(&seen[..length.unwrap()], packet);
            assert!(descriptors[0].is_some(), "each peek has the descriptors");
        }
        let next = monitor.connection.serve(&monitor.pipeline, &monitor.journal, 1, Box::new(drop));
        assert_eq!(next, Next::Watch);
        assert_eq!(monitor.connection.look(&mut seen).unwrap_err(), Errno::AGAIN);
    }

    #[test]
    fn a_packet_that_another_thread_handles_stays_in_the_socket() {
        let monitor = Peer::new();
        monitor.connection.serving.store(true, Ordering::Relaxed);
        let (next, answer) = monitor.ask(b"whatever", &[]);
        assert_eq!((next, answer), (Next::Pause(BUSY), None));
        assert!(monitor.connection.look(&mut [0; LONGEST]).unwrap().is_some(), "it is there");
    }

    #[test]
    fn a_container_without_a_cookie_has_an_account_of_its_own() {
        let monitor = Peer::new();
        let name = |cookie| {
            let packet = packet(cookie, 0);
            let packet = lxc_packet::decode(&packet).unwrap();
            monitor.connection.look_up(&packet, &monitor.pipeline).account.id.clone()
        };
        assert_eq!(name("101"), "101");
        assert!(!name("").is_empty());
        assert_eq!(name(""), monitor.connection.container());
    }

    #[test]
    fn a_malformed_request_is_refused_at_once() {
        let monitor = Peer::new();
        let proc = File::open("/proc/self").unwrap();
        let good = packet("x", 0);
        for bad in [&good[..136], &good[..40], &[0; LONGEST + 1][..]] {
            let (next, answer) = monitor.ask(bad, &[proc.as_fd(), proc.as_fd()]);
            assert_eq!((next, answer), (Next::Watch, Some(Vec::new())), "{} bytes", bad.len());
        }
        for few in [&[][..], &[proc.as_fd()]] {
            let (next, answer) = monitor.ask(&good, few);
            assert_eq!(
                (next, answer),
                (Next::Watch, Some(Vec::new())),
                "{} descriptors",
                few.len()
            );
        }
        let (next, answer) = monitor.ask(&good, &[proc.as_fd(); 9]);
        assert_eq!((next, answer), (Next::Watch, Some(Vec::new())), "too many descriptors");
    }

    #[test]
    fn a_call_of_a_thread_that_has_ended_closes_the_connection() {
        let monitor = Peer::new();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let proc = File::open(format!("/proc/{}", child.id())).unwrap();
        child.wait().unwrap();
        let (next, answer) = monitor.ask(&packet("x", 0), &[proc.as_fd(), memory().as_fd()]);
        assert_eq!((next, answer), (Next::Drop, None));
    }

    #[test]
    fn a_late_answer_is_not_sent() {
        let monitor = Peer::new();
        let proc = OwnedFd::from(File::open("/proc/self").unwrap());
        let memory = OwnedFd::from(memory());
        let buffer = [0u8; 112];
        let bytes = packet("101", buffer.as_ptr() as u64);
        let packet = lxc_packet::decode(&bytes).unwrap();
        for (age, in_time) in [(DEADLINE, false), (DEADLINE - DEADLINE / 2, true)] {
            let Some(received) = Instant::now().checked_sub(age) else {
                panic!("this machine was booted less than {age:?} ago")
            };
            let Peer { connection, pipeline, journal, .. } = &monitor;
            let call = connection.look_up(&packet, pipeline);
            let (entry, _) = connection.begin(&packet, &call.account.payer, journal);
            let asked = LxcCall {
                connection: Arc::clone(connection),
                packet: packet.fixed,
                id: packet.id,
                proc: proc.try_clone().unwrap(),
                memory: memory.try_clone().unwrap(),
                listener: None,
                received,
                give_back: Box::new(drop),
            };
            assert_eq!(asked.answer(&Verdict::Return(0), &entry).is_ok(), in_time, "{age:?}");
            let mut answer = [0; 256];
            let read = rustix::net::recv(&monitor.fd, &mut answer, RecvFlags::DONTWAIT);
            assert_eq!(read.is_ok(), in_time, "{age:?}: {read:?}");
        }
    }

    #[test]
    fn a_call_that_its_listener_does_not_know_is_not_answered() {
        let monitor = Peer::new();
        let proc = File::open("/proc/self").unwrap();
        let buffer = [0u8; 112];
        // The third descriptor is not a listener, so the call is not pending.
        let memory = memory();
        let fds = [proc.as_fd(), memory.as_fd(), proc.as_fd()];
        let (next, answer) = monitor.ask(&packet("101", buffer.as_ptr() as u64), &fds);
        assert_eq!((next, answer, buffer), (Next::Drop, None, [0; 112]), "nothing was written");
    }

    #[test]
    fn a_call_of_another_pid_namespace_is_left_to_the_kernel() {
        let mut monitor = Peer::new();
        let fd = monitor.connection.fd.try_clone().unwrap();
        let foreign = Connection::new(fd, 1, None, 0, KeeperClient::default(), Mutex::default());
        monitor.connection = Arc::new(foreign);
        let proc = File::open("/proc/self").unwrap();
        let (_, answer) = monitor.ask(&packet("x", 0), &[proc.as_fd(), memory().as_fd()]);
        assert_eq!(answer.unwrap()[132..136], 1u32.to_ne_bytes(), "CONTINUE");
    }

    #[test]
    fn a_call_of_a_users_monitor_is_left_to_the_kernel_and_its_descriptors_are_not_taken() {
        let mut monitor = Peer::new();
        let fd = monitor.connection.fd.try_clone().unwrap();
        let users = UserConnections::new();
        let peer =
            ambit_keeper::socket::Peer { fd, pid: monitor.connection.monitor.pid, user: 1000 };
        let connection = Connection::accepted(peer, &users, KeeperClient::default()).unwrap();
        monitor.connection = Arc::new(connection);
        let (near, far) = std::io::pipe().unwrap();
        let buffer = [0u8; 112];
        let packet = packet("101", buffer.as_ptr() as u64);
        let (next, answer) = monitor.ask(&packet, &[memory().as_fd(), far.as_fd()]);
        assert_eq!(next, Next::Pause(REST));
        assert_eq!(answer.unwrap()[132..136], 1u32.to_ne_bytes(), "CONTINUE");
        assert_eq!(buffer, [0; 112]);
        // The end of the file shows that no other descriptor is open.
        drop(far);
        assert_eq!(std::io::Read::read(&mut &near, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_end_of_the_monitor_ends_the_connection() {
        let monitor = Peer::new();
        drop(monitor.fd);
        let next = monitor.connection.serve(&monitor.pipeline, &monitor.journal, 1, Box::new(drop));
        assert_eq!(next, Next::Drop);
    }
}
