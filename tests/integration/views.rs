//! Whose numbers a process sees: a test for each row of the table in `docs/readers.md`; and the
//! commands that find a container by its name.

use std::time::Instant;

use rustix::process::Signal;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{Output, Running, quiet, run, start};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::lxc;
use crate::harness::machine::{self, AMBIT};
use crate::harness::oci::{self, Started};
use crate::harness::text::{kb, number};

const MIB: u64 = 1 << 20;
/// A container that goes on after its files and calls were printed.
const SURVEY: &str = "cat /proc/meminfo; /mnt/sysinfo; echo ready; sleep 600";

fn container(mib: u64) -> oci::Container<'static> {
    oci::Container { memory: mib * MIB, quota: 100_000, userns: false, script: SURVEY }
}

/// Starts a container, in the pid namespace of another one if there is one.
#[track_caller]
fn started(daemon: &Daemon, cgroup: &str, mib: u64, joins: Option<&Started>) -> Started {
    let pid = joins.map(Started::pid);
    oci::start(daemon, container(mib), oci::Place { cgroup, pid })
}

/// Files and calls show this size.
#[track_caller]
fn shows(text: &str, mib: u64) {
    assert_eq!((kb(text, "MemTotal"), number(text, "total_kb")), (mib * 1024, mib * 1024));
}

/// The cgroup that engines make theirs in.
fn parent(name: &str) -> Cgroup {
    Cgroup::new(name, Limits::default())
}

fn with_memory(mib: u64) -> Limits<'static> {
    Limits { memory: Some(mib * MIB), ..Limits::default() }
}

/// A daemon that shows a service its own limits.
fn daemon_for_callers() -> Daemon {
    let place = Place::new();
    let text = std::fs::read_to_string(place.config()).unwrap();
    let text = text.replace("[overlay]\n", "[overlay]\nview_of = \"caller\"\n");
    std::fs::write(place.config(), text).unwrap();
    Daemon::start_at(place)
}

#[test]
fn a_container_and_what_is_executed_in_it_see_the_container() {
    let daemon = Daemon::start();
    let _parent = parent("docker");
    let mut web = started(&daemon, "docker/web", 160, None);
    shows(&web.printed(), 160);
    shows(&web.exec(&["sh", "-c", "cat /proc/meminfo; /mnt/sysinfo"]), 160);
}

#[test]
fn a_process_of_lxc_attach_sees_the_container() {
    let daemon = Daemon::start();
    let script = "cat /proc/meminfo; /mnt/sysinfo; echo ready; sleep 600";
    let mut web = lxc::start(&daemon, 144 * MIB, 100_000, &[], script);
    web.wait_for("ready");
    let shown = web.attach(&["sh", "-c", "cat /proc/meminfo; /mnt/sysinfo"]);
    web.stop();
    assert_eq!(kb(&shown, "MemTotal"), 144 * 1024);
    assert_eq!(number(&shown, "total_kb"), 144 * 1024);
}

/// `nsenter` from the machine: the process stays in its session's cgroup.
#[test]
fn a_process_that_enters_from_the_machine_sees_the_container() {
    let daemon = Daemon::start();
    let _parent = parent("docker");
    let web = started(&daemon, "docker/web", 160, None);
    let mut enter = quiet("nsenter");
    enter.args(["--target", &web.pid().to_string(), "--pid", "--mount", "cat", "/proc/meminfo"]);
    assert_eq!(kb(&run(&mut enter).ok(), "MemTotal"), 160 * 1024);
}

#[test]
fn a_container_in_the_pid_namespace_of_another_one_sees_its_own_bounds() {
    let daemon = Daemon::start();
    let _parent = parent("docker");
    let web = started(&daemon, "docker/web", 160, None);
    let mut guest = started(&daemon, "docker/guest", 96, Some(&web));
    shows(&guest.printed(), 96);
    // Also what is executed in them later, in turn.
    for _ in 0..3 {
        shows(&guest.exec(&["sh", "-c", "cat /proc/meminfo; /mnt/sysinfo"]), 96);
        shows(&web.exec(&["sh", "-c", "cat /proc/meminfo; /mnt/sysinfo"]), 160);
    }
    let status = daemon.status();
    let all = status["containers"].as_array().unwrap();
    assert_eq!(all.iter().filter(|one| one["pid_namespace"] != 0).count(), 2, "{status}");
}

