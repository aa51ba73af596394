//! Faults around the keeper: it goes on, and so do reads and calls.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::upgrade::reload_with;
use super::{keeper, kill_server, next_read};
use crate::harness::command::{self, Running};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{cgroup, machine, sandbox, text};

/// The children of the keeper that have this name.
pub(super) fn children(daemon: &Daemon, name: &str) -> Vec<Pid> {
    let keeper = keeper::pid(daemon);
    let is_one = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.starts_with(&format!("Name:\t{name}\n"))
            && status.contains(&format!("\nPPid:\t{keeper}\n"))
            && !status.contains("\nState:\tZ")
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|one| one.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| is_one(*pid)).map(|pid| Pid::from_raw(pid.cast_signed()).unwrap()).collect()
}

/// Kills the server and the standby: the next server has to be started from nothing.
fn kill_both(daemon: &Daemon) {
    kill_all(&both(daemon));
}

/// The server and the standby.
#[track_caller]
fn both(daemon: &Daemon) -> Vec<Pid> {
    wait_until("there is no standby", || children(daemon, "ambit").len() == 2);
    children(daemon, "ambit")
}

/// Those that have ended already are no loss.
pub(super) fn kill_all(processes: &[Pid]) {
    for pid in processes {
        let _ = kill_process(*pid, Signal::KILL);
    }
}

#[track_caller]
pub(super) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + machine::patience(20);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[track_caller]
fn serves(daemon: &Daemon) {
    assert!(text::kb(&next_read(daemon), "MemTotal") > 0);
}

fn program_of(daemon: &Daemon) -> String {
    let program = fs::read_link(format!("/proc/{}/exe", daemon.server_pid())).unwrap();
    program.display().to_string()
}

