//! The proxy protocol of liblxc (`lxc.seccomp.notify.proxy = unix:/run/ambit/lxc.sock`).
//!
//! The monitor of every container connects once and sends one packet per trapped call; it does
//! nothing else until the answer is there. An answer has no number: one that comes after the
//! monitor's timeout of 30 s would be taken for the answer to the next call. So whatever is
//! late or has become void closes the connection, and the monitor connects again.
//!
//! A packet stays in the socket, which the keeper holds too, until its answer was sent: a successor
//! finds it there, with its descriptors, and in the journal how far it had come.
//!
//! `lxc_packet.rs` has the layout.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ambit_keeper::link::Link;
use ambit_sysinfo::Limiter;
use libseccomp_sys::{seccomp_notif, seccomp_notif_resp};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketType,
    recvmsg, send,
};

use super::account::Account;
use super::bucket;
use super::context::Pending;
use super::epoll::Keep;
use super::handler::{Cost, Repeat, Verdict};
use super::journal::{Entry, Journal, Left, Phase};
use super::listener::{self, response};
use super::lxc_packet::{self, LONGEST, Malformed, Packet};
use super::pipeline::Pipeline;
use super::policies::{Container, Member, cgroup_of};
use super::policy::Policy;
use super::socket::{Entrance, Peer};
use super::trapped::Trapped;

/// Well below the 30 s after which liblxc stops waiting.
const DEADLINE: Duration = Duration::from_secs(25);

/// How long a packet is not looked at that another thread is answering, in nanoseconds.
const BUSY: u64 = 5_000_000;

/// How long a monitor may take to pass an answer on.
const PASSING_ON: Duration = Duration::from_secs(2);

/// The name of the socket with the keeper.
const SOCKET: &str = "lxc";
/// The name of a connection with the keeper, before its number.
pub(super) const CONNECTION: &str = "lxc-";

/// The socket that monitors connect to.
pub(super) fn entrance(path: PathBuf) -> Entrance {
    Entrance::new(SOCKET, path, SocketType::SEQPACKET)
}

/// The connection of one monitor.
#[derive(Debug)]
pub(super) struct Connection {
    fd: OwnedFd,
    /// The process that connected, in our pid namespace.
    monitor: i32,
    /// The container of the last packet; a monitor has only one.
    member: Mutex<Option<Member>>,
    /// What a predecessor was at.
    left: Mutex<Option<Box<(Left, Entry)>>>,
    /// Its packet, which stays until it is answered, is being looked at.
    serving: AtomicBool,
    /// Its listener has been told how to wake.
    takes_turns: AtomicBool,
    trouble: Limiter,
    link: Link,
    /// Its number with the keeper.
    number: u64,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A call that is being answered.
#[derive(Debug)]
struct Begun {
    trapped: Trapped,
    entry: Entry,
    /// What a predecessor's act means for it.
    repeat: Repeat,
    /// What a predecessor has decided.
    answer: Option<seccomp_notif_resp>,
}

/// What a packet tells of the thread that waits.
#[derive(Debug, Clone, Copy)]
struct Target<'a> {
    proc: &'a OwnedFd,
    memory: &'a OwnedFd,
    listener: Option<&'a OwnedFd>,
}

/// `/proc/<tid>`, `/proc/<tid>/mem`, and since liblxc 4.0.5 the listener.
type Descriptors = [Option<OwnedFd>; 3];

impl Connection {
    /// A connection that a monitor has just made.
    pub(super) fn accepted(peer: Peer, link: Link) -> Self {
        let Peer { fd, pid } = peer;
        let number = link.number();
        link.store(&format!("{CONNECTION}{number}"), &fd);
        Self::new(fd, pid, number, link)
    }

