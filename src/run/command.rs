//! The last steps before the command's program takes over.

use std::ffi::{CString, NulError, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::init::Setup;
use super::{spawn, terminal};
use crate::sys::close_range::close_from;
use crate::sys::signal_defaults::restore_sigpipe;

/// Becomes the command. Returns only when that fails.
pub(super) fn become_it(setup: &Setup, folder: &Path, terminal: Option<&OwnedFd>) -> anyhow::Error {
    match prepare(setup, folder, terminal) {
        Ok((command, environment)) => {
            let Err(error) = nix::unistd::execvpe(&command[0], &command, &environment);
            let name = setup.command[0].display();
            let reason = match error {
                Errno::ENOENT => format!("cannot run {name}: it is not in the sandbox"),
                _ => format!("cannot run {name}"),
            };
            anyhow::Error::new(error).context(reason)
        }
        Err(error) => error,
    }
}

/// The exit status that tells why it failed, as env(1) has it.
pub(super) fn status_of(error: &anyhow::Error) -> i32 {
    match error.downcast_ref::<Errno>() {
        Some(Errno::ENOENT) => 127,
        Some(_) => 126,
        None => spawn::FAILED,
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
        // A group of its own, so that stopping it works and signals of a terminal reach all of it.
        None => rustix::process::setpgid(None, None).context("setpgid")?,
    }
    restore_sigpipe().context("sigaction")?;
    setup.signals.restore_mask()?;
    close_from(3).context("cannot close descriptors: close_range")?;
    Ok((command, environment))
}

/// The caller's, but for the current folder.
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
    fn the_environment_is_the_callers_but_for_the_folder() {
        let caller = [("PATH", "/bin"), ("PWD", "/old"), ("OLDPWD", "/older")];
        let caller = caller.into_iter().map(|(name, value)| (name.into(), value.into()));
        let lines: Vec<_> = environment(caller, Path::new("/new")).collect();
        assert_eq!(lines, ["PATH=/bin", "PWD=/new"]);
    }

    #[test]
    fn the_status_tells_why_a_command_did_not_start() {
        let status = |errno: Errno| status_of(&anyhow::Error::new(errno).context("cannot run x"));
        assert_eq!(status(Errno::ENOENT), 127);
        assert_eq!(status(Errno::EACCES), 126);
        assert_eq!(status_of(&anyhow::anyhow!("setpgid")), 125);
    }
}