/// A copy of the program.
fn copy(folder: &Path) -> PathBuf {
    let path = folder.join("ambit");
    fs::copy(machine::AMBIT, &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn ambit(daemon: &Daemon, words: &[&str]) -> command::Output {
    let mut ambit = command::quiet(machine::AMBIT);
    command::run(ambit.args(words).arg("--config").arg(daemon.place().config()))
}

/// A container that makes a node for each file `make-N` that appears, and says how that went.
struct Maker {
    folder: tempfile::TempDir,
    running: Running,
    made: usize,
}

impl Maker {
    fn start(daemon: &Daemon) -> Self {
        let folder = readable_dir();
        let bind = format!("{}:/run/i", folder.path().display());
        let script = "n=1; echo ready; while :; do
            if [ -e /run/i/end ]; then exit 0; fi
            if [ -e /run/i/make-$n ]; then
                echo \"made $n $(/mnt/node_call make /tmp/$n 1 3)\"; n=$((n+1)); fi
            sleep .02; done";
        let args = ["--intercept", "mknod", "--bind", &bind];
        let mut running = command::start(&mut sandbox::command(daemon, &args, script));
        running.wait_for("ready", machine::patience(20));
        Self { folder, running, made: 0 }
    }

    #[track_caller]
    fn make(&mut self) {
        self.made += 1;
        fs::write(self.folder.path().join(format!("make-{}", self.made)), "").unwrap();
        let said = format!("made {} ok\n", self.made);
        self.running.wait_for(&format!("made {} ", self.made), machine::patience(20));
        let (text, errors) = self.running.printed();
        assert!(text.contains(&said), "{text}{errors}");
    }

    fn end(self) {
        fs::write(self.folder.path().join("end"), "").unwrap();
        self.running.finish(machine::patience(20)).ok();
    }
}

#[test]
fn standard_error_that_cannot_be_written_ends_nothing() {
    let full = "exec \"$@\" 2>/dev/full";
    let closed = "mkfifo $P; exec 3<>$P 2>$P 3<&-; exec \"$@\"";
    let unread = "mkfifo $P; exec 3<>$P 2>$P; head -c 65536 /dev/zero >&2; exec \"$@\"";
    for script in [full, closed, unread] {
        let (place, folder) = (Place::new(), readable_dir());
        let mut serve = command::quiet("sh");
        serve.env("P", folder.path().join("fifo")).args(["-c", script, "sh", machine::AMBIT]);
        serve.arg("serve").arg("--config").arg(place.config());
        let daemon = Daemon::start_below(place, &mut serve);
        for _ in 0..2 {
            kill_server(&daemon);
            serves(&daemon);
        }
        kill_both(&daemon);
        serves(&daemon);
        // A line of the log of the server.
        fs::write(daemon.place().config(), "mistake = 1").unwrap();
        let mut stream = UnixStream::connect(daemon.socket("control.sock")).unwrap();
        std::io::Write::write_all(&mut stream, b"reload\n").unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        assert!(answer.contains("mistake"), "{script}: {answer}");
        serves(&daemon);
        drop(daemon);
    }
}

#[test]
fn the_keeper_retries_while_no_process_can_be_started() {
    let daemon = Daemon::start();
    let cgroup = cgroup::Cgroup::new("keeper", cgroup::Limits::default());
    let Some(pids) = cgroup.dirs().find(|dir| dir.join("pids.max").exists()) else {
        return machine::not_on_this_kernel("a limit of processes");
    };
    let both = both(&daemon);
    let own = Pid::from_raw(keeper::pid(&daemon));
    let all = [both.clone(), children(&daemon, "ambit-broker")].concat();
    for pid in all.into_iter().chain(own) {
        fs::write(pids.join("cgroup.procs"), pid.as_raw_nonzero().to_string()).unwrap();
    }
    fs::write(pids.join("pids.max"), "1").unwrap();
    kill_all(&both);
    let mut read = command::quiet("cat");
    let mut read = command::start(read.arg(daemon.file("proc/meminfo")));
    // Starts are tried all the time meanwhile.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(!read.ended() || !super::resends(), "{:?}", read.printed());
    fs::write(pids.join("pids.max"), "max").unwrap();
    let said = read.finish(machine::patience(20));
    assert!(!super::resends() || said.ok().contains("MemTotal"));
    serves(&daemon);
    drop(daemon);
}

#[test]
fn a_program_that_was_deleted_is_started_again() {
    let daemon = Daemon::start();
    let folder = readable_dir();
    let program = copy(folder.path());
    reload_with(&daemon, &program).ok();
    fs::remove_file(&program).unwrap();
    // Of both servers; a third death would be one too many for a new program.
    kill_both(&daemon);
    serves(&daemon);
    assert_eq!(program_of(&daemon), format!("{} (deleted)", program.display()));
    assert!(ambit(&daemon, &["status"]).ok().contains("the server died and was replaced "));
}

#[test]
fn after_three_early_deaths_the_previous_program_is_started() {
    let mut daemon = Daemon::start();
    let folder = readable_dir();
    let (program, before) = (copy(folder.path()), program_of(&daemon));
    reload_with(&daemon, &program).ok();
    for _ in 0..3 {
        assert_eq!(program_of(&daemon), program.display().to_string());
        kill_server(&daemon);
        serves(&daemon);
    }
    assert_eq!(program_of(&daemon), before);
    assert!(daemon.log().contains("die early: going back to the program"), "{}", daemon.log());
    // It is tried again when that is asked for.
    reload_with(&daemon, &program).ok();
    assert_eq!(program_of(&daemon), program.display().to_string());
}

#[test]
fn with_an_invalid_configuration_the_last_good_one_is_used() {
    let mut daemon = keeper::managed(Place::intercepting("mknod = true\n"));
    let mut maker = Maker::start(&daemon);
    let config = daemon.place().config();
    let right = fs::read_to_string(&config).unwrap();
    for wrong in [format!("{right}mistake = 1\n"), format!("[\n{right}")] {
        fs::write(&config, wrong).unwrap();
        for turn in 0..3 {
            match turn {
                0 => drop(kill_server(&daemon)),
                1 => kill_both(&daemon),
                _ => keeper::kill(&daemon),
            }
            serves(&daemon);
            maker.make();
        }
        let said = ambit(&daemon, &["status"]).ok();
        let line = said.lines().find(|line| line.contains("the configuration file is wrong: "));
        let line = line.unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains("ambit.toml:") && line.contains("running with the one read at 2"));
        assert!(daemon.log().contains(line), "{line}: {}", daemon.log());
        let refused = ambit(&daemon, &["reload"]);
        assert!(refused.status == 2 && refused.stderr.contains("ambit.toml:"), "{refused:?}");
    }
    fs::write(&config, right).unwrap();
    ambit(&daemon, &["reload"]).ok();
    assert!(daemon.status()["configuration"]["wrong"].is_null());
    maker.end();
    keeper::release(daemon);
}

#[test]
fn with_an_empty_configuration_the_last_good_one_is_used() {
    let daemon = Daemon::start();
    let config = daemon.place().config();
    let right = fs::read_to_string(&config).unwrap();
    let both = both(&daemon);
    // As while it is written.
    fs::write(&config, "").unwrap();
    kill_all(&both);
    serves(&daemon);
    fs::write(&config, right).unwrap();
    assert_eq!(daemon.status()["mount"], daemon.place().mount().to_str().unwrap());
}

#[test]
fn a_first_start_with_an_invalid_configuration_is_an_error() {
    let place = Place::intercepting("mistake = 1\n");
    let output = command::run(&mut place.serve());
    assert_eq!(output.status, 78, "{output:?}");
    assert!(output.stderr.contains("ambit.toml:") && output.stderr.contains("mistake"));
}

#[test]
fn a_configuration_with_which_servers_die_is_reverted() {
    let daemon = Daemon::start();
    let config = daemon.place().config();
    let right = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{right}# changed\n")).unwrap();
    ambit(&daemon, &["reload"]).ok();
    for _ in 0..3 {
        kill_server(&daemon);
        serves(&daemon);
    }
    let wrong = daemon.status()["configuration"]["wrong"].to_string();
    assert!(wrong.contains("died early"), "{wrong}");
    ambit(&daemon, &["reload"]).ok();
    assert!(daemon.status()["configuration"]["wrong"].is_null());
}

#[test]
fn a_broker_that_dies_is_replaced() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let mut maker = Maker::start(&daemon);
    maker.make();
    both(&daemon);
    let replaced = || daemon.status()["broker_restarts"].as_u64().unwrap();
    for turn in 0..4 {
        let (brokers, before) = (children(&daemon, "ambit-broker"), replaced());
        assert_eq!(brokers.len(), 2, "of the server and of the standby");
        kill_all(&brokers);
        wait_until("no broker comes back", || replaced() > before);
        maker.make();
        if turn % 2 == 1 {
            kill_server(&daemon);
            serves(&daemon);
            maker.make();
        }
        wait_until("brokers are missing", || children(&daemon, "ambit-broker").len() == 2);
    }
    let said = ambit(&daemon, &["status"]).ok();
    assert!(said.contains("the server died and was replaced 2 times, the broker "), "{said}");
    maker.end();
}

