//! The whole path of a read and of a call, everything pinned to one processor: a process of a
//! limited container opens, reads and closes a file; or calls sysinfo(2).
//!
//! Compared in one run, because only ratios travel between machines: the kernel's own files, a
//! FUSE server that does nothing (`null_server.rs`), ours, and lxcfs where it is
//! installed; for calls the smallest possible handler (`smallest_handler.rs`) and ours.
//! A thousand containers are in `scale.rs`. Run it with `make bench`, as root, or some parts of it
//! with `make bench ONLY="cold kill"`. Start reading at [`files`].
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

#[path = "../../tests/integration/harness/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod harness;
mod herd;
mod ideal;
mod leased;
mod null_server;
mod scale;
mod smallest_handler;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::cgroup::{Cgroup, Limits};
use harness::command::{quiet, run};
use harness::daemon::{Daemon, Place, mounts, readable_dir};
use harness::{machine, sandbox};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

const FILES: &[&str] = &["meminfo", "uptime", "stat", "cpuinfo", "loadavg", "swaps"];
const ROUNDS: usize = 15;
const PER_ROUND: u32 = 400;
/// Of calls.
const CALL_ROUNDS: usize = 7;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // What is measured in a process of its own is this program again.
    if let [what, rest @ ..] = &arguments[..] {
        match &**what {
            "--read" => return read_all(rest),
            "--null-server" => return null_server::serve(Path::new(&rest[0]), None).unwrap(),
            "--ideal-server" => {
                return null_server::serve(Path::new(&rest[0]), Some(ideal::Ideal::new())).unwrap();
            }
            "--smallest-handler" => return smallest_handler::compare(rest),
            _ => {}
        }
    }
    machine::needs(&["unshare", "lxcfs"]);
    let parts = [&["files", "leased", "calls", "fairness"], scale::ROWS].concat();
    if let Some(unknown) = arguments.iter().find(|argument| !parts.contains(&argument.as_str())) {
        panic!("unknown part {unknown:?}; known: {}", parts.join(", "));
    }
    let is_selected = |part: &str| arguments.is_empty() || arguments.iter().any(|one| one == part);
    // The daemon is in a control group beside those of the containers: a server samples the one that
    // it is in with all below it. It is removed by what runs this.
    let own = Cgroup::new("bench-own", Limits::default());
    own.dirs().for_each(|dir| std::fs::write(dir.join("cgroup.procs"), "0").unwrap());
    std::mem::forget(own);
    let intercepting = || Daemon::start_at(Place::intercepting("mknod = true\n"));
    // Children inherit it: servers and readers share one processor, so that the numbers are
    // costs and not luck with wake-ups.
    let mut one = CpuSet::default();
    one.set(0).unwrap();
    bind_to(&one);

    if is_selected("files") {
        files(&intercepting());
    }
    let on_lease = is_selected("leased").then(|| leased::times(&intercepting()));
    let on_one = is_selected("calls").then(|| calls(&intercepting()));
    if on_lease.is_some() || on_one.is_some() || scale::ROWS.iter().any(|row| is_selected(row)) {
        scale::print(on_lease, on_one, is_selected);
    }
    bind_to(&every_processor());
    let daemon = intercepting();
    if let Some(on_one) = on_one {
        let anywhere = [sysinfo(&daemon), mknod(&daemon)];
        println!("\nthe same where the scheduler chooses the processors, ratio to on one\n");
        for (what, (one, any)) in ["sysinfo", "mknod"].iter().zip(on_one.iter().zip(anywhere)) {
            println!("{what:8} {:.2} us, {:.2}", any / 1e3, any / one);
        }
    }
    if is_selected("fairness") {
        fairness(&daemon);
    }
}

/// Nanoseconds that a call takes in a sandbox, which is no longer new: the median of several
/// rounds.
fn in_a_sandbox(daemon: &Daemon, args: &[&str], program: &str) -> f64 {
    let (programs, rounds) = (sandbox::PROGRAMS, CALL_ROUNDS);
    let script = format!("sleep 3; for i in $(seq {rounds}); do {programs}/{program}; done");
    let text = run(&mut sandbox::command(daemon, args, &script)).ok();
    let mut times: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    times.sort_by(f64::total_cmp);
    times[CALL_ROUNDS / 2]
}

fn sysinfo(daemon: &Daemon) -> f64 {
    in_a_sandbox(daemon, &["--memory", "256M"], "sysinfo loop 20000")
}

/// So few calls that the container's budget of processor time lasts.
fn mknod(daemon: &Daemon) -> f64 {
    in_a_sandbox(daemon, &["--intercept", "mknod"], "node_call loop /tmp/node 500")
}

/// Prints how a flood of one container slows another one's sysinfo(2), on all processors.
fn fairness(daemon: &Daemon) {
    let victim = || in_a_sandbox(daemon, &["--memory", "256M"], "sysinfo loop 10000");
    println!("\nsysinfo(2) of one container while another one floods, ratio to alone\n");
    let programs = sandbox::PROGRAMS;
    let many = format!("for i in $(seq 100); do {programs}/sysinfo loop 100000000 & done; wait");
    let nodes = format!("{programs}/node_call flood /tmp 100 100000000");
    for (what, script) in [("sysinfo", many), ("mknod", nodes)] {
        let before = victim();
        let args = ["--intercept", "sysinfo,mknod"];
        let flood = harness::command::start(&mut sandbox::command(daemon, &args, &script));
        let flooded = victim();
        flood.signal_group(rustix::process::Signal::KILL);
        drop(flood);
        // Before and after, because a machine may have other work.
        println!("100 of {what:8} {:.2}", flooded * 2.0 / (before + victim()));
    }
}

