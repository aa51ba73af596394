//! The visitor: a process that accesses mounts for the server. It is this program under another
//! name.
//!
//! A server that looks names up in its own overlay and is killed meanwhile stays in state D
//! (`ambit_fuse::visit` explains why). The visitor is executed, so it has none of the server's
//! descriptors but the mounts, as its standard input and output. It ends at once, and is killed if
//! it does not answer in time.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use ambit_fuse::{Submount, Visit};
use ambit_kernel::sys::errno::to_errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The name under which the program is executed.
const NAME: &str = "ambit-visitor";

/// Looks names up in the overlay that is standard input.
const NAMES: &str = "names";
/// Asks the mount that is standard input whether its server answers.
const PROBE: &str = "probe";

/// True if the program was executed as the visitor.
pub fn is_its_name(program: Option<&OsString>) -> bool {
    program.is_some_and(|name| name == NAME)
}

/// Runs the visitor. The exit status is 0 or an errno.
pub fn main(what: Option<&OsString>) -> ExitCode {
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let visit = match what.and_then(|what| what.to_str()) {
        Some(NAMES) => Visit::Names { overlay: stdin.as_fd() },
        Some(PROBE) => Visit::Probe { mount: stdin.as_fd() },
        // The mount with this name is standard output, and is attached to the overlay.
        Some(name) => match Submount::ALL.into_iter().find(|submount| submount.name() == name) {
            Some(submount) => {
                Visit::Attach { overlay: stdin.as_fd(), submount, mount: stdout.as_fd() }
            }
            None => return ExitCode::FAILURE,
        },
        None => return ExitCode::FAILURE,
    };
    let errno = visit.run().err().map_or(0, Errno::raw_os_error);
    // All errnos that are possible here are below 256.
    ExitCode::from(u8::try_from(errno).unwrap_or(u8::MAX))
}

/// Runs the visitor as a child process; an [`ambit_fuse::Visitor`].
///
/// # Errors
/// The visitor's errno, the errno of starting it, or ETIMEDOUT.
pub fn in_child(visit: Visit<'_>, patience: Duration) -> rustix::io::Result<()> {
    let (what, input, output) = match visit {
        Visit::Names { overlay } => (NAMES, overlay, None),
        Visit::Attach { overlay, submount, mount } => (submount.name(), overlay, Some(mount)),
        Visit::Probe { mount } => (PROBE, mount, None),
    };
    let passed = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(Stdio::from).map_err(to_errno);
    let child = Command::new("/proc/self/exe")
        .arg0(NAME)
        .arg(what)
        .env_clear()
        .stdin(passed(input)?)
        .stdout(output.map_or_else(|| Ok(Stdio::null()), passed)?)
        .stderr(Stdio::null())
        .spawn()
        .map_err(to_errno)?;
    wait(child, patience)
}

fn wait(mut child: Child, patience: Duration) -> rustix::io::Result<()> {
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let patience = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    if retry_on_intr(|| poll(&mut ended, Some(&patience)))? == 0 {
        let _ = child.kill();
        // Even a killed process ends only when the mount answers.
        let reaper = std::thread::Builder::new().name("reaper".into());
        drop(reaper.spawn(move || child.wait()));
        return Err(Errno::TIMEDOUT);
    }
    let status = child.wait().map_err(to_errno)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code)),
        None => {
            tracing::debug!(signal = ?status.signal(), "the visitor was killed");
            Err(Errno::INTR)
        }
    }
}
