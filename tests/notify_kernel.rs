//! Intercepted programs on the running kernel: what they see of the answers.
//!
//! Needs root, gcc and gcc-multilib. The programs are built from `targets/notify_target.c`.
#![allow(unsafe_code, reason = "filters are installed between fork and exec")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};

use ambit_intercept::filter::Filter;
use ambit_intercept::{Notifier, Options, Policy, oci};
use ambit_sysinfo::view::{Clock, Cpu, Load, Memory, Origin, Swap, Tasks};
use ambit_sysinfo::{CpuSet, Error, View, Views};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

const TOTAL: u64 = 256 << 20;
const ALL: [&str; 2] = ["sysinfo", "sched_getaffinity"];

/// Shows every caller a container with 256 MiB and one processor.
struct Fixed(Arc<View>);

impl Fixed {
    fn new() -> Arc<Self> {
        let cpu = Cpu { online: CpuSet::first(1), ..Cpu::default() };
        Arc::new(Self(Arc::new(View {
            origin: Origin::Container,
            host: Arc::default(),
            memory: Memory { total: TOTAL, free: TOTAL / 2, ..Memory::default() },
            swap: Swap::default(),
            nodes: None,
            cpu,
            tasks: Tasks { total: 77, ..Tasks::default() },
            load: Load::default(),
            clock: Clock { uptime: 5_000_000_000, ..Clock::default() },
            stats: ambit_sysinfo::stats::Stats::default(),
        })))
    }
}

impl Views for Fixed {
    fn view(&self, _tid: u32) -> Result<Arc<View>, Error> {
        Ok(Arc::clone(&self.0))
    }
}

/// Nothing is known of anybody.
struct Broken;

impl Views for Broken {
    fn view(&self, _tid: u32) -> Result<Arc<View>, Error> {
        Err(Error::Parse { file: "memory.max".into(), wanted: "a number" })
    }
}

fn policy(names: &[&str]) -> Policy {
    Policy::from_names(names).unwrap()
}

fn notifier(views: Arc<dyn Views>) -> Notifier {
    Notifier::start(views, Options::default()).unwrap()
}

/// The target program for 64 or 32 bits.
fn program(bits: u32) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/notify_target.c");
        for bits in ["64", "32"] {
            let mut gcc = Command::new("gcc");
            gcc.args(["-O1", "-Wall", "-Werror", "-pthread", &format!("-m{bits}"), "-o"]);
            let built = gcc.arg(folder.path().join(bits)).arg(&source).status().unwrap();
            assert!(built.success(), "gcc -m{bits} failed: gcc-multilib is needed");
        }
        folder
    });
    folder.path().join(bits.to_string())
}