    /// A connection that a predecessor accepted.
    pub(super) fn take_over(
        fd: OwnedFd,
        number: u64,
        link: Link,
        journal: &Arc<Journal>,
    ) -> Option<Self> {
        let monitor = getsockopt(&fd, PeerCredentials).ok()?.pid();
        let left = Mutex::new(journal.left(number).pop().map(Box::new));
        Some(Self { left, ..Self::new(fd, monitor, number, link) })
    }

    fn new(fd: OwnedFd, monitor: i32, number: u64, link: Link) -> Self {
        let (member, left, trouble) = (Mutex::default(), Mutex::default(), Limiter::new());
        let (serving, takes_turns) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { fd, monitor, member, left, serving, takes_turns, trouble, link, number }
    }

    /// It has ended: the keeper lets go of it too.
    pub(super) fn forget(&self) {
        self.link.remove(&format!("{CONNECTION}{}", self.number));
    }

    /// The name of its container: that of the monitor's cgroup, `lxc.monitor.NAME`, because the
    /// monitor says nothing before the first call.
    pub(super) fn container(&self) -> String {
        let group = cgroup_of(&format!("/proc/{}/cgroup", self.monitor));
        let name = group.rsplit('/').next().and_then(|last| last.strip_prefix("lxc.monitor."));
        name.map_or_else(|| format!("monitor {} of liblxc", self.monitor), str::to_owned)
    }

    /// Answers one packet. One that takes long is answered by another thread, which gives the
    /// connection `back`: until then the packet makes it readable.
    pub(super) fn serve(
        &self,
        pipeline: &Arc<Pipeline>,
        journal: &Arc<Journal>,
        threads: usize,
        back: impl FnOnce(Self) + Send + 'static,
    ) -> Keep {
        // A thread that hangs in an answer was replaced by this one, which sees the same packet.
        if self.serving.swap(true, Ordering::Acquire) {
            return Keep::After(BUSY);
        }
        let keep = self.serve_one(pipeline, journal, threads, back);
        self.serving.store(false, Ordering::Release);
        keep
    }

    fn serve_one(
        &self,
        pipeline: &Arc<Pipeline>,
        journal: &Arc<Journal>,
        threads: usize,
        back: impl FnOnce(Self) + Send + 'static,
    ) -> Keep {
        let received = Instant::now();
        let mut buffer = [0; LONGEST];
        let (length, descriptors) = match self.look(&mut buffer) {
            Ok(Some(packet)) => packet,
            Ok(None) | Err(Errno::CONNRESET) => return self.ended(),
            Err(Errno::AGAIN | Errno::INTR) => return Keep::Yes,
            Err(errno) => {
                self.complain(&format_args!("recvmsg: {errno}"));
                return self.ended();
            }
        };
        let decoded = match (length, &descriptors) {
            (Some(length), [Some(proc), Some(memory), listener]) => {
                let target = Target { proc, memory, listener: listener.as_ref() };
                lxc_packet::decode(&buffer[..length]).map(|packet| (packet, target))
            }
            (Some(_), _) => Err(Malformed::Descriptors),
            (None, _) => Err(Malformed::Length),
        };
        let (account, limit, call) = match decoded {
            Ok((packet, target)) => {
                let (account, policy) = self.account(&packet, pipeline);
                let settings = policy.settings();
                let (calls, acts) = (settings.calls, settings.acts);
                let call = self.begin(&packet, Arc::clone(&account), policy, journal, pipeline);
                let now = bucket::now();
                let wait = account.spend(now, calls);
                if call.answer.is_none()
                    && call.trapped.cost() == Cost::Inline
                    && let Some(_under_way) = account.inline(now, threads)
                {
                    return match self.answer(&packet, target, received, pipeline, &call) {
                        Keep::No => self.ended(),
                        _ => wait.map_or(Keep::Yes, Keep::After),
                    };
                }
                (account, acts, call)
            }
            Err(error) => {
                self.complain(&error);
                self.consume();
                // The monitor takes an empty packet for a refusal; silence would stall it.
                return if self.send(&[]) == Keep::Yes { Keep::Yes } else { self.ended() };
            }
        };
        let Ok(fd) = self.fd.try_clone() else { return self.ended() };
        let member = self.member.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let takes_turns = AtomicBool::new(self.takes_turns.load(Ordering::Relaxed));
        let (member, link) = (Mutex::new(member), self.link.clone());
        let own = Self { member, takes_turns, ..Self::new(fd, self.monitor, self.number, link) };
        let (pipeline, acting) = (Arc::clone(pipeline), pipeline.acting().clone());
        let handed = acting.hand_over(&account.id, limit, move || {
            let [Some(proc), Some(memory), listener] = &descriptors else { return };
            let Ok(packet) = lxc_packet::decode(&buffer[..length.unwrap_or(0)]) else { return };
            let target = Target { proc, memory, listener: listener.as_ref() };
            let keep = if let Some(answer) = call.answer {
                own.send_again(&packet, target.listener, &answer)
            } else {
                call.entry.acting();
                own.answer(&packet, target, received, &pipeline, &call)
            };
            drop(call);
            if keep == Keep::Yes {
                back(own);
            } else {
                // The monitor connects again.
                own.ended();
                let _ = rustix::net::shutdown(&own.fd, rustix::net::Shutdown::Both);
            }
        });
        // Whoever answers has the connection now.
        if handed { Keep::No } else { self.ended() }
    }

