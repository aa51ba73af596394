//! Process 1 of a sandbox: enters the root, starts the command, and stays as its init.
//!
//! It forwards signals to the command, reaps orphans, and ends with the command's status; the kernel
//! then kills all other processes of the sandbox. It has no threads and keeps no descriptor of the
//! host but the standard ones. It must never do work for processes of the sandbox: the sandbox's
//! root can attack everything here.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ambit_kernel::output;
use ambit_kernel::sys::command_line;
use ambit_kernel::sys::errno::to_errno;
use ambit_kernel::sys::fork::{Fork, fork};
use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::channel::{Channel, Message};
use super::options::{Intercept, Setup};
use super::signals::{Signals, is_for_group};
use super::{FAILED, capabilities, command, terminal};

/// Runs init. Returns its exit status.
pub(super) fn main(channel: &Channel, setup: &Setup) -> i32 {
    match get_ready(channel, setup).and_then(|terminal| start(setup, terminal)) {
        Ok((child, _terminal)) => reap(channel, &setup.signals, child),
        Err(error) => {
            channel.fail(&error);
            i32::from(FAILED)
        }
    }
}

/// Enters the root and hands over what the caller needs. Returns the command's terminal.
fn get_ready(channel: &Channel, setup: &Setup) -> Result<Option<OwnedFd>> {
    channel.expect(&Message::Enter)?;
    let _ = rustix::thread::set_name(c"ambit-init");
    let _ = command_line::replace("ambit-init");
    if setup.own_users {
        // A copy of the builder's namespace that belongs to our user namespace: all mounts in it are
        // locked (mount_namespaces(7)).
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)
            .context("cannot make a mount namespace: unshare")?;
    } else {
        // This process runs the host's program, which root in the sandbox must not trace or read.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .context("cannot become undumpable: prctl")?;
    }
    // Leaves the caller's terminal: no process in the sandbox may type on it (TIOCSTI).
    rustix::process::setsid().context("cannot make a session: setsid")?;
    nix::unistd::sethostname(&setup.hostname).context("cannot set the host name: sethostname")?;

    let pair = if setup.terminal { Some(terminal::open_inside()?) } else { None };
    let install = |intercept: &Intercept| (intercept.0)().context("cannot intercept system calls");
    let listener = setup.intercept.as_ref().map(install).transpose()?;
    if !setup.own_users {
        capabilities::drop_most()?;
    }
    hand_over(channel, listener.as_ref(), pair.as_ref())?;
    // If init kept the listener, calls would block for ever after the end of the server, instead of
    // failing with ENOSYS.
    drop(listener);
    channel.expect(&Message::Go)?;
    Ok(pair.map(|pair| pair.slave))
}

fn hand_over(
    channel: &Channel,
    listener: Option<&OwnedFd>,
    pair: Option<&terminal::Pair>,
) -> Result<()> {
    let master = pair.map(|pair| &pair.master);
    let fds: Vec<_> = listener.into_iter().chain(master).map(AsFd::as_fd).collect();
    let ready = Message::Ready { listener: listener.is_some(), terminal: pair.is_some() };
    channel.send(&ready, &fds)
}

/// Starts the command. Init keeps its terminal open, so that the last output can still be read when
/// the command has ended.
fn start(setup: &Setup, terminal: Option<OwnedFd>) -> Result<(Pid, Option<OwnedFd>)> {
    let folder = if rustix::process::chdir(&setup.folder).is_ok() {
        setup.folder.as_path()
    } else {
        rustix::process::chdir("/").context("cannot change folder: chdir")?;
        Path::new("/")
    };
    match fork().context("cannot start the command: fork")? {
        Fork::Child => {
            let error = command::exec_command(setup, folder, terminal.as_ref());
            output::complain(format_args!("ambit: {}", error.reason));
            std::process::exit(error.status);
        }
        Fork::Parent(child) => {
            if terminal.is_some() {
                terminal::leave_host()?;
            }
            Ok((child, terminal))
        }
    }
}

/// Reaps processes until the command has ended.
fn reap(channel: &Channel, signals: &Signals, child: Pid) -> i32 {
    loop {
        while let Some(signal) = signals.next() {
            if signal != Signal::SIGCHLD {
                pass_on(child, signal);
            }
        }
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
        match waitpid(None, Some(flags)).map_err(to_errno) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return status,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
            Ok(WaitStatus::Stopped(pid, _)) if pid == child => {
                let _ = channel.send(&Message::Stopped, &[]);
            }
            Ok(WaitStatus::StillAlive) => {
                let mut wait = [PollFd::new(signals, PollFlags::IN)];
                let _ = poll(&mut wait, None);
            }
            // ECHILD: there are no children, so the command has ended.
            Err(Errno::CHILD) => return i32::from(FAILED),
            _ => {}
        }
    }
}

fn pass_on(child: Pid, signal: Signal) {
    // The command leads its own process group, unless it has not called setpgid(2) yet.
    let group = Pid::from_raw(-child.as_raw());
    if !(is_for_group(signal) && kill(group, signal).is_ok()) {
        // It may have ended just now.
        let _ = kill(child, signal);
    }
}
