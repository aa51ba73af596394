//! Running a command with a deadline: a test that hangs says so, with what was printed so far.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::machine;

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Output {
    /// As a shell counts: 128 + signal for a command that was killed.
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Its standard output, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
}

/// A command that runs, in a process group of its own.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    what: String,
}

/// Runs a command to its end; it gets a minute (more in guests).
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    start(command).finish(machine::patience(60))
}

/// Starts a command. Its output goes to files, so that nothing blocks and nothing is lost.
#[track_caller]
pub(crate) fn start(command: &mut Command) -> Running {
    let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let what = format!("{command:?}");
    let child = command
        .process_group(0)
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
    Running { child, stdout, stderr, what }
}

/// The same with nothing on standard input.
pub(crate) fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub(crate) fn printed(&mut self) -> (String, String) {
        (read(&mut self.stdout), read(&mut self.stderr))
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends a signal to the command itself.
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.process(), signal).unwrap();
    }

    /// Sends a signal to everything that it started and that stayed in its group.
    pub(crate) fn signal_group(&self, signal: Signal) {
        rustix::process::kill_process_group(self.process(), signal).unwrap();
    }

    /// Waits until it has printed this text.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let (stdout, stderr) = self.printed();
            if stdout.contains(text) || stderr.contains(text) {
                return;
            }
            assert!(
                !self.ended() && Instant::now() < deadline,
                "{} did not print {text:?}\nstdout: {stdout}\nstderr: {stderr}",
                self.what
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end; kills its process group and fails when that takes too long.
    #[track_caller]
    pub(crate) fn finish(mut self, patience: Duration) -> Output {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.kill();
                let (stdout, stderr) = self.printed();
                panic!(
                    "{} still ran after {patience:?}\nstdout: {stdout}\nstderr: {stderr}",
                    self.what
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let (stdout, stderr) = self.printed();
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Output { status, stdout, stderr }
    }

    fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn kill(&mut self) {
        let _ = rustix::process::kill_process_group(self.process(), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.child.try_wait().is_ok_and(|status| status.is_some()) {
            self.kill();
        }
    }
}

fn read(file: &mut File) -> String {
    // The child writes through the same open file: put the offset back where it appends.
    let mut bytes = Vec::new();
    let mut copy = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))
        .expect("a temporary file can be opened again");
    copy.rewind().unwrap();
    copy.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// True if this program runs here and succeeds.
pub(crate) fn runs(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
