//! Commands whose output cannot be written: a closed pipe, a full device.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};

use crate::harness::command::quiet;
use crate::harness::daemon::Daemon;
use crate::harness::machine::AMBIT;

/// All commands that print, with the status that they have otherwise.
const COMMANDS: [&[&str]; 11] = [
    &["status"],
    &["status", "--json"],
    &["check"],
    &["profile", "--for", "lxc"],
    &["profile", "--for", "oci"],
    &["stop"],
    &["--help"],
    &["help"],
    &["run", "--help"],
    &["profile", "-h"],
    &["--version"],
];

fn command(daemon: &Daemon, words: &[&str]) -> Command {
    let mut command = quiet(AMBIT);
    command.args(words);
    if ["status", "profile", "stop"].contains(&words[0]) {
        command.arg("--config").arg(daemon.place().config());
    }
    command
}

fn run(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().unwrap_or(-1), String::from_utf8(stderr).unwrap())
}

/// A daemon that lists a container when it is told to stop.
fn stage() -> (Daemon, crate::harness::command::Running) {
    use crate::harness::{command::start, machine, sandbox};

    let daemon = Daemon::start();
    let script = "echo ready; while :; do sleep 0.1; done";
    let mut running = start(&mut sandbox::command(&daemon, &[], script));
    running.wait_for("ready", machine::patience(20));
    (daemon, running)
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let (daemon, container) = stage();
    for words in COMMANDS {
        let (reads, writes) = rustix::pipe::pipe().unwrap();
        drop(reads);
        let (status, stderr) = run(command(&daemon, words).stdout(Stdio::from(writes)));
        let expected = i32::from(words == ["stop"]);
        assert_eq!(status, expected, "{words:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("pipe"), "{words:?}: {stderr}");
    }
    drop(container);
}

#[test]
fn a_full_device_is_an_error_in_one_line() {
    let (daemon, container) = stage();
    let full = || OwnedFd::from(File::options().write(true).open("/dev/full").unwrap());
    for words in COMMANDS {
        let (status, stderr) = run(command(&daemon, words).stdout(Stdio::from(full())));
        assert_eq!(status, 1, "{words:?}: {stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(
            last.contains("cannot write standard output: No space left"),
            "{words:?}: {stderr}"
        );
        assert!(stderr.lines().all(|line| line.starts_with("ambit: ")), "{words:?}: {stderr}");
    }
    // A message that is not taken changes nothing.
    for (words, status) in [(&["launch"][..], 2), (&[], 2), (&["stop"], 1), (&["lxcfs", "-h"], 1)] {
        let mut command = if words == ["stop"] { command(&daemon, words) } else { quiet(AMBIT) };
        if words != ["stop"] {
            command.args(words);
        }
        let ended = command.stdout(Stdio::null()).stderr(Stdio::from(full())).status().unwrap();
        assert_eq!(ended.code(), Some(status), "{words:?}");
    }
    drop(container);
}