#[test]
fn the_containers_of_a_pod_with_one_pid_namespace_see_their_own_bounds() {
    let daemon = Daemon::start();
    let kubepods = parent("kubepods");
    let _pod = kubepods.child("pod1", with_memory(512));
    let pause = started(&daemon, "kubepods/pod1/pause", 32, None);
    for (name, mib) in [("kubepods/pod1/app", 160), ("kubepods/pod1/side", 96)] {
        let mut app = started(&daemon, name, mib, Some(&pause));
        shows(&app.printed(), mib);
        // Its uptime began with it, not with the pod.
        let uptime = |text: &str| text.split('.').next().unwrap().parse::<u64>().unwrap();
        let own = uptime(&app.exec(&["cat", "/proc/uptime"]));
        assert!(own < machine::patience(60).as_secs(), "{own}");
    }
}

#[test]
fn a_container_in_the_pid_namespace_of_the_machine_sees_its_own_bounds() {
    let daemon = Daemon::start();
    let _parent = parent("docker");
    let place = oci::Place { cgroup: "docker/web", pid: Some(std::process::id()) };
    let mut web = oci::start(&daemon, container(160), place);
    shows(&web.printed(), 160);
}

/// A system container with a limit: its first process, and a service with a limit of its own.
struct System {
    service: Cgroup,
    boot: Cgroup,
    init: Option<Running>,
    _container: Cgroup,
}

impl System {
    #[track_caller]
    fn start() -> Self {
        let container = Cgroup::new("lxc.payload.web", with_memory(160));
        let boot = container.child("init.scope", Limits::default());
        let service = container.child("service", with_memory(64));
        let mut init = start(&mut boot.script("echo ready; sleep 600; true"));
        init.wait_for("ready", machine::patience(20));
        Self { service, boot, init: Some(init), _container: container }
    }

    /// Runs a script in the container, in this cgroup.
    #[track_caller]
    fn run(&self, cgroup: &Cgroup, script: &str) -> String {
        let enter = format!("nsenter --target {} --pid -- sh -c '{script}'", self.boot.init());
        run(&mut cgroup.run(&enter)).ok()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // The init of a pid namespace takes all others with it.
        if let Some(init) = self.init.take() {
            init.signal_group(Signal::KILL);
            init.finish(machine::patience(10));
        }
    }
}

#[test]
fn a_service_of_a_system_container_sees_the_container() {
    let daemon = Daemon::start();
    let system = System::start();
    let read = format!("cat {}", daemon.file("proc/meminfo").display());
    for cgroup in [&system.boot, &system.service] {
        assert_eq!(kb(&system.run(cgroup, &read), "MemTotal"), 160 * 1024);
    }
}

#[test]
fn a_service_sees_its_own_limits_where_the_configuration_says_so() {
    let daemon = daemon_for_callers();
    let system = System::start();
    let file = daemon.file("proc/meminfo").display().to_string();
    assert_eq!(kb(&system.run(&system.boot, &format!("cat {file}")), "MemTotal"), 160 * 1024);
    assert_eq!(kb(&system.run(&system.service, &format!("cat {file}")), "MemTotal"), 64 * 1024);
    // A process that moves out of the service sees the container again.
    let dirs: Vec<_> = system.boot.dirs().map(|dir| dir.display().to_string()).collect();
    let moves = format!(
        "grep MemTotal {file}; for d in {}; do echo 0 >$d/cgroup.procs; done; \
         until grep {} {file}; do :; done",
        dirs.join(" "),
        160 * 1024,
    );
    let shown = system.run(&system.service, &moves);
    assert!(shown.contains(&format!(" {} kB", 64 * 1024)), "{shown}");
}

