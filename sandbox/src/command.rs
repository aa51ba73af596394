//! The last steps of the child process before it executes the command.

use std::ffi::{CString, NulError, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use ambit_kernel::sys::close_range::close_on_exec_from;
use ambit_kernel::sys::errno::{description, to_errno};
use ambit_kernel::sys::remount::own_proc;
use ambit_kernel::sys::signal_defaults::restore_sigpipe;
use anyhow::{Context, Result};
use rustix::io::Errno;

use super::FAILED;
use super::options::Setup;
use super::terminal;

/// Why the command did not start.
#[derive(Debug)]
pub(super) struct NotStarted {
    /// In one line.
    pub(super) reason: String,
    /// The exit status, as env(1) defines it: 126 or 127.
    pub(super) status: i32,
}

/// Executes the command. Returns only if that fails.
pub(super) fn exec_command(setup: &Setup, folder: &Path, terminal: Option<&OwnedFd>) -> NotStarted {
    match prepare(setup, folder, terminal) {
        Ok((command, environment)) => {
            let Err(error) = nix::unistd::execvpe(&command[0], &command, &environment);
            not_started(&setup.command[0].to_string_lossy(), to_errno(error))
        }
        Err(error) => NotStarted {
            reason: format!("cannot start the command: {error:#}"),
            status: FAILED.into(),
        },
    }
}

fn not_started(name: &str, error: Errno) -> NotStarted {
    match error {
        Errno::NOENT => NotStarted {
            reason: format!("cannot run {name}: it is not in the sandbox"),
            status: 127,
        },
        error => {
            let why = description(error);
            NotStarted { reason: format!("cannot run {name}: {why}: execve"), status: 126 }
        }
    }
}

fn prepare(
    setup: &Setup,
    folder: &Path,
    terminal: Option<&OwnedFd>,
) -> Result<(Vec<CString>, Vec<CString>)> {
    let command = strings(setup.command.iter().cloned())?;
    let environment = strings(environment(std::env::vars_os(), folder))?;
    match terminal {
        Some(terminal) => terminal::take(terminal)?,
        // A process group of its own, so that it can be stopped and signals of a terminal reach all
        // of its processes.
        None => rustix::process::setpgid(None, None).context("setpgid")?,
    }
    restore_sigpipe().context("sigaction")?;
    setup.signals.restore_mask()?;
    let proc = own_proc().context("cannot open /proc")?;
    close_on_exec_from(3, proc).context("cannot have descriptors closed: close_range")?;
    Ok((command, environment))
}

/// Returns the caller's environment, with `PWD` set to the current folder.
fn environment(
    caller: impl Iterator<Item = (OsString, OsString)>,
    folder: &Path,
) -> impl Iterator<Item = OsString> {
    let line = |name: &OsString, value: &OsString| {
        let mut line = name.clone();
        line.push("=");
        line.push(value);
        line
    };
    let here = line(&"PWD".into(), &folder.into());
    caller
        .filter(|(name, _)| name != "PWD" && name != "OLDPWD")
        .map(move |(name, value)| line(&name, &value))
        .chain(std::iter::once(here))
}

fn strings(words: impl Iterator<Item = OsString>) -> Result<Vec<CString>, NulError> {
    words.map(|word| CString::new(word.into_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_the_callers_except_pwd() {
        let caller = [("PATH", "/bin"), ("PWD", "/old"), ("OLDPWD", "/older")];
        let caller = caller.into_iter().map(|(name, value)| (name.into(), value.into()));
        let lines: Vec<_> = environment(caller, Path::new("/new")).collect();
        assert_eq!(lines, ["PATH=/bin", "PWD=/new"]);
    }

    #[test]
    fn a_missing_command_is_127_and_one_that_cannot_be_executed_126() {
        let missing = not_started("frob", Errno::NOENT);
        assert_eq!(missing.status, 127);
        assert_eq!(missing.reason, "cannot run frob: it is not in the sandbox");
        assert_eq!(not_started("/etc/passwd", Errno::ACCESS).status, 126);
    }
}
