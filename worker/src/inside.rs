//! Runs a static program of the host inside of a container, as the container's root.
//!
//! The program gets the namespaces, root and control groups of a process of the container, and no
//! right that the container's root lacks: the bounding set of that process, its AppArmor profile and
//! `no_new_privs`. It does not get a seccomp filter. Nothing of the container is executed or looked
//! up by a path before the process has these rights.
//!
//! The container can trace the program, and open what is open there. So its output is a pipe, never
//! the terminal, it is in a session of its own, and what it says is not trusted: this process copies
//! a bounded part of it, without control characters. It is killed after [`DEADLINE`]. Start reading
//! at [`run_inside`].

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ambit_kernel::output::printable::Printable;
use ambit_kernel::output::{self, unless_closed};
use ambit_kernel::sys::close_range::close_on_exec_from;
use ambit_kernel::sys::errno::to_errno;
use ambit_kernel::sys::fork::{Fork, fork};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, pidfd_open};

use super::caller::WholeCaller;
use super::child::{die_with_parent, execute_open, exit};
use super::error::{Context, Error};
use super::mount::{sealed, set_label};
use super::report_channel::wait as wait_for;

/// The exit status if the program was not executed, as of `docker exec`.
const NOT_EXECUTED: i32 = 126;
/// How long the program may take. A filesystem of the container may never answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// The most output that is copied, in bytes.
const LONGEST: usize = 16 << 20;

/// Runs a static program with these arguments inside of the container of a process and waits for
/// its end. `process` is the folder of the process in `/proc`. Its output is copied to that of this
/// process. Returns the exit status; 128 plus the signal if the program was killed by one.
///
/// # Errors
/// The process has ended, no child can be forked, or the program takes too long or says too much.
/// What fails in the child is written to standard error, and the status is 126.
pub fn run_inside(
    process: BorrowedFd<'_>,
    program: &File,
    arguments: &[CString],
) -> Result<i32, Error> {
    let (mut caller, maps) = WholeCaller::pin(process)?;
    let facts = &mut caller.facts;
    // A container without a mapped root has the ids of its process.
    if maps.users.outside(0).is_some() && maps.groups.outside(0).is_some() {
        facts.ids = (0, 0);
    }
    facts.supplementary.clear();
    facts.effective = facts.bounding;
    facts.no_new_privs = true;
    caller.folder = caller.root.try_clone().context("fcntl(F_DUPFD_CLOEXEC) of the root")?;
    let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let own = rustix::fs::stat("/proc/self/ns/user").context("stat of ns/user")?;
    let users = rustix::fs::fstat(&caller.users).context("fstat of the container's users")?;
    let has_users = id(own) != id(users);
    let program = sealed(program)?;
    let open = |name: &str| File::open(name).context(format!("open of {name}"));
    let (null, proc) = (open("/dev/null")?, open("/proc")?);
    let inside = Inside { caller, program, null, proc: proc.into(), arguments };
    let pipe = || pipe_with(PipeFlags::CLOEXEC).context("pipe2");
    let ((out, to_out), (err, to_err)) = (pipe()?, pipe()?);
    // Two children: the first enters the pid namespace, in which the second is made.
    let child = fork_to(|| {
        // Without these, the container could write to the terminal of the user.
        rustix::process::setsid().context("setsid")?;
        rustix::stdio::dup2_stdin(&inside.null).context("dup2 of /dev/null")?;
        rustix::stdio::dup2_stdout(&to_out).context("dup2 of a pipe")?;
        rustix::stdio::dup2_stderr(&to_err).context("dup2 of a pipe")?;
        inside.caller.enter_others()?;
        if has_users {
            inside.caller.enter_user_namespace()?;
        }
        die_with_parent();
        fork_to(|| inside.execute()).and_then(wait)
    })?;
    drop((to_out, to_err));
    let copied = copy_output(child, out, err);
    if copied.is_err() {
        // It kills its child by its own end.
        let _ = kill(child, Signal::SIGKILL);
    }
    let status = wait(child)?;
    copied.map(|()| status)
}

