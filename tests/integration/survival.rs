//! The server dies, is replaced, is stopped and started: nothing inside a container notices.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::command::Output;
use crate::harness::daemon::{Daemon, Place, mounts, readable_dir};
use crate::harness::{cgroup, command, lxc, machine, sandbox, text};
use crate::steady::held;

/// Before Linux 6.9 the kernel does not send again what a dead server had read.
pub(crate) fn resends() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 9) {
        eprintln!("not on this kernel: requests in flight are not sent again ({release})");
    }
    version >= (6, 9)
}

fn kill_server(daemon: &Daemon) -> u32 {
    let server = daemon.server_pid();
    let pid = Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    server
}

/// The server that follows when this one dies.
fn standby(daemon: &Daemon) -> Pid {
    let (keeper, server) = (daemon.pid(), daemon.server_pid());
    let is_it = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        pid != server && status.contains(&format!("\nPPid:\t{keeper}\n"))
    };
    let until = Instant::now() + machine::patience(10);
    loop {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|one| one.file_name().to_str()?.parse::<u32>().ok());
        if let Some(pid) = pids.find(|pid| is_it(*pid)) {
            return Pid::from_raw(pid.cast_signed()).unwrap();
        }
        assert!(Instant::now() < until, "nobody stands by");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The next read that is answered. Where the kernel can send again what the dead server had read,
/// that is the very next one.
fn next_read(daemon: &Daemon) -> String {
    loop {
        match fs::read_to_string(daemon.file("proc/meminfo")) {
            Ok(text) => return text,
            Err(error) if resends() => panic!("{error}"),
            Err(error) => eprintln!("unavoidable before Linux 6.9: {error}"),
        }
    }
}

#[test]
fn a_killed_server_has_a_successor_that_knows_the_containers() {
    let daemon = Daemon::start();
    let script = "echo ready; n=0; while [ $n -lt 40 ]; do \
                  head -1 /proc/meminfo; /mnt/sysinfo || echo failed; sleep 0.05; n=$((n+1)); done";
    let mut running = command::start(&mut sandbox::command(&daemon, &["--memory", "64M"], script));
    running.wait_for("ready", machine::patience(20));
    let counted = || {
        let status = daemon.status();
        let sysinfo = status["calls"][0]["answered"].as_u64().unwrap();
        (status["files"]["opened"].as_u64().unwrap(), sysinfo)
    };
    let mut before = (0, 0);
    for turn in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        let now = counted();
        assert!(now.0 > before.0 && now.1 >= before.1, "{now:?} after {before:?}");
        before = now;
        if turn == 1 {
            // Then one is started from nothing.
            kill_process(standby(&daemon), Signal::KILL).unwrap();
        }
        let server = kill_server(&daemon);
        let meminfo = next_read(&daemon);
        assert!(text::kb(&meminfo, "MemTotal") > 0);
        assert_ne!(daemon.server_pid(), server);
    }
    let output = running.finish(machine::patience(60)).ok();
    let now = counted();
    assert!(now.0 > before.0 && now.1 >= before.1.max(1), "{now:?} after {before:?}");
    let totals: Vec<_> = output.lines().filter(|line| line.starts_with("MemTotal")).collect();
    if resends() {
        assert_eq!(totals.len(), 40, "{output}");
    }
    assert!(totals.iter().all(|line| line.contains(" 65536 kB")), "{output}");
    assert!(!output.contains("failed"), "{output}");
    assert_eq!(daemon.status()["restarts"], 3);
}

#[test]
fn a_server_that_stops_answering_is_replaced() {
    let daemon = Daemon::start();
    let server = daemon.server_pid();
    let pid = Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let began = Instant::now();
    // Its threads stop one after the other, and might answer before.
    while !all_stopped(server) {
        assert!(began.elapsed() < machine::patience(20));
        std::thread::sleep(Duration::from_millis(2));
    }
    let meminfo = next_read(&daemon);
    assert!(text::kb(&meminfo, "MemTotal") > 0);
    assert!(began.elapsed() < machine::patience(20));
    assert_ne!(daemon.server_pid(), server);
}

