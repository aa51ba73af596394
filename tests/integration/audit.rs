//! The audit log and the counts of operations, and the limits that protect containers from each
//! other: rate limits, and calls that hang.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::command::{self, Running, quiet};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{lxc, machine, oci, sandbox};

const ALL: [&str; 2] = ["--intercept", "sysinfo,mknod,setxattr"];

/// A daemon with an audit log. The folder is the log's.
fn audited(lines: &str) -> (Daemon, tempfile::TempDir, PathBuf) {
    let folder = readable_dir();
    let log = folder.path().join("audit.log");
    let lines = format!("mknod = true\nsetxattr = true\n{lines}\n[audit]\nfile = {log:?}\n");
    (Daemon::start_at(Place::intercepting(&lines)), folder, log)
}

fn lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).expect("every line is JSON")).collect()
}

/// Waits until the log is as it should be: it is written behind the acts.
#[track_caller]
fn wait(log: &Path, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let until = Instant::now() + machine::patience(20);
    loop {
        let lines = lines(log);
        if enough(&lines) {
            return lines;
        }
        let all = lines.len();
        assert!(Instant::now() < until, "the log stays at {all} lines: {lines:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn count(lines: &[Value], outcome: &str) -> usize {
    lines.iter().filter(|line| line["outcome"] == outcome).count()
}

/// The call's counts of the only container that has made one.
#[track_caller]
fn counts(daemon: &Daemon, call: &str) -> Value {
    let status = daemon.status();
    let all = status["intercepted"].as_array().unwrap();
    let calls = all.iter().flat_map(|container| container["calls"].as_array().unwrap());
    let mut of_it = calls.filter(|one| one["name"] == call);
    of_it.next().unwrap_or_else(|| panic!("no {call} in {status:#}")).clone()
}

#[test]
fn operations_are_logged_and_calls_left_to_the_kernel_are_not() {
    let (daemon, _folder, log) = audited("");
    let script = "cd /tmp; /mnt/node_call make n 1 3; /mnt/node_call make n 1 3; /mnt/node_call make $'a\\nb\"' 1 5
        /mnt/node_call make fuse 10 229; mkfifo f; mkdir d; /mnt/node_call opaque d; busybox free >/dev/null
        echo done; read line";
    let script = format!("exec bash -c '{}'", script.replace('\'', "'\\''"));
    let mut run = sandbox::command(&daemon, &ALL, &script);
    run.stdin(std::process::Stdio::piped());
    let mut running = command::start(&mut run);
    running.wait_for("done", machine::patience(30));
    let logged = wait(&log, |lines| lines.len() >= 4);
    let told: Vec<_> = logged
        .iter()
        .map(|line| {
            let name = line["arguments"]["path"].as_str().unwrap();
            let errno = line["errno"].as_str().unwrap_or("-");
            format!(
                "{} {name} {} {errno}",
                line["call"].as_str().unwrap(),
                line["outcome"].as_str().unwrap()
            )
        })
        .collect();
    let call = |line: &str| line.replace("mknodat ", "mknod ");
    let told: Vec<_> = told.iter().map(|line| call(line)).collect();
    assert_eq!(
        told,
        [
            "mknod n granted -",
            "mknod n refused EEXIST",
            "mknod a\nb\" granted -",
            "setxattr d granted -"
        ]
    );
    let first = &logged[0];
    assert_eq!(
        (&first["comm"], &first["arguments"]["device"]),
        (&"node_call".into(), &"c 1:3".into())
    );
    let (pid, host) = (first["pid"].as_u64().unwrap(), first["host_pid"].as_u64().unwrap());
    assert!(pid > 1 && pid < host, "{first}");
    assert!(first["duration_us"].as_u64().is_some(), "{first}");
    let time = first["time"].as_str().unwrap();
    assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);

    let mknod = counts(&daemon, "mknod");
    assert_eq!((&mknod["granted"], &mknod["refused"]), (&2.into(), &1.into()), "{mknod}");
    assert_eq!(mknod["failed"], 0, "{mknod}");
    assert!(counts(&daemon, "sysinfo")["granted"].as_u64().unwrap() >= 1);
    let mut ask = quiet(machine::AMBIT);
    let text = command::run(ask.args(["status", "--config"]).arg(daemon.place().config())).ok();
    assert!(text.contains("GRANTED") && text.contains("mknod"), "{text}");

    running.signal_group(Signal::KILL);
    drop(running);
    let until = Instant::now() + machine::patience(20);
    while !daemon.status()["intercepted"].as_array().unwrap().is_empty() {
        assert!(Instant::now() < until, "its counts are not forgotten: {}", daemon.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.stop().0.ok();
}

#[test]
fn mounts_and_priorities_are_logged_with_the_reason() {
    let (daemon, folder, log) =
        audited("mount.enabled = true\nmount.allowed = [\"ext4\"]\nsched_setscheduler = true\n");
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    command::run(quiet("mke2fs").args(["-qFt", "ext4"]).arg(&image)).ok();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o666)).unwrap();
    let bind = format!("{}:/run/i", folder.path().display());
    let args = ["--intercept", "mount,sched_setscheduler", "--bind", &bind];
    let script =
        "cd /tmp; mkdir m; truncate -s 1M junk; /mnt/mount_call /run/i/image m ext4 0; umount m
        /mnt/mount_call junk m ext4 0; /mnt/mount_call /run/i/image m ext3 0
        python3 -c 'import os; os.setpriority(0, 0, -5)'";
    let output = sandbox::run(&daemon, &args, script);
    assert_eq!(output.ok(), "ok\nEINVAL\nEPERM\n");
    let logged = wait(&log, |lines| lines.len() >= 3);
    let told = logged.iter().map(|line| {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let [call, outcome, errno] = ["call", "outcome", "errno"].map(|name| text(&line[name]));
        format!("{call} {} {outcome} {errno}", text(&line["arguments"]["source"]))
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        ["mount /run/i/image granted -", "mount junk refused EINVAL", "setpriority - granted -"]
    );
    assert_eq!(logged[0]["arguments"]["filesystem"], "ext4");
    assert!(logged[1]["reason"].as_str().unwrap().contains("ext4"), "{}", logged[1]);
    assert!(logged[2]["arguments"]["scheduling"].as_str().unwrap().contains("-5"), "{}", logged[2]);
    daemon.stop().0.ok();
}

#[test]
fn reload_opens_a_log_that_was_moved() {
    let (daemon, folder, log) = audited("");
    let make = |name: &str| {
        let script = format!("/mnt/node_call make /tmp/{name} 1 3");
        assert_eq!(sandbox::run(&daemon, &ALL, &script).ok(), "ok\n");
    };
    make("first");
    wait(&log, |lines| lines.len() == 1);
    let moved = folder.path().join("audit.log.1");
    fs::rename(&log, &moved).unwrap();
    let mut reload = quiet(machine::AMBIT);
    command::run(reload.args(["reload", "--config"]).arg(daemon.place().config())).ok();
    make("second");
    let now = wait(&log, |lines| lines.len() == 1);
    assert_eq!(now[0]["arguments"]["path"], "/tmp/second");
    assert_eq!(lines(&moved).len(), 1);
    // A folder that is missing: told once, and everything stays.
    let config = fs::read_to_string(daemon.place().config()).unwrap();
    let missing = config.replace("audit.log", "missing/audit.log");
    fs::write(daemon.place().config(), missing).unwrap();
    let mut reload = quiet(machine::AMBIT);
    let said = command::run(reload.args(["reload", "--config"]).arg(daemon.place().config()));
    assert!(said.status != 0 && said.stderr.contains("cannot open the audit log"), "{said:?}");
    assert_eq!(said.stderr.matches("No such file").count(), 1, "{}", said.stderr);
    make("third");
    wait(&log, |lines| lines.len() == 2);
    daemon.stop().0.ok();
}

/// Makes and removes a node so often while a signal comes every few microseconds.
fn interrupted(path: &str, count: u32, often: u32) -> String {
    format!("/mnt/node_call signals {path} {count} {}", often * machine::slowness())
}

#[test]
fn a_call_that_signals_interrupt_is_logged_once() {
    let (daemon, _folder, log) = audited("");
    let script = interrupted("/tmp/n", 50, 2000);
    let said = sandbox::run(&daemon, &ALL, &script).ok();
    let existed = said.strip_prefix("failed: 0\nexisted: ").unwrap_or_else(|| panic!("{said}"));
    let logged = wait(&log, |lines| count(lines, "granted") >= 50);
    assert_eq!(count(&logged, "granted"), 50);
    assert_eq!(count(&logged, "refused").to_string(), existed.trim(), "{logged:#?}");
    assert_eq!(count(&logged, "error"), 0, "{logged:#?}");
    daemon.stop().0.ok();
}

#[test]
fn under_lxc_a_call_that_signals_interrupt_is_logged_once() {
    let (daemon, _folder, _log) = audited("");
    let script = interrupted("/root/n", 500 / machine::slowness(), 2000);
    let output = lxc::run(&daemon, 144 << 20, 100_000, &script);
    let said = output.stderr.get(..2000).unwrap_or(&output.stderr);
    assert!(output.stdout.starts_with("failed: 0\n"), "{}{said}", output.stdout);
    daemon.stop().0.ok();
}

#[test]
fn a_flood_is_logged_as_a_number_of_omitted_lines() {
    let (daemon, _folder, log) = audited("");
    let mut run =
        sandbox::command(&daemon, &ALL, "/mnt/node_call flood /tmp 20 2000; echo; read line");
    run.stdin(std::process::Stdio::piped());
    let mut running = command::start(&mut run);
    running.wait_for("flooded\n\n", machine::patience(30));
    let mknod = counts(&daemon, "mknod");
    let acts = mknod["granted"].as_u64().unwrap() + mknod["refused"].as_u64().unwrap();
    let told = |lines: &[Value]| {
        lines.iter().filter_map(|line| line["lines_left_out"].as_u64()).sum::<u64>()
    };
    // A slow machine does not make more acts than may be logged.
    wait(&log, |lines| told(lines) > 0 || lines.len() as u64 >= acts);
    running.signal_group(Signal::KILL);
    drop(running);
    daemon.stop().0.ok();
}

/// The longest line of a log: texts of the caller are cut to 256 bytes, a message to 1024.
const LONGEST_LINE: usize = 2500;

#[test]
fn long_arguments_are_cut_in_both_logs() {
    let (daemon, _folder, log) = audited("mount.enabled = true\nmount.allowed = [\"ext4\"]\n");
    let script = "/mnt/mount_call long 30 ext4";
    sandbox::run(&daemon, &["--intercept", "mount"], script).ok();
    let logged = wait(&log, |lines| lines.len() >= 30);
    assert_eq!(logged[0]["outcome"], "refused", "{}", logged[0]);
    let text = fs::read_to_string(&log).unwrap();
    let said = daemon.stop().0.stderr;
    assert!(said.contains("not mounted"), "{said:.2000}");
    for line in text.lines().chain(said.lines()) {
        assert!(line.len() < LONGEST_LINE, "{} bytes: {line}", line.len());
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap()
}

/// What it takes is the container's: its quota slows it down, not the daemon.
#[test]
fn the_process_that_looks_a_mount_up_is_in_the_containers_control_groups() {
    let (daemon, folder, _log) = audited("mount.enabled = true\nmount.allowed = [\"ext4\"]\n");
    let (hung, server) = hang(folder.path());
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o666)).unwrap();
    let binds = [&hung, &image].map(|path| format!("{}:/run/{}", path.display(), name_of(path)));
    let args = ["--intercept", "mount", "--bind", &binds[0], "--bind", &binds[1]];
    let script = "exec /mnt/mount_call /run/image /run/hung/hang/m ext4 0";
    let caller = command::start(&mut sandbox::command(&daemon, &args, script));
    let text = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let children = |pid: u32| -> Vec<u32> {
        let all = text(pid, &format!("task/{pid}/children")).unwrap_or_default();
        all.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    };
    let is_broker = |pid: &u32| text(*pid, "comm").is_ok_and(|comm| comm == "ambit-broker\n");
    let broker = children(daemon.pid()).into_iter().find(is_broker).expect("a broker");
    let until = Instant::now() + machine::patience(20);
    let own = text(broker, "cgroup").unwrap();
    let mut processes = 0;
    // It enters them before anything else, and then waits for the folder that hangs.
    loop {
        let all = children(broker).into_iter().flat_map(children);
        let groups: Vec<_> = all.filter_map(|process| text(process, "cgroup").ok()).collect();
        processes = processes.max(groups.len());
        if groups.iter().any(|groups| *groups != own) {
            break;
        }
        assert!(Instant::now() < until, "{processes} processes outside");
        std::thread::sleep(Duration::from_millis(5));
    }
    caller.signal_group(Signal::KILL);
    drop(caller);
    drop(server);
    rustix::mount::unmount(&hung, rustix::mount::UnmountFlags::DETACH).unwrap();
    daemon.stop().0.ok();
}

#[test]
fn a_container_over_its_rate_limit_is_delayed_and_others_are_not() {
    let (daemon, _folder, _log) = audited("limit.calls = 60\n");
    let flood = "for i in 1 2 3 4 5 6 7 8; do /mnt/sysinfo loop 40 & done
        echo begun; wait; echo flooded; read line";
    let mut flood = sandbox::command(&daemon, &ALL, flood);
    flood.stdin(std::process::Stdio::piped());
    let mut flooding = command::start(&mut flood);
    flooding.wait_for("begun", machine::patience(20));
    // Right, and all of them, while the flood goes on.
    let script = "for i in 1 2 3 4 5 6 7 8 9; do /mnt/sysinfo | grep ^total_kb; done";
    let other = sandbox::run(&daemon, &[&ALL[..], &["--memory", "96M"]].concat(), script).ok();
    assert_eq!(other, "total_kb=98304\n".repeat(9));
    flooding.wait_for("flooded", machine::patience(60));
    let status = daemon.status();
    let all = status["intercepted"].as_array().unwrap();
    let delayed = all.iter().filter_map(|one| one["delayed"].as_u64()).max();
    assert!(delayed > Some(0), "no call was delayed: {status}");
    assert!(counts(&daemon, "sysinfo")["granted"].as_u64().unwrap() >= 320, "{status}");
    flooding.signal_group(Signal::KILL);
    drop(flooding);
    daemon.stop().0.ok();
}

/// A filesystem at `hung` in this folder that does not answer, and who serves it.
fn hang(folder: &Path) -> (PathBuf, Running) {
    let hung = folder.join("hung");
    fs::create_dir(&hung).unwrap();
    let programs = machine::programs().join("hung_memory");
    let mut server = command::start(quiet(programs.to_str().unwrap()).arg("serve").arg(&hung));
    server.wait_for("mounted", machine::patience(20));
    (hung, server)
}

#[test]
fn an_operation_that_hangs_does_not_delay_other_calls_of_its_container() {
    let (daemon, folder, _log) = audited("");
    let (hung, server) = hang(folder.path());
    let bind = format!("{}:/run/hung", hung.display());
    let args = [&ALL[..], &["--memory", "96M", "--bind", &bind]].concat();
    // The thread that makes the first node also takes the next calls.
    let script =
        "cd /tmp; sh -c '/mnt/node_call make a 1 3; /mnt/node_call make /run/hung/hang/b 1 3' &
        sleep 1; /mnt/sysinfo | grep ^total_kb; wait; /mnt/node_call make c 1 3";
    let text = sandbox::run(&daemon, &args, script).ok();
    assert_eq!(text, "ok\ntotal_kb=98304\nETIMEDOUT\nok\n");
    drop(server);
    rustix::mount::unmount(&hung, rustix::mount::UnmountFlags::DETACH).unwrap();
    daemon.stop().0.ok();
}

#[test]
fn memory_that_hangs_delays_its_own_container_only() {
    let (daemon, folder, _log) = audited("");
    let (hung, server) = hang(folder.path());
    let bind = format!("{}:/run/hung", hung.display());
    let args = [&ALL[..], &["--bind", &bind]].concat();
    let script = "exec /mnt/hung_memory call /run/hung/file 12";
    let mut caller = command::start(&mut sandbox::command(&daemon, &args, script));
    caller.wait_for("hanging", machine::patience(20));
    let script =
        "for i in 1 2 3; do /mnt/sysinfo | grep ^total_kb; /mnt/node_call make /tmp/n$i 1 3; done";
    let other = sandbox::run(&daemon, &[&ALL[..], &["--memory", "96M"]].concat(), script).ok();
    assert_eq!(other, "total_kb=98304\nok\n".repeat(3));
    assert!(!caller.printed().0.contains("answered"), "it did hang");
    caller.signal_group(Signal::KILL);
    drop(caller);
    drop(server);
    rustix::mount::unmount(&hung, rustix::mount::UnmountFlags::DETACH).unwrap();
    // Threads that were lost come back, and the daemon ends as always.
    let threads = |pid: u32| {
        let all = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let comm = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
        let names: Vec<_> =
            all.filter_map(comm).filter(|name| name.starts_with("notify-")).collect();
        (names.iter().collect::<BTreeSet<_>>().len(), names.len())
    };
    let until = Instant::now() + machine::patience(20);
    loop {
        let (watches, all) = threads(daemon.server_pid());
        if watches == all {
            break;
        }
        assert!(Instant::now() < until, "{all} threads for {watches} sets of listeners");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.stop().0.ok();
}

#[test]
fn runc() {
    let (daemon, _folder, log) = audited("");
    let script = "cd /root; mknod n c 1 3; mknod n c 1 3 2>/dev/null || echo exists";
    let output = oci::run("runc", &daemon, oci::Container::with_users(script));
    assert_eq!(output.ok(), "exists\n");
    let logged = wait(&log, |lines| lines.len() >= 2);
    assert_eq!((count(&logged, "granted"), count(&logged, "refused")), (1, 1), "{logged:#?}");
    assert!(logged.iter().all(|line| !line["container"].as_str().unwrap().is_empty()));
    daemon.stop().0.ok();
}
