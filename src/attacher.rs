//! Attaches the overlay's files to containers that run, for `ambit attach` and for hooks that ask
//! over the control socket.
//!
//! The work is done by a child of the broker (`ambit_worker::attach`), never in this process: it
//! serves the files, and must not enter a container. Start reading at [`Attacher::run`].

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use ambit_kernel::lock;
use ambit_sysinfo::{Accounting, clock};
use ambit_worker::Broker;
use ambit_worker::attach::{Action, AttachOrder, DEADLINE, Options, Report};
use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::config::Attach;

/// Most containers that `ambit status` lists with files that were left alone.
const MOST: usize = 64;
/// Most containers that are worked on at the same time.
const MOST_AT_ONCE: usize = 16;
/// How long a container waits for others, or for an earlier request for itself.
const PATIENCE: Duration = DEADLINE.saturating_mul(2);

/// A container in which files were left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// The process by which the container was named.
    pub pid: u32,
    /// When that process started, after boot, in nanoseconds.
    pub start: u64,
    /// What was done, and why not more.
    pub report: String,
}

/// Attaches files to containers.
#[derive(Debug)]
pub struct Attacher {
    broker: Option<Arc<Broker>>,
    overlay: PathBuf,
    /// Set if containers get files that the kernel keeps.
    leases: Option<Arc<Accounting>>,
    settings: Mutex<Attach>,
    left: Mutex<Vec<LeftAlone>>,
    /// The pid namespaces of the containers that are worked on.
    busy: Mutex<Vec<u64>>,
    /// Signalled when one of them is done.
    done: Condvar,
}

/// Ends the work on a container when it is dropped.
struct Turn<'a>(&'a Attacher, u64);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Self(attacher, namespace) = self;
        let mut busy = lock(&attacher.busy);
        busy.retain(|one| one != namespace);
        attacher.done.notify_all();
    }
}

/// What is asked over the control socket, after `attach ` or `detach `.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Attach the files, and whether files of another program are covered too.
    Attach {
        pid: u32,
        replace: bool,
    },
    Detach {
        pid: u32,
    },
}

impl Question {
    /// Parses a line of the control socket. `None` if it is no question of this kind.
    pub fn parse(line: &str) -> Option<Result<Self, String>> {
        let (word, rest) = line.split_once(' ')?;
        let pid = |text: &str| match text.parse() {
            Ok(pid @ 1..) => Ok(pid),
            _ => Err(format!("{text:?} is no process; use {word} PID")),
        };
        match word {
            "attach" => Some(match rest.strip_prefix("--replace ") {
                Some(rest) => pid(rest).map(|pid| Self::Attach { pid, replace: true }),
                None => pid(rest).map(|pid| Self::Attach { pid, replace: false }),
            }),
            "detach" => Some(pid(rest).map(|pid| Self::Detach { pid })),
            _ => None,
        }
    }
}

impl Attacher {
    /// Creates one for the overlay at a path. Without a broker nothing can be attached.
    pub(crate) fn new(
        broker: Option<Arc<Broker>>,
        overlay: PathBuf,
        leases: Option<Arc<Accounting>>,
        settings: Attach,
    ) -> Self {
        Self {
            broker,
            overlay,
            leases,
            settings: Mutex::new(settings),
            left: Mutex::default(),
            busy: Mutex::default(),
            done: Condvar::new(),
        }
    }

    /// Applies new settings to what is attached from now on.
    pub(crate) fn reconfigure(&self, settings: Attach) {
        *lock(&self.settings) = settings;
    }

    /// Answers a question. Waits for the broker, at most some seconds.
    pub fn run(&self, question: Question) -> anyhow::Result<Report> {
        let (pid, action) = match question {
            Question::Attach { pid, replace } => (pid, self.cover(replace)),
            Question::Detach { pid } => (pid, Action::Uncover),
        };
        // This descriptor never becomes that of another process.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
            .map_err(|_| anyhow::anyhow!("there is no process {pid}"))?;
        self.act(action, pid, process.as_fd())
    }