/// Do all threads of a process stand still?
fn all_stopped(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

/// A number from the environment, for the long form of a test.
fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn nothing_fails_while_servers_are_killed_and_replaced() {
    let containers = number("AMBIT_SURVIVAL_CONTAINERS", 6);
    let kills = number("AMBIT_SURVIVAL_KILLS", 20);
    let upgrades = number("AMBIT_SURVIVAL_UPGRADES", 4);
    let mut daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let (stop, running) = survivors(&daemon, usize::try_from(containers).unwrap());
    let mut random = std::process::id().wrapping_mul(2_654_435_761);
    let mut pauses = Vec::new();
    let early = [daemon.pid(), daemon.server_pid()].map(held);
    for turn in 0..kills + upgrades {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(u64::from(random >> 16) % 200));
        if turn % (kills / upgrades.max(1) + 1) == 0
            && turn / (kills / upgrades.max(1) + 1) < upgrades
        {
            upgrade(&daemon);
            continue;
        }
        kill_server(&daemon);
        let killed = Instant::now();
        next_read(&daemon);
        pauses.push(killed.elapsed());
    }
    let late = [daemon.pid(), daemon.server_pid()].map(held);
    fs::write(stop.path().join("stop"), "").unwrap();
    let mut failed = Vec::new();
    for one in running {
        let output = one.finish(machine::patience(60)).ok();
        if !output.contains(" failures=0 ") {
            failed.push(output);
        }
    }
    pauses.sort();
    let median = pauses.get(pauses.len() / 2).copied().unwrap_or_default();
    eprintln!(
        "{} kills, {upgrades} upgrades, {} containers failed; from SIGKILL to the next answered read: median {median:?}, longest {:?}",
        pauses.len(),
        failed.len(),
        pauses.last()
    );
    eprintln!("kB and descriptors of keeper and server: {early:?} before, {late:?} after");
    // A standby or a new program that is just started has two.
    let ([early, _], [late, _]) = (early, late);
    assert!(
        late.0 <= early.0 + early.0 / 8 + 2048 && late.1 <= early.1 + 8,
        "the keeper went from {early:?} to {late:?}"
    );
    if resends() {
        let (count, texts) = (failed.len(), failed.join("\n"));
        assert!(failed.is_empty(), "{count} of {containers}: {texts}\n{}", daemon.log());
    } else {
        eprintln!("unavoidable before Linux 6.9: {}\n{}", failed.join("\n"), daemon.log());
        assert!(
            failed.iter().all(|text| !text.contains("goes back") && !text.contains("wrong memory"))
        );
    }
}

/// The same program again, as a new one.
fn upgrade(daemon: &Daemon) {
    upgrade_to(daemon, Path::new(machine::AMBIT));
}

fn upgrade_to(daemon: &Daemon, program: &Path) {
    let server = daemon.server_pid();
    reload_with(daemon, program).ok();
    assert_ne!(daemon.server_pid(), server);
}

fn reload_with(daemon: &Daemon, program: &Path) -> Output {
    let mut reload = command::quiet(machine::AMBIT);
    reload.arg("reload").arg("--config").arg(daemon.place().config());
    command::run(reload.arg("--exec").arg(program))
}

