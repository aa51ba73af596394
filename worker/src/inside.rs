//! Runs a static program of the host inside of a container, as the container's root.
//!
//! The program gets the namespaces, root and control groups of a process of the container, and no
//! right that the container's root lacks: the bounding set of that process, its AppArmor profile and
//! `no_new_privs`. It does not get a seccomp filter. Nothing of the container is executed or looked
//! up by a path before the process has these rights. Start reading at [`run_inside`].

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::output;
use ambit_kernel::sys::close_range::close_on_exec_from;
use ambit_kernel::sys::fork::{Fork, fork};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::caller::Caller;
use super::child::{die_with_parent, exit};
use super::error::{Context, Error};
use super::mount::{sealed, set_label};

/// The exit status if the program was not executed, as of `docker exec`.
const NOT_EXECUTED: i32 = 126;

/// Runs a static program with these arguments inside of the container of a process and waits for
/// its end. `process` is the folder of the process in `/proc`. Standard output and error are those
/// of this process. Returns the exit status; 128 plus the signal if the program was killed by one.
///
/// # Errors
/// The process has ended, or no child can be forked. What fails in the child is written to standard
/// error, and the status is 126.
pub fn run_inside(
    process: BorrowedFd<'_>,
    program: &File,
    arguments: &[CString],
) -> Result<i32, Error> {
    let (mut caller, maps) = Caller::pin(process)?;
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
    // Two children: the first enters the pid namespace, in which the second is made.
    let child = fork_to(|| {
        inside.caller.enter_others()?;
        if has_users {
            inside.caller.enter_user_namespace()?;
        }
        die_with_parent();
        fork_to(|| inside.execute()).and_then(wait)
    })?;
    wait(child)
}

/// What the children need.
struct Inside<'a> {
    caller: Caller,
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
        nix::unistd::dup2_stdin(&self.null).context("dup2 of /dev/null")?;
        close_on_exec_from(3).context("close_range")?;
        self.caller.set_limits();
        let environment = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
        let Err(errno) = nix::unistd::fexecve(&self.program, self.arguments, &environment);
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
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new(errno, format!("waitpid: {errno}"))),
        }
    }
}