#[test]
fn a_stopped_keeper_blocks_nothing_and_misses_nothing() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let mut early = Maker::start(&daemon);
    let keeper = Pid::from_raw(keeper::pid(&daemon)).unwrap();
    let held = || fs::read_dir(format!("/proc/{}/fd", keeper.as_raw_nonzero())).unwrap().count();
    both(&daemon);
    let before = held();
    kill_process(keeper, Signal::STOP).unwrap();
    // More than there is room for in its socket: each connection is told to it twice.
    for _ in 0..500 {
        drop(UnixStream::connect(daemon.socket("oci.sock")).unwrap());
    }
    let mut late: Vec<_> = (0..3).map(|_| Maker::start(&daemon)).collect();
    for _ in 0..3 {
        serves(&daemon);
        early.make();
        late.iter_mut().for_each(Maker::make);
        assert_eq!(daemon.status()["restarts"], 0);
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    kill_process(keeper, Signal::CONT).unwrap();
    // A listener and what its runtime said of it, for each.
    wait_until("descriptors are missing", || held() >= before + 2 * late.len());
    kill_server(&daemon);
    serves(&daemon);
    early.make();
    late.iter_mut().for_each(Maker::make);
    late.into_iter().chain([early]).for_each(Maker::end);
}

/// A server in state D: one of its threads looks a name up in the files that it serves, and the one
/// that has read this request dies before it answers.
#[test]
fn the_connections_of_a_server_in_state_d_are_aborted() {
    if !super::resends() {
        return machine::not_on_this_kernel("a request that is read from the device itself");
    }
    let mut daemon = Daemon::start();
    let folder = readable_dir();
    let mut container =
        command::start(&mut sandbox::command(&daemon, &[], "echo ready; sleep 999"));
    container.wait_for("ready", machine::patience(20));
    let script = folder.path().join("stuck");
    let python = format!(
        "#!/usr/bin/python3
import os, socket, sys, threading, time
if '--broker' in sys.argv or os.path.exists('{flag}'):
    os.execv('{ambit}', ['ambit'] + sys.argv[1:])
open('{flag}', 'w').close()
keeper = socket.socket(fileno=os.dup(0))
keeper.send(b'prepared')
while True:
    text, fds, _, _ = socket.recv_fds(keeper, 8192, 1)
    if text == b'held overlay':
        overlay = fds[0]
    if text.startswith(b'go '):
        break
keeper.send(b'serving')
threading.Thread(target=lambda: os.read(overlay, 64 << 20)).start()
threading.Thread(target=lambda: os.stat('{mount}/proc/nowhere')).start()
time.sleep(999)
",
        flag = folder.path().join("flag").display(),
        ambit = machine::AMBIT,
        mount = daemon.place().mount().display(),
    );
    fs::write(&script, python).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut exec: Command = command::quiet(machine::AMBIT);
    exec.arg("reload").arg("--config").arg(daemon.place().config()).arg("--exec").arg(&script);
    let exec = command::start(&mut exec);
    let until = Instant::now() + machine::patience(120);
    while !daemon.log().contains("dead: the container") {
        assert!(Instant::now() < until, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(daemon.log().contains("has not ended 60 s after SIGKILL"), "{}", daemon.log());
    serves(&daemon);
    drop(exec);
    wait_until("the dead server is there still", || {
        let cmdline = format!("/proc/{}/task", keeper::pid(&daemon));
        let children = fs::read_to_string(format!("{cmdline}/{}/children", keeper::pid(&daemon)));
        children.unwrap().split_whitespace().count() == 4
    });
    container.signal_group(Signal::KILL);
    container.finish(machine::patience(20));
}