/// A program in a folder.
fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_program_that_fails_its_check_leaves_the_old_one() {
    let daemon = Daemon::start();
    let server = daemon.server_pid();
    let folder = readable_dir();
    // An ambit that cannot see the control groups, and others that are none, crash or hang.
    let blind = script(
        folder.path(),
        "blind",
        &format!(
            "exec unshare --mount sh -c 'mount -t tmpfs none /sys && exec {} \"$@\"' blind \"$@\"",
            machine::AMBIT
        ),
    );
    let crash = script(folder.path(), "crash", "kill -SEGV $$");
    let hang = script(folder.path(), "hang", "exec sleep 1000");
    for (program, why) in [
        (Path::new("/bin/false"), "exit status: 1"),
        (&blind, "it fails its check: "),
        (&crash, "signal: 11"),
        (&hang, "not ready after 10 s"),
        (&folder.path().join("ambit.toml"), "ambit.toml"),
    ] {
        let output = reload_with(&daemon, program);
        assert_eq!(output.status, 2, "{output:?}");
        assert!(output.stderr.contains(why), "{output:?}");
        assert_eq!(daemon.server_pid(), server);
        assert!(text::kb(&next_read(&daemon), "MemTotal") > 0);
    }
    // What is wrong with the configuration is told too.
    let config = daemon.place().config();
    let right = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{right}mknood = true\n")).unwrap();
    let socket = daemon.socket("control.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    writeln!(stream, "exec {}", machine::AMBIT).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(answer.contains("mknood"), "{answer}");
    fs::write(&config, right).unwrap();
    assert_eq!(daemon.server_pid(), server);
}

#[test]
fn a_program_that_dies_before_it_serves_is_followed_by_the_old_one() {
    let daemon = Daemon::start();
    let folder = readable_dir();
    // It passes the check and says so, and then it is gone.
    let text = "exec python3 -c 'import os, socket
s = socket.socket(fileno=os.dup(0)); s.send(b\"prepared\"); s.recv(9)'";
    let server = daemon.server_pid();
    // Its end is the answer, or nobody listens for a moment.
    reload_with(&daemon, &script(folder.path(), "short", text));
    assert!(text::kb(&next_read(&daemon), "MemTotal") > 0);
    assert_ne!(daemon.server_pid(), server);
    let program = fs::read_link(format!("/proc/{}/exe", daemon.server_pid())).unwrap();
    assert_eq!(program, Path::new(machine::AMBIT).canonicalize().unwrap());
}

/// The same program with other numbers at the end of the names of what it keeps in memory.
fn another_version(folder: &Path) -> PathBuf {
    let path = folder.join("ambit");
    fs::copy(machine::AMBIT, &path).unwrap();
    for name in ["journal-of-calls", "baselines"] {
        let other = |version| format!("{name}\\.{version}");
        let has = |text: &str| {
            let mut grep = command::quiet("grep");
            command::run(grep.env("LC_ALL", "C").args(["-qa", text]).arg(&path)).status == 0
        };
        assert!(has(&other(1)) && !has(&other(7)));
        let mut sed = command::quiet("sed");
        let change = format!("s/{}/{name}.7/g", other(1));
        command::run(sed.env("LC_ALL", "C").args(["-i", &change]).arg(&path)).ok();
        assert!(!has(&other(1)) && has(&other(7)));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_program_of_another_version_begins_anew_and_fails_nothing() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let folder = readable_dir();
    let other = another_version(folder.path());
    let (stop, running) = survivors(&daemon, 2);
    for _ in 0..2 {
        upgrade_to(&daemon, &other);
        upgrade_to(&daemon, Path::new(machine::AMBIT));
    }
    fs::write(stop.path().join("stop"), "").unwrap();
    for one in running {
        let output = one.finish(machine::patience(60)).ok();
        // The calls under way end before the programs change. Counters may begin anew.
        let failed = output.lines().filter(|line| !line.contains(" goes back"));
        let failed: Vec<_> = failed.filter(|line| line.contains(" (round ")).collect();
        assert!(failed.is_empty() || !resends(), "{output}");
        assert!(output.contains(" failures="), "{output}");
    }
}

/// Programs that look at everything until a file appears, one in each of some containers.
pub(crate) fn survivors(
    daemon: &Daemon,
    count: usize,
) -> (tempfile::TempDir, Vec<command::Running>) {
    let stop = readable_dir();
    let bind = format!("{}:/srv:ro", stop.path().display());
    let script = "echo ready; exec /mnt/survivor /srv/stop 65536 /tmp/node";
    let args = ["--memory", "64M", "--intercept", "sysinfo,mknod", "--bind", &bind];
    let mut running: Vec<_> =
        (0..count).map(|_| command::start(&mut sandbox::command(daemon, &args, script))).collect();
    running.iter_mut().for_each(|one| one.wait_for("ready", machine::patience(60)));
    (stop, running)
}

#[test]
fn a_service_manager_brings_a_killed_keeper_back() {
    let place = Place::intercepting("mknod = true\n");
    let store = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/fd_store.py");
    let mut serve = command::quiet(store);
    serve.arg(machine::AMBIT).arg("serve").arg("--config").arg(place.config());
    let daemon = Daemon::start_below(place, &mut serve);
    let (stop, running) = survivors(&daemon, 2);
    for _ in 0..number("AMBIT_SURVIVAL_KEEPERS", 2) {
        let keeper = i32::try_from(daemon.status()["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
        let until = Instant::now() + machine::patience(20);
        while daemon.try_status().is_none_or(|status| status["pid"] == keeper) {
            assert!(Instant::now() < until, "no keeper comes back");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(150));
    }
    fs::write(stop.path().join("stop"), "").unwrap();
    for one in running {
        let output = one.finish(machine::patience(60)).ok();
        assert!(!resends() || output.contains(" failures=0 "), "{output}");
    }
    command::run(
        command::quiet(machine::AMBIT)
            .args(["stop", "--release", "--config"])
            .arg(daemon.place().config()),
    )
    .ok();
    assert_eq!(daemon.ended(), "unmounted");
}

#[test]
fn a_server_that_lost_its_keeper_serves_until_it_is_stopped() {
    for end in ["stop", "signal"] {
        let daemon = Daemon::start();
        let (server, place) = (daemon.server_pid(), daemon.lose_keeper());
        let ambit = |words: &[&str]| {
            let mut ambit = command::quiet(machine::AMBIT);
            command::run(ambit.args(words).arg("--config").arg(place.config()))
        };
        let until = Instant::now() + machine::patience(10);
        // It notices in a moment.
        while !ambit(&["status", "--json"]).ok().contains(&format!("\"pid\": {server}")) {
            assert!(Instant::now() < until, "it does not know that it is alone");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(
            fs::read_to_string(place.mount().join("proc/meminfo")).unwrap().contains("MemTotal")
        );
        let refused = ambit(&["reload", "--exec", machine::AMBIT]);
        assert!(
            refused.status == 2 && refused.stderr.contains("the keeper is gone"),
            "{refused:?}"
        );
        let pid = Pid::from_raw(server.cast_signed()).unwrap();
        match end {
            "stop" => drop(ambit(&["stop"]).ok()),
            _ => kill_process(pid, Signal::TERM).unwrap(),
        }
        // One that nobody waits for has no command line.
        let line = format!("/proc/{server}/cmdline");
        while fs::read(&line).is_ok_and(|line| !line.is_empty()) {
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!place.is_mounted() && !place.runtime().join("control.sock").exists());
    }
}

#[test]
fn a_changed_configuration_reaches_running_containers() {
    let daemon = Daemon::start();
    let folder = readable_dir();
    let bind = format!("{}:/run/i", folder.path().display());
    let script =
        "/mnt/node_call make /tmp/a 1 3; echo ready; while [ ! -e /run/i/go ]; do sleep .1; done
        /mnt/node_call make /tmp/b 1 3";
    let args = ["--intercept", "mknod", "--bind", &bind];
    let mut running = command::start(&mut sandbox::command(&daemon, &args, script));
    running.wait_for("ready", machine::patience(20));
    let reload = || {
        let mut reload = command::quiet(machine::AMBIT);
        command::run(reload.arg("reload").arg("--config").arg(daemon.place().config()))
    };
    let text = fs::read_to_string(daemon.place().config()).unwrap();
    fs::write(daemon.place().config(), format!("{text}mknood = true\n")).unwrap();
    let refused = reload();
    assert!(refused.status == 2 && refused.stderr.contains("mknood"), "{refused:?}");
    fs::write(daemon.place().config(), format!("{text}mknod = true\n")).unwrap();
    reload().ok();
    // Who stands by has read it too.
    kill_server(&daemon);
    next_read(&daemon);
    fs::write(folder.path().join("go"), "").unwrap();
    assert_eq!(running.finish(machine::patience(20)).ok(), "EPERM\nready\nok\n");
}

/// A container that mounts and unmounts until a file appears, and prints each call that failed.
#[test]
fn a_mount_that_is_under_way_ends_and_one_that_was_made_goes_on() {
    machine::needs(&["mke2fs", "fuse2fs", "mksquashfs", "squashfuse"]);
    let by_kernel = "mount = true\n\"mount.allowed\" = [\"ext4\"]\n\"mount.shift\" = true\n";
    let by_helper =
        "mount = true\n\"mount.fuse\" = { ext4 = \"fuse2fs\", squashfs = \"squashfuse\" }\n";
    for (lines, kinds) in [(by_kernel, &["ext4"][..]), (by_helper, &["ext4", "squashfs"])] {
        for kind in kinds {
            mounts_while_killed(lines, kind);
        }
    }
}

fn mounts_while_killed(lines: &str, kind: &str) {
    let folder = readable_dir();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("tree/kept"), "kept").unwrap();
    fs::File::create(path("ext4")).unwrap().set_len(8 << 20).unwrap();
    let mut make = command::quiet(if kind == "ext4" { "mke2fs" } else { "mksquashfs" });
    match kind {
        "ext4" => make.args(["-q", "-F", "-t", "ext4"]).arg(path("ext4")),
        _ => make.arg(path("tree")).arg(path("squashfs")),
    };
    command::run(&mut make).ok();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(path(kind), fs::Permissions::from_mode(0o666)).unwrap();
    let daemon = Daemon::start_at(Place::intercepting(lines));
    let before = mounts().lines().count();
    // A mount whose call was ended with EINTR may come a moment later: it is waited for, at the end
    // for longer, because on a busy machine it comes when nobody waits any more.
    let write = if kind == "ext4" { "echo word >m/file && cat m/file" } else { "cat m/kept" };
    let script = format!(
        "mkdir /tmp/m; cd /tmp; echo ready; while [ ! -e /run/i/stop ]; do
             said=$(/mnt/mount_call /run/i/{kind} /tmp/m {kind} 0); echo call $said
             [ $said = ok ] || {{ sleep .3; grep -q ' /tmp/m ' /proc/self/mountinfo || continue; }}
             for i in 1 2 3 4 5; do {write} >/dev/null || echo lost; sleep .02; done
             umount m || echo stays
         done; for i in 1 2 3 4 5 6 7 8; do sleep .5; umount m 2>/dev/null; done
         grep ' /tmp/m ' /proc/self/mountinfo"
    );
    let bind = format!("{}:/run/i", folder.path().display());
    let args = ["--intercept", "mount", "--bind", &bind, "--device", "/dev/fuse"];
    let mut running = command::start(&mut sandbox::command(&daemon, &args, &script));
    running.wait_for("call ok", machine::patience(30));
    for turn in 0..number("AMBIT_SURVIVAL_KILLS", 8) {
        std::thread::sleep(Duration::from_millis(40 + turn * 37 % 150));
        kill_server(&daemon);
        next_read(&daemon);
    }
    fs::write(path("stop"), "").unwrap();
    let output = running.finish(machine::patience(60));
    let (text, said) = (output.stdout.clone(), output.stderr);
    for line in text.lines().filter(|line| *line != "ready") {
        assert!(["call ok", "call EINTR"].contains(&line), "{kind}: {text}{said}");
    }
    assert_eq!(mounts().lines().count(), before, "{}", mounts());
    let until = Instant::now() + machine::patience(10);
    let image = path(kind);
    while !uses_of(&image).is_empty() {
        assert!(Instant::now() < until, "left over: {:?}", uses_of(&image));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Loop devices of a file, and helpers that serve it.
fn uses_of(image: &Path) -> Vec<String> {
    let image = image.to_str().unwrap();
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|one| fs::read_to_string(one.path().join("cmdline")).ok());
    let helpers =
        lines.filter(|line| ["fuse2fs", "squashfuse"].iter().any(|h| line.starts_with(h)));
    files.filter(|file| file.starts_with(image)).chain(helpers).collect()
}

/// liblxc's monitor waits 30 s for each answer, and asks nothing twice.
#[test]
fn a_call_that_liblxc_passed_on_is_answered_by_the_successor() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let stop = readable_dir();
    let script = "echo ready; exec /mnt/survivor /var/stop 65536 /root/node";
    let binds = [(stop.path(), "var")];
    let mut running = lxc::start(&daemon, 64 << 20, 100_000, &binds, script);
    running.wait_for("ready");
    for turn in 0..number("AMBIT_SURVIVAL_KILLS", 12) {
        // At another moment of the loop each time.
        std::thread::sleep(Duration::from_millis(60 + turn * 7 % 40));
        if turn % 4 == 3 {
            upgrade(&daemon);
        } else {
            kill_server(&daemon);
        }
        next_read(&daemon);
    }
    fs::write(stop.path().join("stop"), "").unwrap();
    let output = running.finish(machine::patience(60)).ok();
    let calls_failed = ["sysinfo:", "mknod:", "unlink:"].iter().any(|call| output.contains(call));
    let log = daemon.stop().0.stderr;
    assert!(!calls_failed && output.contains(" failures="), "{output}\n{log}");
    assert!(!resends() || output.contains(" failures=0 "), "{output}");
}

/// Holds the container of a process still, and lets it go at last: what is frozen cannot even be
/// killed on v1.
struct Freezer {
    pid: u32,
    kind: Kind,
}

enum Kind {
    V1 { place: PathBuf, _made: cgroup::Cgroup },
    V2(PathBuf),
    Signals,
}

impl Freezer {
    fn of(pid: u32) -> Self {
        let kind = Self::v1(pid).or_else(|| Self::v2(pid)).unwrap_or_else(|| {
            machine::not_on_this_kernel("a freezer of control groups; SIGSTOP instead");
            Kind::Signals
        });
        Self { pid, kind }
    }

    /// A cgroup of our own in the hierarchy that does nothing else.
    fn v1(pid: u32) -> Option<Kind> {
        let all = cgroup::hierarchies();
        let freezer = all.iter().find(|one| !one.is_v2() && one.has("freezer"))?;
        let name = format!("frozen-{pid}");
        let made = cgroup::Cgroup::new(&name, cgroup::Limits::default());
        let place = made.dirs().find(|place| place.starts_with(freezer.root()))?.to_owned();
        fs::write(place.join("cgroup.procs"), pid.to_string()).unwrap();
        Some(Kind::V1 { place, _made: made })
    }

    /// The cgroup in which the container is, and we are not.
    fn v2(pid: u32) -> Option<Kind> {
        let all = cgroup::hierarchies();
        let root = all.iter().find(|one| one.is_v2())?.root();
        let path = |who: &str| {
            let text = fs::read_to_string(format!("/proc/{who}/cgroup")).unwrap();
            Some(text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned())
        };
        let (its, ours) = (path(&pid.to_string())?, path("self")?);
        let place = root.join(&its);
        (!Path::new(&ours).starts_with(&its) && place.join("cgroup.freeze").exists())
            .then_some(Kind::V2(place))
    }

    fn freeze(&self) {
        let (is_frozen, seen) = match &self.kind {
            Kind::V1 { place, .. } => {
                fs::write(place.join("freezer.state"), "FROZEN").unwrap();
                ("FROZEN", place.join("freezer.state"))
            }
            Kind::V2(place) => {
                fs::write(place.join("cgroup.freeze"), "1").unwrap();
                ("frozen 1", place.join("cgroup.events"))
            }
            Kind::Signals => {
                self.signal(Signal::STOP);
                ("(stopped)", PathBuf::from(format!("/proc/{}/status", self.pid)))
            }
        };
        let until = Instant::now() + machine::patience(20);
        while !fs::read_to_string(&seen).unwrap().contains(is_frozen) {
            assert!(Instant::now() < until, "it does not freeze");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn thaw(&self) {
        // At the end of a test it may be gone.
        match &self.kind {
            Kind::V1 { place, .. } => drop(fs::write(place.join("freezer.state"), "THAWED")),
            Kind::V2(place) => drop(fs::write(place.join("cgroup.freeze"), "0")),
            Kind::Signals => self.signal(Signal::CONT),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.cast_signed()).unwrap();
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// The descendant of a process that has this name.
fn below(ancestor: u32, name: &str) -> u32 {
    let status = |pid: u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = |pid: u32| {
        let status = status(pid);
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid > 0)
    };
    let until = Instant::now() + machine::patience(20);
    loop {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|one| one.file_name().to_str()?.parse::<u32>().ok());
        let found = pids.find(|pid| {
            status(*pid).starts_with(&format!("Name:\t{name}\n"))
                && std::iter::successors(Some(*pid), |pid| parent(*pid)).any(|one| one == ancestor)
        });
        if let Some(pid) = found {
            return pid;
        }
        assert!(Instant::now() < until, "no {name} below {ancestor}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_frozen_container_holds_up_nobody_and_goes_on() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let (stop, mut running) = survivors(&daemon, 2);
    let freezers: Vec<_> =
        running.iter().map(|one| Freezer::of(below(one.pid(), "survivor"))).collect();
    for turn in 0..6u64 {
        // At another moment of the loop each time.
        std::thread::sleep(Duration::from_millis(turn * 7 % 30));
        freezers.iter().for_each(Freezer::freeze);
        assert!(text::kb(&next_read(&daemon), "MemTotal") > 0);
        let others = sandbox::run(&daemon, &["--memory", "32M"], "/mnt/sysinfo").ok();
        assert!(!others.is_empty());
        match turn {
            1 => upgrade(&daemon),
            3 => {
                let mut reload = command::quiet(machine::AMBIT);
                command::run(reload.arg("reload").arg("--config").arg(daemon.place().config()))
                    .ok();
            }
            _ => {}
        }
        freezers.iter().for_each(Freezer::thaw);
    }
    // One goes on, the other is frozen when the server ends.
    freezers[1].freeze();
    fs::write(stop.path().join("stop"), "").unwrap();
    let output = running.remove(0).finish(machine::patience(60)).ok();
    assert!(!resends() || output.contains(" failures=0 "), "{output}");
    let (stopped, left) = daemon.stop();
    assert_eq!((stopped.status, left), (0, "unmounted"), "{stopped:?}");
    freezers[1].thaw();
    assert!(running.remove(0).finish(machine::patience(60)).ok().contains("rounds="));
}
