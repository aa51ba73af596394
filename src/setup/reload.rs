//! Has running daemons read what was written. None of them is restarted.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::files::Files;
use crate::config::Config;
use crate::control;

/// How long dockerd may take to read its file.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns the process id of the dockerd of this machine.
pub(super) fn docker(files: &Files) -> Option<i32> {
    if !files.are_own() {
        return None;
    }
    let text = files.read(Path::new("/run/docker.pid")).ok().flatten()?;
    let pid = text.trim().parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim_end() == "dockerd").then_some(pid)
}

/// Has dockerd read its file: it takes new runtimes and the default while containers run.
pub(super) fn reload_docker(files: &Files) -> anyhow::Result<bool> {
    let Some(pid) = docker(files).and_then(Pid::from_raw) else { return Ok(false) };
    let process = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    // The number is that of dockerd still.
    if docker(files).and_then(Pid::from_raw) != Some(pid) {
        return Ok(false);
    }
    pidfd_send_signal(process, Signal::HUP).context("pidfd_send_signal")?;
    Ok(true)
}

/// Has dockerd read this text of its file, and waits until it has. The file is replaced.
pub(super) fn give_docker(files: &Files, path: &Path, text: &str) -> anyhow::Result<()> {
    files.write(path, text)?;
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&inotify, path, WatchFlags::CLOSE_NOWRITE)?;
    if !reload_docker(files)? {
        return Ok(());
    }
    let timeout = Timespec::try_from(PATIENCE)?;
    let ready = poll(&mut [PollFd::new(&inotify, PollFlags::IN)], Some(&timeout))?;
    ensure!(ready > 0, "dockerd has not read {} after {} s", path.display(), PATIENCE.as_secs());
    Ok(())
}

/// Has the daemon of ambit read its configuration. False if it does not run.
pub(super) fn reload_ambit(files: &Files, config: &Config) -> anyhow::Result<bool> {
    let socket = config.socket("control.sock");
    if !files.are_own() || control::ask_status(&socket).is_err() {
        return Ok(false);
    }
    control::order(&socket, "reload").map(|()| true)
}
