//! The runtime folder while the daemon runs: removed, full, read-only.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::daemon::{Daemon, Place};
use crate::harness::{command, machine, sandbox, text};

const SOCKETS: [&str; 3] = ["control.sock", "oci.sock", "lxc.sock"];

#[track_caller]
fn sockets_come_back(daemon: &mut Daemon) {
    let until = Instant::now() + machine::patience(20);
    while !SOCKETS.iter().all(|socket| daemon.socket(socket).exists()) {
        assert!(Instant::now() < until, "no sockets: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A sandbox gives its listener to the daemon through `oci.sock`.
#[track_caller]
fn takes_containers(daemon: &Daemon) {
    let args = ["--memory", "64M", "--intercept", "sysinfo"];
    let said = sandbox::run(daemon, &args, "/mnt/sysinfo | grep ^total_kb").ok();
    assert_eq!(text::number(&said, "total_kb"), 65536, "{said}");
}

/// A stand-in for systemd holds the sockets, as with `ambit.socket`.
#[test]
fn the_sockets_of_a_socket_unit_outlive_the_daemon() {
    let place = Place::new();
    let store = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/fd_store.py");
    let mut serve = command::quiet(store);
    serve.args(["--preserve", "--sockets"]).arg(place.runtime());
    serve.args([machine::AMBIT, "serve", "--config"]).arg(place.config());
    let mut daemon = Daemon::start_below(place, &mut serve);
    let inodes = |daemon: &Daemon| {
        SOCKETS.map(|socket| fs::metadata(daemon.socket(socket)).map(|file| file.ino()).ok())
    };
    let before = inodes(&daemon);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    takes_containers(&daemon);
    // A killed server is replaced, and the next one has the sockets too.
    let server = daemon.server_pid();
    signal(server, Signal::KILL);
    assert!(text::kb(&read(&daemon), "MemTotal") > 0);
    takes_containers(&daemon);
    daemon.place().ambit(&["stop", "--release"]).ok();
    let until = Instant::now() + machine::patience(20);
    while !daemon.log().contains("fd_store: stopped with 0 descriptors") {
        assert!(Instant::now() < until, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(inodes(&daemon), before, "the files stay");
    // What connects now waits until the daemon is back.
    let config = daemon.place().config();
    let mut ask = command::quiet(machine::AMBIT);
    let waiting = command::start(ask.args(["status", "--config"]).arg(config));
    std::thread::sleep(Duration::from_millis(200));
    daemon.signal(Signal::USR1);
    waiting.finish(machine::patience(20)).ok();
    takes_containers(&daemon);
    assert_eq!(inodes(&daemon), before);
    daemon.place().ambit(&["stop", "--release"]).ok();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), "unmounted");
}

#[test]
fn removed_sockets_are_bound_again() {
    let mut daemon = Daemon::start();
    fs::remove_dir_all(daemon.place().runtime()).unwrap();
    // The command waits for that.
    daemon.place().ambit(&["status"]).ok();
    sockets_come_back(&mut daemon);
    takes_containers(&daemon);
    for socket in SOCKETS {
        fs::remove_file(daemon.socket(socket)).unwrap();
        sockets_come_back(&mut daemon);
    }
    takes_containers(&daemon);
    // The successor has them too.
    let server = daemon.server_pid();
    signal(server, Signal::KILL);
    assert!(text::kb(&read(&daemon), "MemTotal") > 0);
    assert_ne!(daemon.server_pid(), server);
    takes_containers(&daemon);
    let runtime = daemon.place().runtime();
    daemon.signal(Signal::TERM);
    let place = daemon.ended_at();
    assert!(!SOCKETS.iter().any(|socket| runtime.join(socket).exists()));
    drop(place);
}

/// A small filesystem that is unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        mount("small", &path, "tmpfs", MountFlags::empty(), Some(c"mode=755,nr_inodes=16"))
            .unwrap();
        Self(path)
    }

    fn read_only(&self, is: bool) {
        let flags = if is { MountFlags::RDONLY } else { MountFlags::empty() };
        // The mount alone: files that are removed and still open keep the filesystem writable.
        mount_remount(&self.0, MountFlags::BIND | flags, "").unwrap();
    }

    /// Fills it: no file can be made any more.
    fn fill(&self) {
        while fs::write(self.filler(self.fillers()), "").is_ok() {}
    }

    fn empty(&self) {
        for number in 0..self.fillers() {
            fs::remove_file(self.filler(number)).unwrap();
        }
    }

    fn fillers(&self) -> usize {
        let entries = fs::read_dir(&self.0).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("filler")).count()
    }

    fn filler(&self, number: usize) -> PathBuf {
        self.0.join(format!("filler{number}"))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_successor_serves_files_without_sockets() {
    let place = Place::new();
    let small = Small::at(place.runtime());
    let mut daemon = Daemon::start_at(place);
    for obstacle in ["full", "read-only"] {
        let server = daemon.server_pid();
        let before = daemon.log();
        // It must not bind them anew before that is impossible.
        signal(server, Signal::STOP);
        for socket in SOCKETS {
            fs::remove_file(daemon.socket(socket)).unwrap();
        }
        match obstacle {
            "full" => small.fill(),
            _ => small.read_only(true),
        }
        signal(server, Signal::KILL);
        assert!(text::kb(&read(&daemon), "MemTotal") > 0, "{obstacle}");
        let until = Instant::now() + machine::patience(20);
        let said = |log: &str| log.matches("it is tried again").count();
        while said(&daemon.log()) < said(&before) + SOCKETS.len() {
            assert!(Instant::now() < until, "{obstacle}: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(Path::new(&format!("/proc/{}", daemon.pid())).exists(), "{obstacle}");
        assert!(text::kb(&read(&daemon), "MemTotal") > 0, "{obstacle}");
        match obstacle {
            "full" => small.empty(),
            _ => small.read_only(false),
        }
        sockets_come_back(&mut daemon);
        assert_ne!(daemon.server_pid(), server, "{obstacle}");
        takes_containers(&daemon);
    }
    let (output, _) = daemon.stop();
    output.ok();
    drop(small);
}

fn signal(server: u32, signal: Signal) {
    kill_process(Pid::from_raw(server.cast_signed()).unwrap(), signal).unwrap();
}

/// The next read that is answered. Before Linux 6.9 one that the dead server had read fails.
fn read(daemon: &Daemon) -> String {
    let until = Instant::now() + machine::patience(20);
    loop {
        match fs::read_to_string(daemon.file("proc/meminfo")) {
            Ok(text) => return text,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
}

/// What a monitor of liblxc sends, by a user other than root.
const OF_A_USER: &str = r#"
import os, select, socket, struct, sys, time
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(1000); os.setuid(1000)
def monitor():
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.connect("lxc.sock")
    one.settimeout(20)
    return one
for name in ("oci.sock", "control.sock"):
    try:
        socket.socket(socket.AF_UNIX).connect(name)
        print(name, "connected")
    except PermissionError:
        print(name, "refused")
me = os.getpid()
packet = struct.pack("=QiiHHHHQ", 0, me, me, 80, 24, 64, 0, 3)
packet += struct.pack("=QIIiIQ6Q", 7, me, 0, 99, 0xC000003E, 0, *[0] * 6) + bytes(24) + b"web"
first = monitor()
socket.send_fds(first, [packet], [os.open("/proc/self", os.O_RDONLY), os.open("/dev/null", os.O_RDWR)])
answer = first.recv(4096)
print("answer", len(answer), *struct.unpack("=QqiI", answer[112:136]))
many = [monitor() for _ in range(80)]
ends = select.poll()
for one in many:
    ends.register(one, select.POLLIN)
until = time.monotonic() + 20
while len(ends.poll(0)) < 17 and time.monotonic() < until:
    time.sleep(0.02)
time.sleep(0.2)
print("ended", len(ends.poll(0)))
"#;

#[test]
fn calls_of_a_users_container_are_left_to_the_kernel() {
    machine::needs(&["python3"]);
    let mut daemon = Daemon::start();
    let mut python = command::quiet("python3");
    python.args(["-c", OF_A_USER]).arg(daemon.place().runtime());
    let said = command::start(&mut python).finish(machine::patience(60)).ok();
    let lines: Vec<_> = said.lines().collect();
    // The number of the call, its value, its error, and SECCOMP_USER_NOTIF_FLAG_CONTINUE.
    let wanted = ["oci.sock refused", "control.sock refused", "answer 136 7 0 0 1", "ended 17"];
    assert_eq!(lines, wanted, "{}", daemon.log());
    takes_containers(&daemon);
    // Their hook may not write the profile, so it is there from the start.
    let profile = daemon.place().runtime().join("lxc.seccomp");
    let text = fs::read_to_string(&profile).unwrap();
    assert!(text.contains("\nsysinfo notify"), "{text}");
    daemon.signal(Signal::TERM);
    let place = daemon.ended_at();
    assert!(!fs::read_to_string(&profile).unwrap().contains("notify"));
    drop(place);
}