/// Starts the program under a filter for all calls and returns the listener.
fn spawn(bits: u32, words: &[&str]) -> (Child, OwnedFd) {
    let filter = Filter::new(&policy(&ALL)).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let mut command = Command::new(program(bits));
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: between fork and exec only system calls are made, nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            let listener = filter.install().map_err(std::io::Error::other)?;
            let fds = [listener.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(&theirs, &[IoSlice::new(b"l")], &mut control, SendFlags::empty())?;
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let into = &mut [IoSliceMut::new(&mut byte)];
    recvmsg(&ours, into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let listener = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (child, listener.expect("the child sends its listener"))
}

/// Lines that an intercepted program prints.
fn run(notifier: &Notifier, names: &[&str], bits: u32, words: &[&str]) -> Vec<String> {
    let (child, listener) = spawn(bits, words);
    notifier.adopt(listener, "test", policy(names)).unwrap();
    lines(child)
}

fn lines(child: Child) -> Vec<String> {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn own_processors() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    (0..nix::sched::CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect()
}

fn served(notifier: &Notifier, name: &str) -> [u64; 3] {
    let counts = notifier.counters();
    let call = counts.calls.iter().find(|call| call.name == name).unwrap();
    [call.served(), call.continued, call.failed]
}

#[test]
fn sysinfo_shows_the_view_in_every_abi() {
    let notifier = notifier(Fixed::new());
    let wanted = format!("0 0 total={TOTAL} procs=77 touched<=1");
    assert_eq!(run(&notifier, &ALL, 64, &["sysinfo"]), [wanted.as_str()]);
    assert_eq!(run(&notifier, &ALL, 32, &["sysinfo"]), [wanted.as_str()]);
    #[cfg(target_arch = "x86_64")]
    {
        // Without the filter: -1 and ENOSYS where the kernel has no x32.
        let plain = Command::new(program(64)).arg("x32").output().unwrap().stdout;
        let plain = String::from_utf8(plain).unwrap();
        let there = !plain.starts_with("-1 38 ");
        let wanted = if there { &wanted } else { plain.trim_end() };
        assert_eq!(run(&notifier, &ALL, 64, &["x32"]), [wanted]);
    }
    assert!(served(&notifier, "sysinfo")[0] >= 2);
}

#[test]
fn bad_pointers_are_bad_addresses() {
    let notifier = notifier(Fixed::new());
    for bits in [64, 32] {
        for command in ["sysinfo-pointers", "affinity-pointers"] {
            assert_eq!(run(&notifier, &ALL, bits, &[command]), ["-1 14"; 5], "{bits} {command}");
        }
    }
}

#[test]
fn a_page_that_userfaultfd_delivers_is_waited_for() {
    let notifier = notifier(Fixed::new());
    let seen = run(&notifier, &ALL, 64, &["delivered"]);
    assert!(seen == ["0 0 77"] || seen == ["none"], "{seen:?}");
}

#[test]
fn affinity_has_as_many_processors_as_are_shown() {
    let notifier = notifier(Fixed::new());
    let first = own_processors()[0];
    for bits in [64, 32] {
        for pid in ["0", "self"] {
            let seen = run(&notifier, &ALL, bits, &["affinity", pid, "1024"]);
            let (length, rest) = seen[0].split_once(' ').unwrap();
            assert_eq!(rest, format!("0 {first}"), "{bits} bits, pid {pid}");
            assert_eq!(length.parse::<usize>().unwrap() % 8, 0);
        }
        let seen = run(&notifier, &ALL, bits, &["affinity", "0", "1021"]);
        assert_eq!(seen, ["-1 22"], "a length that is no multiple of a long");
        assert_eq!(run(&notifier, &ALL, bits, &["affinity", "0", "0"]), ["-1 22"]);
        assert_eq!(run(&notifier, &ALL, bits, &["affinity", "-1", "1024"]), ["-1 3"]);
    }
    if std::thread::available_parallelism().unwrap().get() <= 32 {
        let seen = run(&notifier, &ALL, 32, &["affinity", "0", "4"]);
        assert_eq!(seen, [format!("4 0 {first}")], "one 32-bit word");
    }
}

#[test]
fn thread_ids_are_those_of_the_callers_pid_namespace() {
    let notifier = notifier(Fixed::new());
    let seen = run(&notifier, &ALL, 64, &["namespace"]);
    let [child, pinned, init, of_child, missing] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(child, "2", "it is pid 1 itself");
    let rest = |line: &String| line.split_once(' ').unwrap().1.to_owned();
    assert_eq!(rest(init), format!("0 {}", own_processors()[0]));
    assert_eq!(rest(of_child), format!("0 {pinned}"), "its real mask, not that of the host's 2");
    assert_eq!(missing, "-1 3");
}

#[test]
fn calls_that_are_off_or_fail_are_left_to_the_kernel() {
    let machine = nix::sys::sysinfo::sysinfo().unwrap().ram_total();
    let wanted = format!("0 0 total={machine} ");
    let off = notifier(Fixed::new());
    let seen = run(&off, &["sched_getaffinity"], 64, &["sysinfo"]);
    assert!(seen[0].starts_with(&wanted), "{seen:?}");
    let seen = run(&off, &["sysinfo"], 64, &["affinity", "0", "1024"]);
    assert_eq!(seen[0].split(' ').count() - 2, own_processors().len(), "{seen:?}");
    assert_eq!(served(&off, "sysinfo"), [0, 1, 0]);
    let broken = notifier(Arc::new(Broken));
    let seen = run(&broken, &ALL, 64, &["sysinfo"]);
    assert!(seen[0].starts_with(&wanted), "{seen:?}");
    assert_eq!(served(&broken, "sysinfo"), [0, 0, 1]);
}

#[test]
fn a_call_that_signals_interrupt_has_its_result() {
    let notifier = notifier(Fixed::new());
    assert_eq!(run(&notifier, &ALL, 64, &["signals"]), ["0"]);
}

#[test]
fn a_killed_target_leaves_the_others_served() {
    let notifier = notifier(Fixed::new());
    for number in 0..5 {
        let (mut child, listener) = spawn(64, &["until-end-of-input"]);
        notifier.adopt(listener, &format!("victim {number}"), policy(&ALL)).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let wanted = format!("0 0 total={TOTAL} procs=77 touched<=1");
    assert_eq!(run(&notifier, &ALL, 64, &["sysinfo"]), [wanted]);
    // Listeners of dead containers are dropped.
    while notifier.listeners().iter().any(|name| name.starts_with("victim")) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_successor_takes_over_between_two_calls() {
    let (mut child, listener) = spawn(64, &["until-end-of-input"]);
    let mut current = notifier(Fixed::new());
    current.adopt(listener.try_clone().unwrap(), "web", policy(&ALL)).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    for _ in 0..20 {
        drop(current);
        current = notifier(Fixed::new());
        current.adopt(listener.try_clone().unwrap(), "web", policy(&ALL)).unwrap();
    }
    // No descriptor of the listener but the notifier's may be left.
    drop(listener);
    drop(child.stdin.take());
    // Any failed call, ENOSYS above all, would be the exit status.
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_delivered_listener_is_served_by_its_annotation() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("oci.sock");
    let options = Options { oci_socket: Some(socket.clone()), ..Options::default() };
    let _notifier = Notifier::start(Fixed::new(), options).unwrap();
    for (annotation, processors) in [
        ("sysinfo", own_processors().len()),
        ("sched_getaffinity", 1),
        ("nonsense", own_processors().len()),
    ] {
        let (child, listener) = spawn(64, &["affinity", "0", "1024"]);
        let pid = i32::try_from(child.id()).unwrap();
        let annotations = [(oci::ANNOTATION, annotation)];
        oci::deliver(&socket, listener.as_fd(), "web", pid, &annotations).unwrap();
        drop(listener);
        let seen = lines(child);
        assert_eq!(seen[0].split(' ').count() - 2, processors, "{annotation}: {seen:?}");
    }
}

#[test]
fn a_broken_message_closes_the_listener() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("oci.sock");
    let options = Options { oci_socket: Some(socket.clone()), ..Options::default() };
    let _notifier = Notifier::start(Fixed::new(), options).unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    std::io::Write::write_all(&mut stream, b"{\"fds\":[]}").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the daemon closes");
}