    /// Attaches the files to the container of a process, whose folder in `/proc` is given. Waits as
    /// [`Self::run`] does.
    pub(crate) fn attach(&self, pid: u32, process: BorrowedFd<'_>) -> anyhow::Result<Report> {
        self.act(self.cover(false), pid, process)
    }

    fn cover(&self, replace: bool) -> Action {
        let settings = lock(&self.settings);
        Action::Cover(Options { replace, unmasked: settings.unmasked })
    }

    fn act(&self, action: Action, pid: u32, process: BorrowedFd<'_>) -> anyhow::Result<Report> {
        let broker = self.broker.as_ref().context("this daemon has no broker to attach files")?;
        let start = start_of(pid).unwrap_or(0);
        let leased =
            self.leases.as_ref().map(|views| ambit_fuse::lease_nodes::sources(&**views, pid));
        // While the process has not ended, its pid is not that of another one.
        let is_alive = rustix::fs::readlinkat(process, "ns/pid", Vec::new()).is_ok();
        let order = AttachOrder {
            leased: leased.filter(|_| is_alive).unwrap_or_default(),
            action,
            overlay: self.overlay.clone(),
            targets: ambit_fuse::bind_points().map(str::to_owned).collect(),
        };
        let _turn = self.begin(pid)?;
        let done = broker.attach(&order, process);
        match &done {
            Ok(report) if report.left().is_empty() => {
                tracing::info!(process = pid, "attach: {report}");
                self.forget(pid);
            }
            Ok(report) => {
                tracing::warn!(process = pid, "attach: {report}");
                self.remember(LeftAlone { pid, start, report: report.to_string() });
            }
            Err(error) => tracing::warn!(process = pid, "nothing was attached: {error}"),
        }
        Ok(done?)
    }

    /// Waits until the container of a process is not worked on: two at once would both cover its
    /// files.
    fn begin(&self, pid: u32) -> anyhow::Result<Turn<'_>> {
        let namespace = fs::metadata(format!("/proc/{pid}/ns/pid"));
        let namespace = namespace.with_context(|| format!("process {pid} has ended"))?.ino();
        let busy = lock(&self.busy);
        let is_taken =
            |busy: &mut Vec<u64>| busy.len() >= MOST_AT_ONCE || busy.contains(&namespace);
        let waited = self.done.wait_timeout_while(busy, PATIENCE, is_taken);
        let (mut busy, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            anyhow::bail!("the daemon works on this container or on many others; try again");
        }
        busy.push(namespace);
        Ok(Turn(self, namespace))
    }

    /// Returns the containers that still run, and in which files were left alone.
    pub fn left_alone(&self) -> Vec<LeftAlone> {
        let mut left = lock(&self.left);
        left.retain(|one| start_of(one.pid) == Some(one.start));
        left.clone()
    }

    fn forget(&self, pid: u32) {
        lock(&self.left).retain(|one| one.pid != pid);
    }

    fn remember(&self, one: LeftAlone) {
        self.forget(one.pid);
        let mut left = lock(&self.left);
        if left.len() == MOST {
            left.remove(0);
        }
        left.push(one);
    }
}

fn start_of(pid: u32) -> Option<u64> {
    clock::start_of(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_a_process() {
        let parse = |line| Question::parse(line);
        assert_eq!(parse("attach 7"), Some(Ok(Question::Attach { pid: 7, replace: false })));
        let replacing = Question::Attach { pid: 7, replace: true };
        assert_eq!(parse("attach --replace 7"), Some(Ok(replacing)));
        assert_eq!(parse("detach 7"), Some(Ok(Question::Detach { pid: 7 })));
        for line in ["attach 0", "attach -1", "attach x", "detach ", "attach --replace"] {
            assert!(parse(line).is_some_and(|parsed| parsed.is_err()), "{line}");
        }
        assert_eq!(parse("status"), None);
    }
}
