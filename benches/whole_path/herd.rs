//! A thousand containers for benchmarks: `herd.c`, whose processes are the first of their pid
//! namespaces, in control groups that are made here.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::harness::cgroup::{Cgroup, Limits};
use super::harness::machine::program;

/// Containers that read files when they are told to.
pub(crate) struct Herd {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    cgroups: Vec<Cgroup>,
}

impl Herd {
    /// Starts so many containers of so many processes.
    pub(crate) fn start(count: usize, tasks: usize) -> Self {
        let mut child = Command::new(program("herd"))
            .arg(tasks.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (commands, answers) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut herd =
            Self { child, commands, answers: BufReader::new(answers), cgroups: Vec::new() };
        for number in 0..count {
            let limits = Limits { memory: Some(256 << 20), ..Limits::default() };
            let cgroup = Cgroup::new(&format!("herd-{number}"), limits);
            let dirs: Vec<_> = cgroup.dirs().map(|dir| dir.display().to_string()).collect();
            herd.send(&dirs.join(" "));
            herd.cgroups.push(cgroup);
        }
        herd.send("");
        assert_eq!(herd.answer(), "ready");
        herd
    }

    /// The first `count` containers read a file, one after the other, `rounds` times, with a pause
    /// of so many microseconds before each read. Returns the median in microseconds.
    pub(crate) fn read(&mut self, (count, rounds, pause): (usize, usize, u32), path: &str) -> f64 {
        self.ask(&format!("read {count} {rounds} {pause} {path}")) / 1e3
    }

    /// So many processes of the last container read a file until [`Self::quiet`].
    pub(crate) fn flood(&mut self, processes: usize, path: &str) {
        self.ask(&format!("flood {processes} {path}"));
    }

    pub(crate) fn quiet(&mut self) {
        self.ask("quiet");
    }

    fn ask(&mut self, command: &str) -> f64 {
        self.send(command);
        self.answer().parse().unwrap()
    }

    fn send(&mut self, line: &str) {
        writeln!(self.commands.as_mut().unwrap(), "{line}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        // The containers end with the connection, and their control groups are removed after that.
        drop(self.commands.take());
        let _ = self.child.wait();
    }
}
