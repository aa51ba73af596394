//! In the place of lxcfs: the same command line, signals, pid file, mount and layout, beside
//! Debian's own lxcfs; and its hook, unchanged, in a container of LXC.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::cgroup::{Cgroup, Limits, memory_is_v2};
use crate::harness::command::{Output, Running, quiet, run, start};
use crate::harness::daemon::{mounts, readable_dir};
use crate::harness::machine::{self, AMBIT};
use crate::harness::oci::root;
use crate::harness::text::{cpu_lines, kb};

/// A server under the name of lxcfs, ours or Debian's.
struct Lxcfs {
    running: Running,
    dir: TempDir,
    at: PathBuf,
}

impl Lxcfs {
    /// Ours, by a link of that name.
    fn ours(args: &[&str]) -> Self {
        let dir = readable_dir();
        let link = dir.path().join("lxcfs");
        symlink(AMBIT, &link).unwrap();
        let at = dir.path().join("mnt");
        Self::start(quiet(link.to_str().unwrap()), dir, at, args)
    }

    fn debians() -> Self {
        machine::needs(&["lxcfs"]);
        let dir = readable_dir();
        let at = dir.path().join("mnt");
        Self::start(quiet("lxcfs"), dir, at, &[])
    }

    fn start(mut command: Command, dir: TempDir, at: PathBuf, args: &[&str]) -> Self {
        let _ = fs::create_dir(&at);
        command.args(args).arg("-p").arg(dir.path().join("pid")).arg(&at);
        let mut running = start(&mut command);
        let deadline = Instant::now() + machine::patience(10);
        while !mounts().contains(&format!(" {} ", at.display())) || !at.join("proc").exists() {
            assert!(!running.ended() && Instant::now() < deadline, "{:?}", running.printed());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { running, dir, at }
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.path().join("pid")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// Ends it.
    #[track_caller]
    fn stop(self) -> Output {
        self.running.signal(Signal::TERM);
        self.running.finish(machine::patience(10))
    }
}

fn lxcfs(args: &[&str]) -> Output {
    run(quiet(AMBIT).arg("lxcfs").args(args))
}

#[test]
fn the_command_line_is_that_of_lxcfs() {
    machine::needs(&["lxcfs"]);
    let output = lxcfs(&["-v"]);
    let version = output.stderr.trim();
    assert!(output.status == 0 && version.starts_with('"') && version.ends_with('"'), "{output:?}");
    for args in [&["--version"][..], &["-h"], &["--help"], &[]] {
        let (ours, theirs) = (lxcfs(args), run(quiet("lxcfs").args(args)));
        let shape = |output: &Output| (output.status, output.stdout.is_empty());
        // lxcfs 5 prints its usage to stdout or stderr, as it likes.
        assert_eq!(ours.status, theirs.status, "{args:?}: {ours:?} {theirs:?}");
        assert!(!shape(&ours).1 || !ours.stderr.is_empty(), "{args:?}: {ours:?}");
    }
    assert_eq!(lxcfs(&["-d", "-f", "/nowhere"]).status, 1);
    let help = lxcfs(&["-h"]).stderr;
    for option in [
        "-p",
        "-l",
        "-u",
        "-o",
        "-s",
        "-f",
        "-d",
        "--enable-cfs",
        "--runtime-dir",
        "--disable-zswap",
    ] {
        assert!(help.contains(option), "{option} is not in {help}");
    }
}

#[test]
fn signals_pid_file_and_mount_are_those_of_lxcfs() {
    let server = Lxcfs::ours(&["-f", "-s", "-l", "-o", "allow_other,nonempty", "--enable-pidfd"]);
    let pid_file = server.pid_file();
    let text = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(text, format!("{}\n", server.running.pid()));
    assert_eq!(fs::metadata(&pid_file).unwrap().permissions().mode() & 0o777, 0o600);
    let second = run(quiet(AMBIT).args(["lxcfs", "-p"]).arg(&pid_file).arg(server.file("proc")));
    assert_eq!(second.status, 1, "{second:?}");
    assert!(second.stderr.contains("already locked"), "{second:?}");

    let line = format!(" {} ", server.at.display());
    let all = mounts();
    let mount = all.lines().find(|mount| mount.contains(&line)).unwrap();
    assert!(mount.contains(" fuse.lxcfs lxcfs "), "{mount}");
    assert!(mount.contains("allow_other") && mount.contains("nosuid,nodev"), "{mount}");

    let cgroup = Cgroup::new("lxcfs", Limits { memory: Some(80 << 20), ..Limits::default() });
    let total = || {
        let script = format!("cat {}", server.file("proc/meminfo").display());
        kb(&run(&mut cgroup.script(&script)).ok(), "MemTotal")
    };
    assert_eq!(total(), 80 << 10);
    server.running.signal(Signal::USR1);
    assert_eq!(total(), 80 << 10);
    server.running.signal(Signal::USR2);
    let deadline = Instant::now() + machine::patience(5);
    while total() != machine::memory_kb() {
        assert!(Instant::now() < deadline, "SIGUSR2 does not switch virtualisation off");
    }
    assert!(server.file("sys/devices/system/cpu/online").exists());
    server.running.signal(Signal::USR2);
    while total() != 80 << 10 {
        assert!(Instant::now() < deadline, "SIGUSR2 does not switch virtualisation on");
    }
    let output = server.stop();
    assert_eq!(output.status, 0, "{output:?}");
    assert!(!pid_file.exists() && !mounts().contains(&line));
}

/// SIGUSR1 executes the program file again, which an upgrade has replaced.
#[test]
fn a_new_program_takes_the_mount_over() {
    let dir = readable_dir();
    let program = dir.path().join("lxcfs");
    fs::copy(AMBIT, &program).unwrap();
    let at = dir.path().join("mnt");
    let mut server =
        Lxcfs::start(quiet(program.to_str().unwrap()), dir, at, &["--enable-psi-poll"]);
    let line = |all: &str| {
        all.lines().filter(|line| line.contains(" fuse.lxcfs ")).map(str::to_owned).collect()
    };
    server.running.wait_for("serving in the place", machine::patience(20));
    let before: Vec<String> = line(&mounts());
    let meminfo = server.file("proc/meminfo");
    let cgroup = Cgroup::new("taken", Limits { memory: Some(80 << 20), ..Limits::default() });
    let script = format!(
        "exec 3<{file}; head -c 20 <&3; echo; echo open; n=0; while [ $n -lt 400 ]; do
             grep -q 'MemTotal: *81920 kB' {file} || echo failed; n=$((n + 1));
             read -r cpu user rest <{stat}; [ $user -ge ${{last:-0}} ] || echo failed; last=$user;
             done; cat <&3; echo end",
        stat = server.file("proc/stat").display(),
        file = meminfo.display()
    );
    let mut reader = start(&mut cgroup.script(&script));
    reader.wait_for("open", machine::patience(10));
    let device = fs::metadata(&program).unwrap();
    for round in 1..=3 {
        // As a package manager does it.
        let new = program.with_extension("new");
        fs::copy(AMBIT, &new).unwrap();
        fs::rename(&new, &program).unwrap();
        server.running.signal(Signal::USR1);
        let until = Instant::now() + machine::patience(20);
        let started = |server: &mut Lxcfs| {
            let (out, err) = server.running.printed();
            (out + &err).matches("serving in the place").count()
        };
        while started(&mut server) <= round {
            assert!(
                Instant::now() < until && !server.running.ended(),
                "{:?}",
                server.running.printed()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    let running = fs::metadata(format!("/proc/{}/exe", server.running.pid())).unwrap();
    assert_ne!(
        std::os::unix::fs::MetadataExt::ino(&device),
        std::os::unix::fs::MetadataExt::ino(&running)
    );
    let said = reader.finish(machine::patience(60)).stdout;
    assert!(said.ends_with("end\n") && !said.contains("failed"), "{said}");
    assert_eq!(line(&mounts()), before);
    let second = run(quiet(AMBIT).args(["lxcfs", "-p"]).arg(server.pid_file()).arg(&meminfo));
    assert!(second.stderr.contains("already locked"), "{second:?}");
    // A program that is gone is no reason to end.
    fs::remove_file(&program).unwrap();
    server.running.signal(Signal::USR1);
    server.running.wait_for("cannot execute the program again", machine::patience(10));
    assert_eq!(
        kb(&run(&mut cgroup.script(&format!("cat {}", meminfo.display()))).ok(), "MemTotal"),
        80 << 10
    );
    let pid_file = server.pid_file();
    let output = server.stop();
    assert_eq!(output.status, 0, "{output:?}");
    assert!(!pid_file.exists() && line(&mounts()).is_empty());
}

/// Incus starts one for each instance.
#[test]
fn several_instances_run_side_by_side() {
    let (first, second) = (Lxcfs::ours(&["-f", "--enable-cfs"]), Lxcfs::ours(&["-u"]));
    let cgroup = Cgroup::new(
        "each",
        Limits { memory: Some(80 << 20), quota: Some(100_000), ..Limits::default() },
    );
    let ask = |server: &Lxcfs, file: &str| {
        run(&mut cgroup.script(&format!("cat {}", server.file(file).display()))).ok()
    };
    assert_eq!(cpu_lines(&ask(&first, "proc/stat")).len(), 1);
    assert_eq!(cpu_lines(&ask(&second, "proc/stat")).len(), machine::processors());
    assert_eq!(kb(&ask(&second, "proc/meminfo"), "SwapTotal"), 0);
    // What is sampled for few files only arrives under this name too.
    let faults = ask(&first, "proc/vmstat");
    assert!(faults.contains("\npgfault ") && !faults.contains("\npgfault 0\n"), "{faults}");
    drop(second.stop());
    assert_eq!(kb(&ask(&first, "proc/meminfo"), "MemTotal"), 80 << 10);
    drop(first.stop());
}

/// All names below a folder, with type and permissions; links are not followed.
fn listing(server: &Lxcfs, folder: &str) -> BTreeMap<String, String> {
    let mut find = quiet("find");
    find.current_dir(&server.at).args([folder, "-printf", "%p %y%m\\n"]);
    let text = run(&mut find).stdout;
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(path, shape)| (path.to_owned(), shape.to_owned()))
        .collect()
}

/// What of the machine's processors lxcfs passes through and we do not show, as
/// docs/lxcfs-differences.md has it.
fn is_not_shown(path: &str) -> bool {
    let name = path.strip_prefix("sys/devices/system/cpu/").unwrap_or_default();
    let part = match name.split_once('/') {
        Some((cpu, part)) if cpu.starts_with("cpu") && cpu[3..].parse::<u32>().is_ok() => part,
        _ => name,
    };
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/lxcfs-differences.md");
    let table = fs::read_to_string(table).unwrap();
    let list = table.split_once("not shown: ").unwrap().1.split_once('.').unwrap().0;
    let mut names = list.split(',').map(|name| name.trim().trim_matches('`'));
    names.any(|name| part.split('/').any(|component| component == name))
}

#[test]
fn the_layout_is_that_of_debians_lxcfs() {
    let (ours, theirs) = (Lxcfs::ours(&["-l"]), Lxcfs::debians());
    let (mine, other) = (listing(&ours, "proc"), listing(&theirs, "proc"));
    assert!(other.len() > 8, "{other:?}");
    for (path, shape) in &other {
        let wanted = if path == "proc/slabinfo" { "f400" } else { shape };
        assert_eq!(mine.get(path).map(String::as_str), Some(wanted), "{path}");
    }
    let (mine, other) = (listing(&ours, "sys"), listing(&theirs, "sys"));
    let missing: BTreeSet<_> =
        other.keys().filter(|path| !mine.contains_key(*path) && !is_not_shown(path)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(mine.contains_key("sys/devices/system/cpu/uevent"));

    // The same container, the same numbers.
    let cgroup = Cgroup::new("both", Limits { memory: Some(96 << 20), ..Limits::default() });
    let ask = |server: &Lxcfs, file: &str| {
        run(&mut cgroup.script(&format!("cat {}", server.file(file).display()))).ok()
    };
    let keys = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split(':').next().unwrap().to_owned()).collect()
    };
    let (mine, other) = (ask(&ours, "proc/meminfo"), ask(&theirs, "proc/meminfo"));
    assert_eq!(keys(&mine), keys(&other));
    // On cgroup v2 some versions of lxcfs see no swap from where they run.
    assert_eq!(kb(&mine, "MemTotal"), kb(&other, "MemTotal"));
    let count = |server: &Lxcfs| ask(server, "proc/cpuinfo").matches("processor\t:").count();
    assert_eq!(count(&ours), count(&theirs));
    let words = |text: String| text.split_whitespace().count();
    for file in ["proc/uptime", "proc/loadavg"] {
        assert_eq!(words(ask(&ours, file)), words(ask(&theirs, file)), "{file}");
    }
    drop((ours.stop(), theirs.stop()));
}

/// Runs a script in a container with Debian's hooks as LXC includes them, and our server where they
/// look for lxcfs. Returns what it printed, and LXC's log.
#[track_caller]
fn hooked(args: &[&str], nested: bool, script: &str) -> (String, String) {
    machine::needs(&["lxc-execute", "newuidmap", "lxcfs"]);
    let hooks = Path::new("/usr/share/lxc/config/common.conf.d/00-lxcfs.conf");
    assert!(hooks.exists(), "lxcfs is not installed whole");
    let dir = readable_dir();
    let link = dir.path().join("lxcfs");
    symlink(AMBIT, &link).unwrap();
    let at = PathBuf::from("/var/lib/lxcfs");
    assert!(!mounts().contains(" /var/lib/lxcfs fuse"), "something serves /var/lib/lxcfs already");
    let server = Lxcfs::start(quiet(link.to_str().unwrap()), dir, at, args);

    let (root, state) = (root(), readable_dir());
    let config = state.path().join("config");
    let limits = if memory_is_v2() {
        "lxc.cgroup2.memory.max = 100M\nlxc.cgroup2.cpu.max = 100000 100000\n"
    } else {
        "lxc.cgroup.memory.limit_in_bytes = 100M\nlxc.cgroup.cpu.cfs_quota_us = 100000\n"
    };
    let text = format!(
        "lxc.uts.name = hooked\nlxc.rootfs.path = dir:{root}\n\
         lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n\
         lxc.mount.auto = proc:rw sys:ro\nlxc.net.0.type = empty\n\
         lxc.apparmor.profile = unconfined\nlxc.apparmor.allow_incomplete = 1\n\
         lxc.mount.entry = /usr usr none bind,ro 0 0\n\
         lxc.mount.entry = {programs} mnt none bind,ro 0 0\n\
         lxc.environment = PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
         lxc.include = {hooks}\n{limits}",
        root = root.path().display(),
        programs = machine::programs().display(),
        hooks = hooks.display(),
    );
    fs::write(&config, text).unwrap();
    if nested {
        fs::create_dir_all(root.path().join("var/lib/lxcfs")).unwrap();
    }
    let mut execute = quiet("lxc-execute");
    execute.arg("-P").arg(state.path()).args(["-n", "hooked", "-l", "INFO", "-o"]);
    execute.arg(state.path().join("log")).arg("-f").arg(&config);
    let output = run(execute.args(["--", "sh", "-c", script]));
    let log = fs::read_to_string(state.path().join("log")).unwrap_or_default();
    assert_eq!(output.status, 0, "{output:?}\n{log}");
    assert_eq!(server.stop().status, 0);
    (output.stdout, log)
}

/// The container has a place for lxcfs, for containers in it: the hook binds the whole overlay
/// there, which the kernel refuses if anything is mounted upon that.
#[test]
fn debians_hook_binds_our_files() {
    let script = "cat /proc/meminfo; echo @@; cat /proc/stat; echo @@; ls /sys/devices/system/cpu; \
                  echo @@; cat /proc/pressure/memory; echo @@; grep -c ' fuse.lxcfs ' /proc/mounts; \
                  echo @@; cat /var/lib/lxcfs/proc/meminfo; ls /var/lib/lxcfs/proc/pressure";
    let (output, log) = hooked(&["--enable-cfs", "-l"], true, script);
    let answers: Vec<_> = output.split("@@\n").collect();
    assert_eq!(kb(answers[0], "MemTotal"), 100 << 10);
    assert_eq!(cpu_lines(answers[1]).len(), 1);
    if Path::new("/sys/devices/system/cpu/online").exists() {
        let cpus = answers[2].lines().filter(|name| {
            name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok())
        });
        assert_eq!(cpus.count(), 1, "{}", answers[2]);
    }
    if Path::new("/proc/pressure").exists() {
        assert!(answers[3].starts_with("some avg10="), "{output}");
    }
    assert!(answers[4].trim().parse::<u32>().unwrap() >= 12, "{output}");
    assert_eq!(kb(answers[5], "MemTotal"), 100 << 10);
    assert!(answers[5].ends_with("cpu\nio\nmemory\n"), "{output}");
    let log = log.to_lowercase();
    for hook in ["lxc.mount.hook", "lxc.reboot.hook"] {
        assert!(log.contains(hook), "{hook} did not run: {log}");
    }
}

#[test]
fn triggers_are_set_in_debians_containers_where_they_are_asked_for() {
    if !Path::new("/proc/pressure").exists() {
        return machine::not_on_this_kernel("pressure");
    }
    let script = "/mnt/pressure_trigger /proc/pressure/memory 'some 150000 2000000' 1";
    let (output, log) = hooked(&["--enable-psi-poll"], false, script);
    assert_eq!(output, "armed\nfired 0\n", "{log}");
}
