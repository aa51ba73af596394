//! `ambit run` in a terminal.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::harness::daemon::Daemon;
use crate::harness::{machine, sandbox};

/// A sandbox whose terminal is one of ours.
struct InTerminal {
    child: Child,
    master: OwnedFd,
}

impl InTerminal {
    fn start(daemon: &Daemon, script: &str) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::openat(CWD, name, flags, Mode::empty()).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let mut command = sandbox::command(daemon, &[], script);
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        Self { child, master }
    }

    /// Reads until this text has come.
    fn read_until(&self, text: &str) {
        let until = Instant::now() + machine::patience(20);
        let mut read = String::new();
        while !read.contains(text) {
            assert!(Instant::now() < until, "{text:?} does not come: {read}");
            let mut bytes = [0; 4096];
            match rustix::io::read(&self.master, &mut bytes) {
                Ok(count) => read += &String::from_utf8_lossy(&bytes[..count]),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits until this process sleeps and its output is stopped.
    fn wait_until_stuck(&self) {
        let path = format!("/proc/{}/stat", self.child.id());
        let time = || {
            let text = std::fs::read_to_string(&path).unwrap();
            let fields: Vec<_> = text.rsplit(')').next().unwrap().split_whitespace().collect();
            (fields[0].to_owned(), fields[11].to_owned(), fields[12].to_owned())
        };
        let until = Instant::now() + machine::patience(20);
        let mut quiet = 0;
        let mut before = time();
        while quiet < 10 {
            assert!(Instant::now() < until, "it does not come to rest: {before:?}");
            std::thread::sleep(Duration::from_millis(50));
            let now = time();
            quiet = if now == before && now.0 == "S" { quiet + 1 } else { 0 };
            before = now;
        }
    }

    fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + machine::patience(20);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_signal_passes_while_the_terminal_takes_no_output() {
    let daemon = Daemon::start();
    let script = "echo begun; while :; do echo much to say; done";
    let mut running = InTerminal::start(&daemon, script);
    running.read_until("begun");
    running.wait_until_stuck();
    running.terminate();
    assert_eq!(running.ended(), Some(143));
}

#[test]
fn the_last_output_is_shown_when_the_terminal_continues() {
    let daemon = Daemon::start();
    // More than the caller's terminal holds (12 KiB), less than both do: the command ends.
    let mut running = InTerminal::start(&daemon, "seq 1 3800; echo last");
    running.wait_until_stuck();
    running.read_until("last");
    assert_eq!(running.ended(), Some(0));

    // Told to end, it does not wait for a terminal that takes nothing.
    let mut running = InTerminal::start(&daemon, "seq 1 3800; exit 3");
    running.wait_until_stuck();
    running.terminate();
    assert!(running.ended().is_some(), "it waits for its terminal");
}

#[test]
fn typed_text_reaches_the_command() {
    let daemon = Daemon::start();
    let mut running = InTerminal::start(&daemon, "read -r line; echo got $line");
    let mut typed = File::from(running.master.as_fd().try_clone_to_owned().unwrap());
    typed.write_all(b"hello\r").unwrap();
    running.read_until("got hello");
    assert_eq!(running.ended(), Some(0));
}