/// Copies what the child writes until it has ended: the container may keep the pipes open.
fn copy_output(child: Pid, out: OwnedFd, err: OwnedFd) -> Result<(), Error> {
    let until = Instant::now() + DEADLINE;
    let pid = rustix::process::Pid::from_raw(child.as_raw());
    let pid = pid.ok_or_else(|| Error::new(Errno::SRCH, "fork"))?;
    let ended = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    let mut outputs = vec![
        Output::new(out, Box::new(std::io::stdout()))?,
        Output::new(err, Box::new(std::io::stderr()))?,
    ];
    let (mut total, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        let mut fds: Vec<_> =
            outputs.iter().map(|one| PollFd::new(&one.pipe, PollFlags::IN)).collect();
        fds.push(PollFd::new(&ended, PollFlags::IN));
        wait_for(&mut fds, until).map_err(|error| match error.errno {
            Errno::TIMEDOUT => {
                let seconds = DEADLINE.as_secs();
                let message = format!(
                    "it was not done within {seconds} s: a filesystem of the container may not answer"
                );
                Error::new(Errno::TIMEDOUT, message)
            }
            _ => error,
        })?;
        let has_ended = fds.last().is_some_and(|fd| !fd.revents().is_empty());
        let before = total;
        for mut output in std::mem::take(&mut outputs) {
            if let Some(length) = output.copy(&mut buffer)? {
                total += length;
                outputs.push(output);
            }
        }
        if total > LONGEST {
            return Err(Error::new(Errno::FBIG, "its output is too long: it was killed"));
        }
        if has_ended && total == before {
            return Ok(());
        }
    }
}

/// A pipe to which a program in a container writes, and where it is copied to.
struct Output {
    pipe: OwnedFd,
    printable: Printable,
    to: Box<dyn Write>,
}

impl Output {
    fn new(pipe: OwnedFd, to: Box<dyn Write>) -> Result<Self, Error> {
        // The container can read from the pipe too.
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK).context("fcntl(F_SETFL) of a pipe")?;
        Ok(Self { pipe, printable: Printable::default(), to })
    }

    /// Copies what is there, and returns how much that is. `None` at its end.
    fn copy(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let length = match rustix::io::read(&self.pipe, &mut *buffer) {
            Ok(0) => return Ok(None),
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Some(0)),
            Err(errno) => return Err(errno).context("read of its output"),
        };
        let text = self.printable.convert(&buffer[..length]);
        let written = self.to.write_all(text.as_bytes()).and_then(|()| self.to.flush());
        unless_closed(written).map_err(|error| Error::new(Errno::IO, error.to_string()))?;
        Ok(Some(length))
    }
}

/// What the children need.
struct Inside<'a> {
    caller: WholeCaller,
    /// A sealed copy of the program.
    program: OwnedFd,
    null: File,
    /// The host's `/proc`.
    proc: OwnedFd,
    arguments: &'a [CString],
}

impl Inside<'_> {
    /// Becomes the container's root and executes the program.
    fn execute(&self) -> Result<i32, Error> {
        self.caller.enter()?;
        if let Some(label) = &self.caller.facts.label {
            set_label(self.proc.as_fd(), label)?;
        }
        close_on_exec_from(3, self.proc.as_fd()).context("close_range")?;
        self.caller.set_limits();
        let environment = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
        let errno = execute_open(&self.program, self.arguments, &environment);
        Err(Error::new(errno, format!("the program cannot be executed inside: fexecve: {errno}")))
    }
}

/// Forks a child that exits with the status that the function returns.
fn fork_to(run: impl FnOnce() -> Result<i32, Error>) -> Result<Pid, Error> {
    match fork().context("fork")? {
        Fork::Parent(child) => Ok(child),
        Fork::Child => {
            die_with_parent();
            exit(run().unwrap_or_else(|error| {
                output::complain(format_args!("ambit: {error}"));
                NOT_EXECUTED
            }))
        }
    }
}

/// Waits for a child. Returns its exit status.
fn wait(child: Pid) -> Result<i32, Error> {
    loop {
        match waitpid(child, None).map_err(to_errno) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::new(errno, format!("waitpid: {errno}"))),
        }
    }
}