#[test]
fn a_step_of_a_batch_system_and_a_service_of_the_machine_see_their_own_limits() {
    let daemon = Daemon::start();
    let job = Cgroup::new("slurm", with_memory(256));
    let step = job.child("step_0", with_memory(96));
    let read = format!("cat {}", daemon.file("proc/meminfo").display());
    let text = run(&mut step.script_of_host(&read)).ok();
    assert_eq!(kb(&text, "MemTotal"), 96 * 1024);
}

#[test]
fn calls_of_executed_processes_are_counted_with_their_container() {
    let mut daemon = Daemon::start();
    let _parent = parent("docker");
    let web = started(&daemon, "docker/web", 160, None);
    for _ in 0..3 {
        web.exec(&["/mnt/sysinfo"]);
    }
    let status = daemon.status();
    let all = status["intercepted"].as_array().unwrap();
    let [one] = &all[..] else { panic!("{status}") };
    assert_eq!(one["container"], web.id());
    let sysinfo = one["calls"].as_array().unwrap().iter().find(|call| call["name"] == "sysinfo");
    assert!(sysinfo.unwrap()["granted"].as_u64().unwrap() >= 4, "{status}");
    // One line in the log for the container, whatever is executed in it.
    let log = daemon.log();
    assert_eq!(log.lines().filter(|line| line.contains("calls are answered")).count(), 1, "{log}");
}

/// A folder with the program, and another one beside it in the place of ambit-verify.
#[track_caller]
fn folder_with(verify: &str) -> tempfile::TempDir {
    let dir = readable_dir();
    std::fs::copy(AMBIT, dir.path().join("ambit")).unwrap();
    std::fs::copy(machine::program(verify), dir.path().join("ambit-verify")).unwrap();
    dir
}

/// Runs the program of such a folder.
#[track_caller]
fn ambit_in(dir: &tempfile::TempDir, words: &[&str]) -> Output {
    run(quiet(dir.path().join("ambit").to_str().unwrap()).args(words))
}

#[test]
fn a_container_is_verified_from_outside() {
    let daemon = Daemon::start();
    let _parent = parent("docker");
    let web = started(&daemon, "docker/web", 160, None);
    let dir = folder_with("ambit-verify");
    let output = ambit_in(&dir, &["verify", "web", "--memory", "160M"]);
    assert!(output.stdout.contains("/proc/meminfo MemTotal"), "{output:?}");
    let row = |reader: &str| output.stdout.lines().find(|line| line.contains(reader)).unwrap();
    assert!(row("/proc/meminfo MemTotal").starts_with('✓'), "{output:?}");
    // Whether calls are answered in the container cannot be told from outside.
    assert!(row("sysinfo(2) totalram").starts_with('–'), "{output:?}");
    // The exit status is passed through, and the limits are those of the options.
    let pid = web.pid().to_string();
    let output = ambit_in(&dir, &["verify", &pid, "--memory", "96M", "--json"]);
    assert_eq!(output.status, 1, "{output:?}");
    let json: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert!(json.to_string().contains("contradicts"), "{json}");
}

#[test]
fn the_program_inside_has_no_right_that_the_container_lacks() {
    let daemon = Daemon::start();
    let _parent = parent("docker");
    // A program that prints what it has, in the place of ambit-verify.
    let dir = folder_with("rights");
    for userns in [false, true] {
        let container = oci::Container { userns, ..container(160) };
        let web = oci::start(&daemon, container, oci::Place { cgroup: "docker/web", pid: None });
        let shown = ambit_in(&dir, &["verify", "web"]).ok();
        let inside = |label: &str| shown.lines().find(|line| line.starts_with(label)).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", web.pid())).unwrap();
        let first = |label: &str| status.lines().find(|line| line.starts_with(label)).unwrap();
        // The container's first process is its root with all that it may have.
        for label in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(inside(label), first(label), "{userns}");
        }
        for label in ["Uid:", "Gid:"] {
            assert_eq!(inside(label), format!("{label}\t0\t0\t0\t0"));
        }
        assert_eq!(inside("NoNewPrivs:"), "NoNewPrivs:\t1");
        assert!(inside("NSpid:").split_whitespace().count() == 2, "it sees its own pid namespace");
        // The fourth is the folder that it lists.
        assert_eq!(shown.lines().filter(|line| line.starts_with("fd=")).count(), 4, "{shown}");
        // It is in the control groups of the container.
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", web.pid())).unwrap();
        let group = groups.lines().find(|line| line.contains("docker/web")).unwrap();
        assert!(userns || shown.contains(group), "{shown}");
    }
}

