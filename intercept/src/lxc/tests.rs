//! A monitor of liblxc at the other end of a connection.

use std::fs::File;

use super::call::DEADLINE;
use super::*;
use crate::policies::Policies;
use crate::tests::Fixed;
use crate::transport::Transport;
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
        let journal = Journal::open(&KeeperClient::default(), &mut Inherited::default()).unwrap();
        let pipeline =
            Arc::new(Pipeline::new(Arc::new(Fixed::new()), Policies::default(), None, None));
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
        assert_eq!((next, answer), (Next::Watch, Some(Vec::new())), "{} descriptors", few.len());
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
    for (age, in_time) in [(DEADLINE, false), (DEADLINE / 2, true)] {
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
    let peer = ambit_keeper::socket::Peer { fd, pid: monitor.connection.monitor.pid, user: 1000 };
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