    fn ended(&self) -> Keep {
        self.forget();
        Keep::No
    }

    /// Notes a call, or finds how far a predecessor had come with it.
    fn begin(
        &self,
        packet: &Packet<'_>,
        account: Arc<Account>,
        policy: Policy,
        journal: &Arc<Journal>,
        pipeline: &Pipeline,
    ) -> Begun {
        let payer = Arc::clone(&account.payer);
        let trapped = pipeline.look_up(packet.tid, packet.data, account, policy);
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).take();
        // What has another number was answered.
        if let Some((left, entry)) =
            left.map(|left| *left).filter(|(left, _)| left.notification.id == packet.id)
        {
            let (repeat, answer) = match left.phase {
                Phase::Received => (Repeat::Safe, None),
                Phase::Acting => (trapped.repeat(), None),
                Phase::Done(answer) => (Repeat::Safe, Some(answer)),
            };
            return Begun { trapped, entry, repeat, answer };
        }
        let entry = journal.entry(&payer);
        let (id, pid, flags, data) = (packet.id, packet.tid, 0, packet.data);
        entry.note(self.number, seccomp_notif { id, pid, flags, data });
        Begun { trapped, entry, repeat: Repeat::Safe, answer: None }
    }

    /// Decides on a packet and answers it.
    fn answer(
        &self,
        packet: &Packet<'_>,
        target: Target<'_>,
        received: Instant,
        pipeline: &Pipeline,
        call: &Begun,
    ) -> Keep {
        let Target { proc, memory, listener } = target;
        if let Some(listener) = listener
            && !self.takes_turns.swap(true, Ordering::Relaxed)
        {
            listener::take_turns(listener.as_fd());
        }
        let pending = match listener {
            Some(listener) => Pending::Listener(listener.as_fd(), packet.id),
            None => Pending::Directory(proc.as_fd()),
        };
        let verdict = match call.repeat {
            Repeat::Never => Verdict::Fail(nix::errno::Errno::EINTR),
            repeat => self.decide(packet, &call.trapped, pending, memory, pipeline, repeat),
        };
        if received.elapsed() >= DEADLINE || pending.check().is_err() {
            pipeline.settled(&call.trapped, false);
            return Keep::No;
        }
        let verdict = match (verdict, listener) {
            (Verdict::Install(fd), Some(listener)) => {
                match listener::install(listener.as_fd(), packet.id, fd.as_fd()) {
                    // That was the answer; what the monitor sends now comes too late, as it
                    // should.
                    Ok(()) => Verdict::Continue,
                    Err(errno) => {
                        self.complain(&format_args!("SECCOMP_IOCTL_NOTIF_ADDFD: {errno}"));
                        Verdict::Continue
                    }
                }
            }
            (verdict, _) => verdict,
        };
        let answer = response(packet.id, &verdict);
        call.entry.done(&answer);
        let keep = self.send(&packet.reply(&answer));
        self.consume();
        pipeline.settled(&call.trapped, keep == Keep::Yes);
        keep
    }

    /// Sends what a predecessor had decided, unless that one has sent it: the monitor then passes
    /// it on in a moment, and the call is not pending any more. A second answer would be taken for
    /// that to the next call.
    fn send_again(
        &self,
        packet: &Packet<'_>,
        listener: Option<&OwnedFd>,
        answer: &seccomp_notif_resp,
    ) -> Keep {
        // Without the listener nobody can tell.
        let Some(listener) = listener else { return Keep::No };
        let until = Instant::now() + PASSING_ON;
        while listener::id_valid(listener.as_fd(), packet.id).is_ok() {
            if Instant::now() >= until {
                let keep = self.send(&packet.reply(answer));
                self.consume();
                return keep;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.consume();
        Keep::Yes
    }

    fn decide(
        &self,
        packet: &Packet<'_>,
        trapped: &Trapped,
        pending: Pending<'_>,
        memory: &OwnedFd,
        pipeline: &Pipeline,
        repeat: Repeat,
    ) -> Verdict {
        // Thread ids are those of the monitor's pid namespace. That it is ours shows in the
        // monitor having the same id in both.
        if packet.monitor_pid != self.monitor {
            let theirs = packet.monitor_pid;
            self.complain(&format_args!("it calls itself process {theirs}: not our namespace"));
            return Verdict::Continue;
        }
        pipeline.decide(trapped, pending, Some(memory.as_fd()), repeat)
    }

    /// What the container of a packet has had, and what is answered for it.
    fn account(&self, packet: &Packet<'_>, pipeline: &Pipeline) -> (Arc<Account>, Policy) {
        let mut member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        member.take_if(|member| member.container.cookie != packet.cookie());
        let member = member.get_or_insert_with(|| {
            Member::configured(Container {
                id: packet.cookie().to_owned(),
                cookie: packet.cookie().to_owned(),
                cgroup: cgroup_of(&format!("/proc/{}/cgroup", packet.init_pid)),
                ..Container::default()
            })
        });
        let account = Arc::clone(member.account(pipeline.accounts()));
        (account, member.policy(pipeline.policies()).clone())
    }

    /// A look at the packet, which stays: its length (`None` if it is too long or lost descriptors) and what came
    /// with it. `None`: the monitor is gone.
    fn look(&self, buffer: &mut [u8]) -> Result<Option<(Option<usize>, Descriptors)>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = recvmsg(&self.fd, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
        if message.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Descriptors::default();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                descriptors.iter_mut().zip(fds).for_each(|(slot, fd)| *slot = Some(fd));
            }
        }
        let cut = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        Ok(Some(((!cut).then_some(message.bytes), descriptors)))
    }

    /// The packet was answered: takes it out of the socket.
    fn consume(&self) {
        let _ = rustix::net::recv(&self.fd, &mut [0; 1][..], RecvFlags::DONTWAIT);
    }

    fn send(&self, packet: &[u8]) -> Keep {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match send(&self.fd, packet, flags) {
            Ok(_) => Keep::Yes,
            // The monitor is gone, or does not read: it is not waiting for this.
            Err(_) => Keep::No,
        }
    }

    fn complain(&self, what: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.trouble.pass() {
            tracing::warn!(monitor = self.monitor, suppressed, "a request of liblxc: {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, sendmsg, socketpair,
    };

    use super::super::tests::Fixed;
    use super::*;
    use ambit_keeper::link::Held;

    struct Monitor {
        fd: OwnedFd,
        connection: Connection,
        pipeline: Arc<Pipeline>,
        journal: Arc<Journal>,
    }

    impl Monitor {
        fn new() -> Self {
            let flags = SocketFlags::CLOEXEC;
            let (fd, server) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            let monitor = i32::try_from(std::process::id()).unwrap();
            let connection = Connection::new(server, monitor, 0, Link::default());
            let journal = Journal::open(&Link::default(), &mut Held::default()).unwrap();
            let pipeline = Arc::new(Pipeline::new(Arc::new(Fixed::new())));
            Self { fd, connection, pipeline, journal }
        }

        fn ask(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> (Keep, Option<Vec<u8>>) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
            }
            sendmsg(&self.fd, &[IoSlice::new(packet)], &mut control, SendFlags::empty()).unwrap();
            let keep = self.connection.serve(&self.pipeline, &self.journal, 1, drop);
            let mut answer = vec![0; 4096];
            let read = rustix::net::recv(&self.fd, &mut *answer, RecvFlags::DONTWAIT);
            (keep, read.ok().map(|(read, _)| answer[..read].to_vec()))
        }
    }

    /// The memory of this very process.
    fn memory() -> File {
        File::options().read(true).write(true).open("/proc/self/mem").unwrap()
    }

    /// A packet for sysinfo of this very process, with a buffer of its own.
    fn packet(cookie: &str, address: u64) -> Vec<u8> {
        let me = i32::try_from(std::process::id()).unwrap();
        lxc_packet::tests::sysinfo(me, me.unsigned_abs(), address, cookie)
    }

    #[test]
    fn a_sender_without_listener_gets_136_bytes() {
        let monitor = Monitor::new();
        let proc = File::open("/proc/self").unwrap();
        let buffer = [0u8; 112];
        let packet = packet("101", buffer.as_ptr() as u64);
        let (keep, answer) = monitor.ask(&packet, &[proc.as_fd(), memory().as_fd()]);
        assert_eq!(keep, Keep::Yes);
        let answer = answer.unwrap();
        assert_eq!(answer.len(), 136, "without the cookie");
        assert_eq!(answer[..120], packet[..120], "all but the response is repeated");
        assert_eq!(answer[120..136], [0; 16], "success");
        let total = u64::from_ne_bytes(buffer[32..40].try_into().unwrap());
        assert_eq!(total, Fixed::TOTAL);
    }

    #[test]
    fn a_packet_stays_until_it_is_answered() {
        let monitor = Monitor::new();
        let proc = File::open("/proc/self").unwrap();
        let buffer = [0u8; 112];
        let packet = packet("101", buffer.as_ptr() as u64);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let memory = memory();
        let fds = [proc.as_fd(), memory.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&monitor.fd, &[IoSlice::new(&packet)], &mut control, SendFlags::empty()).unwrap();
        let mut seen = [0; LONGEST];
        for _ in 0..2 {
            let (length, descriptors) = monitor.connection.look(&mut seen).unwrap().unwrap();
            assert_eq!(&seen[..length.unwrap()], packet);
            assert!(descriptors[0].is_some(), "each look has the descriptors");
        }
        let keep = monitor.connection.serve(&monitor.pipeline, &monitor.journal, 1, drop);
        assert_eq!(keep, Keep::Yes);
        assert_eq!(monitor.connection.look(&mut seen).unwrap_err(), Errno::AGAIN);
    }

    #[test]
    fn a_packet_that_another_thread_is_at_is_left_to_it() {
        let monitor = Monitor::new();
        monitor.connection.serving.store(true, Ordering::Relaxed);
        let (keep, answer) = monitor.ask(b"whatever", &[]);
        assert_eq!((keep, answer), (Keep::After(BUSY), None));
        assert!(monitor.connection.look(&mut [0; LONGEST]).unwrap().is_some(), "it is there");
    }

    #[test]
    fn a_malformed_request_is_refused_at_once() {
        let monitor = Monitor::new();
        let proc = File::open("/proc/self").unwrap();
        let good = packet("x", 0);
        for bad in [&good[..136], &good[..40], &[0; LONGEST + 1][..]] {
            let (keep, answer) = monitor.ask(bad, &[proc.as_fd(), proc.as_fd()]);
            assert_eq!((keep, answer), (Keep::Yes, Some(Vec::new())), "{} bytes", bad.len());
        }
        for few in [&[][..], &[proc.as_fd()]] {
            let (keep, answer) = monitor.ask(&good, few);
            assert_eq!((keep, answer), (Keep::Yes, Some(Vec::new())), "{} descriptors", few.len());
        }
        let (keep, answer) = monitor.ask(&good, &[proc.as_fd(); 9]);
        assert_eq!((keep, answer), (Keep::Yes, Some(Vec::new())), "too many descriptors");
    }

    #[test]
    fn a_void_request_closes_the_connection() {
        let monitor = Monitor::new();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let proc = File::open(format!("/proc/{}", child.id())).unwrap();
        child.wait().unwrap();
        let (keep, answer) = monitor.ask(&packet("x", 0), &[proc.as_fd(), memory().as_fd()]);
        assert_eq!((keep, answer), (Keep::No, None));
    }

    #[test]
    fn an_answer_that_is_late_is_not_given() {
        let monitor = Monitor::new();
        let proc = OwnedFd::from(File::open("/proc/self").unwrap());
        let memory = OwnedFd::from(memory());
        let buffer = [0u8; 112];
        let bytes = packet("101", buffer.as_ptr() as u64);
        let packet = lxc_packet::decode(&bytes).unwrap();
        for (age, keep) in [(DEADLINE, Keep::No), (DEADLINE - DEADLINE / 2, Keep::Yes)] {
            let Some(received) = Instant::now().checked_sub(age) else {
                panic!("this machine has just booted")
            };
            let Monitor { connection, pipeline, journal, .. } = &monitor;
            let (account, policy) = connection.account(&packet, pipeline);
            let call = connection.begin(&packet, account, policy, journal, pipeline);
            let target = Target { proc: &proc, memory: &memory, listener: None };
            let kept = connection.answer(&packet, target, received, pipeline, &call);
            assert_eq!(kept, keep, "{age:?}");
            let mut answer = [0; 256];
            let read = rustix::net::recv(&monitor.fd, &mut answer, RecvFlags::DONTWAIT);
            assert_eq!(read.is_ok(), keep == Keep::Yes, "{age:?}: {read:?}");
        }
    }

    #[test]
    fn with_a_listener_it_tells_whether_the_call_is_pending() {
        let monitor = Monitor::new();
        let proc = File::open("/proc/self").unwrap();
        let buffer = [0u8; 112];
        // It knows no such call, or is no listener at all.
        let memory = memory();
        let fds = [proc.as_fd(), memory.as_fd(), proc.as_fd()];
        let (keep, answer) = monitor.ask(&packet("101", buffer.as_ptr() as u64), &fds);
        assert_eq!((keep, answer, buffer), (Keep::No, None, [0; 112]), "nothing was written");
    }

    #[test]
    fn another_pid_namespace_is_left_to_the_kernel() {
        let mut monitor = Monitor::new();
        monitor.connection.monitor = 1;
        let proc = File::open("/proc/self").unwrap();
        let (_, answer) = monitor.ask(&packet("x", 0), &[proc.as_fd(), memory().as_fd()]);
        assert_eq!(answer.unwrap()[132..136], 1u32.to_ne_bytes(), "CONTINUE");
    }

    #[test]
    fn the_end_of_the_monitor_ends_the_connection() {
        let monitor = Monitor::new();
        drop(monitor.fd);
        let keep = monitor.connection.serve(&monitor.pipeline, &monitor.journal, 1, drop);
        assert_eq!(keep, Keep::No);
    }
}