/// A container can trace the program in it, and make it do anything.
#[test]
fn a_program_that_is_hostile_reaches_no_terminal_and_ends() {
    let daemon = Daemon::start();
    let _parent = parent("docker");
    let _web = started(&daemon, "docker/web", 160, None);
    let dir = folder_with("shout");
    let verify = |what: &str| ambit_in(&dir, &["verify", "web", "--cpuset", what]);
    let output = verify("escapes");
    assert_eq!((output.status, output.stderr.as_str()), (0, "\\u001b[31mred\n"), "{output:?}");
    let escaped = "\\u001b]0;title\\u0007\\u009b2J\\u000d\nterminals: 000\n/dev/tty: -1\n";
    assert_eq!(output.stdout, escaped);
    let output = verify("left");
    assert_eq!((output.status, output.stdout.as_str()), (3, "done\n"), "{output:?}");
    let output = verify("endless");
    assert_eq!(output.status, 2, "{}", output.stderr);
    assert!(output.stderr.contains("its output is too long: it was killed"), "{}", output.stderr);
    assert!(output.stdout.len() <= 17 << 20);
}

#[test]
fn a_name_of_no_container_is_an_error() {
    for words in [&["verify", "no-such"][..], &["check", "4194999"]] {
        let output = run(quiet(AMBIT).args(words));
        assert_eq!((output.status, output.stdout.as_str()), (2, ""), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
}

#[test]
fn check_says_why_a_process_does_not_see_its_bounds() {
    let daemon = Daemon::start();
    let _parent = parent("docker");
    let web = started(&daemon, "docker/web", 160, None);
    let guest = started(&daemon, "docker/guest", 96, Some(&web));
    let check = |pid: u32| {
        let output = daemon.place().ambit(&["check", &pid.to_string()]);
        assert!(output.stdout.lines().all(|line| line.chars().count() <= 80), "{output:?}");
        // As one line.
        let words: Vec<_> = output.stdout.split_whitespace().collect();
        Output { stdout: words.join(" "), ..output }
    };
    let output = check(web.pid());
    assert!(output.stdout.contains("web: it is the first process"), "{output:?}");
    assert!(output.stdout.contains("memory 160M"), "{output:?}");
    assert!(output.stdout.contains("ambit shows its container's"), "{output:?}");
    assert_eq!(output.status, 0, "{output:?}");
    let output = check(guest.pid());
    assert!(output.stdout.contains("guest: its own cgroup"), "{output:?}");
    // A service that mounts /proc again sees the machine.
    let again = "mount -t proc proc /proc; echo ready; sleep 600";
    let mut service = quiet("nsenter");
    service.args(["--target", &web.pid().to_string(), "--pid", "--mount", "unshare", "--mount"]);
    let mut service = start(service.args(["sh", "-c", again]));
    service.wait_for("ready", machine::patience(20));
    let until = Instant::now() + machine::patience(10);
    let child = loop {
        let children = format!("/proc/{0}/task/{0}/children", service.pid());
        let children = std::fs::read_to_string(children).unwrap();
        if let Some(child) = children.split_whitespace().next() {
            break child.parse().unwrap();
        }
        assert!(Instant::now() < until, "nsenter has no child");
    };
    let output = check(child);
    assert_eq!(output.status, 1, "{output:?}");
    let (mounts, filter) = ("service mounts /proc or /sys again", "it has no seccomp filter");
    assert!(output.stdout.contains(mounts) && output.stdout.contains(filter), "{output:?}");
    service.signal_group(Signal::KILL);
    service.finish(machine::patience(10));
}
