//! Other programs and another configuration.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{kill_server, next_read, resends, survivors};
use crate::harness::command::Output;
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{command, machine, sandbox, text};

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
fn a_program_that_dies_before_it_serves_is_reverted() {
    let daemon = Daemon::start();
    let folder = readable_dir();
    // It passes the check and says so, and then it is gone.
    let text = "exec python3 -c 'import os, socket
s = socket.socket(fileno=os.dup(0)); s.send(b\"prepared\"); s.recv(9)'";
    let server = daemon.server_pid();
    // Its end is the answer, or no daemon listens for a moment.
    reload_with(&daemon, &script(folder.path(), "short", text));
    assert!(text::kb(&next_read(&daemon), "MemTotal") > 0);
    assert_ne!(daemon.server_pid(), server);
    let program = fs::read_link(format!("/proc/{}/exe", daemon.server_pid())).unwrap();
    assert_eq!(program, Path::new(machine::AMBIT).canonicalize().unwrap());
}

#[test]
fn a_program_with_other_layout_versions_fails_no_read_or_call() {
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

/// The same program again, as a new one.
pub(super) fn upgrade(daemon: &Daemon) {
    upgrade_to(daemon, Path::new(machine::AMBIT));
}

fn upgrade_to(daemon: &Daemon, program: &Path) {
    let server = daemon.server_pid();
    reload_with(daemon, program).ok();
    assert_ne!(daemon.server_pid(), server);
}

pub(super) fn reload_with(daemon: &Daemon, program: &Path) -> Output {
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