/// Binds this process, and what it starts from now on.
fn bind_to(processors: &CpuSet) {
    sched_setaffinity(Pid::from_raw(0), processors).unwrap();
}

fn every_processor() -> CpuSet {
    let mut all = CpuSet::default();
    let count = std::fs::read_to_string("/proc/cpuinfo").unwrap().matches("processor\t").count();
    (0..count).for_each(|cpu| all.set(cpu).unwrap());
    all
}

/// Prints the table of files: microseconds, and what is more telling, ratios.
fn files(daemon: &Daemon) {
    let null = Server::start("a null server", this_program("--null-server"), |_| {});
    let lxcfs = Server::start("lxcfs", Command::new("lxcfs"), |(command, dir)| {
        command.arg("-f").arg("-p").arg(dir.join("pid"));
    });
    let cgroup = Cgroup::new("bench", Limits { memory: Some(256 << 20), ..Limits::default() });
    let places = [
        PathBuf::from("/proc"),
        null.mount().join("proc"),
        daemon.file("proc"),
        lxcfs.mount().join("proc"),
    ];
    let paths: Vec<_> = FILES
        .iter()
        .flat_map(|file| places.iter().map(move |place| place.join(file).display().to_string()))
        .collect();
    let reader =
        format!("exec {} --read {}", std::env::current_exe().unwrap().display(), paths.join(" "));
    let text = run(&mut cgroup.script(&reader)).ok();
    let nanoseconds: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();

    println!(
        "open + read + close in a container of 256 MiB, one processor, medians in microseconds\n"
    );
    println!(
        "{:10} {:>8} {:>8} {:>8} {:>8}   {:>10} {:>10} {:>11}",
        "file", "kernel", "null", "ambit", "lxcfs", "ambit/null", "ambit/host", "lxcfs/ambit"
    );
    for (file, times) in FILES.iter().zip(nanoseconds.chunks(places.len())) {
        let [kernel, null, ambit, lxcfs] = times else { unreachable!("four places") };
        println!(
            "{file:10} {:8.1} {:8.1} {:8.1} {:8.1}   {:10.2} {:10.2} {:11.1}",
            kernel / 1e3,
            null / 1e3,
            ambit / 1e3,
            lxcfs / 1e3,
            ambit / null,
            ambit / kernel,
            lxcfs / ambit
        );
    }
}

/// Prints what sysinfo(2) costs through the listener of a sandbox, and the same without the
/// accounting behind it against the smallest handler, for a caller in control groups of its own.
/// Returns the nanoseconds of sysinfo(2), of mknod(2) and of the smallest handler.
fn calls(daemon: &Daemon) -> [f64; 3] {
    let through = sysinfo(daemon);
    let cgroup = Cgroup::new("bench", Limits { memory: Some(256 << 20), ..Limits::default() });
    let compared = run(this_program("--smallest-handler").args(cgroup.dirs())).ok();
    let smallest = compared.strip_prefix("smallest handler ").and_then(|rest| {
        let (number, _) = rest.split_once(' ')?;
        number.parse::<f64>().ok()
    });
    let smallest = smallest.unwrap_or_else(|| panic!("not understood: {compared}"));
    println!("\nsysinfo(2), microseconds a call\n");
    println!(
        "from a sandbox, through the daemon and its accounting {:.2} us, ratio to the smallest {:.2}",
        through / 1e3,
        through / 1e3 / smallest
    );
    print!("{compared}");
    let made = mknod(daemon);
    println!(
        "\nmknod(2) from a sandbox {:.2} us, ratio to the smallest handler {:.2}",
        made / 1e3,
        made / 1e3 / smallest
    );
    [through, made, smallest * 1e3]
}

/// Reads every path in turn, round after round, so that all meet the same disturbances, and
/// prints the median of each in nanoseconds.
#[allow(clippy::print_stdout, reason = "this is the output")]
fn read_all(paths: &[String]) {
    // A container that has just started is read anew each time; that is not the warm path.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        paths.iter().for_each(|path| drop(std::fs::read(path)));
    }
    let mut rounds = vec![Vec::with_capacity(ROUNDS); paths.len()];
    for _ in 0..ROUNDS {
        for (path, times) in paths.iter().zip(&mut rounds) {
            let start = Instant::now();
            for _ in 0..PER_ROUND {
                let mut buffer = [0; 16384];
                let length = File::open(path).and_then(|mut file| file.read(&mut buffer));
                assert!(length.is_ok_and(|length| length > 0), "cannot read {path}");
            }
            times.push(start.elapsed().as_nanos() as f64 / f64::from(PER_ROUND));
        }
    }
    for times in &mut rounds {
        times.sort_by(f64::total_cmp);
        println!("{}", times[ROUNDS / 2]);
    }
}

/// A program that serves a mount until it is dropped.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    fn start(name: &str, mut command: Command, more: fn((&mut Command, &Path))) -> Self {
        let dir = readable_dir();
        let mount = dir.path().join("mnt");
        std::fs::create_dir(&mount).unwrap();
        more((&mut command, dir.path()));
        command.arg(&mount).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let server = Self { child, dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !server.is_mounted() {
            assert!(Instant::now() < deadline, "{name} does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn is_mounted(&self) -> bool {
        mounts().contains(&format!(" {} ", self.mount().display()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = unmount(self.mount(), UnmountFlags::DETACH);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program, to do one part of the work in another process.
fn this_program(part: &str) -> Command {
    let mut command = quiet(std::env::current_exe().unwrap().to_str().unwrap());
    command.arg(part);
    command
}
