//! Which processes may use the sockets, and what malformed messages do, on real sockets of a real
//! daemon. Correct messages are tested with the engines.

use std::fs::{self, File, Permissions};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{lxc, machine, sandbox};

const MESSAGE: &str = r#"{"ociVersion":"1.0.2","fds":["x","seccompFd","y"],"pid":1,
    "state":{"ociVersion":"1.0.2","id":"none","status":"creating","pid":1,"bundle":"/"}}"#;

/// Descriptors of the server that are connections or files, which no call holds open.
fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.server_pid())).unwrap().count()
}

fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    let parts = [IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// The daemon ends the connection.
#[track_caller]
fn is_closed(mut connection: &UnixStream) {
    connection.set_read_timeout(Some(machine::patience(20))).unwrap();
    // A reset, when it did not read all of it.
    let read = connection.read(&mut [0; 64]);
    assert!(
        matches!(&read, Ok(0))
            || read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
        "{read:?}"
    );
}

#[track_caller]
fn is_served(daemon: &Daemon) {
    let args = ["--memory", "96M", "--intercept", "sysinfo"];
    let text = sandbox::run(daemon, &args, "/mnt/sysinfo | grep ^total_kb").ok();
    assert_eq!(text, "total_kb=98304\n");
}

#[test]
fn wrong_messages_of_runtimes_are_refused_and_leave_nothing() {
    let mut daemon = Daemon::start();
    let path = daemon.socket("oci.sock");
    is_served(&daemon);
    let before = descriptors(&daemon);
    let file = File::open("/dev/null").unwrap();
    let null = file.as_fd();
    // What is no listener, among descriptors of other names; no JSON; nothing; without descriptors.
    for (text, fds) in [(MESSAGE, 3), ("{\"fds\":", 2), ("", 0), (MESSAGE, 0), (MESSAGE, 16)] {
        let connection = UnixStream::connect(&path).unwrap();
        if !text.is_empty() {
            send(&connection, text.as_bytes(), &vec![null; fds]);
        }
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        is_closed(&connection);
    }
    // More than any runtime says: the end comes before the end of the message.
    let mut endless = UnixStream::connect(&path).unwrap();
    endless.set_write_timeout(Some(machine::patience(20))).unwrap();
    let spaces = vec![b' '; 64 << 10];
    let sent = (0..1024).take_while(|_| endless.write_all(&spaces).is_ok()).count();
    assert!((8..1024).contains(&sent), "{sent} times 64 KiB were taken");
    is_closed(&endless);
    // A connection that sends nothing delays no other one.
    let silent = UnixStream::connect(&path).unwrap();
    is_served(&daemon);
    drop(silent);
    let until = Instant::now() + machine::patience(20);
    while descriptors(&daemon) > before {
        assert!(Instant::now() < until, "{} descriptors, {before} before", descriptors(&daemon));
        std::thread::sleep(Duration::from_millis(50));
    }
    is_served(&daemon);
    let log = daemon.log();
    for why in ["no ContainerProcessState", "fewer descriptors", "longer than"] {
        assert!(log.contains(why), "{why}: {log}");
    }
    // A connection that says nothing only asks whether the socket is served.
    assert!(!log.contains("it is empty"), "{log}");
    daemon.stop().0.ok();
}

/// crun connects, runs the hooks of the container, and sends then: SIGPIPE would kill it.
#[test]
fn a_runtime_may_send_its_message_some_seconds_after_it_has_connected() {
    let daemon = Daemon::start();
    let connection = UnixStream::connect(daemon.socket("oci.sock")).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    let file = File::open("/dev/null").unwrap();
    send(&connection, MESSAGE.as_bytes(), &[file.as_fd(); 3]);
    is_closed(&connection);
    daemon.stop().0.ok();
}

/// What a process of this user can do with a socket: whether it may connect, and whether it is
/// heard.
fn as_user(uid: u32, path: &Path, kind: SocketType) -> std::io::Result<usize> {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        // Credentials are each thread's own.
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        let flags = SocketFlags::CLOEXEC;
        let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&*path)?)?;
        // One that hears this user would wait for what it says, and the test for the end.
        let patience = Some(machine::patience(10));
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            patience,
        )?;
        let mut answer = [0; 64];
        Ok(rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty())?.0)
    });
    thread.join().unwrap()
}

#[test]
fn a_user_other_than_root_is_refused() {
    let mut daemon = Daemon::start();
    let (path, kind) = (daemon.socket("oci.sock"), SocketType::STREAM);
    let error = as_user(65_534, &path, kind).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    // Even if its mode allows all users.
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(as_user(65_534, &path, kind).unwrap(), 0, "the end at once");
    let log = daemon.log();
    assert_eq!(log.matches("only root may").count(), 1, "{log}");
    is_served(&daemon);
    daemon.stop().0.ok();
}

/// A monitor connects again when the daemon was gone: nothing need be restarted.
#[test]
fn liblxc_reconnects_to_a_restarted_daemon() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let go = readable_dir();
    let script = "ask() { /mnt/sysinfo | grep ^total_kb || echo no answer; }
        ask; echo first; until [ -e /var/again ]; do sleep .1; done
        ask; echo second; until [ -e /var/back ]; do sleep .1; done; ask; ask
        echo third; until [ -e /var/stopped ]; do sleep .1; done; ask; /mnt/node_call make /root/n 1 3";
    let mut running = lxc::start(&daemon, 96 << 20, 100_000, &[(go.path(), "var")], script);
    running.wait_for("first");
    let place = daemon.kill();
    fs::write(go.path().join("again"), "").unwrap();
    running.wait_for("second");
    let daemon = Daemon::start_at(place);
    fs::write(go.path().join("back"), "").unwrap();
    running.wait_for("third");
    // Stopped while it makes no call, its first call is answered by the next daemon.
    daemon.place().ambit(&["stop", "--force"]).ok();
    let daemon = Daemon::start_at(daemon.ended_at());
    fs::write(go.path().join("stopped"), "").unwrap();
    let text = running.finish(machine::patience(60)).stdout;
    let right = "total_kb=98304\n";
    assert_eq!(text, format!("{right}first\nno answer\nsecond\n{right}{right}third\n{right}ok\n"));
    daemon.stop().0.ok();
}
